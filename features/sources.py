"""Source tables of a mapping file -> canonical tables (`schema.py`), pseudonymised, as Parquet parts (`store.py`).

read (`readers.py`) -> the mapping's expressions -> the canonical types (`convert.py`) -> pseudonyms -> copies left out (`copies.py`).
"""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb

from features import convert, copies
from features.files import sha256_json
from features.ids import PLACEHOLDERS, canonical_id
from features.mapping import Dataset, Table
from features.pseudonym import HEX_DIGITS, Pseudonyms
from features.readers import FILE, Reader, Rows, first_line, summed
from features.schema import SOURCES
from features.sql import literal, name, parquet
from features.store import CASES, Store, cases_of, engine, folder_of

FORMAT = 3
"""Raise it when the content of a part changes for the same input."""
DROPPED = "rows of a file that another file has too, dropped"
NOBODY = ""
"""Stands in ``identity.not_customers`` for rows without a customer."""


def load(dataset: Dataset, file: Path, pseudonyms: Pseudonyms) -> Store:
    """Write the parts of each mapped canonical table beside the store file ``file``, which is not written yet.

    Parts that exist already are not made again. Raises InputError naming file, key, value and fix: unreadable
    source, unknown column, wrong type.
    """
    parts: dict[str, list[str]] = {}
    facts: dict[str, dict[str, Any]] = {}
    folder = folder_of(file)
    with engine(file.parent / "spill", secret=dataset.personal) as connection:
        connection.execute(f"SET TimeZone = {literal(dataset.timezone)}")
        pseudonyms.install(connection)
        for key, table in dataset.tables.items():
            made = _Loader(connection, dataset, key, table, folder, pseudonyms).parts()
            parts[key], facts[key] = _without_copies(connection, key, table, made, folder)
        cases = _cases(folder, parts["orders"])
        facts["orders"]["cases"] = 0 if dataset.identity.fold_case else _differ_by_case(connection, cases, folder, parts["orders"])
    not_customers = sorted({pseudonyms(one) for one in not_customers_of(dataset)})
    folded = [f"{path.parent.name}/{path.name}" for path in cases] if dataset.identity.fold_case else []
    store = Store(parts, present(dataset), pseudonyms.check, dataset.timezone, not_customers, facts, folded)
    return store.counted(file)


def not_customers_of(dataset: Dataset) -> list[str]:
    """The canonical ids that stand for nobody."""
    return [canonical_id(one, dataset.identity.fold_case) for one in dataset.identity.not_customers]


def present(dataset: Dataset) -> list[str]:
    """What there is to compute features from: canonical tables, and mapped optional columns as ``table.column``."""
    optional = [
        f"{key}.{column.name}"
        for key in SOURCES
        for column in SOURCES[key].columns
        if key in dataset.tables and not column.required and column.name in dataset.tables[key].columns
    ]
    return [*(key for key in SOURCES if key in dataset.tables), *optional]


def _without_copies(
    connection: duckdb.DuckDBPyConnection, key: str, table: Table, parts: list[str], folder: Path
) -> tuple[list[str], dict[str, Any]]:
    """The parts without copies, and what was counted while the table was read."""
    made = [copies.facts_of(folder / part) for part in parts]
    if _keyed(key, table):
        found = copies.across(connection, SOURCES[key], parts, folder, FORMAT)
    else:
        found = copies.across_files(connection, SOURCES[key], parts, folder, table.duplicates == "drop")
    overlaps = [*(one for part in made for one in copies.overlaps_of(part["overlaps"])), *found.overlaps]
    return found.parts, {
        "copies": found.copies,
        "clashes": found.clashes,
        "reading": summed([*(part["reading"] for part in made), {DROPPED: found.dropped}]),
        "overlaps": [asdict(one) for one in overlaps],
        "duplicates": table.duplicates,
        **{name: sum(part.get(name, 0) for part in made) for name in ("placeholders", "quoted", "hex_ids")},
    }


def _keyed(key: str, table: Table) -> bool:
    """Whether a table's rows have a key, so that a copy can be told from a second event like the first."""
    return bool(SOURCES[key].key) and set(SOURCES[key].key) <= table.columns.keys()


def _cases(folder: Path, parts: list[str]) -> list[Path]:
    """The files beside some parts of orders that tell of ids which differ by case."""
    made = {part.split("-")[0].removesuffix(".parquet") for part in parts}  # parts without copies have longer names
    return [path for path in sorted((folder / "orders").glob(f"*{CASES}")) if f"orders/{path.name.removesuffix(CASES)}" in made]


def _differ_by_case(connection: duckdb.DuckDBPyConnection, known: list[Path], folder: Path, parts: list[str]) -> int:
    """Customers of orders whose id is another one's but for capitals."""
    if not known:
        return 0
    cases, orders = parquet(known), parquet(copies.paths(folder, parts))
    query = f"""SELECT count(DISTINCT id) - count(DISTINCT lowered) FROM (
        SELECT customer_id AS id, person_id AS lowered FROM {cases}
        UNION SELECT customer_id, customer_id FROM {orders} WHERE customer_id IN (SELECT person_id FROM {cases}))"""
    return int(connection.sql(query).fetchall()[0][0])


class _Loader:
    """Creates the parts of one canonical table."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, dataset: Dataset, key: str, table: Table, folder: Path, pseudonyms: Pseudonyms
    ) -> None:
        self.connection, self.dataset, self.table = connection, dataset, table
        self.key, self.source = key, SOURCES[key]
        self.folder, self.pseudonyms = folder, pseudonyms
        self.reader = Reader(connection, dataset, key, table)
        self.folded = ""
        self.place = self.reader.place

    def parts(self) -> list[str]:
        """Names of the parts, made where they are missing."""
        return list(dict.fromkeys(self._part(files) for files in self._groups()))

    def _groups(self) -> Iterator[list[str]]:
        """Files that become one part: Parquet files one by one, everything else all together."""
        path = self.table.path
        if path is None or not path.lower().endswith(".parquet") or self.table.group_by or "://" in path:
            yield []
            return
        found = self.reader.files()
        if not found:
            raise self.place.error("path", path, "no such file", "check the path; it is relative to the mapping file")
        for file in found:
            yield [file]

    def _part(self, files: list[str]) -> str:
        part = f"{self.key}/{self._digest(files)}.parquet"
        if not (self.folder / part).exists():
            self._create(files, self.folder / part)
        return part

    def _digest(self, files: list[str]) -> str:
        """Digest of all that decides the part: definition, key, and each file's path, size and time of change."""
        definition = self.table.model_dump() | {"name": self.key, "timezone": self.dataset.timezone, "format": FORMAT}
        identity = [self.dataset.identity.fold_case, not_customers_of(self.dataset)]
        read = [name for file in files or self.reader.files() for name in (file, f"{file}.wal") if os.path.exists(name)]
        stats = [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in read]
        fresh = [] if stats else [os.urandom(16).hex()]  # a database or a bucket: read anew each time
        columns = [(column.name, column.type, column.default) for column in self.source.columns]
        return sha256_json([definition, identity, columns, stats, fresh, self.pseudonyms.check])[:24]

    def _create(self, files: list[str], path: Path) -> None:
        try:
            self._make(files, path)
        except duckdb.Error as error:  # its message may name a value
            problem = f"an expression or a condition cannot be computed for every row ({type(error).__name__})"
            raise self.place.error("", "", problem, "correct it; TRY_CAST leaves unknown what cannot be cast") from None

    def _make(self, files: list[str], path: Path) -> None:
        rows = self.reader.rows(files)
        mapped, types = self._mapped(rows)
        several = len(rows.files) > 1 and not self.table.group_by
        converter = convert.Converter(self.connection, self.place, self.source, self.table, self.dataset.timezone)
        guesses = converter.create(mapped, types, "_part", [FILE] if several else [])
        overlaps, dropped = self._repeats(rows.files) if several else (rows.overlaps, 0)
        reading = summed([rows.guesses, guesses, {DROPPED: dropped}])
        facts = {"reading": reading, "overlaps": [asdict(one) for one in overlaps]}
        self._write(path, facts | {"file": files[0] if len(files) == 1 else ""})

    def _mapped(self, rows: Rows) -> tuple[str, dict[str, str]]:
        """The mapping's expressions over the rows, as a relation, and their SQL types."""
        where = f"WHERE {self.table.where}" if self.table.where else ""
        group = f"GROUP BY {self.table.group_by}" if self.table.group_by else ""
        for key, clauses in (("where", (where, "")), ("group_by", ("", group))):
            if any(clauses):
                probe = f"DESCRIBE SELECT {'1' if group else '*'} FROM {rows.sql} {clauses[0]} {clauses[1]}"
                self._describe(probe, key, str(getattr(self.table, key)), rows)
        types = {}
        for column, text in self.table.columns.items():
            probe = f"DESCRIBE SELECT ({_expression(text, rows)}) AS c FROM {rows.sql} {where} {group}"
            types[column] = str(self._describe(probe, f"columns.{column}", text, rows)[0][1])
        inner = [f"({_expression(text, rows)}) AS {name(column)}" for column, text in self.table.columns.items()]
        if len(rows.files) > 1 and not group:
            inner.append(name(FILE))
        return f"(SELECT {', '.join(inner)} FROM {rows.sql} {where} {group})", types

    def _describe(self, query: str, key: str, value: str, rows: Rows) -> list[Any]:
        if ";" in re.sub(r"'(?:[^']|'')*'", "", value):
            raise self.place.error(key, value, "holds a semicolon", "write one SQL expression")
        try:
            return self.connection.sql(query).fetchall()
        except duckdb.Error as error:
            texts = [column for column, kind in rows.types.items() if kind == "VARCHAR"]
            words = f" (texts, to be cast before they are computed with: {', '.join(texts)})" if texts else ""
            raise self.place.error(
                key, value, first_line(error).split("\n")[0], f"use the source's columns: {', '.join(rows.names or rows.types)}{words}"
            ) from None

    def _repeats(self, files: list[str]) -> tuple[list[copies.Overlap], int]:
        """Which of the files repeat each other, of a table without a key; and how many rows were dropped, where the mapping says so."""
        found: list[copies.Overlap] = []
        dropped = 0
        if not _keyed(self.key, self.table):
            columns = [column.name for column in self.source.columns if not column.name.endswith("arrived_at")]
            found = copies.overlaps(self.connection, "_part", columns, files, FILE)
            if found and self.table.duplicates == "drop":
                dropped = copies.drop_repeats(self.connection, "_part", "_part", columns, FILE)
        self.connection.execute(f"ALTER TABLE _part DROP COLUMN {name(FILE)}")
        return found, dropped

    def _write(self, path: Path, facts: dict[str, Any]) -> None:
        """Write the part: persons' ids replaced, copies of a row left out."""
        ids = [column.name for column in self.source.columns if column.id]
        joins, replaced = "", []
        for number, column in enumerate(ids):  # each distinct id is hashed once
            kind = f'"{column.removesuffix("_id")}_kind"' if self.key == "identities" else "'customer'"
            self._canonical(column, kind)
            distinct = f"SELECT DISTINCT {kind} AS kind, {name(column)} AS id FROM _part WHERE {name(column)} IS NOT NULL"
            joins += f""" LEFT JOIN (SELECT kind, id, pseudonym(kind, id) AS p FROM ({distinct})) AS p{number}
                ON {kind} IS NOT DISTINCT FROM p{number}.kind AND _part.{name(column)} = p{number}.id"""
            replaced.append(f"p{number}.p AS {name(column)}")
        if self.key == "orders":
            facts |= self._suspects()
            self._write_cases(path)
        query = f"SELECT _part.* {'REPLACE (' + ', '.join(replaced) + ')' if replaced else ''} FROM _part{joins}"
        copied = copies.leave_out_of(self.connection, self.source, "_part") if _keyed(self.key, self.table) else 0
        copies.write_part(self.connection, query, path, facts | {"copies": copied})
        self.connection.execute("DROP TABLE _part")

    def _canonical(self, column: str, kind: str) -> None:
        """Customers' ids as the mapping's identity rules want them; nobody's rows get nobody's id where that is allowed."""
        identity = self.dataset.identity
        if self.key == "identities" and not identity.fold_case:
            return
        if identity.fold_case:
            self._define_fold()
            where = f"{kind} = 'customer' AND {name(column)} IS NOT NULL"
            ids = f"SELECT DISTINCT {name(column)} AS id FROM _part WHERE {where}"
            self.connection.execute(f"CREATE OR REPLACE TEMP TABLE folded AS SELECT id, fold_id(id) AS f FROM ({ids})")
            self.folded = "SELECT id, f FROM folded WHERE f <> id"
            changed = f"UPDATE _part SET {name(column)} = f FROM folded WHERE folded.id = _part.{name(column)} AND {where} AND f <> id"
            self.connection.execute(changed)
        if NOBODY in not_customers_of(self.dataset):
            self.connection.execute(f"UPDATE _part SET {name(column)} = '' WHERE {name(column)} IS NULL AND {kind} = 'customer'")

    def _define_fold(self) -> None:
        def fold_id(id: str) -> str:
            return canonical_id(id, fold_case=True)

        known = self.connection.sql("SELECT count(*) FROM duckdb_functions() WHERE function_name = 'fold_id'").fetchall()[0][0]
        if not known:
            self.connection.create_function("fold_id", fold_id, ["VARCHAR"], "VARCHAR")

    def _suspects(self) -> dict[str, int]:
        """Orders whose customer is a word for nobody, or still in quotes; and ids that look like pseudonyms."""
        words = ", ".join(map(literal, PLACEHOLDERS))
        out = ", ".join(map(literal, ["", *not_customers_of(self.dataset)]))
        counts = f"""SELECT count(*) FILTER (lower(customer_id) IN ({words}) AND customer_id NOT IN ({out})),
            count(*) FILTER (regexp_matches(customer_id, '^=?["'']')),
            count(DISTINCT customer_id) FILTER (regexp_full_match(customer_id, '[0-9a-f]{{{HEX_DIGITS}}}')) FROM _part"""
        found = self.connection.sql(counts).fetchall()[0]
        return dict(zip(("placeholders", "quoted", "hex_ids"), map(int, found), strict=True))

    def _write_cases(self, path: Path) -> None:
        """Keep, for ids with capitals, the pseudonym of the same id without: then ids that differ by case are found across parts.

        Where ids are folded it is the one before and the one after, so that what was told of either is found (`Store.folded`).
        """
        rows = (
            self.folded or "SELECT DISTINCT customer_id AS id, lower(customer_id) AS f FROM _part WHERE lower(customer_id) <> customer_id"
        )
        query = f"SELECT pseudonym('customer', id) AS customer_id, pseudonym('customer', f) AS person_id FROM ({rows})"
        copies.write_part(self.connection, query, cases_of(path))


def _expression(text: str, rows: Rows) -> str:
    """The mapped text as SQL: a source column's bare name is quoted, so that any name will do."""
    return name(text) if text in rows.types else text
