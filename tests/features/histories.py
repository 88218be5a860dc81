"""Random histories from every source, and the canonical tables made of them."""

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
from hypothesis import strategies as st

from features import engines, reduce, scores, table
from features.catalogue import _everything
from features.clv import BgNbd, Clv, GammaGamma
from features.profile import from_arrow
from features.pseudonym import Pseudonyms
from features.schema import BEHAVIOUR, CONTACT_CHANNELS, SOURCES
from features.scores import Fitted
from features.table import Manifest
from serving.histories import canonical
from serving.schemas import CustomerRequest

SNAPSHOT = datetime(2024, 6, 1)
PRESENT = tuple(sorted(_everything() - {"identities"}))
SCORED = [*(feature for feature, _ in scores.SCORED.values()), *scores.BEHAVIOUR]
EDGES = {name: [float(edge) for edge in range(101)] for name in SCORED}
CLV = Clv(BgNbd(0.7, 66.0, 0.2, 3.3), GammaGamma(2.5, 3.5, 400.0))
PSEUDONYMS = Pseudonyms(b"")
MANIFEST = Manifest("random", "UTC", "EUR", 90, 3650.0, 5000.0, PRESENT, "x", PSEUDONYMS.check, fitted=Fitted(EDGES, CLV, ["DE", "FR"]))
DATABASE = reduce.request_engine()
STATEMENTS = reduce.compiled(MANIFEST.tables)
TIMES = {name: str(source.event_time) for name, source in SOURCES.items() if source.event_time and name not in ("customers", "identities")}
"""Event time by source."""

times = st.integers(-500 * 24 * 60, 200 * 24 * 60).map(lambda minutes: SNAPSHOT + timedelta(minutes=minutes))
delays = st.one_of(st.none(), st.integers(0, 40 * 24 * 60).map(lambda minutes: timedelta(minutes=minutes)))
money = st.integers(1, 5_000_000).map(lambda units: units / 10_000)
lines = st.fixed_dictionaries(
    {
        "product_id": st.sampled_from(["p1", "p2", "p3", "p4"]),
        "category": st.sampled_from(["c1", "c2", None]),
        "brand": st.sampled_from(["b1", "b2"]),
        "quantity": st.integers(1, 30).map(float),
        "amount": money,
        "discount": money,
        "product_age_days": st.integers(0, 900).map(float),
    }
)
OWN: dict[str, dict[str, Any]] = {
    "orders": {"lines": st.lists(lines, min_size=1, max_size=3)},
    "returns": {"quantity": st.integers(1, 9).map(float), "amount": money},
    "events": {
        "kind": st.sampled_from(BEHAVIOUR),
        "session_id": st.sampled_from(["s1", "s2", None]),
        "seconds": st.integers(0, 900).map(float),
    },
    "contacts": {
        "channel": st.sampled_from(CONTACT_CHANNELS),
        "tier": st.integers(1, 3).map(float),
        "cost": st.integers(0, 9).map(float),
    },
    "coupons": {"value": money},
    "tickets": {"complaint": st.booleans()},
    "reviews": {"rating": st.one_of(st.none(), st.integers(1, 5).map(float)), "nps": st.integers(0, 10).map(float)},
    "deliveries": {"order_id": st.just("order0")},
    "memberships": {"level": st.integers(0, 4).map(float)},
    "points": {"points": st.integers(-500, 500).map(float)},
    "consents": {"purpose": st.just("marketing"), "channel": st.sampled_from(["sms", "e-mail"]), "granted": st.booleans()},
}
"""What an event of each source has besides its times."""
LATER = {
    "orders": ("cancelled_at",),
    "returns": ("completed_at", "due_at"),
    "contacts": ("delivered_at", "opened_at", "clicked_at", "converted_at"),
    "coupons": ("redeemed_at", "expires_at"),
    "tickets": ("resolved_at",),
    "deliveries": ("delivered_at", "due_at"),
}
"""Later times of each source: states, promises."""
ARRIVALS = {"completed_at", "redeemed_at", "resolved_at", "delivered_at"}
"""States with an arrival of their own (but of contacts)."""


@st.composite
def event(draw: st.DrawFn, source: str) -> dict[str, Any]:
    """One event of a source: event time, arrival, later states with their arrivals, own fields."""
    at, delay = draw(times), draw(delays)
    found: dict[str, Any] = {TIMES[source]: at, "arrived_at": at + delay if delay else None}
    for state in LATER.get(source, ()):
        after = draw(delays)
        found[state] = at + after if after else None
        if state == "due_at" and found[state] is None:
            found[state] = at + timedelta(days=3)
        if state in ARRIVALS and source != "contacts" and found[state] and (late := draw(delays)):
            found[f"{state.removesuffix('_at')}_arrived_at"] = found[state] + late
    return found | {name: draw(strategy) for name, strategy in OWN[source].items()}


@st.composite
def shop(draw: st.DrawFn, least: int = 8, most: int = 16) -> list[dict[str, Any]]:
    """A few customers with their events from every source, before and after the snapshot."""
    return [
        {
            "customer_id": f"c{number}",
            "orders": draw(st.lists(event("orders"), min_size=1, max_size=4)),
            "attributes": {"registered_at": draw(times), "country": draw(st.sampled_from(["DE", "FR", "IT"]))},
            **{source: draw(st.lists(event(source), max_size=2)) for source in TIMES if source != "orders"},
        }
        for number in range(draw(st.integers(least, most)))
    ]


def known(event: dict[str, Any], source: str) -> bool:
    """By the definition, written apart from the code under test: event time AND arrival time at or before the snapshot."""
    at = event[TIMES[source]]
    return max(at, event.get("arrived_at") or at) <= SNAPSHOT


def numbered(shop: list[dict[str, Any]]) -> list[CustomerRequest]:
    """Give events ids that do not hang on their position, and check the schema."""
    for customer in shop:
        for source in TIMES:
            key = SOURCES[source].key[0] if SOURCES[source].key else "return_id" if source == "returns" else None
            for number, one in enumerate(customer.get(source, ())):
                if key:
                    one.setdefault(key, f"{key.removesuffix('_id')}{number}")
    return [CustomerRequest.model_validate(customer) for customer in shop]


def tables(shop: list[dict[str, Any]]) -> dict[str, pa.Table]:
    """The canonical tables of a shop."""
    return canonical({one.customer_id: one for one in numbered(shop)}, MANIFEST.tables, ZoneInfo("UTC"))


def profile(found: dict[str, pa.Table], moment: datetime = SNAPSHOT) -> dict[str, pa.Table]:
    """The profile of canonical tables for a moment."""
    return reduce.of_tables(DATABASE.cursor(), STATEMENTS, found, moment)


def connection(found: dict[str, pa.Table]) -> duckdb.DuckDBPyConnection:
    """An in-memory database with canonical tables."""
    opened = DATABASE.cursor()
    for name, rows in found.items():
        opened.register(name, rows)
    return opened


def linked_rows(database: duckdb.DuckDBPyConnection, moments: list[datetime]) -> pa.Table:
    """The raw feature rows of a database whose identities were joined, as a batch makes them."""
    kinds = engines.in_memory(database, MANIFEST.tables, moments, True)
    hull = database.sql("FROM hull").to_arrow_table()
    return pa.concat_tables(table.fold(from_arrow(kinds, hull), moments, MANIFEST))


def features(shop: list[dict[str, Any]], moment: datetime = SNAPSHOT) -> pa.Table:
    """The feature rows of a shop at a moment, sorted by customer."""
    return features_of(tables(shop), moment)


def features_of(found: dict[str, pa.Table], moment: datetime = SNAPSHOT) -> pa.Table:
    """The feature rows of canonical tables at a moment, sorted by customer."""
    return table.online(DATABASE.cursor(), STATEMENTS, found, moment, MANIFEST)


def arrays_of(found: dict[str, pa.Table], moment: datetime = SNAPSHOT) -> table.OnlineRows:
    """The same rows as arrays."""
    return table.online_rows(DATABASE.cursor(), STATEMENTS, found, moment, MANIFEST)
