"""The only place that puts a text or a name into SQL: every path, name and value goes through `literal` or `name`."""

from collections.abc import Iterable


def literal(text: object) -> str:
    """A value as an SQL text."""
    return "'" + str(text).replace("'", "''") + "'"


def name(text: str) -> str:
    """The name of a column, table or schema."""
    return '"' + text.replace('"', '""') + '"'


def parquet(paths: Iterable[object]) -> str:
    """DuckDB's reader of some Parquet files."""
    return f"read_parquet([{', '.join(literal(path) for path in paths)}])"
