"""Random histories and the canonical tables made of them."""

from datetime import datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
from hypothesis import strategies as st

from features import reduce, scores, table
from features.scores import Fitted
from features.table import Manifest
from serving.schemas import CustomerRequest
from serving.score import canonical

SNAPSHOT = datetime(2024, 6, 1)
SOURCES = ("orders", "order_lines", "returns", "customers", "order_lines.product_id", "order_lines.discount", "customers.country")
EDGES = {name: [float(edge) for edge in range(101)] for name in scores.SCORED}
MANIFEST = Manifest("random", "UTC", "EUR", 90, 3650.0, 5000.0, SOURCES, "x", (), None, None, Fitted(EDGES, ["DE", "FR"]))
DATABASE = duckdb.connect(config={"threads": 1})
SQL = reduce.profile_sql(MANIFEST.tables)

times = st.integers(-500 * 24 * 60, 200 * 24 * 60).map(lambda minutes: SNAPSHOT + timedelta(minutes=minutes))
delays = st.one_of(st.none(), st.integers(0, 20 * 24 * 60).map(lambda minutes: timedelta(minutes=minutes)))
money = st.integers(1, 5_000_000).map(lambda units: units / 10_000)
lines = st.fixed_dictionaries(
    {"product_id": st.sampled_from(["p1", "p2", "p3", "p4"]), "quantity": st.integers(1, 30).map(float), "amount": money, "discount": money}
)


@st.composite
def order(draw: st.DrawFn) -> dict[str, Any]:
    at, delay, cancelled = draw(times), draw(delays), draw(delays)
    return {
        "ordered_at": at,
        "arrived_at": at + delay if delay else None,
        "cancelled_at": at + cancelled if cancelled and draw(st.booleans()) else None,
        "lines": draw(st.lists(lines, min_size=1, max_size=3)),
    }


@st.composite
def giving_back(draw: st.DrawFn) -> dict[str, Any]:
    at, delay = draw(times), draw(delays)
    return {
        "returned_at": at,
        "arrived_at": at + delay if delay else None,
        "quantity": draw(st.integers(1, 9)) * 1.0,
        "amount": draw(money),
    }


@st.composite
def shop(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A few customers with their events, before and after the snapshot."""
    return [
        {
            "customer_id": f"c{number}",
            "orders": draw(st.lists(order(), min_size=1, max_size=6)),
            "returns": draw(st.lists(giving_back(), max_size=2)),
            "attributes": {"registered_at": draw(times), "country": draw(st.sampled_from(["DE", "FR", "IT"]))},
        }
        for number in range(draw(st.integers(1, 3)))
    ]


def numbered(shop: list[dict[str, Any]]) -> list[CustomerRequest]:
    """Give orders and returns ids that do not hang on their position, and check the schema."""
    for customer in shop:
        for kind, events in (("order", customer["orders"]), ("return", customer["returns"])):
            for number, event in enumerate(events):
                event.setdefault(f"{kind}_id", f"{kind}{number}")
    return [CustomerRequest.model_validate(customer) for customer in shop]


def connection(shop: list[dict[str, Any]]) -> duckdb.DuckDBPyConnection:
    """An in-memory database with the canonical tables of a shop."""
    from zoneinfo import ZoneInfo

    opened = DATABASE.cursor()
    for name, rows in canonical(numbered(shop), MANIFEST, ZoneInfo("UTC")).items():
        opened.register(name, rows)
    return opened


def features(shop: list[dict[str, Any]], moment: datetime = SNAPSHOT) -> pa.Table:
    """The feature rows of a shop at a moment, sorted by customer."""
    return table.online(connection(shop), SQL, moment, MANIFEST).sort_by("customer_id")
