"""Canonical source tables: what a mapping file maps to. One place for columns, types, keys and times.

Times are naive timestamps in the shop's own time zone, because habits (hour, weekday) and snapshots
(midnight) are local. Money (in the shop's currency) and quantities are ``DECIMAL(18,4)``, so that sums
are exact in any order. Every event has an event time and an arrival time (when the shop learnt of it); without a column
for the latter the event is taken to be known at once.
"""

from dataclasses import dataclass

TEXT, TIME, EXACT = "VARCHAR", "TIMESTAMP", "DECIMAL(18,4)"


@dataclass(frozen=True)
class Column:
    """One canonical column; an optional one that is not mapped is filled by ``default`` (SQL)."""

    name: str
    type: str
    meaning: str
    required: bool = True
    default: str = "NULL"


@dataclass(frozen=True)
class Source:
    """One canonical table: its columns, unique key (empty: none), event-time column and parents."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    event_time: str | None = None
    parent: tuple[str, str] | None = None
    """(column here, "table.column" there) that each row must find."""
    required: bool = False

    def column(self, name: str) -> Column:
        """The column called ``name``; KeyError when there is none."""
        return {column.name: column for column in self.columns}[name]


def _arrived(event_time: str) -> Column:
    return Column("arrived_at", TIME, "when the shop learnt of it", False, event_time)


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "orders",
            "one row per order placed",
            (
                Column("order_id", TEXT, "unique id of the order"),
                Column("customer_id", TEXT, "pseudonymous id of the customer"),
                Column("ordered_at", TIME, "when it was placed"),
                _arrived("ordered_at"),
                Column("cancelled_at", TIME, "when the whole order was cancelled; from then on it does not count", False),
                Column("amount", EXACT, "net value, used where order_lines has no row for the order", False),
            ),
            key=("order_id",),
            event_time="ordered_at",
            required=True,
        ),
        Source(
            "order_lines",
            "one row per line of an order",
            (
                Column("order_id", TEXT, "the order it belongs to"),
                Column("product_id", TEXT, "what was bought", False),
                Column("quantity", EXACT, "units, above 0"),
                Column("amount", EXACT, "net value of the line after discount"),
                Column("discount", EXACT, "value taken off by discounts and coupons", False, "0"),
            ),
            parent=("order_id", "orders.order_id"),
        ),
        Source(
            "returns",
            "one row per return, refund or cancelled line",
            (
                Column("return_id", TEXT, "id of the return (may repeat: one row per line)"),
                Column("customer_id", TEXT, "pseudonymous id of the customer"),
                Column("returned_at", TIME, "when it was asked for"),
                _arrived("returned_at"),
                Column("quantity", EXACT, "units, above 0"),
                Column("amount", EXACT, "value given back, 0 or more"),
            ),
            event_time="returned_at",
        ),
        Source(
            "customers",
            "one row per customer with what hardly changes",
            (
                Column("customer_id", TEXT, "pseudonymous id of the customer"),
                Column("registered_at", TIME, "when the shop first knew the customer"),
                _arrived("registered_at"),
                Column("country", TEXT, "country or region", False),
            ),
            key=("customer_id",),
            event_time="registered_at",
        ),
    )
}
