"""Source tables of a mapping file -> canonical tables (`schema.py`), pseudonymised, as Parquet parts (`store.py`)."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from features.errors import InputError
from features.files import replacing, sha256_json
from features.mapping import Dataset, Table
from features.pseudonym import Pseudonyms
from features.schema import SOURCES, TIME, Column, Source
from features.store import Store, engine, folder_of, parquet

FORMAT = 2
"""Raise it when the content of a part changes for the same input."""
DATABASE_CHUNK_ROWS = 100_000


def load(dataset: Dataset, file: Path, pseudonyms: Pseudonyms) -> Store:
    """Write the parts of each mapped canonical table beside the store file ``file``, which is not written yet.

    Parts that exist already are not made again. Raises InputError naming file, key, value and fix: unreadable
    source, unknown column, wrong type.
    """
    parts: dict[str, list[str]] = {}
    rows, hashes, copies, clashes = {}, {}, {}, {}
    with engine(file.parent / "spill", secret=dataset.personal) as connection:
        pseudonyms.install(connection)
        for name, table in dataset.tables.items():
            made = _Loader(connection, dataset, name, table, folder_of(file), pseudonyms.check).parts()
            parts[name], copies[name], clashes[name] = _without_copies(connection, name, made, folder_of(file))
            rows[name], hashes[name] = _summary(connection, _paths(folder_of(file), parts[name]))
        query = f"SELECT count(DISTINCT customer_id) FROM {parquet(_paths(folder_of(file), parts['orders']))}"
        customers = int(connection.sql(query).fetchall()[0][0])
    return Store(parts, rows, hashes, present(dataset), pseudonyms.check, customers, copies, clashes)


def present(dataset: Dataset) -> list[str]:
    """What there is to compute features from: canonical tables, and mapped optional columns as ``table.column``."""
    optional = [
        f"{name}.{column.name}"
        for name in SOURCES
        for column in SOURCES[name].columns
        if name in dataset.tables and not column.required and column.name in dataset.tables[name].columns
    ]
    return [*(name for name in SOURCES if name in dataset.tables), *optional]


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


def _paths(folder: Path, parts: list[str]) -> list[str]:
    return [str(folder / part) for part in parts]


def _summary(connection: duckdb.DuckDBPyConnection, paths: list[str]) -> tuple[int, str]:
    query = f"SELECT count(*), coalesce(sum(hash(t)::HUGEINT), 0) FROM {parquet(paths)} AS t"
    count, digest = connection.sql(query).fetchall()[0]
    return int(count), f"{count}:{digest:x}"


def _without_copies(connection: duckdb.DuckDBPyConnection, name: str, parts: list[str], folder: Path) -> tuple[list[str], int, int]:
    """The parts without copies across parts; how many copies went, in parts and across; and how many rows clash.

    A copy has the key and all values of another row but its arrival; the first arrival stays. Rows that share a key and
    differ all stay: the contract tells them.
    """
    source = SOURCES[name]
    if not source.key or not parts:
        return parts, 0, 0
    all_rows, key = parquet(_paths(folder, parts)), f'"{source.key[0]}"'
    within = sum(_copies_within(folder / part) for part in parts)
    # by hash first: rarely anything is left to look at
    twice = f"SELECT hash({key}) AS h FROM {all_rows} WHERE {key} IS NOT NULL GROUP BY h HAVING count(*) > 1"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE twice AS {twice}")
    affected = connection.sql(f"SELECT count(*) FROM {all_rows} SEMI JOIN twice ON hash({key}) = h").fetchall()[0][0]
    if not affected:
        return parts, within, 0
    mark = sha256_json([parts, FORMAT, "copies"])[:24]
    once = f"{name}/{mark}-once.parquet"
    _copy(connection, _once(source, f"(FROM {all_rows} SEMI JOIN twice ON hash({key}) = h)"), folder / once)
    kept = [_part_without(connection, folder, part, key, mark) for part in parts]
    count, keys = connection.sql(f"SELECT count(*), count(DISTINCT {key}) FROM {parquet([str(folder / once)])}").fetchall()[0]
    return [*kept, once], within + int(affected - count), int(count - keys)


def _once(source: Source, rows: str) -> str:
    """SQL that merges rows equal in all but their arrival."""
    columns = [f'min("{c.name}") AS "{c.name}"' if c.name == "arrived_at" else f'"{c.name}"' for c in source.columns]
    return f"SELECT {', '.join(columns)} FROM {rows} GROUP BY ALL ORDER BY ALL"


def _part_without(connection: duckdb.DuckDBPyConnection, folder: Path, part: str, key: str, mark: str) -> str:
    """The part itself, or a smaller one without the rows whose keys are in ``twice``."""
    path = parquet([str(folder / part)])
    if not connection.sql(f"SELECT count(*) FROM {path} SEMI JOIN twice ON hash({key}) = h").fetchall()[0][0]:
        return part
    smaller = f"{part.removesuffix('.parquet')}-{mark[:8]}.parquet"
    _copy(connection, f"FROM {path} ANTI JOIN twice ON hash({key}) = h", folder / smaller)
    return smaller


def _copies_within(path: Path) -> int:
    """How many copies were left out when a part was made."""
    return int((pq.read_metadata(path).metadata or {}).get(b"holdfast.copies", b"0"))


def _copy(connection: duckdb.DuckDBPyConnection, query: str, path: Path, copies: int = 0) -> None:
    """Write a query's rows as one Parquet file, unless it is there already."""
    if path.exists():
        return
    options = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 250000, KV_METADATA {{'holdfast.copies': '{copies}'}}"
    with replacing(path) as temporary:
        connection.execute(f"COPY ({query}) TO '{temporary}' ({options})")


class _Loader:
    """Creates the parts of one canonical table; holds what every error has to name."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, dataset: Dataset, name: str, table: Table, folder: Path, key_check: str
    ) -> None:
        self.connection, self.dataset, self.table = connection, dataset, table
        self.name, self.source = name, SOURCES[name]
        self.folder, self.key_check = folder, key_check
        self.columns: list[str] = []

    def parts(self) -> list[str]:
        """Names of the parts, made where they are missing."""
        return list(dict.fromkeys(self._part(files) for files in self._groups()))

    def _groups(self) -> Iterator[list[str]]:
        """Files that become one part: Parquet files one by one, everything else all together."""
        path = self.table.path
        if path is None or not path.endswith(".parquet") or self.table.group_by or "://" in path:
            yield []
            return
        found = sorted(glob.glob(self.dataset.resolve(path), recursive=True))
        if not found:
            raise self._error("path", path, "no such file", "check the path; it is relative to the mapping file")
        for file in found:
            yield [file]

    def _part(self, files: list[str]) -> str:
        part = f"{self.name}/{self._digest(files)}.parquet"
        if not (self.folder / part).exists():
            self._create(files, self.folder / part)
        return part

    def _digest(self, files: list[str]) -> str:
        """Digest of all that decides the part: definition, key, and each file's path, size and time of change."""
        definition = self.table.model_dump() | {"name": self.name, "timezone": self.dataset.timezone, "format": FORMAT}
        stats = [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files or self._local_files()]
        fresh = [] if stats else [os.urandom(16).hex()]  # a database or a bucket: read anew each time
        columns = [(column.name, column.type, column.default) for column in self.source.columns]
        return sha256_json([definition, columns, stats, fresh, self.key_check])[:24]

    def _local_files(self) -> list[str]:
        given = [self.table.path] if self.table.path else list(self.table.files.values())
        if self.table.database and "://" not in os.path.expandvars(self.table.database):
            given = [self.table.database]
        resolved = [self.dataset.resolve(path) for path in given]
        return (
            [] if any("://" in path for path in resolved) else sorted(file for path in resolved for file in glob.glob(path, recursive=True))
        )

    def _create(self, files: list[str], path: Path) -> None:
        relation = self._relation(files)
        where = f"WHERE {self.table.where}" if self.table.where else ""
        group = f"GROUP BY {self.table.group_by}" if self.table.group_by else ""
        types = self._types(relation, where, group)
        selected = ", ".join(f'{self._select(column, types)} AS "{column.name}"' for column in self.source.columns)
        inner = ", ".join(f'({self._expression(text)}) AS "{name}"' for name, text in self.table.columns.items())
        mapped = f"(SELECT {inner} FROM {relation} {where} {group})"
        try:
            self._write(f"SELECT {selected} FROM {mapped}", path)
        except (duckdb.ConversionException, duckdb.OutOfRangeException):
            raise self._conversion_error(mapped, types) from None
        except duckdb.Error as error:
            raise self._error("", "", f"cannot be read: {_first_line(error)}", "check that the files are whole") from None

    def _write(self, rows: str, path: Path) -> None:
        """Write the part: persons' ids replaced, copies of a row left out."""
        self.connection.execute(f"CREATE OR REPLACE TEMP TABLE _part AS {rows}")
        ids = [column.name for column in self.source.columns if column.id]
        joins, replaced = "", []
        for number, name in enumerate(ids):  # each distinct id is hashed once
            kind = f'"{name.removesuffix("_id")}_kind"' if self.name == "identities" else "'customer'"
            distinct = f'SELECT DISTINCT {kind} AS kind, "{name}" AS id FROM _part WHERE "{name}" IS NOT NULL'
            joins += f""" LEFT JOIN (SELECT kind, id, pseudonym(kind, id) AS p FROM ({distinct})) AS p{number}
                ON {kind} IS NOT DISTINCT FROM p{number}.kind AND _part."{name}" = p{number}.id"""
            replaced.append(f'p{number}.p AS "{name}"')
        query = f"SELECT _part.* {'REPLACE (' + ', '.join(replaced) + ')' if replaced else ''} FROM _part{joins}"
        _copy(self.connection, query, path, self._leave_copies_out() if self.source.key else 0)
        self.connection.execute("DROP TABLE _part")

    def _leave_copies_out(self) -> int:
        """Merge rows of the part that are copies of each other; returns how many went."""
        key = f'"{self.source.key[0]}"'
        twice = f"SELECT {key} AS k FROM _part WHERE {key} IS NOT NULL GROUP BY {key} HAVING count(*) > 1"
        self.connection.execute(f"CREATE OR REPLACE TEMP TABLE twice AS {twice}")
        self.connection.execute(f"CREATE OR REPLACE TEMP TABLE several AS FROM _part SEMI JOIN twice ON {key} = k")
        before = self.connection.execute(f"DELETE FROM _part WHERE {key} IN (SELECT k FROM twice)").fetchall()[0][0]
        if not before:
            return 0
        after = self.connection.execute(f"INSERT INTO _part {_once(self.source, 'several')}").fetchall()[0][0]
        return int(before - after)

    def _select(self, column: Column, types: dict[str, str]) -> str:
        if column.name in types:
            return cast(f'"{column.name}"', types[column.name], column, self.dataset.timezone)
        if column.default in types:
            return cast(f'"{column.default}"', types[column.default], column, self.dataset.timezone)
        default = "NULL" if column.default in {c.name for c in self.source.columns} else column.default
        return f"CAST({default} AS {column.type})"

    def _relation(self, files: list[str]) -> str:
        table = self.table
        try:
            if table.query is not None:
                relation = self._query(table.query)
            else:
                relation = self._database_table() if table.path is None else self._files(self.dataset.resolve(table.path), files)
            self.columns = [row[0] for row in self.connection.sql(f"DESCRIBE SELECT * FROM {relation}").fetchall()]
        except duckdb.Error as error:
            place = table.path or table.query or f"{table.database} / {table.table}"
            key = "path" if table.path else "query" if table.query else "table"
            raise self._error(key, place, f"cannot be read: {_first_line(error)}", "check that it exists and is whole") from None
        return relation

    def _query(self, query: str) -> str:
        for name, path in self.table.files.items():
            rows = self._files(self.dataset.resolve(path), [], name)
            self.connection.execute(f'CREATE OR REPLACE TEMP VIEW "{name}" AS SELECT * FROM {rows}')
        return f"({query})"

    def _files(self, path: str, files: list[str], name: str = "") -> str:
        if "://" in path:
            return self._objects(path, name)
        if re.search(r"\.parquet$", path):
            return f"read_parquet([{', '.join(map(_quoted, files or [path]))}], union_by_name = true)"
        if re.search(r"\.(csv|tsv|txt)(\.gz)?$", path):
            rows = f"_{self.name}{name}_rows"  # read once: every query on a CSV guesses its types anew
            reader = f"read_csv({_quoted(path)}, header = true, union_by_name = true, sample_size = -1)"
            self.connection.execute(f'CREATE OR REPLACE TEMP TABLE "{rows}" AS SELECT * FROM {reader}')
            return f'"{rows}"'
        raise self._error("path", path, "is neither Parquet nor CSV", "give *.parquet, *.csv or *.csv.gz")

    def _objects(self, url: str, name: str) -> str:
        """Parquet on object storage, streamed through Arrow's own S3 client (AWS_* variables, AWS_ENDPOINT_URL)."""
        import pyarrow as pa
        import pyarrow.dataset as ds
        from pyarrow import fs

        view = f"_{self.name}{name}_objects"
        try:
            endpoint = os.environ.get("AWS_ENDPOINT_URL")
            scheme, place = url.split("://", 1)
            if scheme != "s3":
                raise ValueError(f"knows s3://, not {scheme}://")
            system = fs.S3FileSystem(endpoint_override=endpoint, region=os.environ.get("AWS_REGION"))
            self.connection.register(view, ds.dataset(place, filesystem=system, format="parquet"))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._error("path", url, f"cannot be read ({type(error).__name__})", "check bucket, AWS_* and AWS_ENDPOINT_URL") from None
        return f'"{view}"'

    def _database_table(self) -> str:
        database, name = os.path.expandvars(str(self.table.database)), str(self.table.table)
        if "://" in database:
            rows = f"_{self.name}_rows"
            self.connection.execute(f'DROP TABLE IF EXISTS "{rows}"')
            for number, chunk in enumerate(self._sql_chunks(database, name)):
                verb = f'CREATE TEMP TABLE "{rows}" AS' if number == 0 else f'INSERT INTO "{rows}"'
                self.connection.register("_chunk", chunk)
                self.connection.execute(f"{verb} SELECT * FROM _chunk")
            return f'"{rows}"'
        path = self.dataset.resolve(database)
        if not Path(path).is_file():
            raise self._error("database", str(self.table.database), "no such file", "give a DuckDB file or an SQLAlchemy URL")
        alias = f"_{self.name}_db"
        self.connection.execute(f"ATTACH IF NOT EXISTS '{path}' AS {alias} (READ_ONLY)")
        return f'{alias}."{name}"'

    def _sql_chunks(self, url: str, name: str) -> Iterator[Any]:
        """A table of a database server in Arrow chunks of bounded size, types by its own catalogue."""
        import pyarrow as pa
        import sqlalchemy

        try:
            database = sqlalchemy.create_engine(url)
            schema, _, bare = name.rpartition(".")
            table = sqlalchemy.Table(bare, sqlalchemy.MetaData(), schema=schema or None, autoload_with=database)
            fields = pa.schema([(column.name, _arrow_type(column.type)) for column in table.columns])
            with database.connect().execution_options(stream_results=True, yield_per=DATABASE_CHUNK_ROWS) as connection:
                yield fields.empty_table()
                for rows in connection.execute(sqlalchemy.select(table)).partitions():
                    columns = zip(*rows, strict=True)
                    yield pa.table([pa.array(v, f.type) for v, f in zip(columns, fields, strict=True)], fields)
        except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError, pa.ArrowException) as error:
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


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _arrow_type(kind: Any) -> Any:
    """Arrow's type for a column of a database server; what is not known is read as text."""
    import pyarrow as pa
    import sqlalchemy.types as sql

    known = (
        (sql.Boolean, pa.bool_()),
        (sql.Integer, pa.int64()),
        (sql.Float, pa.float64()),
        (sql.Numeric, pa.decimal128(38, 10)),
        (sql.DateTime, pa.timestamp("us", tz="UTC") if getattr(kind, "timezone", False) else pa.timestamp("us")),
        (sql.Date, pa.date32()),
    )
    return next((arrow for base, arrow in known if isinstance(kind, base)), pa.string())


def _first_line(error: duckdb.Error) -> str:
    lines: Iterable[str] = str(error).splitlines()
    return next((line for line in lines if line.strip()), type(error).__name__)
