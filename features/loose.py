"""Sources that know no types (CSV, SQLite): the texts that a mapping computes with become what all of their values are."""

from collections.abc import Iterable, Sequence

import duckdb

from features import texts
from features.errors import Unreadable
from features.ids import sql_text
from features.mapping import Table
from features.moments import to_local
from features.sql import literal, name
from features.texts import Step


def typed(
    connection: duckdb.DuckDBPyConnection, relation: str, columns: Iterable[str], measures: Sequence[str], table: Table, zone: str
) -> tuple[str, dict[str, int]]:
    """A relation of texts whose given columns are numbers, moments or truth values where every value is one, and what was guessed.

    Nothing is lost: a column of which two texts would become one number stays text, but where it is a number alone (``measures``).
    Raises Unreadable where a column leaves two readings, or where most but not all values can be read.
    """
    readings = {column: _typed(connection, relation, column, column in measures, table, zone) for column in columns}
    steps = {column: one.steps for column, one in readings.items() if one.steps}
    found = staged(relation, steps)
    for column in steps:
        query = f"SELECT count(*) FILTER ({sql_text(name(column))} IS NOT NULL) FROM {relation}"
        known = connection.sql(query).fetchall()[0][0]
        read = connection.sql(f"SELECT count({name(column)}) FROM {found}").fetchall()[0][0]
        if read < known:
            problem = f"{known - read:,} value(s) of {column} cannot be read as most of the column can"
            raise Unreadable(problem, "mend them, or convert the column in the expression")
    return found, {f"{column}: {rule}": count for column, one in readings.items() for rule, count in one.guesses.items() if count}


def _typed(connection: duckdb.DuckDBPyConnection, relation: str, column: str, measure: bool, table: Table, zone: str) -> texts.Reading:
    looks = texts.look(connection, relation, name(column))
    if not looks.known:
        return texts.Reading((), {})
    if looks.whole == looks.known:
        return texts.Reading((sql_text, lambda x: f"CAST({x} AS BIGINT)"), {})
    if looks.truths == looks.known:
        return texts.flag()
    if looks.points == looks.known or looks.commas == looks.known:
        found = texts.number(looks, table.decimal, "DOUBLE")
        alike = measure or (not looks.zeros and _one_to_one(connection, relation, column, found.steps))
        return found if alike else texts.Reading((), {})
    if table.time_format and _of_format(connection, relation, column, table.time_format) == looks.known:
        found = texts.moment(looks, zone, table.time_format)
        dates = not texts.has_clock(table.time_format)
        return texts.Reading((*found.steps, lambda x: _seen(x, "%z" in str(table.time_format), dates, zone)), {})
    if looks.iso + looks.turned == looks.known:
        found = texts.moment(looks, zone, None)
        return texts.Reading((*found.steps, lambda x: _seen(x, bool(looks.zoned), looks.dates == looks.known, zone)), found.guesses)
    return texts.Reading((), {})


def _of_format(connection: duckdb.DuckDBPyConnection, relation: str, column: str, time_format: str) -> int:
    query = f"SELECT count(try_strptime({sql_text(name(column))}, {literal(time_format)})) FROM {relation}"
    return int(connection.sql(query).fetchall()[0][0])


def _seen(x: str, zoned: bool, dates: bool, zone: str) -> str:
    """A moment in UTC as an expression shall see it: with its zone where the file has zones, else local."""
    if zoned:
        return f"timezone('UTC', {x})"
    return f"CAST({to_local(x, zone)} AS DATE)" if dates else to_local(x, zone)


def _one_to_one(connection: duckdb.DuckDBPyConnection, relation: str, column: str, steps: tuple[Step, ...]) -> bool:
    """Whether as many numbers as texts are there."""
    both = f"(SELECT {sql_text(name(column))} AS t, {name(column)} AS v FROM {relation})"
    numbers = staged(both, {"v": steps})
    distinct, values = connection.sql(f"SELECT count(DISTINCT t), count(DISTINCT v) FROM {numbers}").fetchall()[0]
    return bool(distinct == values)


def staged(relation: str, steps: dict[str, tuple[Step, ...]]) -> str:
    """A relation whose columns have taken their steps, one nested query after another."""
    for number in range(max(map(len, steps.values()), default=0)):
        taken = [f"{some[number](name(column))} AS {name(column)}" for column, some in steps.items() if number < len(some)]
        relation = f"(SELECT * REPLACE ({', '.join(taken)}) FROM {relation})"
    return relation
