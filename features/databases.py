"""A table of a database server (any SQLAlchemy URL) in Arrow chunks of bounded size; only the columns that are wanted are asked for."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from features.errors import Unreadable

CHUNK_ROWS = 100_000
EXACT_FLOAT, EXACT_SINGLE = 2**53, 2**24
"""Whole numbers below are exact as floats, of 64 and of 32 bits."""


def is_loose(url: str) -> bool:
    """Whether the database types values and not columns."""
    return url.startswith("sqlite")


def chunks(url: str, table: str, wanted: Callable[[Sequence[str]], Sequence[int]], is_text: Callable[[str], bool]) -> Iterator[pa.Table]:
    """The wanted columns of a table, an empty chunk first; ids and other texts (``is_text``) as texts. Raises Unreadable."""
    import sqlalchemy

    try:
        database = sqlalchemy.create_engine(url)
        schema, _, bare = table.rpartition(".")
        listed = sqlalchemy.inspect(database).get_columns(bare, schema=schema or None)
        chosen = [listed[place] for place in wanted([column["name"] for column in listed])]
        kinds = [pa.string() if is_loose(url) or is_text(c["name"]) else _arrow_type(c["type"]) for c in chosen]
        fields = pa.schema([(column["name"], kind) for column, kind in zip(chosen, kinds, strict=True)])
        query = sqlalchemy.select(*(sqlalchemy.column(column["name"]) for column in chosen))
        source = sqlalchemy.table(bare, schema=schema or None)
        yield fields.empty_table()
        with database.connect().execution_options(stream_results=True, yield_per=CHUNK_ROWS) as connection:
            for some in connection.execute(query.select_from(source)).partitions():
                yield pa.table([_array(v, f) for v, f in zip(zip(*some, strict=True), fields, strict=True)], fields)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise Unreadable(f"cannot read {table!r} ({type(error).__name__})", "check URL and table") from None


def _array(values: Iterable[Any], kind: pa.Field) -> pa.Array:
    try:
        return pa.array([plain(v) for v in values] if pa.types.is_string(kind.type) else values, kind.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        problem = f"column {kind.name!r} holds a value that is no {kind.type} ({type(error).__name__})"
        raise Unreadable(problem, "convert the column in a view of the database") from None


def plain(value: Any) -> str | None:
    """The text of a database's value: a whole float without its decimal, moments in ISO 8601."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        if value != value:
            return None
        if abs(value) >= EXACT_FLOAT:
            raise ValueError("digits lost")
        return str(int(value)) if value == int(value) else repr(value)
    if isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("bytes are no text")
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    return format(value, "f") if type(value).__name__ == "Decimal" else str(value)


def _arrow_type(kind: Any) -> Any:
    """Arrow's type for a column of a database server; what is not known is read as text."""
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
