"""Sources that know no types (CSV, SQLite): the texts that a mapping computes with become what all of their values are."""

from collections.abc import Iterable, Sequence

import duckdb

from features import texts
from features.ids import sql_text
from features.moments import to_local
from features.sql import name
from features.texts import Step


def typed(
    connection: duckdb.DuckDBPyConnection, relation: str, columns: Iterable[str], measures: Sequence[str], decimal: str | None, zone: str
) -> str:
    """A relation of texts whose given columns are numbers, moments or truth values where every value is one.

    Nothing is lost: a column of which two texts would become one number stays text, but where it is a number alone (``measures``).
    """
    steps = {column: _typed(connection, relation, column, column in measures, decimal, zone) for column in columns}
    return staged(relation, {column: some for column, some in steps.items() if some})


def _typed(
    connection: duckdb.DuckDBPyConnection, relation: str, column: str, measure: bool, decimal: str | None, zone: str
) -> tuple[Step, ...]:
    looks = texts.look(connection, relation, name(column))
    if not looks.known:
        return ()
    try:
        if looks.whole == looks.known:
            return sql_text, lambda x: f"CAST({x} AS BIGINT)"
        if looks.truths == looks.known:
            return texts.flag().steps
        if looks.points == looks.known or looks.commas == looks.known:
            steps = texts.number(looks, decimal, "DOUBLE").steps
            return steps if measure or _one_to_one(connection, relation, column, steps) else ()
        if looks.iso + looks.turned == looks.known:
            return (*texts.moment(looks, zone, None).steps, lambda x: _seen(x, looks, zone))
    except texts.Unclear:
        return ()
    return ()


def _seen(x: str, looks: texts.Looks, zone: str) -> str:
    """A moment in UTC as an expression shall see it: with its zone where the file has zones, else local."""
    if looks.zoned:
        return f"timezone('UTC', {x})"
    return f"CAST({to_local(x, zone)} AS DATE)" if looks.dates == looks.known else to_local(x, zone)


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
