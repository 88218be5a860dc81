"""Nothing after the snapshot, by event time or arrival time, from any source, changes a feature.

Each example is a shop of 8 to 16 histories from all sources; four tests of 45 examples see over 2,000 histories.
"""

from copy import deepcopy
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import table
from features.profile import from_arrow
from features.table import EVENTS as EVENT_LISTS
from features.table import LABEL, WEEKLY
from tests.features.histories import (
    ARRIVALS,
    LATER,
    MANIFEST,
    SNAPSHOT,
    TIMES,
    arrays_of,
    event,
    features,
    features_of,
    known,
    profile,
    shop,
    tables,
)

EXAMPLES = settings(max_examples=45, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
EVENTS = st.one_of([st.tuples(st.just(source), event(source)) for source in TIMES if source != "deliveries"])


def same(left: pa.Table, right: pa.Table) -> None:
    assert left["customer_id"].equals(right["customer_id"])
    assert [name for name in left.column_names if name != LABEL and not _equal(left[name], right[name])] == []


def _equal(left: Any, right: Any) -> bool:
    if str(left.type) == "double":
        return bool(np.array_equal(left.to_numpy(), right.to_numpy(), equal_nan=True))
    return bool(left.equals(right))


def with_a_known_order(customers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    line = {"product_id": "p1", "quantity": 1.0, "amount": 10.0, "discount": 0.0}
    first = {"ordered_at": SNAPSHOT - timedelta(days=100), "order_id": "first", "lines": [line]}
    return [{**customer, "orders": [*customer["orders"], first]} for customer in customers]


def hide_states(one: dict[str, Any], source: str) -> dict[str, Any]:
    """The event without those later states that lie, or arrived, after the snapshot; promises stay."""
    found = dict(one)
    for state in LATER.get(source, ()):
        arrival = f"{state.removesuffix('_at')}_arrived_at"
        times = [found.get(state), found.get(arrival) if state in ARRIVALS and source != "contacts" else None]
        if state not in ("due_at", "expires_at") and any(time and time > SNAPSHOT for time in times):
            found[state] = None
            found.pop(arrival, None)
    return found


@EXAMPLES
@given(shop())
def test_removing_the_future_changes_nothing(customers: list[dict[str, Any]]) -> None:
    customers = with_a_known_order(customers)
    before = features(customers)  # numbers the events
    past = deepcopy(customers)
    for customer in past:
        for source in TIMES:
            customer[source] = [hide_states(one, source) for one in customer[source] if known(one, source)]
        if customer["attributes"]["registered_at"] > SNAPSHOT:
            customer["attributes"] = None
    for customer in past:
        ids = {order["order_id"] for order in customer["orders"]}
        customer["deliveries"] = [one for one in customer["deliveries"] if one["order_id"] in ids]
    same(_without_unowned_deliveries(customers, before), features(past))


def _without_unowned_deliveries(customers: list[dict[str, Any]], before: pa.Table) -> pa.Table:
    """A delivery known before its order is no case of the contract; leave it out on both sides."""
    changed = deepcopy(customers)
    for customer in changed:
        ids = {order["order_id"] for order in customer["orders"] if known(order, "orders")}
        customer["deliveries"] = [one for one in customer["deliveries"] if one["order_id"] in ids]
    return before if changed == customers else features(changed)


@EXAMPLES
@given(shop(), st.lists(EVENTS, min_size=1, max_size=6), st.integers(0, 400), st.booleans())
def test_adding_to_the_future_changes_nothing(
    customers: list[dict[str, Any]], events: list[tuple[str, dict[str, Any]]], days: int, late: bool
) -> None:
    """``late``: the event itself lies before the snapshot, only its arrival after it."""
    customers = with_a_known_order(customers)
    before = features(customers)
    future = deepcopy(customers)
    after = SNAPSHOT + timedelta(days=days, microseconds=1)
    for number, (source, one) in enumerate(events):
        added = {name: value for name, value in one.items() if name not in LATER.get(source, ()) and not name.endswith("_arrived_at")}
        added |= {TIMES[source]: SNAPSHOT - timedelta(days=days) if late else after, "arrived_at": after}
        key = {"orders": "order_id", "returns": "return_id"}.get(source) or f"{source.removesuffix('s')}_id"
        if source not in ("memberships", "points", "consents"):
            added[key] = f"future{number}"
        future[0][source].append(added)
    same(before, features(future))


@EXAMPLES
@given(shop(), st.randoms(use_true_random=False))
def test_changing_the_future_changes_nothing(customers: list[dict[str, Any]], random: Any) -> None:
    customers = with_a_known_order(customers)
    before = features(customers)
    changed = deepcopy(customers)
    for customer in changed:
        for source, time in TIMES.items():
            for one in customer[source]:
                if not known(one, source):
                    shift = timedelta(days=random.randint(1, 99))
                    one.update({time: max(one[time], SNAPSHOT) + shift, "arrived_at": None})
                    one.update(dict.fromkeys(LATER.get(source, ()), None) if source not in ("deliveries",) else {"due_at": one[time]})
                    if "amount" in one:
                        one["amount"] = float(random.randint(1, 999))
    same(before, features(changed))


@EXAMPLES
@given(shop(), st.randoms(use_true_random=False))
def test_order_company_and_batches_of_rows_change_nothing(customers: list[dict[str, Any]], random: Any) -> None:
    customers = with_a_known_order(customers)
    found = tables(customers)
    shuffled = {}
    for name, rows in found.items():
        order = list(range(rows.num_rows))
        random.shuffle(order)
        shuffled[name] = rows.take(pa.array(order, pa.int64()))
    before = features_of(found)
    same(before, features_of(shuffled))
    alone = features(customers[:1])
    same(alone, before.filter(pa.compute.equal(before["customer_id"], "c0")))
    parts = list(from_arrow(profile(found)).parts(40))
    assert len(parts) > 1
    folded = pa.concat_tables([rows for part in parts for rows in table.fold(part, [SNAPSHOT], MANIFEST)])
    assert MANIFEST.fitted is not None
    same(before, MANIFEST.fitted.apply(folded))


@EXAMPLES
@given(shop(), st.integers(1, 30))
def test_tables_in_chunks_give_the_same_rows(customers: list[dict[str, Any]], cut: int) -> None:
    found = tables(with_a_known_order(customers))
    chunked = {name: pa.concat_tables([rows.slice(0, cut), rows.slice(cut), rows.slice(rows.num_rows)]) for name, rows in found.items()}
    assert chunked["orders"]["order_id"].num_chunks == 3
    same(features_of(found), features_of(chunked))


@EXAMPLES
@given(shop())
def test_rows_as_arrays_are_the_rows_of_the_table(customers: list[dict[str, Any]]) -> None:
    found = tables(with_a_known_order(customers))
    rows, arrays = features_of(found), arrays_of(found)
    assert arrays.customer_id == rows["customer_id"].to_pylist()
    assert len(arrays) == len(customers)
    assert np.array_equal(arrays.x_NF, np.column_stack([rows[name].to_numpy() for name in MANIFEST.names]), equal_nan=True)
    assert arrays.texts == rows.select(list(arrays.texts)).to_pydict()
    assert arrays.lists.equals(rows.select([*WEEKLY, *EVENT_LISTS]))


def test_behaviour_of_the_snapshots_own_day_counts_as_far_as_it_is_known() -> None:
    line = {"product_id": "p1", "quantity": 1.0, "amount": 10.0, "discount": 0.0}
    afternoon = SNAPSHOT + timedelta(hours=15)
    views = [{"kind": "view", "session_id": "s", "happened_at": afternoon + timedelta(minutes=shift)} for shift in (-60, 0, 1)]
    shop = [{"customer_id": "c", "orders": [{"ordered_at": SNAPSHOT, "lines": [line]}], "events": views}]
    found = features(shop, afternoon)
    assert (found["views_7d"][0].as_py(), found["browse_recency_days"][0].as_py()) == (2.0, 0.0)


def test_an_event_at_the_very_snapshot_is_known_and_one_microsecond_later_is_not() -> None:
    line = {"product_id": "p1", "quantity": 1.0, "amount": 10.0, "discount": 0.0}
    orders = [{"ordered_at": SNAPSHOT + timedelta(microseconds=shift), "lines": [line]} for shift in (0, 1)]
    found = features([{"customer_id": "c", "orders": orders}])
    assert (found["frequency_orders"][0].as_py(), found["recency_days"][0].as_py()) == (1.0, 0.0)
