"""Customers whose occasion is due: looked at when it can be there, decided about when it is, and once."""

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from serving import histories, schemas
from serving.desk import LEASE_SECONDS, Desk
from serving.online import DAY_SECONDS
from serving.policy import Occasion
from serving.sqlite_store import SqliteStore
from tests.serving.test_decisions import Light, at_risk, light_shop, logged

SILENT = Occasion.SILENT


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


def decided(desk: Desk, name: str) -> list[str]:
    """Occasions decided about, the first first."""
    return [one["occasion"] for one in reversed(desk.store.decisions_of(name, 99))]


def cart(desk: Desk, days_ago: float = 0.0, kind: str = "add_to_cart") -> dict[str, Any]:
    return {"kind": kind, "happened_at": moment(desk, days_ago)}


def somebody(desk: Desk) -> str:
    return at_risk(desk.champions.current, 1)[0]


def test_telling_plans_the_earliest_look_and_reads_nothing(desk: Desk) -> None:
    name = somebody(desk)
    desk.store.put_histories([(name, "orders", b"a broken record batch")])
    for number, days_ago in enumerate((0.5, 0.25, 0.75)):
        tell(desk, name, "events", cart(desk, days_ago), f"e{number}")
    assert planned(desk) == {(name, "cart_left"): 0.25}
    tell(desk, name, "orders", order(desk), "o")
    assert planned(desk)[name, "silent_90d"] == pytest.approx(90, abs=0.05)  # the clocks may change meanwhile
    assert planned(desk)[name, "first_order_24h"] == planned(desk)[name, "anniversary"] == 1.0


def test_an_event_told_again_plans_nothing_anew(desk: Desk) -> None:
    name = somebody(desk)
    assert tell(desk, name, "events", cart(desk))["accepted"] == 1
    desk.store.cancel_occasion(name, "cart_left")
    assert tell(desk, name, "events", cart(desk))["known"] == 1
    assert planned(desk) == {}


def test_a_late_order_brings_no_silence_while_a_later_one_is_known(desk: Desk) -> None:
    name = somebody(desk)
    tell(desk, name, "orders", order(desk, 1), "e1")
    tell(desk, name, "orders", order(desk, 95, "new-2"), "e2")
    assert planned(desk)[name, "silent_90d"] == pytest.approx(-5, abs=0.05)
    assert (due(desk), decided(desk, name)) == (0, [])
    assert planned(desk)[name, "silent_90d"] == pytest.approx(89, abs=0.05)


def test_what_is_told_long_after_its_moment_is_no_occasion(desk: Desk, clock: Clock) -> None:
    name = somebody(desk)
    tell(desk, name, "orders", order(desk, 300), "e1")
    tell(desk, name, "events", cart(desk, 90), "e2")
    assert (due(desk), set(planned(desk))) == (0, {(name, "anniversary")})
    clock.now += DAY_SECONDS
    assert (due(desk), planned(desk)) == (0, {(name, "anniversary"): pytest.approx(64, abs=0.05)})


def test_a_payment_told_before_the_addition_to_the_cart_counts(desk: Desk, clock: Clock) -> None:
    name = somebody(desk)
    tell(desk, name, "orders", order(desk, 40), "e0")
    tell(desk, name, "events", cart(desk, 1, "pay"), "e1")
    tell(desk, name, "events", cart(desk, 1.5), "e2")
    clock.now += DAY_SECONDS
    assert (due(desk), decided(desk, name)) == (0, [])


def test_a_complaint_that_is_told_to_be_resolved_before_its_opening_is_resolved(desk: Desk) -> None:
    name, ticket = somebody(desk), {"ticket_id": "t", "opened_at": moment(desk, 2), "complaint": True}
    tell(desk, name, "orders", order(desk, 40), "e0")
    tell(desk, name, "tickets", ticket | {"resolved_at": moment(desk, 1)}, "e1")
    tell(desk, name, "tickets", ticket, "e2")
    assert (due(desk), decided(desk, name), (name, "complaint_open") in planned(desk)) == (0, [], False)
    tickets = histories.of_person(desk.store, name, ["tickets"])["tickets"]
    assert [one is None for one in tickets["resolved_at"].to_pylist()] == [False]  # features see it too


def test_a_state_that_the_batch_knows_stays_when_the_row_is_told_again_without_it(desk: Desk) -> None:
    known = {
        "ticket_id": "t",
        "customer_id": "c",
        "opened_at": datetime(2026, 1, 1),
        "resolved_at": datetime(2026, 1, 2),
        "complaint": True,
    }
    base = histories.table("tickets", [known, known | {"ticket_id": "other"}])
    told = [("tickets", {"ticket_id": "t", "opened_at": "2026-01-01T00:00:00", "complaint": False})]
    found = histories.together({"tickets": base.to_batches()[0].serialize().to_pybytes()}, told, "c", ["tickets"])["tickets"]
    assert found.select(["ticket_id", "resolved_at", "complaint"]).to_pylist() == [
        {"ticket_id": "other", "resolved_at": datetime(2026, 1, 2), "complaint": True},
        {"ticket_id": "t", "resolved_at": datetime(2026, 1, 2), "complaint": False},
    ]


def test_a_first_order_is_the_only_one_that_was_not_cancelled(desk: Desk, clock: Clock) -> None:
    name = desk.champions.current.pseudonyms("nobody-yet")
    first, second = order(desk, 1.2), order(desk, 0.5, "new-2")
    tell(desk, "nobody-yet", "orders", first, "e1")
    tell(desk, "nobody-yet", "orders", second, "e2")
    assert (due(desk), decided(desk, name)) == (0, [])
    tell(desk, "nobody-yet", "orders", first | {"cancelled_at": moment(desk)}, "e3")
    clock.now += 0.5 * DAY_SECONDS + 1
    assert (due(desk), decided(desk, name)) == (1, ["first_order_24h"])


def test_who_has_orders_in_the_batch_has_no_first_order(desk: Desk) -> None:
    name = somebody(desk)
    before = histories.table("orders", [{"order_id": "o", "customer_id": name, "ordered_at": datetime(2020, 1, 1)}])
    desk.store.put_histories([(name, "orders", before.to_batches()[0].serialize().to_pybytes())])
    tell(desk, name, "orders", order(desk, 1.1))
    assert (due(desk), decided(desk, name)) == (0, [])


def test_nothing_is_decided_before_it_is_due(desk: Desk, clock: Clock) -> None:
    name = somebody(desk)
    tell(desk, name, "orders", order(desk, 40), "e0")  # without an order of the last year there are no live features
    tell(desk, name, "events", cart(desk), "e1")
    clock.now += 0.99 * DAY_SECONDS
    assert due(desk) == 0
    clock.now += 0.02 * DAY_SECONDS
    assert (due(desk), decided(desk, name)) == (1, ["cart_left"])


def test_a_due_occasion_is_decided_by_the_service_and_logged_as_such(desk: Desk, clock: Clock) -> None:
    name = somebody(desk)
    tell(desk, name, "orders", order(desk, 40.0), "e0")
    tell(desk, name, "tickets", {"ticket_id": "t", "opened_at": moment(desk), "complaint": True}, "e1")
    clock.now += 0.001  # the moment told is rounded to a microsecond
    assert due(desk) == 1
    (body,) = desk.store.decisions_of(name, 9)
    assert (body["occasion"], body["situation"]["p"] >= 0) == ("complaint_open", True)
    assert "low_risk" not in body["blocked"].values()


def test_later_events_bring_no_occasion_again_but_another_one(desk: Desk, clock: Clock) -> None:
    name = somebody(desk)
    tell(desk, name, "orders", order(desk, 40), "e0")
    tell(desk, name, "events", cart(desk, 1.2), "e1")
    assert due(desk) == 1
    tell(desk, name, "events", cart(desk, 3), "e2")
    tell(desk, name, "orders", order(desk, 50, "new-2"), "e3")
    assert due(desk) == 0
    tell(desk, name, "events", cart(desk, 0.5), "e4")
    clock.now += 0.6 * DAY_SECONDS
    assert (due(desk), decided(desk, name)) == (1, ["cart_left"] * 2)


def test_after_an_anniversary_the_next_one_is_planned(desk: Desk, clock: Clock) -> None:
    name = somebody(desk)
    tell(desk, name, "orders", order(desk, 366), "e1")
    tell(desk, name, "orders", order(desk, 20, "new-2"), "e2")
    assert (due(desk), decided(desk, name)) == (1, ["anniversary"])
    assert planned(desk)[name, "anniversary"] == pytest.approx(364, abs=0.05)


def test_who_cannot_be_scored_is_not_asked_for_again_and_again(desk: Desk, clock: Clock) -> None:
    tell(desk, "browses-only", "events", cart(desk, 1.1))
    assert (due(desk), planned(desk), desk.store.position()) == (0, {}, 0)


def test_fifty_due_at_once_are_each_decided_once(desk: Desk, clock: Clock) -> None:
    names = at_risk(desk.champions.current, 50)
    for name in names:
        tell(desk, name, "orders", order(desk, 91))
    asyncio.run(_twice(desk))
    clock.now += LEASE_SECONDS + 1
    assert due(desk) == 0
    assert {occasion for _, occasion in planned(desk)} == {"anniversary"}
    log = logged(desk.store.file)  # type: ignore[attr-defined]
    assert sorted(one["customer"] for one in log) == sorted(names)


async def _twice(desk: Desk) -> None:
    """Two workers ask in turn."""
    done = await asyncio.gather(desk.decide_due(), desk.decide_due())
    assert sorted(done) == [0, 50]


def test_what_a_worker_took_and_did_not_finish_is_decided_by_another_after_the_lease(desk: Desk, clock: Clock) -> None:
    name = somebody(desk)
    tell(desk, name, "orders", order(desk, 91))
    assert desk.store.take_due(clock.now, 10, LEASE_SECONDS) == [(name, "silent_90d")]  # and was killed
    assert due(desk) == 0
    clock.now += LEASE_SECONDS
    assert (due(desk), due(desk)) == (1, 0)
    assert decided(desk, name) == ["silent_90d"]


def test_two_workers_at_one_look_decide_once(desk: Desk, clock: Clock) -> None:
    name = somebody(desk)
    tell(desk, name, "orders", order(desk, 91))

    async def both() -> list[bool]:
        return await asyncio.gather(*(desk._decide_one(name, SILENT) for _ in range(2)))

    assert sorted(asyncio.run(both())) == [False, True]
    assert decided(desk, name) == ["silent_90d"]


def test_a_kill_before_the_mark_leaves_no_decision(desk: Desk, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    name = somebody(desk)
    tell(desk, name, "orders", order(desk, 91))
    with monkeypatch.context() as patched:
        patched.setattr(SqliteStore, "serve_occasion", lambda *given: 1 / 0)
        assert due(desk) == 0
    assert (decided(desk, name), desk.store.served(name, "silent_90d")) == ([], set())
    clock.now += LEASE_SECONDS
    assert (due(desk), decided(desk, name)) == (1, ["silent_90d"])


def test_what_is_told_while_the_decision_is_prepared_counts(desk: Desk, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    name, prepare = somebody(desk), desk._prepare
    tell(desk, name, "orders", order(desk, 40), "e0")
    tell(desk, name, "events", cart(desk, 1.1), "e1")

    def slowly(*given: Any) -> None:
        prepare(*given)
        desk.store.add_events(name, [("e2", "events", cart(desk, 1, "pay"))], clock.now)

    monkeypatch.setattr(desk, "_prepare", slowly)
    assert (due(desk), decided(desk, name), (name, "cart_left") in planned(desk)) == (0, [], False)


def test_what_comes_while_nobody_was_found_to_have_it_is_looked_at_next(desk: Desk, clock: Clock) -> None:
    name = somebody(desk)
    tell(desk, name, "orders", order(desk, 91))
    assert not desk._decided_due(desk.champions.current, [], name, SILENT)  # told after the look that found nothing
    assert planned(desk)[name, "silent_90d"] == 0
    assert (due(desk), decided(desk, name)) == (1, ["silent_90d"])


def test_the_occasions_of_all_ids_are_one_persons(desk: Desk, clock: Clock) -> None:
    first, second = sorted(at_risk(desk.champions.current, 2))
    tell(desk, first, "orders", order(desk, 91), "e1")
    tell(desk, second, "orders", order(desk, 95, "new-2"), "e2")
    desk.store.set_persons([(second, first)])
    assert due(desk) == 1
    assert (decided(desk, second), {id for id, _ in planned(desk)}) == (["silent_90d"], {first, second})
    assert desk.store.served(second, "silent_90d") == desk.store.served(first, "silent_90d") != set()


def test_who_was_erased_has_no_occasion(desk: Desk, clock: Clock) -> None:
    name = somebody(desk)
    tell(desk, name, "orders", order(desk, 91))
    desk.store.serve_occasion(name, "cart_left", [1.0])
    desk.store.erase(name)
    told = tell(desk, name, "events", cart(desk), "e2")
    assert (told["accepted"], told["erased"]) == (0, 1)
    assert not asyncio.run(desk._decide_one(name, SILENT))  # a worker had taken it
    assert (due(desk), planned(desk), desk.store.position(), desk.store.served(name, "cart_left")) == (0, {}, 0, set())


def test_a_file_of_before_knows_nobody_served_and_opens(tmp_path: Path) -> None:
    file = tmp_path / "online.db"
    SqliteStore(file).plan_occasion("a", "cart_left", 5.0)
    with closing(sqlite3.connect(file)) as db:
        db.execute("DROP TABLE served")
    store = SqliteStore(file)
    assert (store.served("a", "cart_left"), store.take_due(9.0, 9, 1.0)) == (set(), [("a", "cart_left")])


def test_a_new_customers_first_order_is_decided_about_a_day_later(desk: Desk, clock: Clock) -> None:
    tell(desk, "nobody-yet", "orders", order(desk, 1.1))
    assert due(desk) == 1
    assert decided(desk, desk.champions.current.pseudonyms("nobody-yet")) == ["first_order_24h"]


def test_one_that_fails_does_not_keep_the_others_waiting(desk: Desk, clock: Clock) -> None:
    first, *others = at_risk(desk.champions.current, 4)
    for place, name in enumerate((first, *others)):
        tell(desk, name, "orders", order(desk, 100 - place))
    desk.store.put_histories([(first, "orders", b"a broken record batch")])
    assert due(desk) == 3
    assert {one["customer"] for one in logged(desk.store.file)} == set(others)  # type: ignore[attr-defined]
    assert desk.store.take_due(clock.now + LEASE_SECONDS, 9, 1.0) == [(first, "silent_90d")]
