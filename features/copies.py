"""Copies: rows with a key that come twice, and files that repeat another's rows.

A copy of a row with a key has all of another's values but the arrival; the first arrival stays. In a table without a key a copied row
cannot be told from a second event like the first, but a copied file can: its rows stand in another file too.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from features.files import read_json, replacing, sha256_json, write_json
from features.schema import Source
from features.sql import literal, name, parquet
from features.store import REPEATS

LARGE_SHARE, LARGE_ROWS = 0.01, 10
"""So many rows of the smaller file, at least, make an overlap that is told."""
FACTS = "holdfast.facts"
"""Key of a part's metadata: what was counted when it was made."""


@dataclass(frozen=True)
class Overlap:
    """Rows of one file that repeat those of another one."""

    files: tuple[str, str]
    rows: int
    whole: bool
    """Whether the second file holds nothing else."""


@dataclass(frozen=True)
class Distinct:
    """The parts of a table without its copies, and what was counted."""

    parts: list[str]
    copies: int = 0
    """Rows left out, in parts and across: they had the key and the values of another."""
    clashes: int = 0
    """Rows that share their key with a different one, beyond the first: they stay, and the contract tells them."""
    overlaps: tuple[Overlap, ...] = ()
    dropped: int = 0
    """Rows left out because another file has them."""


def write_part(connection: duckdb.DuckDBPyConnection, query: str, path: Path, facts: dict[str, Any] | None = None) -> None:
    """Write a query's rows as one Parquet file, unless it is there already."""
    if path.exists():
        return
    told = literal(json.dumps(facts or {}))
    options = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 250000, KV_METADATA {{'{FACTS}': {told}}}"
    with replacing(path) as temporary:
        connection.execute(f"COPY ({query}) TO {literal(temporary)} ({options})")


def facts_of(path: Path) -> dict[str, Any]:
    """What was counted when a part was made."""
    found: dict[str, Any] = json.loads((pq.read_metadata(path).metadata or {}).get(FACTS.encode(), b"{}"))
    return found


def paths(folder: Path, parts: Sequence[str]) -> list[str]:
    """Absolute paths of parts."""
    return [str(folder / part) for part in parts]


def once(source: Source, rows: str) -> str:
    """SQL that merges rows equal in all but their arrival."""
    columns = [f'min("{c.name}") AS "{c.name}"' if c.name == "arrived_at" else f'"{c.name}"' for c in source.columns]
    return f"SELECT {', '.join(columns)} FROM {rows} GROUP BY ALL ORDER BY ALL"


def leave_out_of(connection: duckdb.DuckDBPyConnection, source: Source, table: str) -> int:
    """Merge rows of a temporary table that are copies of each other; returns how many went."""
    key = f'"{source.key[0]}"'
    twice = f"SELECT {key} AS k FROM {table} WHERE {key} IS NOT NULL GROUP BY {key} HAVING count(*) > 1"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE twice AS {twice}")
    connection.execute(f"CREATE OR REPLACE TEMP TABLE several AS FROM {table} SEMI JOIN twice ON {key} = k")
    before = connection.execute(f"DELETE FROM {table} WHERE {key} IN (SELECT k FROM twice)").fetchall()[0][0]
    if not before:
        return 0
    after = connection.execute(f"INSERT INTO {table} {once(source, 'several')}").fetchall()[0][0]
    return int(before - after)


def across(connection: duckdb.DuckDBPyConnection, source: Source, parts: Sequence[str], folder: Path, version: int) -> Distinct:
    """The parts of a table with a key, without copies across parts."""
    all_rows, key = parquet(paths(folder, parts)), f'"{source.key[0]}"'
    within = sum(facts_of(folder / part).get("copies", 0) for part in parts)
    # by hash first: rarely anything is left to look at
    twice = f"SELECT hash({key}) AS h FROM {all_rows} WHERE {key} IS NOT NULL GROUP BY h HAVING count(*) > 1"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE twice AS {twice}")
    affected = connection.sql(f"SELECT count(*) FROM {all_rows} SEMI JOIN twice ON hash({key}) = h").fetchall()[0][0]
    if not affected:
        return Distinct(list(parts), within)
    mark = sha256_json([list(parts), version, "copies"])[:24]
    merged = f"{source.name}/{mark}-once.parquet"
    write_part(connection, once(source, f"(FROM {all_rows} SEMI JOIN twice ON hash({key}) = h)"), folder / merged)
    kept = [_part_without(connection, folder, part, key, mark) for part in parts]
    count, keys = connection.sql(f"SELECT count(*), count(DISTINCT {key}) FROM {parquet([folder / merged])}").fetchall()[0]
    return Distinct([*kept, merged], within + int(affected - count), int(count - keys))


def _part_without(connection: duckdb.DuckDBPyConnection, folder: Path, part: str, key: str, mark: str) -> str:
    """The part itself, or a smaller one without the rows whose keys are in ``twice``."""
    path = parquet([folder / part])
    if not connection.sql(f"SELECT count(*) FROM {path} SEMI JOIN twice ON hash({key}) = h").fetchall()[0][0]:
        return part
    smaller = f"{part.removesuffix('.parquet')}-{mark[:8]}.parquet"
    write_part(connection, f"FROM {path} ANTI JOIN twice ON hash({key}) = h", folder / smaller)
    return smaller


def overlaps(
    connection: duckdb.DuckDBPyConnection, rows: str, columns: Sequence[str], files: Sequence[str], file: str, sizes: Sequence[int] = ()
) -> list[Overlap]:
    """Which files of a relation repeat each other's rows; ``file`` is the column with the file's number.

    ``sizes`` are the rows of each file where the relation has but some of them.
    Leaves the temporary table ``again`` (file, h, n): so many rows of a digest stand in an earlier file too.
    """
    listed = ", ".join(name(column) for column in columns)
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE digests AS SELECT {name(file)} AS file, hash({listed}) AS h, count(*) AS n FROM {rows} GROUP BY ALL"
    )
    pair = "digests AS a JOIN digests AS b ON a.h = b.h AND a.file < b.file"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE again AS SELECT b.file, b.h, max(a.n) AS n FROM {pair} GROUP BY ALL")
    totals = dict(connection.sql("SELECT file, sum(n) FROM digests GROUP BY file").fetchall())
    totals |= dict(enumerate(sizes))
    found = connection.sql(f"SELECT a.file, b.file, sum(least(a.n, b.n)) FROM {pair} GROUP BY ALL ORDER BY ALL").fetchall()
    kept = []
    for first, second, count in found:
        smaller = min(totals[first], totals[second])
        if count == smaller or (count >= LARGE_ROWS and count >= LARGE_SHARE * smaller):
            inner, outer = (second, first) if totals[second] <= totals[first] else (first, second)
            kept.append(Overlap((files[outer], files[inner]), int(count), bool(count == smaller)))
    return kept


def without_repeats(rows: str, columns: Sequence[str], file: str) -> str:
    """SQL of the rows of a relation that no earlier file has (`overlaps` comes first)."""
    listed = ", ".join(name(column) for column in columns)
    numbered = f"SELECT *, hash({listed}) AS h, row_number() OVER (PARTITION BY {name(file)}, hash({listed})) AS nth FROM {rows}"
    return f"""(SELECT r.* EXCLUDE (h, nth) FROM ({numbered}) AS r LEFT JOIN again ON again.file = r.{name(file)} AND again.h = r.h
        WHERE again.n IS NULL OR r.nth > again.n)"""


def drop_repeats(connection: duckdb.DuckDBPyConnection, rows: str, table: str, columns: Sequence[str], file: str) -> int:
    """Make a temporary table of the rows that no earlier file has; returns how many were dropped."""
    before = connection.sql(f"SELECT count(*) FROM {rows}").fetchall()[0][0]
    kept = connection.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS FROM {without_repeats(rows, columns, file)}").fetchall()[0][0]
    return int(before - kept)


def across_files(connection: duckdb.DuckDBPyConnection, source: Source, parts: Sequence[str], folder: Path, drop: bool) -> Distinct:
    """The parts of a table without a key, one a file, and which of them repeat each other; ``drop``: without the repeated rows.

    Only days, or orders, that stand in several parts are looked at. What was found is kept by the parts' names.
    """
    if len(parts) < 2:
        return Distinct(list(parts))
    mark = sha256_json([list(parts), drop, "repeats"])[:24]
    known = folder / source.name / f"{mark}{REPEATS}"
    if not known.exists() or not all((folder / part).exists() for part in read_json(known)["parts"]):
        write_json(known, _across_files(connection, source, parts, folder, mark if drop else None))
    found = read_json(known)
    return Distinct(found["parts"], overlaps=overlaps_of(found["overlaps"]), dropped=found["dropped"])


def overlaps_of(told: Sequence[dict[str, Any]]) -> tuple[Overlap, ...]:
    """Overlaps as JSON tells them."""
    return tuple(Overlap(tuple(one["files"]), one["rows"], one["whole"]) for one in told)


def _across_files(
    connection: duckdb.DuckDBPyConnection, source: Source, parts: Sequence[str], folder: Path, mark: str | None
) -> dict[str, Any]:
    group = f'CAST("{source.event_time}" AS DATE)' if source.event_time else f'"{source.parent[0]}"' if source.parent else "1"
    union = " UNION ALL ".join(f"SELECT *, {number} AS file_no FROM {parquet([folder / part])}" for number, part in enumerate(parts))
    several = f"SELECT g FROM (SELECT DISTINCT file_no, {group} AS g FROM ({union})) GROUP BY g HAVING count(*) > 1"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE shared_groups AS {several}")
    if not connection.sql("SELECT count(*) FROM shared_groups").fetchall()[0][0]:
        return {"parts": list(parts), "overlaps": [], "dropped": 0}
    rows = f"(SELECT * FROM ({union}) SEMI JOIN shared_groups ON g IS NOT DISTINCT FROM {group})"
    columns = [column.name for column in source.columns if not column.name.endswith("arrived_at")]
    names = [facts_of(folder / part).get("file", part) for part in parts]
    sizes = [pq.read_metadata(folder / part).num_rows for part in parts]
    told = overlaps(connection, rows, columns, names, "file_no", sizes)
    kept, dropped = list(parts), 0
    if mark is not None and told:
        for number, part in enumerate(parts):
            own = f"(SELECT *, {number} AS file_no FROM {parquet([folder / part])})"
            smaller = f"{part.removesuffix('.parquet')}-{mark[:8]}.parquet"
            query = f"SELECT * EXCLUDE (file_no) FROM {without_repeats(own, columns, 'file_no')}"
            write_part(connection, query, folder / smaller, facts_of(folder / part))
            dropped += sizes[number] - pq.read_metadata(folder / smaller).num_rows
            kept[number] = smaller
    return {"parts": kept, "overlaps": [asdict(one) for one in told], "dropped": dropped}
