"""Raw histories, as a shop would post them, from canonical tables."""

from typing import Any

import duckdb


def histories(connection: duckdb.DuckDBPyConnection, customers: list[str]) -> list[dict[str, Any]]:
    """The JSON bodies of some customers: everything the canonical tables hold of them."""
    present = {row[0] for row in connection.sql("SELECT table_name FROM duckdb_tables()").fetchall()}
    found = {customer: {"customer_id": customer, "orders": [], "returns": []} for customer in customers}
    orders: dict[str, dict[str, Any]] = {}
    for row in _rows(connection, "orders", "customer_id", customers):
        owner = row.pop("customer_id")
        orders[row["order_id"]] = row | {"lines": []}
        found[owner]["orders"].append(orders[row["order_id"]])
    for row in _rows(connection, "order_lines", "order_id", list(orders)):
        orders[row.pop("order_id")]["lines"].append(row)
    for name, key in (("returns", "returns"), ("customers", "attributes")):
        for row in _rows(connection, name, "customer_id", customers) if name in present else []:
            owner = found[row.pop("customer_id")]
            owner.update({key: row}) if key == "attributes" else owner["returns"].append(row)
    return list(found.values())


def _rows(connection: duckdb.DuckDBPyConnection, table: str, key: str, values: list[str]) -> list[dict[str, Any]]:
    relation = connection.execute(f'SELECT * FROM "{table}" WHERE "{key}" IN (SELECT unnest(?))', [values]).to_arrow_table()
    return [{name: _json(value) for name, value in row.items() if value is not None} for row in relation.to_pylist()]


def _json(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value if isinstance(value, str) else float(value)
