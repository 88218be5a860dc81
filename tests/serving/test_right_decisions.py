"""Corners in which a decision was once wrong: the right value of each, with the real engine, store and decider under a settable clock."""

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from features.store import Store
from serving import inbox, listed
from serving.daily import Round
from serving.decisions import Decider
from serving.desk import Desk
from serving.inbox import NewEvent
from serving.load import load
from serving.online import DAY_SECONDS, Charge, Listed, PastContact
from serving.policy import TIERS
from serving.schemas import Outcome
from serving.sqlite_store import SqliteStore
from tests.serving.test_decisions import TEXT, Light, at_risk, decide, light_shop, logged

BERLIN = ZoneInfo("Europe/Berlin")
RICH = TEXT.replace("per_day = 1000.0", "per_day = 100000.0")


def only(tier: str, text: str = RICH) -> str:
    """A policy under which no other tier wins anybody back, and this one everybody."""
    costs, effects = text.split("[effects.high_value]")
    for one in TIERS[1:]:
        effects = re.sub(rf"^{one} = 0\.\d\d$", f"{one} = {1.0 if one == tier else 0.0}", effects, flags=re.MULTILINE)
    return f"{costs}[effects.high_value]{effects}"


CALLS = only("concierge").replace('channels = ["call", "wechat"]', 'channels = ["call"]').replace('["wechat", "call"]', '["call"]')
"""Everybody gets a call, or nothing."""


def worth_a_call(shop: Light) -> list[str]:
    """Customers whose call wins more than it costs."""
    assert shop.engine.lookup is not None
    scored = shop.engine.lookup.scored
    return [name for name in at_risk(shop.engine) if scored.p[place := shop.engine.lookup.index[name]] * scored.value[place] > 20.0]


def at(text: str) -> float:
    """A moment in the shop's local time."""
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


@dataclass
class Played:
    """A shop with an empty store and a clock that the test moves."""

    shop: Light
    store: SqliteStore
    desk: Desk
    now: float = field(default_factory=lambda: at("2026-01-07T10:00:00"))

    @property
    def decider(self) -> Decider:
        return Decider(self.store, lambda: self.now)

    def decide(self, text: str, names: list[str] | int) -> list[dict[str, Any]]:
        engine = self.shop.under(text)
        return decide(self.decider, engine, at_risk(engine, names) if isinstance(names, int) else names)

    def round(self, text: str, **more: Any) -> Round:
        return Round(self.shop.under(text), self.decider, self.shop.places.features, **more)

    def tell(self, table: str, *rows: dict[str, Any], customer: str) -> None:
        """New events of a customer."""
        known = self.store._db.execute("SELECT count(*) FROM event").fetchone()[0]
        events = [NewEvent(customer, f"e{known + number}", table, row) for number, row in enumerate(rows)]
        inbox.keep(self.shop.engine, self.store, events, self.now)

    def happened(self, decision: str, kind: str, moment: float | None = None) -> bool:
        """Tell an outcome of a decision, as the API takes it; whether it was new."""
        told = datetime.fromtimestamp(self.now if moment is None else moment, BERLIN)
        self.desk.store = self.desk.decider.store = self.store
        self.desk.decider.clock = lambda: self.now
        counts = self.desk.add_outcomes([Outcome(decision_id=decision, kind=kind, at=told)])
        assert counts["unknown"] == 0
        return counts["accepted"] == 1

    def contacts(self, name: str) -> list[PastContact]:
        return list(self.store.standing([name], "marketing", 0.0)[0].contacts)

    def spent(self, day: str) -> dict[str, float]:
        """Money and hours of a day, read without the code under test."""
        with closing(sqlite3.connect(self.store.file)) as db:
            rows = db.execute("SELECT resource, sum(used * (1 - returned)) FROM ledger WHERE day = ? GROUP BY resource", (day,)).fetchall()
        assert dict(rows) == self.store.spent(day)
        return {resource: used / 1e6 for resource, used in rows}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Light:
    return light_shop(tmp_path_factory)


@pytest.fixture(scope="module")
def desk(shop: Light, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A service's desk; each test gives it its own store and clock."""
    return shop.desk(tmp_path_factory.mktemp("desk") / "online.db")


@pytest.fixture
def played(shop: Light, desk: Desk, tmp_path: Path) -> Played:
    return Played(shop, SqliteStore(tmp_path / "online.db"), desk)


# Money


def test_a_budget_lowered_below_what_is_spent_leaves_nothing_and_still_decides(played: Played, tmp_path: Path) -> None:
    played.store.charge([Charge(None, "2026-01-07", "budget", 1_000_000_000)])
    told = played.decide(TEXT.replace("per_day = 1000.0", "per_day = 500.0"), 50)
    assert {(one["tier"], one["binding"]) for one in told} == {("none", "budget")}
    day = played.round(TEXT.replace("per_day = 1000.0", "per_day = 500.0")).run(tmp_path / "day.parquet")
    assert (day.used["budget"], day.limits["budget"]) == (0.0, 0.0)
    assert set(day.contacts) - {name for name, number in day.contacts.items() if number == 0} == {"none"}


def test_the_largest_budget_is_decided_as_without_one(played: Played, tmp_path: Path) -> None:
    start, end = RICH.index("[budget]"), RICH.index("[capacity.concierge]")
    names = at_risk(played.shop.engine, 40)
    free = played.decide(RICH[:start] + RICH[end:], names)
    other = Played(played.shop, SqliteStore(tmp_path / "other.db"), played.desk)
    bound = other.decide(TEXT.replace("per_day = 1000.0", "per_day = 9000000000.0"), names)
    assert [one["tier"] for one in bound] == [one["tier"] for one in free]


@pytest.mark.parametrize(
    ("cost", "budget", "contacts"), [("0.07", "7.00", 100), ("0.07", "0.70", 10), ("0.1", "0.3", 3), ("0.05", "0.15", 3)]
)
def test_a_budget_pays_as_many_contacts_as_it_holds_in_batch_and_online(
    played: Played, tmp_path: Path, cost: str, budget: str, contacts: int
) -> None:
    text = only("nudge", TEXT).replace("nudge = 0.05", f"nudge = {cost}").replace("per_day = 1000.0", f"per_day = {budget}")
    online = Played(played.shop, SqliteStore(tmp_path / "online2.db"), played.desk)
    assert sum(one["tier"] == "nudge" for one in online.decide(text, 400)) == contacts
    day = played.round(text).run(tmp_path / "day.parquet")
    assert (day.contacts["nudge"], day.contacts["offer"], day.contacts["concierge"]) == (contacts, 0, 0)
    assert played.spent("2026-01-07") == pytest.approx(online.spent("2026-01-07"))


@pytest.mark.parametrize("text", [TEXT, only("offer", TEXT)], ids=["shipped", "ties"])
def test_the_service_follows_the_days_plan_to_the_customer_and_the_cent_in_any_order(played: Played, tmp_path: Path, text: str) -> None:
    text = text.replace("per_day = 1000.0", "per_day = 120.0").replace("hours_per_day = 8.0", "hours_per_day = 0.75")
    batch = Played(played.shop, SqliteStore(tmp_path / "batch.db"), played.desk)
    batch.round(text).run(tmp_path / "day.parquet")
    contacted = {one["customer"]: (one["tier"], one["channel"]) for one in logged(batch.store.file)}
    played.round(text, prices_only=True).run(tmp_path / "plan.parquet")
    assert played.spent("2026-01-07") == {}
    names = sorted(at_risk(played.shop.engine), key=lambda name: name[::-1])
    told = dict(zip(names, played.decide(text, names), strict=True))
    assert {name: (one["tier"], one["channel"]) for name, one in told.items() if one["tier"] != "none"} == contacted
    assert played.spent("2026-01-07") == batch.spent("2026-01-07")
    assert contacted


# Caps, capacity, gap


def test_a_cap_of_no_contact_is_kept_by_who_was_never_contacted(played: Played, tmp_path: Path) -> None:
    cap = '[[caps]]\nchannel = "{}"\ncontacts = 0\ndays = 31.0\n\n[costs]'
    no_calls = CALLS.replace("[costs]", cap.format("call")).replace(
        'channel = "call"\ncontacts = 1\ndays = 30.0', 'channel = "push"\ncontacts = 9\ndays = 9.0'
    )
    nobody = RICH.replace("[costs]", cap.format("any"))
    for text in (no_calls, nobody):
        told = played.decide(text, worth_a_call(played.shop)[:40])
        assert {(one["tier"], one["binding"]) for one in told} == {("none", "contact_cap")}
        assert played.round(text).run(tmp_path / "day.parquet").contacts["none"] == len(played.shop.engine.lookup.scored)  # type: ignore[union-attr]


def test_hours_belong_to_the_day_on_which_the_call_is_made(played: Played) -> None:
    names = worth_a_call(played.shop)
    played.now = at("2026-01-07T22:00:00")
    late = [one for one in played.decide(CALLS, names[:80]) if one["tier"] == "concierge"]
    assert {one["send_after"] for one in late} == {"2026-01-08T08:00:00+01:00"}
    assert len(late) == 32  # 8 h of a quarter of an hour each
    assert (played.spent("2026-01-07"), played.spent("2026-01-08")) == ({}, {"budget": 640.0, "concierge": 8.0})
    played.now = at("2026-01-08T09:00:00")
    assert {(one["tier"], one["binding"]) for one in played.decide(CALLS, names[80:160])} == {("none", "capacity")}
    played.now = at("2026-01-09T09:00:00")
    assert sum(one["tier"] == "concierge" for one in played.decide(CALLS, names[80:160])) == 32


def test_a_batch_at_night_pays_each_contact_from_its_own_day(played: Played, tmp_path: Path) -> None:
    played.now = at("2026-01-07T22:00:00")
    played.store.charge([Charge(None, "2026-01-08", "concierge", 7_000_000)])
    text = TEXT.replace("per_day = 1000.0", "per_day = 300.0")
    day = played.round(text).run(tmp_path / "day.parquet")
    made = [(one["send_after"] is None, one["tier"]) for one in logged(played.store.file) if one["tier"] != "none"]
    assert {True, False} <= {at_once for at_once, _ in made}
    assert sum(tier == "concierge" for _, tier in made) == 4  # the hour that is left of the day after
    costs = {"nudge": 0.05, "offer": 4.0, "concierge": 20.0}
    for date, at_once in (("2026-01-07", True), ("2026-01-08", False)):
        assert sum(costs[tier] for now, tier in made if now == at_once) == pytest.approx(played.spent(date)["budget"])
        assert played.spent(date)["budget"] <= 300.0
    assert day.limits == {"budget": 300.0, "concierge": 8.0, "budget 2026-01-08": 300.0, "concierge 2026-01-08": 1.0}


def test_the_minimum_gap_counts_from_sending(played: Played) -> None:
    names = at_risk(played.shop.engine, 400)
    for channel in ("e-mail", "sms"):  # every other customer has no other channel
        played.store.set_consents((name, "marketing", channel, True, played.now) for name in names[::2])
    played.now = at("2026-01-07T22:00:00")
    first = dict(zip(names, played.decide(only("offer"), names), strict=True))
    by_sms = [name for name, one in first.items() if one["channel"] == "sms"]
    assert {first[name]["send_after"] for name in by_sms} == {"2026-01-08T08:00:00+01:00"}
    for name in by_sms:
        played.store.answer_decision(first[name]["decision_id"])
    text = only("nudge")  # an answered offer leaves a nudge, by push or e-mail
    played.now = at("2026-01-10T21:06:00")
    by_mail, by_push = ([name for name in by_sms if (name in names[::2]) == mail] for mail in (True, False))
    assert {(one["tier"], one["binding"]) for one in played.decide(text, by_mail)} == {("none", "minimum_gap")}  # 2.55 days
    assert {one["send_after"] for one in played.decide(text, by_push)} == {"2026-01-11T08:00:00+01:00"}
    played.now = at("2026-01-11T08:00:00")
    assert {one["tier"] for one in played.decide(text, by_mail)} == {"nudge"}


# What the shop tells


def test_an_order_that_a_load_brings_answers_the_contacts_before_it(played: Played) -> None:
    played.now = at("2025-12-01T10:00:00")
    names = at_risk(played.shop.engine)
    contacts = {name: one["decision_id"] for name, one in zip(names, played.decide(RICH, names), strict=True) if one["tier"] != "none"}
    load(played.store, played.shop.places.sources, "Europe/Berlin")
    with Store.read(played.shop.places.sources).connect(played.shop.places.sources) as connection:
        rows = connection.execute("SELECT DISTINCT customer_id FROM orders WHERE cancelled_at IS NULL AND ordered_at > '2025-12-01 10:00'")
        bought = set(played.store.persons([customer for (customer,) in rows.fetchall()]))
    ours = [one.customer for one in played.store.contacts() if one.decision and one.listed is None]
    assert len(ours) > 0.9 * len(contacts)
    assert 0 < sum(name in bought for name in ours) < len(ours)
    for name in ours:
        assert [one.answered for one in played.contacts(name) if one.at == played.now] == [name in bought]


@pytest.mark.parametrize("named", ["by decision", "by day", "by day, tier untold"])
def test_a_contact_of_ours_that_the_shop_lists_counts_once(played: Played, named: str) -> None:
    (name,), later = at_risk(played.shop.engine, 1), at("2026-01-07T15:30:00")
    (one,) = played.decide(RICH, [name])
    tier, id = TIERS.index(one["tier"]), one["decision_id"] if named == "by decision" else None
    told = Listed("shop-1", name, later, one["channel"], None if "untold" in named else tier, answered=False, decision=id)
    for came in (None, played.now):
        with played.store.transaction():
            assert listed.keep(played.store, [told], BERLIN, came) == 1
        assert played.contacts(name) == [PastContact(later, tier, one["channel"], False)]


@pytest.mark.parametrize("again", [True, False], ids=["both listed again", "told alone"])
def test_a_guess_is_given_up_for_the_contact_that_names_the_decision(played: Played, again: bool) -> None:
    (name,) = at_risk(played.shop.engine, 1)
    (one,) = played.decide(RICH, [name])
    guess = Listed("s-1", name, played.now, one["channel"], None, answered=True)
    named = Listed("s-2", name, played.now + 60, one["channel"], None, answered=False, decision=one["decision_id"])
    for told in ([guess], [guess, named] if again else [named]):
        with played.store.transaction():
            listed.keep(played.store, told, BERLIN, played.now)
    kept = {(row.listed, row.decision, row.tier) for row in played.store.contacts()}
    assert kept == {("s-1", None, 1), ("s-2", one["decision_id"], TIERS.index(one["tier"]))}


@pytest.mark.parametrize("together", [True, False])
def test_two_listed_contacts_that_name_one_decision_are_that_one(played: Played, together: bool) -> None:
    (name,) = at_risk(played.shop.engine, 1)
    (one,) = played.decide(RICH, [name])
    both = [Listed(id, name, played.now, one["channel"], None, answered=False, decision=one["decision_id"]) for id in ("s-1", "s-2")]
    for told in [both] if together else [[each] for each in both]:
        with played.store.transaction():
            listed.keep(played.store, told, BERLIN, played.now)
    assert [row.decision for row in played.store.contacts()] == [one["decision_id"]]


def test_another_channel_tier_or_day_is_another_contact(played: Played) -> None:
    (name,) = at_risk(played.shop.engine, 1)
    (one,) = played.decide(RICH, [name])
    tier = TIERS.index(one["tier"])
    others = [
        Listed("a", name, played.now, "wechat", tier, answered=False),
        Listed("b", name, played.now, one["channel"], tier % 3 + 1, answered=False),
        Listed("c", name, played.now + DAY_SECONDS, one["channel"], tier, answered=True),
    ]
    with played.store.transaction():
        assert listed.keep(played.store, others, BERLIN) == 0
    assert len(played.contacts(name)) == 4


def test_contacts_are_loaded_as_far_back_as_a_policy_may_look(played: Played) -> None:
    load(played.store, played.shop.places.sources, "Europe/Berlin")
    cap = '[[caps]]\nchannel = "{}"\ncontacts = 1\ndays = 365.0\n\n[costs]'
    text = re.sub(r"(?s)\[\[caps\]\].*?(?=\[costs\])", "", only("offer")).replace("[costs]", cap.format("e-mail"))
    long_ago = {
        one.customer for one in played.store.contacts() if one.channel == "e-mail" and 130 < (played.now - one.at) / DAY_SECONDS < 365
    }
    names = [name for name in at_risk(played.shop.engine) if name in long_ago]
    assert len(names) > 10
    assert not {one["channel"] for one in played.decide(text, names)} & {"e-mail"}


def test_contacts_told_by_event_count_for_gap_and_caps(played: Played) -> None:
    near, often = at_risk(played.shop.engine, 2)
    hour = "2026-01-07T0{}:00:00"
    rows = [
        {"contact_id": f"k{n}", "sent_at": hour.format(n + 1), "channel": channel} for n, channel in enumerate(("call", "e-mail", "sms"))
    ]
    played.tell("contacts", *rows, customer=near)
    (told,) = played.decide(RICH, [near])
    assert (told["tier"], told["binding"]) == ("none", "minimum_gap")
    four = [
        {"contact_id": f"o{n}", "sent_at": f"2026-01-0{n}T09:00:00", "channel": "e-mail", "clicked_at": f"2026-01-0{n}T10:00:00"}
        for n in range(1, 5)
    ]
    played.tell("contacts", *four, customer=often)
    played.now = at("2026-01-09T10:00:00")
    (told,) = played.decide(RICH, [often])
    assert (told["tier"], told["blocked"]["nudge"]) == ("none", "contact_cap")


def test_a_contact_told_again_is_replaced_and_a_hold_out_is_none(played: Played) -> None:
    (name,) = at_risk(played.shop.engine, 1)
    row = {"contact_id": "k", "sent_at": "2026-01-06T09:00:00", "channel": "sms", "tier": 2.0}
    played.tell("contacts", row, row | {"clicked_at": "2026-01-06T09:30:00"}, {**row, "contact_id": "h", "tier": 0.0}, customer=name)
    assert played.contacts(name) == [PastContact(at("2026-01-06T09:00:00"), 2, "sms", True)]


def test_a_contact_told_after_the_order_that_answers_it_is_answered(played: Played) -> None:
    (name,) = at_risk(played.shop.engine, 1)
    played.tell("orders", {"order_id": "o", "ordered_at": "2026-01-06T12:00:00"}, customer=name)
    played.tell("contacts", {"contact_id": "k", "sent_at": "2026-01-06T09:00:00", "channel": "sms"}, customer=name)
    assert [one.answered for one in played.contacts(name)] == [True]


def test_a_contact_told_after_the_load_that_brought_the_order_is_answered(played: Played) -> None:
    load(played.store, played.shop.places.sources, "Europe/Berlin")
    with Store.read(played.shop.places.sources).connect(played.shop.places.sources) as connection:
        found = connection.execute(
            "SELECT customer_id, max(ordered_at) FROM orders WHERE cancelled_at IS NULL GROUP BY 1 ORDER BY 1 LIMIT 1"
        )
        ((name, ordered),) = found.fetchall()
    for number, minutes in enumerate((-30, 30)):
        row = {"contact_id": f"told {number}", "sent_at": (ordered + timedelta(minutes=minutes)).isoformat(), "channel": "sms"}
        played.tell("contacts", row, customer=name)
    told = [one for one in played.store.contacts([name]) if (one.listed or "").startswith("told")]
    assert [one.answered for one in told] == [True, False]


def test_an_answer_outlives_a_load_that_does_not_know_of_it(played: Played) -> None:
    (name,) = at_risk(played.shop.engine, 1)
    told = Listed("k", name, at("2026-01-05T09:00:00"), "sms", 2, answered=False)
    for _ in range(2):  # loaded, answered by an order that only an event tells, and loaded again
        with played.store.transaction():
            played.store.forget_contacts(played.now)
            listed.keep(played.store, [told], BERLIN)
        played.tell("orders", {"order_id": "o", "ordered_at": "2026-01-06T12:00:00"}, customer=name)
    with played.store.transaction():
        played.store.forget_contacts(played.now)
        listed.keep(played.store, [told], BERLIN)
    assert [one.answered for one in played.contacts(name)] == [True]


def test_a_moment_with_an_offset_is_kept_in_the_hour_that_comes_twice(played: Played) -> None:
    (name,) = at_risk(played.shop.engine, 1)
    for number, offset in enumerate(("+02:00", "+01:00")):
        sent = datetime.fromisoformat(f"2025-10-26T02:44:47{offset}")
        row = {"contact_id": f"k{number}", "sent_at": sent, "channel": "sms"}
        event = SimpleNamespace(customer_id=name, event_id=f"e{number}", table="contacts", row=row)
        kept, _ = inbox.prepared(played.shop.engine, played.store, [event])
        inbox.keep(played.shop.engine, played.store, kept, played.now)
    assert [one.at for one in played.contacts(name)] == [sent.timestamp() - 3600, sent.timestamp()]


@pytest.mark.parametrize("later", ["3 days", "another policy"])
def test_settled_tiers_end_with_their_plan(played: Played, tmp_path: Path, later: str) -> None:
    first, second = worth_a_call(played.shop)[:2]
    played.round(RICH, prices_only=True).run(tmp_path / "plan.parquet")
    played.store.set_planned([(first, 0), (second, 0)])
    assert [one["tier"] for one in played.decide(RICH, [first])] == ["none"]
    played.now += 3 * DAY_SECONDS if later == "3 days" else 0
    text = RICH if later == "3 days" else RICH.replace('version = "', 'version = "other ')
    assert [one["tier"] for one in played.decide(text, [second])] != ["none"]


# Outcomes


def test_a_contact_that_failed_is_no_rung_and_gives_its_money_back(played: Played) -> None:
    (name, one) = first_call(played)
    assert played.spent("2026-01-07") == {"budget": 20.0, "concierge": 0.25}
    assert played.happened(one["decision_id"], "failed")
    assert played.spent("2026-01-07") == {"budget": 0.0, "concierge": 0.25}
    assert played.contacts(name) == []
    played.now += 8 * DAY_SECONDS
    (again,) = played.decide(CALLS, [name])
    assert again["tier"] == "concierge"


def test_a_policy_says_what_a_failed_contact_gives_back(played: Played) -> None:
    turned = CALLS.replace('cost = "returned"', 'cost = "spent"').replace('hours = "spent"', 'hours = "returned"')
    _, one = first_call(played, turned)
    played.happened(one["decision_id"], "failed")
    assert played.spent("2026-01-07") == {"budget": 20.0, "concierge": 0.0}


@pytest.mark.parametrize("kinds", [("failed", "delivered"), ("responded", "failed"), ("failed", "failed", "opened")])
def test_what_shows_that_it_was_made_overrules_a_failure_whichever_is_told_first(played: Played, kinds: tuple[str, ...]) -> None:
    name, one = first_call(played)
    for number, kind in enumerate(kinds):
        played.happened(one["decision_id"], kind, played.now + number)
    assert played.spent("2026-01-07") == {"budget": 20.0, "concierge": 0.25}
    assert len(played.contacts(name)) == 1


def first_call(played: Played, text: str = CALLS) -> tuple[str, dict[str, Any]]:
    """A customer and the decision to call."""
    name = worth_a_call(played.shop)[0]
    (one,) = played.decide(text, [name])
    assert one["tier"] == "concierge"
    return name, one


def test_unsubscribed_told_again_leaves_a_consent_given_since(played: Played) -> None:
    name, one = first_call(played)
    told = played.now
    assert played.happened(one["decision_id"], "unsubscribed", told)
    assert played.store.standing([name], "marketing", 0.0)[0].consents == {"call": False}
    played.now += 60
    played.store.set_consents([(name, "marketing", "call", True, played.now)])
    played.now += 60
    assert not played.happened(one["decision_id"], "unsubscribed", told)
    assert played.store.standing([name], "marketing", 0.0)[0].consents == {"call": True}


def test_the_contacts_own_answer_counts_though_the_clock_of_the_sender_is_behind(played: Played) -> None:
    name, one = first_call(played)
    played.happened(one["decision_id"], "responded", played.now - 5)
    assert [contact.answered for contact in played.contacts(name)] == [True]


# What the store itself asserts


@pytest.mark.parametrize("broken", ["money", "consent", "cap", "twice"])
def test_a_breach_aborts_and_keeps_nothing(played: Played, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    from serving import decisions
    from serving.ledger import Breach

    name, other = worth_a_call(played.shop)[:2]
    faults: dict[str, Callable[[], None]] = {
        "money": lambda: played.store.charge([Charge(None, "2026-01-07", "budget", 99_999_000_000)]),
        "consent": lambda: played.store.set_consents([(name, "marketing", "", False, played.now)]),
        "cap": lambda: played.store.add_contacts([(name, played.now - 20 * DAY_SECONDS, 1, "call", True, None)]),
        "twice": lambda: monkeypatch.setattr(decisions.uuid, "uuid4", lambda: type("Same", (), {"hex": "0" * 32})),
    }
    before = played.store.standing([name], "marketing", 0.0), played.store.spent("2026-01-07")
    faults[broken]()
    if broken == "money":
        monkeypatch.setattr(Decider, "left", lambda self, policy, days: policy.limits_units_K[None].repeat(len(days), 0))
    elif broken in ("consent", "cap"):
        monkeypatch.setattr(decisions, "standings", blind(before[0][0]))
    else:
        played.decide(CALLS, [other])
    position = played.store.position()
    with pytest.raises((Breach, sqlite3.IntegrityError)):
        played.decide(CALLS, [name])
    assert played.store.position() == position


def blind(known: Any) -> Callable[..., dict[str, Any]]:
    """A fault: the situation is made from what was known of the customer before."""
    from serving import standings

    return lambda moment, found, segment, occasion: standings.standings(moment, [known], segment, occasion)
