"""Nothing after the snapshot, by event time or arrival time, changes a feature."""

from copy import deepcopy
from datetime import timedelta
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.table import LABEL
from tests.features.histories import SNAPSHOT, features, giving_back, order, shop

EXAMPLES = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def known(event: dict[str, Any], time: str) -> bool:
    """By the definition, written apart from the code under test: event time AND arrival time at or before the snapshot."""
    return max(event[time], event["arrived_at"] or event[time]) <= SNAPSHOT


def same(left: Any, right: Any) -> None:
    assert left.drop_columns([LABEL]).equals(right.drop_columns([LABEL])) or _differences(left, right) == []


def _differences(left: Any, right: Any) -> list[str]:
    assert left["customer_id"].equals(right["customer_id"])
    names = [name for name in left.column_names if name not in (LABEL, "weeks")]
    bad = [name for name in names if not _equal(left[name], right[name])]
    return bad + ([] if left["weeks"].equals(right["weeks"]) else ["weeks"])


def _equal(left: Any, right: Any) -> bool:
    if str(left.type) == "double":
        return bool(np.array_equal(left.to_numpy(), right.to_numpy(), equal_nan=True))
    return bool(left.equals(right))


def with_a_known_order(customers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first = {"ordered_at": SNAPSHOT - timedelta(days=100), "arrived_at": None, "cancelled_at": None, "order_id": "first"}
    line = {"product_id": "p1", "quantity": 1.0, "amount": 10.0, "discount": 0.0}
    return [{**customer, "orders": [*customer["orders"], {**first, "lines": [line]}]} for customer in customers]


@EXAMPLES
@given(shop())
def test_removing_the_future_changes_nothing(customers: list[dict[str, Any]]) -> None:
    customers = with_a_known_order(customers)
    past = deepcopy(customers)
    for customer in past:
        customer["orders"] = [event for event in customer["orders"] if known(event, "ordered_at")]
        customer["returns"] = [event for event in customer["returns"] if known(event, "returned_at")]
        for event in customer["orders"]:
            if event["cancelled_at"] and event["cancelled_at"] > SNAPSHOT:
                event["cancelled_at"] = None
    # registration after the snapshot is a future event too
    for customer in past:
        if customer["attributes"]["registered_at"] > SNAPSHOT:
            customer["attributes"] = None
    same(features(customers), features(past))


@EXAMPLES
@given(shop(), st.lists(order(), min_size=1, max_size=3), st.lists(giving_back(), max_size=2), st.integers(0, 400), st.booleans())
def test_adding_to_the_future_changes_nothing(
    customers: list[dict[str, Any]], orders: list[dict[str, Any]], returns: list[dict[str, Any]], days: int, late: bool
) -> None:
    """``late``: the event itself lies before the snapshot, only its arrival after it."""
    customers = with_a_known_order(customers)
    future = deepcopy(customers)
    after = SNAPSHOT + timedelta(days=days, microseconds=1)
    for kind, time, events in (("order", "ordered_at", orders), ("return", "returned_at", returns)):
        for number, event in enumerate(events):
            event[time] = SNAPSHOT - timedelta(days=days) if late else after
            event["arrived_at"] = after
            event["cancelled_at" if kind == "order" else "quantity"] = None if kind == "order" else 1.0
            future[0][f"{kind}s"].append({**event, f"{kind}_id": f"future{number}"})
    same(features(customers), features(future))


@EXAMPLES
@given(shop(), st.randoms(use_true_random=False))
def test_changing_the_future_changes_nothing(customers: list[dict[str, Any]], random: Any) -> None:
    customers = with_a_known_order(customers)
    changed = deepcopy(customers)
    for customer in changed:
        for event in customer["orders"]:
            if not known(event, "ordered_at"):
                event["lines"] = [{"product_id": "p9", "quantity": 5.0, "amount": float(random.randint(1, 999)), "discount": 0.0}]
                event["cancelled_at"] = None
        for event in customer["returns"]:
            if not known(event, "returned_at"):
                event["amount"] = float(random.randint(1, 999))
    same(features(customers), features(changed))


@EXAMPLES
@given(shop())
def test_the_order_of_rows_and_the_company_of_others_change_nothing(customers: list[dict[str, Any]]) -> None:
    customers = with_a_known_order(customers)
    alone = features(customers[:1])
    for customer in (numbered := deepcopy(customers)):
        for kind in ("order", "return"):
            for number, event in enumerate(customer[f"{kind}s"]):
                event.setdefault(f"{kind}_id", f"{kind}{number}")
            customer[f"{kind}s"].reverse()
    together = features(numbered[::-1])
    same(alone, together.slice(0, 1))


def test_an_event_at_the_very_snapshot_is_known_and_one_microsecond_later_is_not() -> None:
    line = {"product_id": "p1", "quantity": 1.0, "amount": 10.0, "discount": 0.0}
    orders = [
        {"ordered_at": SNAPSHOT + timedelta(microseconds=shift), "arrived_at": None, "cancelled_at": None, "lines": [line]}
        for shift in (0, 1)
    ]
    found = features([{"customer_id": "c", "orders": orders, "returns": [], "attributes": None}])
    assert (found["frequency_orders"][0].as_py(), found["recency_days"][0].as_py()) == (1.0, 0.0)
