"""Moments that ask for a decision: what the rows say of each, and that the order in which they are told does not matter."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import inbox, occasions
from serving.desk import Desk
from serving.inbox import NewEvent
from serving.occasions import Known, Spell
from serving.online import DAY_SECONDS
from serving.policy import Occasion
from serving.sqlite_store import SqliteStore
from tests.serving.test_decisions import at_risk, light_shop

FIRST, ANNIVERSARY, SILENT, CART, COMPLAINT = Occasion
UTC_ZONE = ZoneInfo("UTC")


def days(*values: float) -> list[float]:
    return [value * DAY_SECONDS for value in values]


def spells(*pairs: tuple[float, ...]) -> list[Spell]:
    """From a day on, or from one day to another."""
    return [Spell(*days(*pair)) for pair in pairs]


def looked(occasion: Occasion, known: Known, now: float, *served: float) -> tuple[list[float], float | None]:
    """Days since which an occasion is there, and the day of the next look."""
    look = occasions.look(occasion, known, now * DAY_SECONDS, set(days(*served)))
    return [due / DAY_SECONDS for due in look.there], None if look.again is None else look.again / DAY_SECONDS


@pytest.mark.parametrize(
    ("occasion", "orders", "day", "there", "again"),
    [
        (FIRST, [(0,)], 0.9, [], 1),
        (FIRST, [(0,)], 1, [1], None),
        (FIRST, [(0,)], 3.9, [1], None),
        (FIRST, [(0,)], 4, [], None),  # too late for thanks
        (FIRST, [(0,), (0.5,)], 1, [], None),  # no longer the only one
        (FIRST, [(0, 0.7), (0.5,)], 1.5, [1.5], None),  # the first was cancelled
        (FIRST, [(0,), (0.5, 1.2)], 1, [], 1.2),  # the second will be
        (FIRST, [(0,), (1.5,)], 1, [1], 1.5),  # what is not reached does not count
        (ANNIVERSARY, [(0,), (100,)], 300, [], 365),
        (ANNIVERSARY, [(100,), (0,)], 366, [365], 730),
        (ANNIVERSARY, [(0, 50), (100,)], 366, [], 465),
        (ANNIVERSARY, [(0,)], 368, [], 730),
        (SILENT, [(0,), (5,)], 94, [], 95),
        (SILENT, [(5,), (0,)], 124.9, [95], None),
        (SILENT, [(5,), (0,)], 125, [], None),
        (SILENT, [(0,), (5, 92)], 91, [], 92),
        (SILENT, [(0,), (5, 92)], 92, [90], None),
    ],
)
def test_orders_say_what_is_there_and_when_to_look_again(
    occasion: Occasion, orders: list[Any], day: float, there: list[float], again: float | None
) -> None:
    assert looked(occasion, Known(orders=spells(*orders)), day) == (there, again)


@pytest.mark.parametrize(
    ("carts", "pays", "orders", "day", "there", "again"),
    [
        ([0], [], [], 0.5, [], 1),
        ([0], [], [], 1, [1], None),
        ([0], [], [], 8, [], None),
        ([0, 5], [], [], 5.5, [], 6),  # the last one counts
        ([5], [4], [], 6, [6], None),
        ([5], [5], [], 6, [], None),
        ([5], [], [(5.5,)], 6, [], None),
        ([5], [], [(5.5, 5.9)], 6, [6], None),  # a cancelled order is none
        ([5], [6.5], [], 6, [6], 6.5),
    ],
)
def test_a_cart_is_left_unless_a_payment_or_an_order_follows(
    carts: list[float], pays: list[float], orders: list[Any], day: float, there: list[float], again: float | None
) -> None:
    known = Known(spells(*orders), (), days(*carts), days(*pays))
    assert looked(CART, known, day) == (there, again)


def test_every_complaint_is_there_until_it_is_resolved() -> None:
    known = Known(complaints=spells((0,), (2, 4), (3,)))
    assert looked(COMPLAINT, known, 3) == ([0, 2, 3], 4)
    assert looked(COMPLAINT, known, 4) == ([0, 3], None)
    assert looked(COMPLAINT, known, 30) == ([3], None)
    assert looked(COMPLAINT, known, 4, 3) == ([0], None)  # an older one that was told later


def test_what_was_decided_about_comes_back_only_as_another() -> None:
    assert looked(SILENT, Known(orders=spells((0,))), 91, 90) == ([], None)
    assert looked(SILENT, Known(orders=spells((0,), (5,))), 96, 90) == ([95], None)
    assert looked(SILENT, Known(orders=spells((0,), (5, 6))), 96, 95) == ([], None)  # the same silence, which began earlier
    assert looked(ANNIVERSARY, Known(orders=spells((0,))), 366, 365) == ([], 730)


MOMENTS = st.integers(0, 300).map(lambda hours: hours * 10 * 3600.0)
SPELLS = st.lists(st.builds(lambda start, more: Spell(start, start + more), MOMENTS, st.just(float("inf")) | MOMENTS), max_size=4)


@settings(max_examples=300, deadline=None)
@given(
    st.builds(Known, SPELLS, SPELLS, st.lists(MOMENTS, max_size=3), st.lists(MOMENTS, max_size=3)),
    MOMENTS,
    st.sampled_from(Occasion),
    st.sets(MOMENTS),
)
def test_no_occasion_comes_before_the_next_look(known: Known, now: float, occasion: Occasion, served: set[float]) -> None:
    first = occasions.look(occasion, known, now, served)
    served |= set(first.there)
    for later in range(1, 600):
        moment = now + later * 18_000
        if first.again is not None and moment >= first.again:
            break
        assert occasions.look(occasion, known, moment, served).there == ()


AT, NOW = "1970-04-11T00:00:00", 100.0
"""Day 100."""
COMPLAINED = {"ticket_id": "t", "opened_at": AT, "complaint": True}


@pytest.mark.parametrize(
    ("table", "row", "now", "planned"),
    [
        ("orders", {"ordered_at": AT}, 100, {FIRST: 101, SILENT: 190, ANNIVERSARY: 101}),
        ("orders", {"ordered_at": AT}, 150, {SILENT: 190, ANNIVERSARY: 151}),
        ("orders", {"ordered_at": AT}, 1000, {ANNIVERSARY: 1001}),
        ("orders", {"ordered_at": AT}, 830.5, {ANNIVERSARY: 830}),
        ("orders", {"ordered_at": AT, "cancelled_at": "1970-04-13T00:00:00"}, 150, {FIRST: 102, SILENT: 102, ANNIVERSARY: 102, CART: 102}),
        ("events", {"kind": "add_to_cart", "happened_at": AT}, 100, {CART: 101}),
        ("events", {"kind": "add_to_cart", "happened_at": AT}, 108, {}),
        ("events", {"kind": "pay", "happened_at": AT}, 100, {}),
        ("tickets", COMPLAINED, 100, {COMPLAINT: 100}),
        ("tickets", COMPLAINED, 130, {}),
        ("tickets", COMPLAINED | {"complaint": False}, 100, {}),
        ("reviews", {"rating": 1.0}, 100, {}),
    ],
)
def test_a_row_plans_a_look_no_later_than_it_can_bring_something(
    table: str, row: dict[str, Any], now: float, planned: dict[Any, float]
) -> None:
    found = occasions.of_event(table, row, UTC_ZONE, now * DAY_SECONDS)
    assert {occasion: look / DAY_SECONDS for occasion, look in found.items()} == planned


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


def test_an_occasion_of_today_needs_no_source_it_does_not_have() -> None:
    empty = pa.table({"recency_days": pa.array([], pa.float64())})
    for one in Occasion:
        assert occasions.today(one, empty).tolist() == []
    assert occasions.today(Occasion.SILENT, pa.table({"recency_days": [np.nan]})).tolist() == [False]


TICKS, HOUR = 100, 3600.0
START = datetime.now().timestamp() // HOUR * HOUR
"""Live features are those of now; events lie at full hours, the clock looks half an hour later."""


@dataclass(frozen=True)
class Happened:
    """An order, a complaint, an addition to the cart or a payment, in hours from the start, and the end of the first two."""

    kind: str
    start: int
    end: int | None = None

    def counts(self, now: float) -> bool:
        return self.start <= now and (self.end is None or now < self.end)


def must_be_decided(happened: Sequence[Happened]) -> list[tuple[int, str]]:
    """(day, occasion) of all that must be decided, told in plain words; hours throughout."""
    if not any(one.kind == "order" and one.start > -365 * 24 and one.counts(0.5) for one in happened):
        return []  # who has no order of the last year cannot be scored
    done: dict[str, set[int]] = {occasion: set() for occasion in Occasion}
    decided = []
    for day in range(TICKS):
        now = day * 24 + 0.5
        for occasion, since in _there([one for one in happened if one.counts(now)], now).items():
            new = {moment for moment in since if occasion == "complaint_open" or moment > max(done[occasion], default=-(10**9))} - done[
                occasion
            ]
            done[occasion] |= new
            decided += [(day, occasion)] if new else []
    return sorted(decided)


def _there(there: Sequence[Happened], now: float) -> dict[str, list[int]]:
    """The hours since which each occasion is there, of what counts now."""
    orders, carts, pays, complaints = (
        sorted(one.start for one in there if one.kind == kind) for kind in ("order", "cart", "pay", "complaint")
    )
    came = {"complaint_open": [opened for opened in complaints if now < opened + 30 * 24]}
    if len(orders) == 1 and 24 <= now - orders[0] < 4 * 24:
        came["first_order_24h"] = [orders[0]]
    if orders and 90 * 24 <= now - orders[-1] < 120 * 24:
        came["silent_90d"] = [orders[-1]]
    if orders and now - orders[0] >= 365 * 24 and (now - orders[0]) % (365 * 24) < 3 * 24:
        came["anniversary"] = [orders[0] + int((now - orders[0]) // (365 * 24)) * 365 * 24]
    if carts and 24 <= now - carts[-1] < 8 * 24 and not [one for one in orders + pays if one >= carts[-1]]:
        came["cart_left"] = [carts[-1]]
    return came


def happened_on(kinds: str, days: st.SearchStrategy[int], lasts: st.SearchStrategy[Any]) -> Any:
    """Something of some kinds on some days from the start, at any hour; what ends does so that many hours later."""
    starts = st.builds(lambda day, hour: day * 24 + hour, days, st.integers(0, 23))
    return st.builds(lambda kind, start, more: Happened(kind, start, more and start + more), st.sampled_from(kinds.split()), starts, lasts)


OPEN_OR_ENDED = st.none() | st.integers(1, 300)
ORDERED = happened_on("order", st.integers(-363, -270) | st.integers(-125, 5) | st.integers(-6, 5), OPEN_OR_ENDED)
AROUND = happened_on("complaint order", st.integers(-6, 30), OPEN_OR_ENDED) | happened_on("cart cart pay", st.integers(-6, 30), st.none())
HAPPENED = st.tuples(ORDERED, st.lists(AROUND, min_size=1, max_size=6)).map(lambda pair: [pair[0], *pair[1]])


def rows(happened: Sequence[Happened], zone: ZoneInfo) -> list[tuple[str, dict[str, Any]]]:
    """(canonical table, row) of each event, what has an end also as it was before."""

    def at(hour: int) -> str:
        return datetime.fromtimestamp(START + hour * HOUR, zone).replace(tzinfo=None).isoformat()

    made = []
    for number, one in enumerate(happened):
        table, row, end = {
            "order": ("orders", {"order_id": f"o{number}", "ordered_at": at(one.start), "amount": 20.0}, "cancelled_at"),
            "complaint": ("tickets", {"ticket_id": f"t{number}", "opened_at": at(one.start), "complaint": True}, "resolved_at"),
        }.get(one.kind, ("events", {"kind": "pay" if one.kind == "pay" else "add_to_cart", "happened_at": at(one.start)}, ""))
        made.append((table, row))
        made += [] if one.end is None else [(table, row | {end: at(one.end)})]
    return made


def is_clear(hour: int, zone: ZoneInfo) -> bool:
    """Whether the local time of an hour exists once (of two the first is taken), and is not that at which the test runs."""
    local = datetime.fromtimestamp(START + hour * HOUR, zone).replace(tzinfo=None)
    return hour not in range(6) and local.replace(tzinfo=zone).timestamp() == START + hour * HOUR


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return light_shop(tmp_path_factory).desk(tmp_path_factory.mktemp("desk") / "online.db")


def decided(desk: Desk, told: Sequence[tuple[str, dict[str, Any]]], folder: str) -> list[tuple[int, str]]:
    """(day, occasion) of all that a service decides that is told everything at the start, and then looks once a day."""
    store, engine, name = SqliteStore(Path(folder) / "online.db"), desk.champions.current, at_risk(desk.champions.current, 1)[0]
    desk.store = desk.decider.store = store
    inbox.keep(engine, store, [NewEvent(name, str(number), *event) for number, event in enumerate(told)], START)
    asyncio.run(_day_by_day(desk))
    found = [(datetime.fromisoformat(one["at"]).timestamp(), one["occasion"]) for one in store.decisions_of(name, 999)]
    return sorted((round((at - START) / DAY_SECONDS - 1 / 48), occasion) for at, occasion in found)


async def _day_by_day(desk: Desk) -> None:
    for day in range(TICKS):
        desk.decider.clock = lambda now=START + (day * 24 + 0.5) * HOUR: now  # type: ignore[misc]
        await desk.decide_due()


@settings(max_examples=40, deadline=None)
@given(HAPPENED, st.randoms(use_true_random=False))
def test_the_order_of_telling_does_not_matter(desk: Desk, happened: list[Happened], order: random.Random) -> None:
    zone = desk.champions.current.zone
    happened = [one for one in happened if all(is_clear(hour, zone) for hour in (one.start, one.end or one.start))]
    told, must = rows(happened, zone), must_be_decided(happened)
    for _ in range(2):
        with TemporaryDirectory() as folder:
            assert decided(desk, told, folder) == must
        order.shuffle(told)
