"""Raw histories, as a shop would post them, from canonical tables."""

from typing import Any

import duckdb

from features.schema import SOURCES


def histories(connection: duckdb.DuckDBPyConnection, customers: list[str]) -> list[dict[str, Any]]:
    """The JSON bodies of some customers: everything the canonical tables hold of them."""
    there = {row[0] for row in connection.sql("SHOW TABLES").fetchall()}
    found: dict[str, dict[str, Any]] = {customer: {"customer_id": customer, "orders": []} for customer in customers}
    orders: dict[str, dict[str, Any]] = {}
    owner_of: dict[str, str] = {}
    for name, source in SOURCES.items():
        columns = {column.name for column in source.columns}
        if name not in there or name == "identities":
            continue
        by_customer = "customer_id" in columns
        for row in _rows(connection, name, "customer_id" if by_customer else "order_id", customers if by_customer else list(orders)):
            owner = row.pop("customer_id") if by_customer else owner_of[row["order_id"]]
            if name == "orders":
                owner_of[row["order_id"]] = owner
                orders[row["order_id"]] = row | {"lines": []}
                row = orders[row["order_id"]]
            if name == "order_lines":
                orders[row.pop("order_id")]["lines"].append(row)
            elif name == "customers":
                found[owner]["attributes"] = row
            else:
                found[owner].setdefault(name, []).append(row)
    return list(found.values())


def _rows(connection: duckdb.DuckDBPyConnection, table: str, key: str, values: list[str]) -> list[dict[str, Any]]:
    relation = connection.execute(f'SELECT * FROM "{table}" WHERE "{key}" IN (SELECT unnest(?))', [values]).to_arrow_table()
    return [{name: _json(value) for name, value in row.items() if value is not None} for row in relation.to_pylist()]


def _json(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value if isinstance(value, str | bool) else float(value)
