"""The canonical tables on disk: immutable Parquet parts, and one small file that says which of them are in force.

Readers open the file that is in force and see that state whole, whatever a writer does meanwhile; any engine reads
the parts. A part is named after all that decides its content, so that unchanged source files are not read again.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import duckdb
import psutil

from features.errors import InputError
from features.files import read_json, sha256_json, write_json
from features.schema import SOURCES
from features.settings import Settings


@dataclass(frozen=True)
class Store:
    """Parts (file names under ``parts/``), rows and an order-independent content hash of each canonical table."""

    parts: dict[str, list[str]]
    rows: dict[str, int]
    hashes: dict[str, str]
    present: list[str]
    """Canonical tables, and mapped optional columns as ``table.column``."""
    key_check: str
    """Tells which pseudonym key was used, not the key."""
    customers: int
    """Customer ids with an order."""
    copies: dict[str, int]
    """Rows left out because they were copies of another (all but the arrival), by table."""
    clashes: dict[str, int]
    """Rows that share their key with a different row, by table, beyond the first."""

    @property
    def fingerprint(self) -> str:
        """One digest for all tables: equal data in any row order give an equal fingerprint."""
        return sha256_json(self.hashes)[:16]

    @classmethod
    def read(cls, file: Path) -> Self:
        """The store in force. Raises InputError when there is none."""
        if not file.exists():
            raise InputError(str(file), "no validated sources here", "run `holdfast validate` first")
        try:
            return cls(**read_json(file))
        except TypeError:
            raise InputError(str(file), "was written by another version of Holdfast", "remove it and run `holdfast validate`") from None

    def write(self, file: Path) -> None:
        """Put this store in force and remove parts that neither it nor the one before names."""
        kept = {*self.names(), *(Store.read(file).names() if file.exists() else ())}
        write_json(file, asdict(self))
        for part in folder_of(file).glob("*/*.parquet"):
            if f"{part.parent.name}/{part.name}" not in kept:
                part.unlink()

    def names(self) -> Iterable[str]:
        """All parts."""
        return [part for parts in self.parts.values() for part in parts]

    def paths(self, file: Path, table: str) -> list[str]:
        """Absolute paths of a table's parts."""
        return [str((folder_of(file) / part).resolve()) for part in self.parts[table]]

    def connect(self, file: Path) -> duckdb.DuckDBPyConnection:
        """A connection that sees the canonical tables as views."""
        connection = engine(file.parent / "spill")
        for table in self.parts:
            connection.execute(f'CREATE VIEW "{table}" AS SELECT * FROM {parquet(self.paths(file, table))}')
        return connection


def folder_of(file: Path) -> Path:
    """Where the parts of a store file lie."""
    return file.parent / "parts"


def parquet(paths: list[str]) -> str:
    """DuckDB's reader of some Parquet files."""
    listed = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    return f"read_parquet([{listed}])"


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
