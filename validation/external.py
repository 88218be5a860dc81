"""A feature table that another feature store built: checked, and put in force as if Holdfast had built it.

Its columns are read by the rules of `reading.py`. Whatever fails, the table in force before stays.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import InputError
from features.files import replacing, sha256, write_json
from features.snapshots import Split
from features.table import EVENTS, KEYS, LABEL, NEXT_ORDER, WEEKLY, Manifest, read_manifest, store_manifest
from validation import reading
from validation.stages import Places

FEWEST_ROWS = 100
"""Labelled rows of a snapshot below which nothing can be learnt or tested."""
OWN = (*KEYS, LABEL, NEXT_ORDER, *WEEKLY, *EVENTS)
"""Names that mean something to Holdfast: no feature may bear them."""
INDEX = "__index_level_"
"""Head of the column that pandas writes its index to."""


@dataclass(frozen=True)
class Columns:
    """What the table calls its keys and its label, and the length of the label window."""

    customer: str = KEYS[0]
    snapshot: str = KEYS[1]
    label: str = LABEL
    horizon_days: int = 90

    @property
    def options(self) -> dict[str, str]:
        """The columns by the option that names them."""
        return {"--id-column": self.customer, "--snapshot-column": self.snapshot, "--label-column": self.label}


def accept(file: Path, columns: Columns, places: Places) -> Manifest:
    """Check a Parquet table of id, snapshot, label (see `reading.py`) and numeric columns, and put it in force.

    The test is the last snapshot with labels. Raises InputError naming column, rule and next step; then the table before stays.
    """
    _own_place(file, places)
    fix = "give a Parquet file with id, snapshot, label and feature columns"
    try:
        given = pq.ParquetFile(file)
        keys, features, left_out = _roles(file, given.schema_arrow, columns)
        rows = _rows(file, given, columns, keys, features)
    except (OSError, pa.ArrowException) as error:
        raise InputError(str(file), f"cannot be read as Parquet: {error}", fix) from None
    names = list(features)
    with duckdb.connect() as connection:
        connection.register("given", rows)
        for problem, step in _problems(connection, columns, names):
            raise InputError(str(file), problem, step)
        moments = _snapshots(connection, file, columns)
    labelled = tuple(moment for moment, known in moments if known)
    split = _split(file, columns, labelled)
    known = {"snapshots": labelled, "test": split.test, "latest": moments[-1][0], "columns": tuple(names)}
    manifest = Manifest(file.stem, "UTC", "XXX", columns.horizon_days, math.inf, 0.0, (), sha256(file)[:16], **known)  # type: ignore[arg-type]
    rows = rows.sort_by([(KEYS[1], "ascending"), (KEYS[0], "ascending")])
    rows = rows.rename_columns([*rows.column_names[: len(keys)], *names])
    with replacing(places.features) as temporary:
        pq.write_table(store_manifest(rows, manifest), temporary, compression="zstd")
    facts = {"passed": True, "rules": len(RULES), "data_docs": "", "source": str(file), "left_out": left_out}
    write_json(places.contract("features"), facts)
    return manifest


def in_force(file: Path, places: Places) -> Manifest:
    """The manifest of the table in force. Raises InputError where it is not that of the file."""
    fix = f"`holdfast train --dataset {file}` first"
    if not file.is_file():
        raise InputError(str(file), "no such file", "give the feature table that `holdfast train` learnt from")
    _own_place(file, places)
    manifest = read_manifest(places.features) if places.features.exists() else None
    if manifest is None:
        raise InputError(str(file), "nothing was trained on this table", fix)
    if manifest.data_fingerprint != sha256(file)[:16]:
        raise InputError(str(file), "has changed since it was trained on", fix)
    return manifest


def _own_place(file: Path, places: Places) -> None:
    """Refuse a file whose name differs from that of the table in force, but is written alike (``a-b`` and ``a_b``)."""
    try:
        before = read_manifest(places.features).dataset
    except (InputError, OSError, pa.ArrowException, KeyError, TypeError):  # none, or none that could be used
        return
    if before != file.stem:
        raise InputError(str(file), f"its name is written like that of {before!r}, which is in force", "rename the file")


def _roles(file: Path, schema: pa.Schema, columns: Columns) -> tuple[list[int], dict[str, int], list[str]]:
    """Positions of id, snapshot and label, those of the features by name, and the columns that are no features."""
    for option, name in columns.options.items():
        if schema.names.count(name) != 1:
            there = "is there more than once" if name in schema.names else f"is not there; the table has {', '.join(schema.names[:12])} ..."
            raise InputError(f"{file}: column {name!r}", there, f"name another with {option}")
    keys = [schema.names.index(name) for name in columns.options.values()]
    if len(set(keys)) < len(keys):
        raise InputError(str(file), "one column is named for two of id, snapshot and label", "name three columns")
    others = {place: field for place, field in enumerate(schema) if place not in keys and not field.name.startswith(INDEX)}
    for field in others.values():
        if field.name.casefold() in OWN:
            problem = f"is a name of Holdfast's own, beside {' '.join(f'{option} {name}' for option, name in columns.options.items())}"
            raise InputError(f"{file}: column {field.name!r}", problem, "rename it or leave it out, or name it with its option")
    features = {place: field.name for place, field in others.items() if reading.is_number(field.type)}
    _names(file, list(features.values()))
    left_out = [field.name for place, field in others.items() if place not in features]
    return keys, {name: place for place, name in features.items()}, left_out


def _names(file: Path, names: list[str]) -> None:
    """Refuse names that cannot be told apart, or not be told at all."""
    if not names:
        raise InputError(str(file), "has no numeric column besides its keys and label", "add features as numbers; encode texts before")
    seen: dict[str, str] = {}
    for name in names:
        if not name.strip() or not name.isprintable() or "{" in name or "}" in name:
            raise InputError(f"{file}: column {name!r}", "is no name: empty, or with braces or control characters", "rename it")
        if (before := seen.setdefault(name.casefold(), name)) != name or names.count(name) > 1:
            raise InputError(f"{file}: column {name!r}", f"differs from {before!r} by case at most", "rename one of them")


def _rows(file: Path, given: pq.ParquetFile, columns: Columns, keys: list[int], features: dict[str, int]) -> pa.Table:
    """The table by our rules, a row group at a time: customer_id, snapshot, churned, and the features as f0, f1 ..."""
    wanted = [*keys, *features.values()]
    plain = [f"c{place}" for place in range(len(wanted))]  # a table may name two columns alike
    groups = [given.read_row_group(number) for number in range(given.num_row_groups)]
    parts = [pa.table([group.column(place) for place in wanted], names=plain) for group in groups]
    empty = pa.table([pa.array([], given.schema_arrow.field(place).type) for place in wanted], names=plain)
    raw = pa.concat_tables(parts or [empty])
    where = [f"{file}: column {name!r}" for name in columns.options.values()]
    rows = {
        KEYS[0]: reading.ids(raw[plain[0]], where[0]),
        KEYS[1]: reading.moments(raw[plain[1]], where[1]),
        LABEL: reading.labels(raw[plain[2]], where[2]),
    }
    return pa.table(rows | {f"f{place}": reading.numbers(raw[name]) for place, name in enumerate(plain[len(keys) :])})


RULES = (
    "keys are there",
    "a customer has one row a snapshot",
    "labels are 0, 1 or null",
    "a snapshot has all labels or none, and both classes",
    "features are finite",
    "features are known somewhere",
)
"""What is checked."""


def _problems(connection: duckdb.DuckDBPyConnection, c: Columns, names: list[str]) -> Iterator[tuple[str, str]]:
    """Every broken rule with the next step."""
    if not _one(connection, "SELECT count(*) FROM given"):
        yield "has no rows", "export it again"
    nulls = _one(connection, f"SELECT count(*) FROM given WHERE {KEYS[0]} IS NULL OR {KEYS[1]} IS NULL")
    if nulls:
        yield f"{nulls:,} rows lack {c.customer} or {c.snapshot}", "drop these rows"
    copies = _one(connection, f"SELECT count(*) - count(DISTINCT ({KEYS[0]}, {KEYS[1]})) FROM given")
    if copies:
        yield f"{copies:,} rows repeat a {c.customer} at a {c.snapshot}", "keep one row of each customer and snapshot"
    for place, name in enumerate(names):
        infinite, known = connection.sql(f"SELECT count(*) FILTER (isinf(f{place})), count(f{place}) FROM given").fetchall()[0]
        if infinite:
            yield f"column {name!r} holds {infinite:,} infinite values", "make them null or a number"
        if not known:
            yield f"column {name!r} is null everywhere", "leave it out"


def _snapshots(connection: duckdb.DuckDBPyConnection, file: Path, c: Columns) -> list[tuple[datetime, int]]:
    """Every snapshot and its labelled rows. Raises InputError for one that nothing can be learnt from."""
    query = f"SELECT {KEYS[1]} AS t, count({LABEL}), count(*), coalesce(sum({LABEL}), 0)::BIGINT FROM given GROUP BY t ORDER BY t"
    counts = connection.sql(query).fetchall()
    _past(file, c, [found[0] for found in counts], [found[0] for found in counts if found[1]])
    for moment, known, rows, churned in (found for found in counts if found[1]):
        where = f"{file}: {moment:%Y-%m-%d}"
        if known < rows:
            raise InputError(
                where, f"{rows - known:,} of {rows:,} rows have no label", "label all rows of a snapshot or none; drop the others"
            )
        if known < FEWEST_ROWS:
            raise InputError(where, f"has {known} labelled rows", f"leave out snapshots with fewer than {FEWEST_ROWS}")
        if churned in (0, known):
            who = "nobody" if not churned else "everybody"
            raise InputError(where, f"{who} of {known:,} churned", f"leave this snapshot out, or look at {c.label} and --horizon-days")
    if not any(known for _, known, _, _ in counts):
        raise InputError(f"{file}: column {c.label!r}", "holds no label", "fill it with 0 and 1 where the label window has ended")
    return [(moment, known) for moment, known, _, _ in counts]


def _past(file: Path, c: Columns, moments: list[datetime], labelled: list[datetime]) -> None:
    """Refuse a snapshot of the future, and a label whose window has not ended; clocks may differ by a day."""
    now = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)
    if moments and moments[-1] > now:
        raise InputError(f"{file}: {moments[-1]:%Y-%m-%d}", "this snapshot lies in the future", f"mend or drop such a {c.snapshot}")
    if labelled and labelled[-1] > now - timedelta(days=c.horizon_days):
        problem = f"has labels, and its label window of {c.horizon_days} days has not ended"
        raise InputError(
            f"{file}: {labelled[-1]:%Y-%m-%d}", problem, "leave them null, or tell the length of the window with --horizon-days"
        )


def _split(file: Path, columns: Columns, labelled: tuple[datetime, ...]) -> Split:
    """The roles of the labelled snapshots; the last is the test."""
    split = Split(timedelta(days=columns.horizon_days), labelled, labelled[-1])
    if split.calibration and split.origins(split.calibration[-1], 1):
        return split
    span = f"{len(labelled)} labelled snapshots from {labelled[0]:%Y-%m-%d} to {labelled[-1]:%Y-%m-%d}"
    raise InputError(
        f"{file}: {columns.snapshot}",
        f"{span} are too few for a horizon of {columns.horizon_days} days",
        "bring earlier snapshots: training, validation, calibration and test need label windows one after another",
    )


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    return int(connection.sql(query).fetchall()[0][0])
