"""Rows of a source -> the canonical types, by one rule for every kind of source; what was guessed or mended is counted."""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from features import texts
from features.errors import InputError, Unreadable
from features.ids import sql_id, sql_text
from features.loose import staged
from features.mapping import Table
from features.moments import offsets, to_utc
from features.names import Place
from features.readers import FLOATS, first_line, shown_as
from features.schema import EXACT, FLAG, TEXT, TIME, Column, Source
from features.sql import name
from features.texts import Reading, Step, end_of_day

_WORDS = {TEXT: "a text", TIME: "a moment", EXACT: "a number", FLAG: "a truth value"}
_FIXES = {
    TIME: 'say how they are written, e.g. time_format = "%d.%m.%y %H:%M", convert them in the expression, or filter with `where`',
    EXACT: "take what is no digit off in the expression, e.g. \"regexp_replace(price, '[^0-9.-]', '', 'g')\", or filter with `where`",
}
_NESTED = ("STRUCT", "MAP", "UNION", "BLOB", "GEOMETRY")
_WHOLE_TYPES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT")


@dataclass(frozen=True)
class Converter:
    """Turns the mapped columns of one canonical table into their canonical types."""

    connection: duckdb.DuckDBPyConnection
    place: Place
    source: Source
    table: Table
    zone: str

    def create(self, mapped: str, types: dict[str, str], target: str, more: Sequence[str] = ()) -> dict[str, int]:
        """Write the temporary table ``target`` from a relation with the mapped columns (and ``more``); returns what was guessed, by rule.

        Raises InputError where a value cannot be read.
        """
        readings = {column: self._reading(mapped, self.source.column(column), kind) for column, kind in types.items()}
        # whether a text was there at all is kept beside its value: then a value that could not be read is found by one look
        texts_there = [c for c, kind in types.items() if kind == "VARCHAR" and self.source.column(c).type != TEXT]
        given = ", ".join(["*", *(f"{sql_text(name(column))} IS NOT NULL AS {name(column + ' known')}" for column in texts_there)])
        relation = staged(f"(SELECT {given} FROM {mapped})", {column: one.steps for column, one in readings.items()})
        selected = [f"{self._final(column, types)} AS {name(column.name)}" for column in self.source.columns]
        kept = [name(column) for column in more] + [name(column + " known") for column in texts_there]
        try:
            self.connection.execute(f"CREATE OR REPLACE TEMP TABLE {target} AS SELECT {', '.join([*selected, *kept])} FROM {relation}")
        except (duckdb.ConversionException, duckdb.OutOfRangeException, duckdb.InvalidInputException) as error:
            raise self._misread(mapped, types, error) from None
        except duckdb.Error as error:
            raise self.place.error("", "", f"cannot be read: {first_line(error)}", "check that the files are whole") from None
        self._all_read(target, texts_there)
        for column in texts_there:
            self.connection.execute(f"ALTER TABLE {target} DROP COLUMN {name(column + ' known')}")
        guesses = {f"{column}: {rule}": count for column, one in readings.items() for rule, count in one.guesses.items()}
        guesses |= self._mended(mapped, types) | self._clock_changes(mapped, readings)
        return {rule: count for rule, count in guesses.items() if count}

    def _reading(self, mapped: str, column: Column, kind: str) -> Reading:
        try:
            return self._of_kind(mapped, column, kind)
        except Unreadable as error:
            raise self._error(column.name, error.problem, error.fix) from None

    def _of_kind(self, mapped: str, column: Column, kind: str) -> Reading:
        if column.type == TEXT:
            return Reading(self._text_steps(column, kind), {})
        if kind == "VARCHAR":
            looks = texts.look(self.connection, mapped, name(column.name))
            if column.type == TIME:
                return texts.moment(looks, self.zone, self.table.time_format)
            return texts.flag() if column.type == FLAG else texts.number(looks, self.table.decimal, EXACT)
        if column.type == TIME:
            return self._time(column, kind)
        if column.type == FLAG and kind in _WHOLE_TYPES:
            return Reading((_flag_of_whole,), {})
        if column.type == FLAG and kind != "BOOLEAN":
            raise Unreadable(f"is {kind}, no truth value", "write it as a condition, e.g. \"state = 'x'\"")
        if kind in FLOATS:
            return Reading((lambda x: f"CAST(CASE WHEN NOT isnan({x}) THEN {x} END AS {column.type})",), {})
        return Reading((lambda x: f"CAST({x} AS {column.type})",), {})

    def _text_steps(self, column: Column, kind: str) -> tuple[Step, ...]:
        if kind.endswith("]") or kind.startswith(_NESTED):
            raise Unreadable(f"is {kind}, no text", "name the part of it that is the text")
        if column.name.endswith("_id") and kind == "BOOLEAN":
            raise Unreadable("is BOOLEAN, no id", "map the column that names the customer, order ...")
        clean = sql_id if column.name.endswith("_id") else sql_text
        if kind == "VARCHAR":
            return (clean,)
        return lambda x: f"CAST({shown_as(x, kind)} AS VARCHAR)", clean

    def _time(self, column: Column, kind: str) -> Reading:
        if kind == "TIMESTAMP WITH TIME ZONE":
            return Reading((lambda x: f"timezone('UTC', {x})",), {})
        if kind == "DATE":
            return texts.local_time((end_of_day,), self.zone)
        if kind.startswith("TIMESTAMP"):
            return texts.local_time((lambda x: f"CAST({x} AS TIMESTAMP)",), self.zone)
        fix = 'convert it: "to_timestamp(column)" for seconds since 1970, "strptime(column::VARCHAR, \'%Y%m%d\')" for 20240131'
        raise Unreadable(f"is {kind}, no moment", fix)

    def _final(self, column: Column, types: dict[str, str]) -> str:
        if column.name in types:
            return f"CAST({name(column.name)} AS {column.type})"
        if column.default in types:
            return f"CAST({name(column.default)} AS {column.type})"
        default = "NULL" if column.default in {c.name for c in self.source.columns} else column.default
        return f"CAST({default} AS {column.type})"

    def _all_read(self, target: str, columns: Sequence[str]) -> None:
        if not columns:
            return
        counts = ", ".join(f"count(*) FILTER ({name(c + ' known')} AND {name(c)} IS NULL)" for c in columns)
        for column, bad in zip(columns, self.connection.sql(f"SELECT {counts} FROM {target}").fetchall()[0], strict=True):
            if bad:
                raise self._unread(column, int(bad))

    def _unread(self, column: str, bad: int) -> InputError:
        found = self.source.column(column)
        problem = f"{bad:,} row(s) cannot be read as {_WORDS[found.type]} ({found.meaning})"
        return self._error(column, problem, _FIXES.get(found.type, "convert it in the expression or filter with `where`"))

    def _misread(self, mapped: str, types: dict[str, str], error: duckdb.Error) -> InputError:
        """Which column a conversion of the engine's failed at; never with the value that its own message names."""
        if "no flag" in str(error):
            flags = ", ".join(column for column in types if self.source.column(column).type == FLAG)
            return self.place.error("columns", flags, "a truth value is a number other than 0 and 1", "write it as a condition")
        if "digits lost" in str(error):
            ids = ", ".join(column for column in types if self.source.column(column).type == TEXT)
            fix = "export ids as text or whole numbers"
            return self.place.error("columns", ids, "an id was written as a decimal number too large to keep all its digits", fix)
        for column, kind in types.items():
            target = self.source.column(column).type
            if target == TEXT or kind == "VARCHAR":
                continue
            query = f"SELECT count(*) FROM {mapped} WHERE {name(column)} IS NOT NULL AND TRY_CAST({name(column)} AS {target}) IS NULL"
            try:
                bad = self.connection.sql(query).fetchall()[0][0]
            except duckdb.Error:
                return self._error(column, "a value cannot be computed", "correct the expression")
            if bad:
                return self._unread(column, int(bad))
        return self.place.error("columns", "", "a value cannot be converted", "convert it in the expression")

    def _error(self, column: str, problem: str, fix: str) -> InputError:
        return self.place.error(f"columns.{column}", self.table.columns[column], problem, fix)

    def _mended(self, mapped: str, types: dict[str, str]) -> dict[str, int]:
        """How many ids and numbers were not taken as they stand."""
        rules: dict[str, str] = {}
        for column, kind in types.items():
            x = name(column)
            if self.source.column(column).type == TEXT and kind == "VARCHAR":
                clean = sql_id(x) if column.endswith("_id") else sql_text(x)
                rules[f"{column}: white space cut, Unicode composed, 12345.0 read as 12345"] = f"{x} <> coalesce({clean}, {x})"
                rules[f"{column}: white space alone taken as unknown"] = f"{x} <> '' AND {clean} IS NULL"
            if kind in FLOATS:
                rules[f"{column}: NaN taken as unknown"] = f"isnan({x})"
        return self._counted(mapped, rules)

    def _clock_changes(self, mapped: str, readings: dict[str, Reading]) -> dict[str, int]:
        """How many local times come twice or never: taken as the first of two, or moved on by the hour that was skipped."""
        if len(offsets(self.zone)) == 1:
            return {}
        local = {column: one.local for column, one in readings.items() if one.local}
        rules = {
            f"{column}: local times of a clock change, taken as the first of two or moved on": (
                f"{to_utc(name(column), self.zone)} <> {to_utc(name(column), self.zone, second=True)}"
            )
            for column in local
        }
        return self._counted(staged(mapped, local), rules)

    def _counted(self, relation: str, rules: dict[str, str]) -> dict[str, int]:
        """How many rows fulfil each condition."""
        if not rules:
            return {}
        counts = ", ".join(f"count(*) FILTER ({condition})" for condition in rules.values())
        return dict(zip(rules, map(int, self.connection.sql(f"SELECT {counts} FROM {relation}").fetchall()[0]), strict=True))


def _flag_of_whole(x: str) -> str:
    return f"CAST(CASE WHEN {x} IN (0, 1) THEN {x} WHEN {x} IS NOT NULL THEN error('no flag') END AS BOOLEAN)"
