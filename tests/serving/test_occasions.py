"""Moments that ask for a decision: what plans one, what calls it off, that it is decided in time, and once."""

import asyncio
import json
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serving import occasions, schemas
from serving.desk import LEASE_SECONDS, Desk
from serving.online import DAY_SECONDS
from serving.policy import Occasion
from serving.sqlite_store import SqliteStore
from tests.serving.test_decisions import Light, at_risk, light_shop, logged

DAY = timedelta(days=1)
BEGAN = {Occasion.FIRST_ORDER: DAY, Occasion.ANNIVERSARY: 365 * DAY}
COMPLAINT = {"ticket_id": "t", "opened_at": "2026-01-01T00:00:00", "complaint": True}


@pytest.mark.parametrize(
    ("table", "row", "first", "planned"),
    [
        ("orders", {}, True, {Occasion.CART_LEFT: None, Occasion.SILENT: 90 * DAY, **BEGAN}),
        ("orders", {}, False, {Occasion.CART_LEFT: None, Occasion.SILENT: 90 * DAY}),
        ("events", {"kind": "add_to_cart"}, False, {Occasion.CART_LEFT: DAY}),
        ("events", {"kind": "pay"}, False, {Occasion.CART_LEFT: None}),
        ("events", {"kind": "view"}, False, {}),
        ("tickets", COMPLAINT, False, {Occasion.COMPLAINT: timedelta(0)}),
        ("tickets", COMPLAINT | {"resolved_at": "2026-01-02T00:00:00"}, False, {Occasion.COMPLAINT: None}),
        ("tickets", COMPLAINT | {"complaint": False}, False, {}),
        ("reviews", {"rating": 1.0}, True, {}),
    ],
)
def test_each_event_plans_and_calls_off_what_it_is_about(table: str, row: dict[str, Any], first: bool, planned: Any) -> None:
    assert occasions.of_event(table, row, first) == planned


def test_who_has_an_occasion_today_is_told_from_the_feature_table() -> None:
    rows = pa.table(
        {
            "frequency_orders": [1.0, 1.0, 2.0, 5.0, 5.0],
            "recency_days": [1.5, 0.9, 1.5, 90.0, 91.0],
            "tenure_days": [1.5, 0.9, 365.5, 730.9, 731.0],
            "tp_cart_left": [0.0, 1.0, 0.0, 0.0, 1.0],
        }
    )
    found = {one: occasions.today(one, rows).tolist() for one in Occasion}
    assert found[Occasion.FIRST_ORDER] == [True, False, False, False, False]
    assert found[Occasion.ANNIVERSARY] == [False, False, True, True, False]
    assert found[Occasion.SILENT] == [False, False, False, True, False]
    assert found[Occasion.CART_LEFT] == [False, True, False, False, True]
    assert found[Occasion.COMPLAINT] == [False] * 5  # the table has no tickets


class Clock:
    """A moment that the test moves; it begins now, because live features are those of now."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Light:
    return light_shop(tmp_path_factory)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def one_desk(shop: Light, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return shop.desk(tmp_path_factory.mktemp("desk") / "online.db")


@pytest.fixture
def desk(one_desk: Desk, clock: Clock, tmp_path: Path) -> Desk:
    """The desk with an empty store and the test's clock."""
    one_desk.store = one_desk.decider.store = SqliteStore(tmp_path / "online.db")
    one_desk.decider.clock = clock
    return one_desk


def moment(desk: Desk, days_ago: float = 0.0) -> str:
    """Local time of the shop."""
    at = datetime.fromtimestamp(desk.decider.clock() - days_ago * DAY_SECONDS, desk.champions.current.zone)
    return at.replace(tzinfo=None).isoformat()


def tell(desk: Desk, customer: str, table: str, row: dict[str, Any], id: str = "e") -> dict[str, int]:
    body = {"events": [{"event_id": id, "customer_id": customer, "table": table, "row": row}]}
    return asyncio.run(desk.add_events(schemas.EventsRequest.model_validate_json(json.dumps(body)).events))


def order(desk: Desk, days_ago: float = 0.0, id: str = "new-1") -> dict[str, Any]:
    return {"order_id": id, "ordered_at": moment(desk, days_ago), "lines": [{"product_id": "p", "quantity": 1, "amount": 20.0}]}


def planned(desk: Desk) -> dict[tuple[str, str], float]:
    """Days from now at which occasions are due, by customer and occasion."""
    found = desk.store._db.execute("SELECT customer, occasion, at FROM due").fetchall()  # type: ignore[attr-defined]
    return {(customer, occasion): round((at - desk.decider.clock()) / DAY_SECONDS, 3) for customer, occasion, at in found}


def due(desk: Desk) -> int:
    return asyncio.run(desk.decide_due())


def somebody(desk: Desk) -> str:
    return at_risk(desk.champions.current, 1)[0]


def test_an_order_plans_the_silence_and_calls_off_the_cart(desk: Desk) -> None:
    name = somebody(desk)
    tell(desk, name, "events", {"kind": "add_to_cart", "happened_at": moment(desk)}, "e1")
    assert planned(desk) == {(name, "cart_left"): 1.0}
    tell(desk, name, "orders", order(desk), "e2")
    assert planned(desk) == {(name, "silent_90d"): pytest.approx(90.0, abs=0.05)}  # the clocks may change meanwhile


def test_a_complaint_is_due_at_once_and_its_resolution_calls_it_off(desk: Desk) -> None:
    name = somebody(desk)
    ticket = {"ticket_id": "t", "opened_at": moment(desk), "complaint": True}
    tell(desk, name, "tickets", ticket, "e1")
    assert planned(desk) == {(name, "complaint_open"): 0.0}
    tell(desk, name, "tickets", ticket | {"resolved_at": moment(desk)}, "e2")
    assert planned(desk) == {}


def test_an_event_told_again_plans_nothing_anew(desk: Desk) -> None:
    name = somebody(desk)
    cart = {"kind": "add_to_cart", "happened_at": moment(desk)}
    assert tell(desk, name, "events", cart)["accepted"] == 1
    desk.store.cancel_occasion(name, "cart_left")
    assert tell(desk, name, "events", cart)["known"] == 1
    assert planned(desk) == {}


def test_the_first_order_of_a_new_customer_plans_thanks_and_the_anniversary(desk: Desk) -> None:
    tell(desk, "nobody-yet", "orders", order(desk))
    assert {occasion: days for (_, occasion), days in planned(desk).items()} == {
        "first_order_24h": 1.0,
        "anniversary": pytest.approx(365.0, abs=0.05),
        "silent_90d": pytest.approx(90.0, abs=0.05),
    }


def test_a_second_order_is_no_first_one(desk: Desk) -> None:
    tell(desk, "nobody-yet", "orders", order(desk, 0.5), "e1")
    tell(desk, "nobody-yet", "orders", order(desk, 0.0, "new-2"), "e2")
    found = {occasion: days for (_, occasion), days in planned(desk).items()}
    assert found["first_order_24h"] == 0.5
    tell(desk, somebody(desk), "orders", order(desk), "e3")
    assert (somebody(desk), "first_order_24h") not in planned(desk)


def test_who_browsed_before_the_first_order_has_a_first_order_too(desk: Desk) -> None:
    tell(desk, "nobody-yet", "events", {"kind": "view", "happened_at": moment(desk, 0.1)}, "e1")
    tell(desk, "nobody-yet", "orders", order(desk), "e2")
    assert "first_order_24h" in {occasion for _, occasion in planned(desk)}


def test_who_comes_back_after_years_has_no_first_order(desk: Desk, shop: Light) -> None:
    name = desk.champions.current.pseudonyms("long-gone")
    desk.store.put_histories([(name, "orders", b"an old order")])
    tell(desk, "long-gone", "orders", order(desk))
    assert "first_order_24h" not in {occasion for _, occasion in planned(desk)}


def test_an_order_cancelled_calls_off_what_it_planned(desk: Desk) -> None:
    row = order(desk, 0.2)
    tell(desk, "nobody-yet", "orders", row, "e1")
    tell(desk, "nobody-yet", "orders", row | {"cancelled_at": moment(desk)}, "e2")
    assert "first_order_24h" not in {occasion for _, occasion in planned(desk)}


def test_nothing_is_decided_before_it_is_due(desk: Desk, clock: Clock) -> None:
    tell(desk, somebody(desk), "events", {"kind": "add_to_cart", "happened_at": moment(desk)})
    clock.now += 0.99 * DAY_SECONDS
    assert due(desk) == 0
    clock.now += 0.02 * DAY_SECONDS
    assert due(desk) == 1


def test_a_due_occasion_is_decided_by_the_service_and_logged_as_such(desk: Desk, clock: Clock) -> None:
    name = somebody(desk)
    tell(desk, name, "orders", order(desk, 40.0), "e0")  # without an order of the last year there are no live features
    tell(desk, name, "tickets", {"ticket_id": "t", "opened_at": moment(desk), "complaint": True}, "e1")
    clock.now += 0.001  # the moment told is rounded to a microsecond
    assert due(desk) == 1
    (body,) = desk.store.decisions_of(name, 9)
    assert (body["occasion"], body["situation"]["p"] >= 0) == ("complaint_open", True)
    assert "low_risk" not in body["blocked"].values()


def test_fifty_due_at_once_are_each_decided_once(desk: Desk, clock: Clock) -> None:
    names = at_risk(desk.champions.current, 50)
    for name in names:
        desk.store.plan_occasion(name, "silent_90d", clock.now - 1)
    asyncio.run(_twice(desk))
    clock.now += LEASE_SECONDS + 1
    assert due(desk) == 0
    assert planned(desk) == {}
    log = logged(desk.store.file)  # type: ignore[attr-defined]
    assert sorted(one["customer"] for one in log) == sorted(names)


async def _twice(desk: Desk) -> None:
    """Two workers ask in turn."""
    done = await asyncio.gather(desk.decide_due(), desk.decide_due())
    assert sorted(done) == [0, 50]


def test_what_a_worker_took_and_did_not_finish_is_decided_by_another_after_the_lease(desk: Desk, clock: Clock) -> None:
    name = somebody(desk)
    desk.store.plan_occasion(name, "silent_90d", clock.now)
    assert desk.store.take_due(clock.now, 10, LEASE_SECONDS) == [(name, "silent_90d")]  # and was killed
    assert due(desk) == 0
    clock.now += LEASE_SECONDS
    assert (due(desk), due(desk)) == (1, 0)
    assert len(desk.store.decisions_of(name, 9)) == 1


def test_who_was_erased_has_no_occasion(desk: Desk, clock: Clock) -> None:
    name = somebody(desk)
    desk.store.plan_occasion(name, "silent_90d", clock.now)
    desk.store.erase(name)
    assert tell(desk, name, "events", {"kind": "add_to_cart", "happened_at": moment(desk)}) == {
        "accepted": 0,
        "known": 0,
        "erased": 1,
        "unknown": 0,
        "nobody": 0,
    }
    assert (due(desk), planned(desk), desk.store.position()) == (0, {}, 0)


def test_a_new_customers_first_order_is_decided_about_a_day_later(desk: Desk, clock: Clock) -> None:
    tell(desk, "nobody-yet", "orders", order(desk, 1.1))
    assert due(desk) == 1
    (body,) = desk.store.decisions_of(desk.champions.current.pseudonyms("nobody-yet"), 9)
    assert body["occasion"] == "first_order_24h"


def test_one_that_fails_does_not_keep_the_others_waiting(desk: Desk, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = at_risk(desk.champions.current, 4)
    for place, name in enumerate((first, *others)):
        desk.store.plan_occasion(name, "silent_90d", clock.now - 10 + place)
    desk.store.put_histories([(first, "orders", b"a broken record batch")])
    tell(desk, first, "events", {"kind": "view", "happened_at": moment(desk)})
    for _ in range(2):
        with_error = asyncio.run(_tried(desk))
        clock.now += LEASE_SECONDS
    assert isinstance(with_error, int)
    assert {one["customer"] for one in logged(desk.store.file)} >= set(others)  # type: ignore[attr-defined]


async def _tried(desk: Desk) -> int | Exception:
    try:
        return await desk.decide_due()
    except Exception as error:
        return error


def test_an_occasion_of_today_needs_no_source_it_does_not_have() -> None:
    empty = pa.table({"recency_days": pa.array([], pa.float64())})
    for one in Occasion:
        assert occasions.today(one, empty).tolist() == []
    assert occasions.today(Occasion.SILENT, pa.table({"recency_days": [np.nan]})).tolist() == [False]
