"""Where tables lie -> rows in the engine: CSV, Parquet, DuckDB and SQL databases, object storage.

Only the columns that the mapping names are read, under their exact names. Texts stay texts; ids that a file keeps as decimals become
whole numbers again before anything else sees them.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from features import copies, csvfiles, databases, excel, texts
from features.databases import EXACT_FLOAT, EXACT_SINGLE
from features.errors import InputError, Unreadable
from features.loose import typed
from features.mapping import Dataset, Table
from features.moments import to_utc
from features.names import Names, Place
from features.sql import literal, name, parquet

FILE = "holdfast file"
"""Column of rows from several files: the number of the file."""
FLOATS = ("DOUBLE", "FLOAT")
_CSV = re.compile(r"\.(csv|tsv|txt)(\.(gz|zst|bz2|lz4))?$", re.IGNORECASE)
_EXCEL = re.compile(r"\.xls[xm]$", re.IGNORECASE)


@dataclass
class Rows:
    """Rows of a source: SQL to select from, the columns' SQL types by exact name, the files, and what was guessed of them.

    ``names`` are all columns of the source, read or not; ``overlaps`` tell which files repeat each other, where that was looked for.
    """

    sql: str
    types: dict[str, str]
    files: list[str] = field(default_factory=list)
    guesses: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    overlaps: list[copies.Overlap] = field(default_factory=list)


class Reader:
    """Reads the rows of one table of a mapping file."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, dataset: Dataset, key: str, table: Table) -> None:
        self.connection, self.dataset, self.key, self.table = connection, dataset, key, table
        self.place = Place(dataset, key)
        self.names = Names.of(self.place, table, key)

    def files(self) -> list[str]:
        """Local files that the table is read from; none for a server or a bucket."""
        table = self.table
        given = [table.path] if table.path else list(table.files.values())
        if table.database and "://" not in os.path.expandvars(table.database):
            given = [table.database]
        resolved = [self.dataset.resolve(path) for path in given]
        return [] if any("://" in path for path in resolved) else sorted({file for path in resolved for file in _found(path)})

    def rows(self, files: Sequence[str]) -> Rows:
        """The rows of the given files, or of all. Raises InputError naming key, value, rule and next step."""
        table = self.table
        if table.query is not None:
            guesses: list[dict[str, int]] = []
            overlaps: list[copies.Overlap] = []
            for alias, path in table.files.items():
                made = self._once_each(self._located(path, [], f"files.{alias}", f"_{self.key}_{alias}"), f"_{self.key}_{alias}_once")
                guesses.append({f"{alias}.{rule}": count for rule, count in made.guesses.items()})
                overlaps += made.overlaps
                shown = f"SELECT * EXCLUDE ({name(FILE)}) FROM {made.sql}"
                self.connection.execute(f"CREATE OR REPLACE TEMP VIEW {name(alias)} AS {shown}")
            return replace(self._described(f"({table.query})", "query", table.query), guesses=summed(guesses), overlaps=overlaps)
        if table.path is None:
            return self._database()
        rows = self._located(table.path, files, "path", f"_{self.key}_rows")
        return self._once_each(rows, f"_{self.key}_once") if table.group_by else rows

    def _once_each(self, rows: Rows, table: str) -> Rows:
        """Rows of several files that are added up or joined: which files repeat each other, and without that where the mapping says so."""
        if len(rows.files) < 2:
            return rows
        columns = list(rows.types)
        found = copies.overlaps(self.connection, rows.sql, columns, rows.files, FILE)
        if not found or self.table.duplicates != "drop":
            return replace(rows, overlaps=found)
        dropped = copies.drop_repeats(self.connection, rows.sql, name(table), columns, FILE)
        guesses = summed([rows.guesses, {"rows of a file that another file has too, dropped": dropped}])
        return replace(rows, sql=name(table), overlaps=found, guesses=guesses)

    def _located(self, path: str, files: Sequence[str], key: str, alias: str) -> Rows:
        if "://" in path:
            return self._objects(path, key, alias)
        if not (path.lower().endswith(".parquet") or _CSV.search(path) or _EXCEL.search(path)):
            raise self.place.error(key, path, "is neither Parquet, CSV nor Excel", "give *.parquet, *.csv, *.csv.gz or *.xlsx")
        found = list(files) or _found(self.dataset.resolve(path))
        if not found:
            raise self.place.error(key, path, "no such file", "check the path; it is relative to the mapping file")
        return self._parquet(found, key) if path.lower().endswith(".parquet") else self._texts(found, key, alias)

    def _parquet(self, files: Sequence[str], key: str) -> Rows:
        parts, schemas, every, old = [], [], [], list[str]()
        for file in files:
            try:
                given = pq.ParquetFile(file)
                names = given.schema_arrow.names
                relation = _relation(file, names)
                described = self.connection.sql(f"DESCRIBE SELECT * FROM {relation}").fetchall()
            except (OSError, pa.ArrowException, duckdb.Error) as error:
                problem = "is empty" if os.path.getsize(file) == 0 else f"cannot be read ({type(error).__name__})"
                raise self._spoilt(key, file, problem, "check that the file is whole") from None
            exact = [*names, *(row[0] for row in described[len(names) :])]  # beyond them: from the folders' names
            chosen = self.names.wanted(exact)
            types = {self.names.spelt(exact[place]): str(described[place][1]) for place in chosen}
            parts.append((relation, {self.names.spelt(exact[place]): str(described[place][0]) for place in chosen}))
            schemas.append(types)
            every += exact
            old += [f"{self.names.spelt(name)}: INT96 times, which tell no zone, taken as local" for name in _int96(given) if name in types]
        rows = self._united(files, parts, schemas)
        return replace(rows, names=_once(every), guesses=summed([rows.guesses, Counter(old)]))

    def _united(self, files: Sequence[str], parts: Sequence[tuple[str, dict[str, str]]], schemas: Sequence[dict[str, str]]) -> Rows:
        """Rows of several relations, each with its own types and names."""
        columns = _once(column for types in schemas for column in types)
        selects, counted = [], []
        for number, ((relation, own), types) in enumerate(zip(parts, schemas, strict=True)):
            shown = {c: shown_as(name(own[c]), types[c]) if self.names.is_text(c) else name(own[c]) for c in own}
            shown |= {c: zoned_as(name(own[c]), types[c], self.dataset.timezone) for c in own if c in _mixed_times(schemas)}
            listed = ", ".join(f"{shown.get(column, 'NULL')} AS {name(column)}" for column in columns)
            selects.append(f"SELECT {listed}{',' if columns else ''} {number} AS {name(FILE)} FROM {relation}")
            decimals = {c: name(own[c]) for c in own if self.names.is_text(c) and types[c] in FLOATS}
            counted.append(self._decimals(relation, decimals))
        rows = self._described(f"({' UNION ALL '.join(selects)})", "path", str(self.table.path), list(files))
        return replace(rows, guesses=summed([*counted, _lacking(columns, schemas)]))

    def _decimals(self, relation: str, columns: Mapping[str, str]) -> dict[str, int]:
        """How many ids of a relation are decimal numbers, and how many are not a number."""
        if not columns:
            return {}
        counts = ", ".join(f"count(*) FILTER (NOT isnan({x})), count(*) FILTER (isnan({x}))" for x in columns.values())
        found = self.connection.sql(f"SELECT {counts} FROM {relation}").fetchall()[0]
        words = [f"{column}: {rule}" for column in columns for rule in ("decimal numbers read as ids", "NaN taken as unknown")]
        return dict(zip(words, map(int, found), strict=True))

    def _texts(self, files: Sequence[str], key: str, alias: str) -> Rows:
        """Files that know no types: CSV and Excel."""
        forms = [(file, self._form(file, key)) for file in files]
        columns = _once(self.names.spelt(one.names[place]) for _, one in forms for place in self.names.wanted(one.names))
        defined = "".join(f"{name(column)} VARCHAR, " for column in columns)
        self.connection.execute(f"CREATE OR REPLACE TEMP TABLE {name(alias)} ({defined}{name(FILE)} INTEGER)")
        guesses = summed(one.guesses for _, one in forms)
        for number, (file, one) in enumerate(forms):
            chosen = self.names.wanted(one.names)
            into = ", ".join([*(name(self.names.spelt(one.names[place])) for place in chosen), name(FILE)])
            try:
                for batch in one.read(Path(file), chosen):
                    self.connection.register("_batch", pa.Table.from_batches([batch]))
                    self.connection.execute(f"INSERT INTO {name(alias)} ({into}) SELECT *, {number} FROM _batch")
                    self.connection.unregister("_batch")
            except Unreadable as error:
                raise self._spoilt(key, file, error.problem, error.fix) from None
            _count(
                guesses, "headers repeated inside a file, left out", self._without_headers(alias, number, [one.names[p] for p in chosen])
            )
        found = self._typed(alias)
        every = _once(one_name for _, one in forms for one_name in one.names)
        guesses |= _lacking(columns, [list(map(self.names.spelt, one.names)) for _, one in forms])
        return Rows(found.sql, found.types, list(files), summed([guesses, found.guesses]), every)

    def _typed(self, alias: str) -> Rows:
        """A table of texts with those typed that the mapping computes with, and uses for no id or other text."""
        rows = self._described(name(alias), "", "")
        computed = [c for c in rows.types if self.names.is_computed(c) and not self.names.is_text(c)]
        measures = [c for c in computed if self.names.is_measure(c)]
        try:
            relation, guesses = typed(self.connection, name(alias), computed, measures, self.table, self.dataset.timezone)
        except Unreadable as error:
            raise self.place.error("columns", ", ".join(computed), error.problem, error.fix) from None
        return replace(self._described(relation, "", ""), guesses=guesses)

    def _form(self, file: str, key: str) -> csvfiles.Form | excel.Sheet:
        found: csvfiles.Form | excel.Sheet
        try:
            if _EXCEL.search(file):
                found = excel.Sheet.of(Path(file), self.table.sheet)
            else:
                found = csvfiles.form(Path(file), sorted(self.names.every))
        except OSError as error:
            raise self._spoilt(key, file, f"cannot be read ({type(error).__name__})", "check the path and its rights") from None
        except Unreadable as error:
            raise self._spoilt(key, file, error.problem, error.fix) from None
        if not self.names.wanted(found.names):
            listed = ", ".join(sorted(text for text in self.table.columns.values()))
            raise self._spoilt(
                key, file, f"its first line names none of the mapped columns ({listed})", "give it a header line, or correct the mapping"
            )
        return found

    def _spoilt(self, key: str, file: str, problem: str, fix: str) -> InputError:
        """An error about one file of a path or glob."""
        given = str(self.table.path) if key == "path" else self.table.files[key.removeprefix("files.")]
        named = "" if Path(given).name == Path(file).name else f"{Path(file).name} "
        return self.place.error(key, given, named + problem, fix)

    def _without_headers(self, alias: str, number: int, names: Sequence[str]) -> int:
        same = " AND ".join(f"{name(self.names.spelt(column))} = {literal(column)}" for column in names)
        where = f"{name(FILE)} = {number} AND {same}"
        return int(self.connection.execute(f"DELETE FROM {name(alias)} WHERE {where}").fetchall()[0][0])

    def _objects(self, url: str, key: str, alias: str) -> Rows:
        """Parquet on object storage, streamed through Arrow's own S3 client (AWS_* variables, AWS_ENDPOINT_URL)."""
        import pyarrow.dataset as ds
        from pyarrow import fs

        try:
            scheme, where = url.split("://", 1)
            if scheme != "s3":
                raise ValueError(f"knows s3://, not {scheme}://")
            system = fs.S3FileSystem(endpoint_override=os.environ.get("AWS_ENDPOINT_URL"), region=os.environ.get("AWS_REGION"))
            files = ds.dataset(where, filesystem=system, format="parquet").files
            sets = [ds.dataset(file, filesystem=system, format="parquet") for file in files]
        except (OSError, ValueError, pa.ArrowException) as error:
            problem = f"cannot be read ({type(error).__name__})"
            raise self.place.error(key, url, problem, "check bucket, AWS_* and AWS_ENDPOINT_URL") from None
        parts, schemas = [], []
        for number, one in enumerate(sets):
            view, exact = f"{alias}_{number}", one.schema.names
            chosen = self.names.wanted(exact)
            fields = {f"c{place}": ds.field(exact[place]) for place in chosen}
            self.connection.register(view, one.scanner(columns=fields))
            described = self.connection.sql(f"DESCRIBE SELECT * FROM {name(view)}").fetchall()
            parts.append((name(view), {exact[place]: f"c{place}" for place in chosen}))
            schemas.append({exact[place]: str(row[1]) for place, row in zip(chosen, described, strict=True)})
        return self._united(files, parts, schemas)

    def _database(self) -> Rows:
        database, table = os.path.expandvars(str(self.table.database)), str(self.table.table)
        if "://" in database:
            return self._server(database, table)
        path = self.dataset.resolve(database)
        if not Path(path).is_file():
            raise self.place.error("database", str(self.table.database), "no such file", "give a DuckDB file or an SQLAlchemy URL")
        alias = name(f"_{self.key}_db")
        try:
            self.connection.execute(f"ATTACH IF NOT EXISTS {literal(path)} AS {alias} (READ_ONLY)")
            relation = ".".join([alias, *(name(part) for part in table.split("."))])
            described = self.connection.sql(f"DESCRIBE SELECT * FROM {relation}").fetchall()
        except duckdb.Error as error:
            problem = f"cannot be read: {first_line(error)}"
            raise self.place.error("table", f"{self.table.database} / {table}", problem, "check that it exists and is whole") from None
        names = [row[0] for row in described]
        chosen = self.names.wanted(names)
        own = {names[place]: names[place] for place in chosen}
        rows = self._united([], [(relation, own)], [{names[place]: str(described[place][1]) for place in chosen}])
        return replace(rows, names=names)

    def _server(self, url: str, table: str) -> Rows:
        """A table of a database server; SQLite, which types values and not columns, as texts."""
        rows = f"_{self.key}_rows"
        self.connection.execute(f"DROP TABLE IF EXISTS {name(rows)}")
        try:
            for number, chunk in enumerate(databases.chunks(url, table, self.names.wanted, self.names.is_text)):
                verb = f"CREATE TEMP TABLE {name(rows)} AS" if number == 0 else f"INSERT INTO {name(rows)}"
                self.connection.register("_chunk", chunk)
                self.connection.execute(f"{verb} SELECT * FROM _chunk")
                self.connection.unregister("_chunk")
        except Unreadable as error:
            raise self.place.error("database", str(self.table.database), error.problem, error.fix) from None
        return self._typed(rows) if databases.is_loose(url) else self._described(name(rows), "table", table)

    def _described(self, relation: str, key: str, value: str, files: list[str] | None = None) -> Rows:
        try:
            described = self.connection.sql(f"DESCRIBE SELECT * FROM {relation}").fetchall()
        except duckdb.Error as error:
            fix = "check that it exists and is whole"
            raise self.place.error(key, value, f"cannot be read: {first_line(error)}", fix) from None
        return Rows(relation, {row[0]: str(row[1]) for row in described if row[0] != FILE}, files or [])


def shown_as(column: str, kind: str) -> str:
    """SQL of a column that holds ids or other texts as the mapping sees it: a decimal is the text of the whole number, NaN is null."""
    if kind in FLOATS:
        limit = EXACT_FLOAT if kind == "DOUBLE" else EXACT_SINGLE
        whole = f"CAST(CAST({column} AS HUGEINT) AS VARCHAR)"
        exact = f"CAST({column} AS DOUBLE) = trunc(CAST({column} AS DOUBLE)) AND abs({column}) < {limit}"
        other = f"CASE WHEN abs({column}) >= {limit} THEN error('digits lost') ELSE CAST({column} AS VARCHAR) END"
        return f"CASE WHEN isnan({column}) THEN NULL WHEN {exact} THEN {whole} ELSE {other} END"
    return f"CAST({column} AS VARCHAR)" if kind.startswith(("DECIMAL", "ENUM", "JSON", "UUID")) else column


def first_line(error: duckdb.Error) -> str:
    """The first line of an engine's message."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _found(path: str) -> list[str]:
    """Files of a path or a glob; a file whose own name looks like a glob is that file."""
    return [path] if os.path.isfile(path) else sorted(glob.glob(path, recursive=True))


def _relation(file: str, names: Sequence[str]) -> str:
    """A Parquet file as SQL; a folder called ``name=value`` is a column too, unless the file has one of that name."""
    folders = {match.casefold() for match in re.findall(r"([^/=]+)=[^/]*/", file)}
    own = folders & {one.casefold() for one in names}
    return f"read_parquet({literal(file)}, hive_partitioning = false)" if own else parquet([file])


def _int96(file: pq.ParquetFile) -> list[str]:
    """Columns of the type that old versions of Spark and Impala keep times in; one means UTC, the other local time."""
    columns = (file.schema.column(place) for place in range(len(file.schema.names)))
    return [column.path for column in columns if column.physical_type == "INT96"]


def _mixed_times(schemas: Sequence[Mapping[str, str]]) -> set[str]:
    """Columns that are dates, times, or times with a zone, not the same in all files."""
    kinds: dict[str, set[str]] = {}
    for types in schemas:
        for column, kind in types.items():
            kinds.setdefault(column, set()).add(kind)
    return {c for c, some in kinds.items() if len(some) > 1 and all(kind.startswith(("DATE", "TIMESTAMP")) for kind in some)}


def zoned_as(column: str, kind: str, zone: str) -> str:
    """SQL of a date or time as a moment with a zone: a bare date is the end of its day, a time without a zone is local."""
    if "ZONE" in kind:
        return column
    local = texts.end_of_day(column) if kind == "DATE" else f"CAST({column} AS TIMESTAMP)"
    return f"timezone('UTC', {to_utc(local, zone)})"


def _lacking(columns: Sequence[str], files: Sequence[Iterable[str]]) -> dict[str, int]:
    """How many files lack a column that another one has."""
    counts = {column: sum(column not in names for names in files) for column in columns}
    return {f"{column}: files without this column, taken as unknown there": count for column, count in counts.items()}


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _count(guesses: dict[str, int], rule: str, count: int) -> None:
    guesses[rule] = guesses.get(rule, 0) + count


def summed(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts of several parts added up; zero counts go."""
    found: dict[str, int] = {}
    for part in parts:
        for rule, count in part.items():
            _count(found, rule, count)
    return {rule: count for rule, count in found.items() if count}
