"""The canonical tables on disk: immutable Parquet parts, and one small file that says which of them are in force.

Readers open the file that is in force and see that state whole, whatever a writer does meanwhile; any engine reads
the parts. A part is named after all that decides its content, so that unchanged source files are not read again.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import duckdb
import psutil
import pyarrow.parquet as pq

from features.errors import InputError
from features.files import read_json, sha256_json, write_json
from features.moments import to_local
from features.schema import SOURCES, TIME
from features.settings import Settings
from features.sql import literal, name, parquet

MOMENTS = "moments"
"""Schema of a connection with the canonical tables as they lie on the disk: in UTC, orders of nobody included."""
KINDS_OF_CUSTOMER = {"left_id": "left_kind", "right_id": "right_kind"}


@dataclass(frozen=True)
class Store:
    """Parts (file names under ``parts/``) of each canonical table, and what was counted while they were read."""

    parts: dict[str, list[str]]
    present: list[str]
    """Canonical tables, and mapped optional columns as ``table.column``."""
    key_check: str
    """Tells which pseudonym key was used, not the key."""
    timezone: str
    not_customers: list[str]
    """Pseudonyms of ids that stand for nobody."""
    facts: dict[str, dict[str, Any]]
    """By table: ``copies`` left out, ``clashes`` (rows that share their key with a different one, beyond the first), ``reading`` (what
    was guessed or mended, by rule), ``overlaps`` of files, ``placeholders``, ``hex_ids``."""
    folded: list[str] = field(default_factory=list)
    """Files with the pseudonyms (customer_id, person_id) of ids before and after their case was folded, if it is."""
    rows: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    """An order-independent content hash of each table."""
    customers: int = 0
    """Customer ids with an order."""
    years: tuple[int, int] = (1970, 2100)
    """First and last year of any moment."""

    @property
    def copies(self) -> dict[str, int]:
        """Rows left out because they were copies of another (all but the arrival), by table."""
        return {table: facts["copies"] for table, facts in self.facts.items()}

    @property
    def clashes(self) -> dict[str, int]:
        """Rows that share their key with a different row, by table, beyond the first."""
        return {table: facts["clashes"] for table, facts in self.facts.items()}

    @property
    def reading(self) -> dict[str, int]:
        """What was guessed, mended or dropped at reading, by ``table.column: rule``; no zeros."""
        return {f"{table}.{rule}": count for table, facts in self.facts.items() for rule, count in facts["reading"].items()}

    @property
    def hex_ids(self) -> bool:
        """Whether ids of the shop look like pseudonyms."""
        return any(facts["hex_ids"] for facts in self.facts.values())

    @property
    def fingerprint(self) -> str:
        """One digest for all tables: equal data in any row order give an equal fingerprint."""
        return sha256_json(self.hashes)[:16]

    def counted(self, file: Path) -> Self:
        """The same with rows, hashes, customers and years counted from its parts beside ``file``."""
        found = replace(self, years=_years(self.paths(file, table) for table in self.parts))
        rows, hashes = {}, {}
        with found.connect(file) as connection:
            for table in found.parts:
                query = f"SELECT count(*), coalesce(sum(hash(t)::HUGEINT), 0) FROM {name(table)} AS t"
                count, digest = connection.sql(query).fetchall()[0]
                rows[table], hashes[table] = int(count), f"{count}:{digest:x}"
            customers = connection.sql("SELECT count(DISTINCT customer_id) FROM orders").fetchall()[0][0]
        return replace(found, rows=rows, hashes=hashes, customers=int(customers))

    @classmethod
    def read(cls, file: Path) -> Self:
        """The store in force. Raises InputError when there is none."""
        if not file.exists():
            raise InputError(str(file), "no validated sources here", "run `holdfast validate` first")
        try:
            given = read_json(file)
            return cls(**given | {"years": tuple(given["years"])})
        except (TypeError, KeyError):
            raise InputError(str(file), "was written by another version of Holdfast", "remove it and run `holdfast validate`") from None

    def write(self, file: Path) -> None:
        """Put this store in force and remove parts that neither it nor the one before names."""
        kept = {_origin(part) for part in (*self.names(), *self._before(file))}
        write_json(file, asdict(self))
        for part in folder_of(file).glob("*/*.parquet"):
            if _origin(f"{part.parent.name}/{part.name}") not in kept:
                part.unlink()
        for told in folder_of(file).glob(f"*/*{REPEATS}"):
            if not {_origin(part) for part in read_json(told)["parts"]} <= kept:
                told.unlink()

    @classmethod
    def _before(cls, file: Path) -> Iterable[str]:
        try:
            return cls.read(file).names()
        except InputError:  # none, or of another version
            return ()

    def names(self) -> Iterable[str]:
        """All parts."""
        return [part for parts in self.parts.values() for part in parts]

    def paths(self, file: Path, table: str) -> list[str]:
        """Absolute paths of a table's parts."""
        return [str((folder_of(file) / part).resolve()) for part in self.parts[table]]

    def connect(self, file: Path) -> duckdb.DuckDBPyConnection:
        """A connection that sees the canonical tables as views, by the shop's calendar, and as they are in the schema ``moments``."""
        connection = engine(file.parent / "spill")
        connection.execute(f"CREATE SCHEMA {MOMENTS}")
        for table in self.parts:
            rows = f"{MOMENTS}.{name(table)}"
            connection.execute(f"CREATE VIEW {rows} AS SELECT * FROM {parquet(self.paths(file, table))}")
            connection.execute(f"CREATE VIEW {name(table)} AS {self.calendar(table, rows)}")
        return connection

    def calendar(self, table: str, rows: str) -> str:
        """SQL, for DuckDB and Spark, of a canonical table with local times and without the rows of nobody."""
        columns = SOURCES[table].columns
        shown = [f"{to_local(c.name, self.timezone, self.years)} AS {c.name}" if c.type == TIME else c.name for c in columns]
        out = ", ".join(literal(one) for one in self.not_customers)
        ids = [c.name for c in columns if c.id]
        kept = [f"({self._of_other_kind(id)}{id} IS NULL OR {id} NOT IN ({out}))" for id in ids] if out else []
        return f"SELECT {', '.join(shown)} FROM {rows}" + (f" WHERE {' AND '.join(kept)}" if kept else "")

    @staticmethod
    def _of_other_kind(id: str) -> str:
        return f"{KINDS_OF_CUSTOMER[id]} <> 'customer' OR " if id in KINDS_OF_CUSTOMER else ""


REPEATS = "-repeats.json"
"""End of the name of a file beside some parts that says how they repeat each other (`copies.across_files`)."""


def _origin(part: str) -> str:
    """What a part was made of: itself without copies, and the file beside it, have its name and more."""
    return part.removesuffix(".parquet").split("-")[0]


CASES = "-cases.parquet"
"""End of the name of a file beside a part of orders: see `cases_of`."""


def cases_of(part: Path) -> Path:
    """The file beside a part of orders that tells which ids differ by case alone (customer_id, person_id without capitals)."""
    return part.with_name(part.name.replace(".parquet", CASES))


def _years(tables: Iterable[list[str]]) -> tuple[int, int]:
    """First and last year of any moment in some files, by their own statistics."""
    found: set[int] = set()
    for path in (path for paths in tables for path in paths):
        meta = pq.read_metadata(path)
        columns = (meta.row_group(group).column(place) for group in range(meta.num_row_groups) for place in range(meta.num_columns))
        try:
            spans = [column.statistics for column in columns if column.statistics is not None and column.statistics.has_min_max]
            found |= {moment.year for span in spans for moment in (span.min, span.max) if hasattr(moment, "year")}
        except (ValueError, OverflowError):  # a moment that Python has no year for; the contract tells it
            return 1970, 2100
    return (max(min(found) - 1, 1), min(max(found) + 1, 9999)) if found else (1970, 2100)


def folder_of(file: Path) -> Path:
    """Where the parts of a store file lie."""
    return file.parent / "parts"


def engine(spill: Path | None = None, secret: bool = False) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB; what does not fit into ``HOLDFAST_MEMORY`` spills to a folder, encrypted where it is ``secret``.

    The key lives in memory only. DuckDB calls its built-in cipher unsafe for weak random numbers: it is a second
    line behind removing the folder, and costs several times the spill's time, so only persons' own ids are worth it.
    """
    limit = Settings().memory or f"{psutil.virtual_memory().total // 2 // 1024**2}MiB"
    config: dict[str, Any] = {"preserve_insertion_order": False, "memory_limit": limit}
    if secret:
        config |= {"temp_file_encryption": True, "force_mbedtls_unsafe": "true"}  # the safe cipher would have to be fetched
    if spill is not None:
        config["temp_directory"] = str(spill)
    return duckdb.connect(config=config)


def opened(file: Path) -> duckdb.DuckDBPyConnection:
    """A connection to the canonical tables in force."""
    return Store.read(file).connect(file)


def tables(present: Iterable[str]) -> tuple[str, ...]:
    """The canonical tables among ``present``, in the order of the schema."""
    there = set(present)
    return tuple(name for name in SOURCES if name in there)
