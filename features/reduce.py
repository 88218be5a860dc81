"""Reduce, in the engine: events -> one long profile. The first of the two steps of every feature.

The profile is one relation with a row per customer and event bucket, sorted by customer:

    customer_id  kind  at  known_at  void_at  key  spend  units  lines  discount

``kind`` is `order` (key: order id), `item` (an order's product; key: product id), `return` (key: return
id) or `customer` (key: country). ``known_at`` is the later of event time and arrival time, so that the
one comparison ``known_at <= snapshot`` keeps the future out; from ``void_at`` on (order cancelled) the
row no longer counts. Measures are additive. Written in Ibis, so that another engine can run it; compiled
once to SQL, so that the service pays nothing for that.
"""

from collections.abc import Iterator

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis import _

from features.schema import EXACT, SOURCES, TEXT, TIME

PROFILE = pa.schema(
    [
        ("customer_id", pa.string()),
        ("kind", pa.string()),
        ("at", pa.timestamp("us")),
        ("known_at", pa.timestamp("us")),
        ("void_at", pa.timestamp("us")),
        ("key", pa.string()),
        ("spend", pa.float64()),
        ("units", pa.float64()),
        ("lines", pa.float64()),
        ("discount", pa.float64()),
    ]
)
_IBIS_TYPES = {TEXT: "string", TIME: "timestamp(6)", EXACT: "decimal(18, 4)"}
_SUMS = {"spend": _.amount.sum(), "units": _.quantity.sum(), "lines": _.count(), "discount": _.discount.sum()}
BATCH_ROWS = 2_000_000
"""Profile rows folded at once: bounds the memory of a feature run."""


def canonical(name: str) -> ir.Table:
    """The canonical table as an unbound Ibis table."""
    columns = {column.name: _IBIS_TYPES[column.type] for column in SOURCES[name].columns}
    return ibis.table(columns, name=name)


def profile(sources: tuple[str, ...]) -> ir.Table:
    """The long profile over the canonical tables named in ``sources``."""
    lines = canonical("order_lines") if "order_lines" in sources else None
    parts = [_orders(lines)]
    if lines is not None:
        parts.append(_items(lines))
    if "returns" in sources:
        parts.append(_returns())
    if "customers" in sources:
        parts.append(_customers())
    return ibis.union(*parts).order_by(PROFILE.names) if len(parts) > 1 else parts[0].order_by(PROFILE.names)


def profile_sql(sources: tuple[str, ...]) -> str:
    """The profile as DuckDB SQL: compile once, run often."""
    return str(ibis.to_sql(profile(sources), dialect="duckdb"))


def _long(table: ir.Table, kind: str, **columns: ir.Value) -> ir.Table:
    given: dict[str, ir.Value] = {"kind": ibis.literal(kind), "void_at": ibis.null("timestamp(6)"), **columns}
    for measure in ("spend", "units", "lines", "discount"):
        given[measure] = given.get(measure, ibis.literal(0.0)).cast("float64")
    return table.select(table.customer_id, **{name: given[name] for name in PROFILE.names if name != "customer_id"})


def _known(event_time: ir.Value, arrived_at: ir.Value) -> ir.Value:
    return ibis.greatest(event_time, arrived_at)


def _orders(lines: ir.Table | None) -> ir.Table:
    orders = canonical("orders")
    if lines is None:
        totals = orders.mutate(spend=orders.amount.coalesce(0), units=ibis.literal(0.0), lines=ibis.literal(0), discount=ibis.literal(0))
    else:
        sums = lines.group_by("order_id").agg(**_SUMS)
        joined = orders.left_join(sums, "order_id")
        totals = joined.mutate(
            spend=ibis.coalesce(joined.spend, joined.amount, 0),
            units=joined.units.coalesce(0.0),
            lines=joined.lines.coalesce(0),
            discount=joined.discount.coalesce(0),
        )
    return _long(
        totals,
        "order",
        at=totals.ordered_at,
        known_at=_known(totals.ordered_at, totals.arrived_at),
        void_at=totals.cancelled_at,
        key=totals.order_id,
        spend=totals.spend,
        units=totals.units,
        lines=totals.lines,
        discount=totals.discount,
    )


def _items(lines: ir.Table) -> ir.Table:
    products = lines.filter(lines.product_id.notnull()).group_by(["order_id", "product_id"])
    items = products.agg(**_SUMS).join(canonical("orders").drop("amount"), "order_id")
    return _long(
        items,
        "item",
        at=items.ordered_at,
        known_at=_known(items.ordered_at, items.arrived_at),
        void_at=items.cancelled_at,
        key=items.product_id,
        spend=items.spend,
        units=items.units,
        lines=items.lines,
        discount=items.discount,
    )


def _returns() -> ir.Table:
    lines = canonical("returns")
    keys = ["customer_id", "return_id", "returned_at", "arrived_at"]
    returns = lines.group_by(keys).agg(spend=_.amount.sum(), units=_.quantity.sum(), lines=_.count())
    return _long(
        returns,
        "return",
        at=returns.returned_at,
        known_at=_known(returns.returned_at, returns.arrived_at),
        key=returns.return_id,
        spend=returns.spend,
        units=returns.units,
        lines=returns.lines,
    )


def _customers() -> ir.Table:
    customers = canonical("customers")
    return _long(
        customers,
        "customer",
        at=customers.registered_at,
        known_at=_known(customers.registered_at, customers.arrived_at),
        key=customers.country,
    )


def batches(connection: duckdb.DuckDBPyConnection, sql: str) -> Iterator[pa.Table]:
    """Run the profile SQL and yield tables of about BATCH_ROWS rows that never cut a customer in two."""
    reader = connection.sql(sql).to_arrow_reader(250_000)
    held: list[pa.Table] = []
    for batch in reader:
        held.append(pa.Table.from_batches([batch]).cast(PROFILE))
        if sum(table.num_rows for table in held) >= BATCH_ROWS:
            whole, rest = _cut(pa.concat_tables(held))
            held = [rest]
            if whole.num_rows:
                yield whole
    if held and (last := pa.concat_tables(held)).num_rows:
        yield last


def _cut(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    ids = table["customer_id"]
    last = ids[table.num_rows - 1]
    start = ids.index(last).as_py()
    return table.slice(0, start), table.slice(start)
