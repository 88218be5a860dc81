"""Source tables of a mapping file -> canonical tables (`schema.py`) in one DuckDB file."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from features.errors import InputError
from features.files import sha256_json
from features.mapping import Dataset, Table
from features.schema import SOURCES, TIME, Column


@dataclass(frozen=True)
class Loaded:
    """What was loaded: rows and an order-independent content hash of each canonical table."""

    rows: dict[str, int]
    hashes: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """One digest for all tables: equal data in any row order give an equal fingerprint."""
        return sha256_json(self.hashes)[:16]


def load(dataset: Dataset, database: Path) -> Loaded:
    """Create each mapped canonical table in the new DuckDB file ``database``.

    Raises InputError naming file, key, value and fix: unreadable source, unknown column, wrong type.
    """
    rows, hashes = {}, {}
    with duckdb.connect(str(database)) as connection:
        for name, table in dataset.tables.items():
            _Loader(connection, dataset, name, table).create()
            rows[name], hashes[name] = _summary(connection, name)
    return Loaded(rows, hashes)


def opened(database: Path) -> duckdb.DuckDBPyConnection:
    """A read-only connection to canonical tables written before."""
    if not database.exists():
        raise InputError(str(database), "no validated sources here", "run `holdfast validate` first")
    return duckdb.connect(str(database), read_only=True)


def tables(connection: duckdb.DuckDBPyConnection) -> tuple[str, ...]:
    """Names of the canonical tables present, in the order of the schema."""
    present = {row[0] for row in connection.sql("SELECT table_name FROM duckdb_tables()").fetchall()}
    return tuple(name for name in SOURCES if name in present)


def present(connection: duckdb.DuckDBPyConnection, dataset: Dataset) -> tuple[str, ...]:
    """What there is to compute features from: canonical tables, and mapped optional columns as ``table.column``."""
    there = tables(connection)
    optional = [
        f"{name}.{column.name}"
        for name in there
        for column in SOURCES[name].columns
        if not column.required and column.name in dataset.tables[name].columns
    ]
    return (*there, *optional)


def cast(expression: str, given: str, column: Column, timezone: str) -> str:
    """SQL that turns an expression of type ``given`` into the column's canonical type.

    A time with a zone becomes the shop's local time; a bare date becomes the end of its day, since only
    then are the day's events known.
    """
    if column.type == TIME and given == "TIMESTAMP WITH TIME ZONE":
        return f"timezone('{timezone}', {expression})"
    if column.type == TIME and given == "DATE":
        return f"CAST({expression} AS TIMESTAMP) + INTERVAL 1 DAY - INTERVAL 1 MICROSECOND"
    return f"CAST({expression} AS {column.type})"


def _summary(connection: duckdb.DuckDBPyConnection, name: str) -> tuple[int, str]:
    query = f'SELECT count(*), coalesce(sum(hash(t)::HUGEINT), 0) FROM "{name}" AS t'
    count, digest = connection.sql(query).fetchall()[0]
    return int(count), f"{count}:{digest:x}"


class _Loader:
    """Creates one canonical table; holds what every error has to name."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, dataset: Dataset, name: str, table: Table) -> None:
        self.connection, self.dataset, self.table = connection, dataset, table
        self.name, self.source = name, SOURCES[name]
        self.columns: list[str] = []

    def create(self) -> None:
        relation = self._relation()
        where = f"WHERE {self.table.where}" if self.table.where else ""
        group = f"GROUP BY {self.table.group_by}" if self.table.group_by else ""
        types = self._types(relation, where, group)
        selected = ", ".join(f'{self._select(column, types)} AS "{column.name}"' for column in self.source.columns)
        inner = ", ".join(f'({self._expression(text)}) AS "{name}"' for name, text in self.table.columns.items())
        query = f"SELECT {selected} FROM (SELECT {inner} FROM {relation} {where} {group})"
        try:
            self.connection.execute(f'CREATE TABLE "{self.name}" AS {query}')
        except duckdb.ConversionException:
            raise self._conversion_error(f"(SELECT {inner} FROM {relation} {where} {group})", types) from None
        except duckdb.Error as error:
            raise self._error("", "", f"cannot be read: {_first_line(error)}", "check that the files are whole") from None

    def _select(self, column: Column, types: dict[str, str]) -> str:
        if column.name in types:
            return cast(f'"{column.name}"', types[column.name], column, self.dataset.timezone)
        if column.default in types:
            return cast(f'"{column.default}"', types[column.default], column, self.dataset.timezone)
        return f"CAST({column.default} AS {column.type})"

    def _relation(self) -> str:
        path = self.table.path
        try:
            relation = self._database_table() if path is None else self._files(self.dataset.resolve(path))
            self.columns = [row[0] for row in self.connection.sql(f"DESCRIBE SELECT * FROM {relation}").fetchall()]
        except duckdb.Error as error:
            place = self.table.path or f"{self.table.database} / {self.table.table}"
            key = "path" if self.table.path else "table"
            raise self._error(key, place, f"cannot be read: {_first_line(error)}", "check that it exists and is whole") from None
        return relation

    def _files(self, path: str) -> str:
        quoted = path.replace("'", "''")
        if re.search(r"\.parquet$", path):
            return f"read_parquet('{quoted}', union_by_name = true)"
        if re.search(r"\.(csv|tsv|txt)(\.gz)?$", path):
            rows = f"_{self.name}_rows"  # read once: every query on a CSV guesses its types anew
            reader = f"read_csv('{quoted}', header = true, union_by_name = true, sample_size = -1)"
            self.connection.execute(f'CREATE TEMP TABLE "{rows}" AS SELECT * FROM {reader}')
            return f'"{rows}"'
        raise self._error("path", str(self.table.path), "is neither Parquet nor CSV", "give *.parquet, *.csv or *.csv.gz")

    def _database_table(self) -> str:
        database, name = os.path.expandvars(str(self.table.database)), str(self.table.table)
        if "://" in database:
            view = f"_{self.name}_rows"
            self.connection.register(view, self._sql_rows(database, name))
            return view
        path = self.dataset.resolve(database)
        if not Path(path).is_file():
            raise self._error("database", str(self.table.database), "no such file", "give a DuckDB file or an SQLAlchemy URL")
        alias = f"_{self.name}_db"
        self.connection.execute(f"ATTACH '{path}' AS {alias} (READ_ONLY)")
        return f'{alias}."{name}"'

    def _sql_rows(self, url: str, name: str) -> Any:
        import pandas as pd
        import sqlalchemy

        try:
            engine = sqlalchemy.create_engine(url)
            with engine.connect() as connection:
                return pd.read_sql_table(name, connection)
        except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
            reason = type(error).__name__  # the message may hold the URL and with it a password
            raise self._error("database", str(self.table.database), f"cannot read {name!r} ({reason})", "check URL and table") from None

    def _types(self, relation: str, where: str, group: str) -> dict[str, str]:
        for key, clauses in (("where", (where, "")), ("group_by", ("", group))):
            probe = f"DESCRIBE SELECT {'1' if group else '*'} FROM {relation} {clauses[0]} {clauses[1]}"
            if any(clauses):
                self._describe(probe, key, str(getattr(self.table, key)))
        types = {}
        for name, text in self.table.columns.items():
            probe = f"DESCRIBE SELECT ({self._expression(text)}) AS c FROM {relation} {where} {group}"
            types[name] = self._describe(probe, f"columns.{name}", text)[0][1]
        return types

    def _describe(self, query: str, key: str, value: str) -> list[Any]:
        try:
            return self.connection.sql(query).fetchall()
        except duckdb.Error as error:
            fix = f"use the source's columns: {', '.join(self.columns)}"
            raise self._error(key, value, _first_line(error), fix) from None

    def _expression(self, text: str) -> str:
        """The mapped text as SQL: a source column's bare name is quoted, so that any name will do."""
        return f'"{text}"' if text in self.columns else text

    def _conversion_error(self, rows: str, types: dict[str, str]) -> InputError:
        for name in types:
            column = self.source.column(name)
            query = f'SELECT count(*) FROM {rows} WHERE "{name}" IS NOT NULL AND TRY_CAST("{name}" AS {column.type}) IS NULL'
            try:
                bad = self.connection.sql(query).fetchall()[0][0]
            except duckdb.Error as error:
                return self._error(f"columns.{name}", self.table.columns[name], _first_line(error), "correct the expression")
            if bad:
                problem = f"{bad} row(s) cannot be read as {column.type} ({column.meaning})"
                return self._error(
                    f"columns.{name}", self.table.columns[name], problem, "convert it in the expression or filter with `where`"
                )
        return self._error("columns", "", "a value cannot be converted", "convert it in the expression")

    def _error(self, key: str, value: str, problem: str, fix: str) -> InputError:
        where = f"{self.dataset.file}: tables.{self.name}" + (f".{key} = {value!r}" if key else "")
        return InputError(where, problem, fix)


def _first_line(error: duckdb.Error) -> str:
    lines: Iterable[str] = str(error).splitlines()
    return next((line for line in lines if line.strip()), type(error).__name__)
