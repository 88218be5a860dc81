"""Columns of a table from elsewhere, of whatever type they came in, read by one rule each; nothing is guessed.

- An id is `features.ids.canonical_id` of its text; a number is its digits, without a decimal part where it is whole.
- A moment is a date, a time, or a text in ISO 8601 (``2024-04-01``, ``2024-04-01T10:00:00+02:00``). With a zone or an offset it is
  converted to UTC, without one it is UTC; texts of one column all have one or none has.
- A label is 1, true, yes, y, t or churned, against 0, false, no, n, f or ``not churned``, ``active``, ``retained`` (in any case; one pair
  a column). Null, NaN and an empty text are not known yet.
- A number is an integer, float, decimal or bool, as a double; NaN is null.

What no rule reads is an InputError with a count, never a value.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import InputError
from features.ids import sql_id

MOMENT = pa.timestamp("us")
LABELS = (
    ("1", "0"),
    ("1.0", "0.0"),
    ("true", "false"),
    ("t", "f"),
    ("yes", "no"),
    ("y", "n"),
    ("churned", "not churned"),
    ("churned", "active"),
    ("churned", "retained"),
)
"""Texts of churned and not churned, without case."""
EXACT = float(2**53)
"""From here on a float does not hold every whole number."""


def ids(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Canonical ids as text; null where there is none."""
    texts = pa.table({"id": _id_texts(_plain(column), where)})
    with duckdb.connect() as connection:
        connection.register("texts", texts)
        return connection.sql(f"SELECT {sql_id('id')} AS id FROM texts").to_arrow_table()["id"].cast(pa.string())


def moments(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Moments in UTC, to the microsecond."""
    column = _plain(column)
    kind = column.type
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us", kind.tz and "UTC"), safe=False).cast(MOMENT)
    if pa.types.is_date(kind):
        return column.cast(MOMENT)
    if _is_text(kind):
        return _mapped(column.cast(pa.string()), lambda texts: _iso(texts, where), MOMENT)
    raise InputError(where, f"is {kind}, no moment", "give dates, times, or texts as YYYY-MM-DD or YYYY-MM-DDThh:mm:ss")


def labels(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """1.0 churned, 0.0 not, null not known yet."""
    column = _plain(column)
    if _is_text(column.type):
        return _mapped(column.cast(pa.string()), lambda texts: _pairs(texts, where), pa.float64())
    if not is_number(column.type):
        raise InputError(where, f"is {column.type}, no label", "use 1 for churned, 0 for not, null for not known yet")
    found = numbers(column)
    odd = pc.sum(pc.invert(pc.is_in(found.drop_null(), pa.array([0.0, 1.0])))).as_py() or 0
    if odd:
        raise InputError(where, f"{odd:,} values are neither 0 nor 1: no label", "use 1 for churned, 0 for not, null for not known yet")
    return found


def numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Doubles; null where not known."""
    found = _plain(column).cast(pa.float64(), safe=False)
    return pc.if_else(pc.is_nan(found), pa.scalar(None, pa.float64()), found)


def is_number(kind: pa.DataType) -> bool:
    """Whether `numbers` reads this type."""
    types = pa.types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column.cast(pa.string()) if pa.types.is_null(column.type) else column


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _id_texts(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    kind, types = column.type, pa.types
    if _is_text(kind) or types.is_integer(kind) or types.is_decimal(kind):
        return column.cast(pa.string())
    if types.is_floating(kind):
        return _whole_texts(numbers(column), where)
    if types.is_binary(kind) or types.is_large_binary(kind):
        try:
            return column.cast(pa.string())
        except pa.ArrowInvalid:
            raise InputError(where, "holds bytes that are no UTF-8 text", "give the ids as text") from None
    if kind == pa.uuid():
        return pa.chunked_array([pa.array([None if one is None else str(one) for one in column.to_pylist()], pa.string())])
    raise InputError(where, f"is {kind}, no id", "give the ids as text or whole numbers")


def _whole_texts(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    lost = pc.sum(pc.greater_equal(pc.abs(column), EXACT)).as_py() or 0
    if lost:
        raise InputError(where, f"{lost:,} ids are floats beyond 2^53, whose last digits are lost", "give the ids as text or integers")
    if pc.all(pc.equal(pc.floor(column), column)).as_py() is not False:
        return column.cast(pa.int64()).cast(pa.string())
    return column.cast(pa.string())


def _mapped(column: pa.ChunkedArray, rule: Any, kind: pa.DataType) -> pa.ChunkedArray:
    """Apply a rule to the different texts of a column: they are few."""
    different = pc.unique(column).drop_null()
    found = pa.array(rule(different.to_pylist()), kind)
    return pa.chunked_array([found.take(pc.index_in(column, different).combine_chunks())]) if len(found) else _nulls(column, kind)


def _nulls(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(len(column), kind)])


def _iso(texts: Sequence[str], where: str) -> list[datetime | None]:
    found: list[datetime | None] = []
    zoned: set[bool] = set()
    for text in map(str.strip, texts):
        if not text:
            found.append(None)
            continue
        try:
            moment = datetime.fromisoformat(text)
            zoned.add(moment.tzinfo is not None)
            found.append(moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment)
        except (ValueError, OverflowError):
            shape = re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "9", text))[:30]
            problem = f"texts of the form {shape!r} are no moments in ISO 8601; day and month could be taken for each other"
            raise InputError(where, problem, "write YYYY-MM-DD or YYYY-MM-DDThh:mm:ss, with an offset such as +02:00 or without") from None
    if len(zoned) > 1:
        raise InputError(where, "some moments have an offset and some have none", "write all of them with an offset, or all in UTC without")
    return found


def _pairs(texts: Sequence[str], where: str) -> list[float | None]:
    plain = [text.strip().casefold() for text in texts]
    used = set(plain) - {""}
    for churned, stayed in LABELS:
        if used <= {churned, stayed}:
            values = {churned: 1.0, stayed: 0.0}
            return [values.get(text) for text in plain]
    known = ", ".join("/".join(pair) for pair in LABELS)
    raise InputError(where, f"{len(used):,} different texts are no label", f"use one of these pairs: {known}; null for not known yet")
