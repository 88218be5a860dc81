"""A feature table that another feature store built: checked, and put in force as if Holdfast had built it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import InputError
from features.files import replacing, sha256, write_json
from features.snapshots import Split
from features.table import KEYS, LABEL, Manifest, store_manifest
from validation.stages import Places

FEWEST_ROWS = 100
"""Labelled rows of a snapshot below which nothing can be learnt or tested."""


@dataclass(frozen=True)
class Columns:
    """What the table calls its keys and its label, and the length of the label window."""

    customer: str = KEYS[0]
    snapshot: str = KEYS[1]
    label: str = LABEL
    horizon_days: int = 90


def accept(file: Path, columns: Columns, places: Places) -> Manifest:
    """Check a Parquet table of id, snapshot, label (1 churned, 0 not, null unlabelled) and numeric columns, and put it in force.

    The test is the last snapshot with labels. Raises InputError naming column, value, rule and next step; then the table before stays.
    """
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            str(file), f"cannot be read as Parquet: {error}", "give a Parquet file with id, snapshot, label and feature columns"
        ) from None
    names = _features(file, schema, columns)
    with duckdb.connect() as connection:
        connection.execute(f"CREATE VIEW given AS SELECT * FROM read_parquet('{str(file).replace(chr(39), chr(39) * 2)}')")
        for problem, fix in _problems(connection, columns, names):
            raise InputError(str(file), problem, fix)
        moments = _snapshots(connection, file, columns)
        rows = _rows(connection, columns, names)
    labelled = tuple(moment for moment, count in moments if count)
    horizon, test = timedelta(days=columns.horizon_days), labelled[-1]
    split = Split(horizon, labelled, test)
    if not split.calibration or not split.origins(split.calibration[-1], 1):
        span = f"{len(labelled)} labelled snapshots from {labelled[0]:%Y-%m-%d} to {test:%Y-%m-%d}"
        raise InputError(
            f"{file}: {columns.snapshot}",
            f"{span} are too few for a horizon of {columns.horizon_days} days",
            "bring earlier snapshots: training, validation, calibration and test need label windows one after another",
        )
    known = {"snapshots": labelled, "test": test, "latest": moments[-1][0], "columns": tuple(names)}
    manifest = Manifest(file.stem, "UTC", "XXX", columns.horizon_days, math.inf, 0.0, (), sha256(file)[:16], **known)  # type: ignore[arg-type]
    places.features.parent.mkdir(parents=True, exist_ok=True)
    with replacing(places.features) as temporary:
        pq.write_table(store_manifest(rows, manifest), temporary, compression="zstd")
    write_json(places.contract("features"), {"passed": True, "rules": len(RULES), "data_docs": "", "source": str(file)})
    return manifest


def _features(file: Path, schema: pa.Schema, columns: Columns) -> list[str]:
    keys = (columns.customer, columns.snapshot, columns.label)
    for option, name in zip(("--id-column", "--snapshot-column", "--label-column"), keys, strict=True):
        if name not in schema.names:
            raise InputError(
                f"{file}: column {name!r}", f"is not there; the table has {', '.join(schema.names[:12])} ...", f"name it with {option}"
            )
    numeric = [f.name for f in schema if pa.types.is_integer(f.type) or pa.types.is_floating(f.type) or pa.types.is_boolean(f.type)]
    names = [name for name in numeric if name not in keys and not name.startswith("__index_level_")]  # pandas writes its index too
    if not names:
        raise InputError(str(file), "has no numeric column besides its keys and label", "add features as numbers; encode texts before")
    return names


RULES = (
    "keys are there",
    "a customer has one row a snapshot",
    "labels are 0, 1 or null",
    "features are finite",
    "features are known somewhere",
)
"""What is checked."""


def _problems(connection: duckdb.DuckDBPyConnection, c: Columns, names: list[str]) -> Iterator[tuple[str, str]]:
    """Every broken rule with the next step."""
    nulls = _one(connection, f'SELECT count(*) FROM given WHERE "{c.customer}" IS NULL OR "{c.snapshot}" IS NULL')
    if nulls:
        yield f"{nulls:,} rows lack {c.customer} or {c.snapshot}", "drop these rows"
    copies = _one(connection, f'SELECT count(*) - count(DISTINCT ("{c.customer}", "{c.snapshot}")) FROM given')
    if copies:
        yield f"{copies:,} rows repeat a {c.customer} at a {c.snapshot}", "keep one row of each customer and snapshot"
    odd = _one(connection, f'SELECT any_value("{c.label}")::VARCHAR FROM given WHERE "{c.label}" NOT IN (0, 1)')
    if odd is not None:
        yield f"{c.label} = {odd} is no label", "use 1 for churned, 0 for not, null for not known yet"
    for name in names:
        infinite, known = connection.sql(f'SELECT count(*) FILTER (isinf("{name}"::DOUBLE)), count("{name}") FROM given').fetchall()[0]
        if infinite:
            yield f"column {name!r} holds {infinite:,} infinite values", "make them null or a number"
        if not known:
            yield f"column {name!r} is null everywhere", "leave it out"


def _snapshots(connection: duckdb.DuckDBPyConnection, file: Path, c: Columns) -> list[tuple[datetime, int]]:
    """Every snapshot and its labelled rows."""
    found = connection.sql(f'SELECT "{c.snapshot}"::TIMESTAMP AS t, count("{c.label}") FROM given GROUP BY t ORDER BY t').fetchall()
    few = [(moment, count) for moment, count in found if 0 < count < FEWEST_ROWS]
    if few:
        raise InputError(
            f"{file}: {few[0][0]:%Y-%m-%d}", f"has {few[0][1]} labelled rows", f"leave out snapshots with fewer than {FEWEST_ROWS}"
        )
    if not any(count for _, count in found):
        raise InputError(f"{file}: column {c.label!r}", "holds no label", "fill it with 0 and 1 where the label window has ended")
    return found


def _rows(connection: duckdb.DuckDBPyConnection, c: Columns, names: list[str]) -> pa.Table:
    wanted = ", ".join(f'"{name}"::DOUBLE AS "{name}"' for name in names)
    keys = f'"{c.customer}"::VARCHAR AS {KEYS[0]}, "{c.snapshot}"::TIMESTAMP AS {KEYS[1]}, "{c.label}"::DOUBLE AS {LABEL}'
    return connection.sql(f"SELECT {keys}, {wanted} FROM given ORDER BY {KEYS[1]}, {KEYS[0]}").to_arrow_table()


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> Any:
    return connection.sql(query).fetchall()[0][0]
