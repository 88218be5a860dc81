"""Shops at play against a referee: whatever happens in four months, every decision, every contact and every cent is as the policy means it.

Hypothesis draws what happens: decisions about some and about all, outcomes, consents, orders, loads, restarts, other policies. Engine,
store and doors are the real ones; `referee.py` says what should come of it.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from serving import histories, inbox, schemas
from serving.daily import Round
from serving.decisions import Decider
from serving.desk import Desk
from serving.inbox import NewEvent
from serving.load import load
from serving.policy import CHANNELS
from serving.schemas import OUTCOMES
from serving.sqlite_store import SqliteStore
from tests.serving.books import Contact, Told
from tests.serving.referee import DAY, TIERS, Customer, Referee, Verdict, millionths
from tests.serving.shop_at_play import PEOPLE, POLICIES, ZONE, Cast, World, written
from tests.serving.test_decisions import light_shop

ZONES = ("America/New_York", "Asia/Kolkata", "Pacific/Auckland", "Europe/Berlin")
STARTS = ("2025-01-15T10:00", "2025-03-25T18:00", "2025-10-22T09:00", "2025-07-01T20:30")
"""Before the nights on which clocks change, and others."""
NIGHTS = ("2025-03-30T00:30", "2025-03-30T04:30", "2025-10-25T23:30", "2025-10-26T00:20", "2025-10-26T01:10", "2025-10-26T05:00")
"""In UTC: around the hours that are left out and that come twice."""
STEPS = (60, 3600, 8 * 3600, 13 * 3600, DAY, 2 * DAY + 5, 3 * DAY, 7 * DAY, 8 * DAY + 7200, 31 * DAY)
OCCASIONS = (None, None, None, "cart_left", "complaint_open", "anniversary")
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
SUITE = settings(max_examples=30, stateful_step_count=30, derandomize=True, deadline=None, suppress_health_check=QUIET)
LONG = settings(SUITE, max_examples=500, stateful_step_count=50, derandomize=False)

person = st.integers(0, 5)
"""A few regulars, of whom much is heard; who they are is drawn once for a shop."""
some_people = st.lists(person, min_size=1, max_size=5, unique=True)
policies = st.sampled_from(list(POLICIES))
kinds = st.sampled_from((*OUTCOMES, "failed", "failed", "failed"))
any_channel = st.sampled_from(("", *CHANNELS))
granted = st.sampled_from((True, True, False))


def told_moment(at: float) -> float:
    """A moment as events tell it, by the shop's clock: of an hour that comes twice the first."""
    return datetime.fromtimestamp(at, ZONE).replace(fold=0).timestamp()


class ShopDays(RuleBasedStateMachine):
    """A shop over some months: what Holdfast does on the left, what the referee says on the right."""

    cast: Cast

    # Start, clock, workers

    @initialize(
        start=st.sampled_from(STARTS), name=policies, keeps_consents=st.sampled_from((False, False, True)), first=st.integers(0, PEOPLE - 1)
    )
    def opens(self, start: str, name: str, keeps_consents: bool, first: int) -> None:
        self.folder = TemporaryDirectory()
        self.file = Path(self.folder.name) / "online.db"
        self.now = self.begin = datetime.fromisoformat(start).replace(tzinfo=ZONE).timestamp()
        self.people = self.cast.people[first:] + self.cast.people[:first]
        self.world = World(consents=[] if keeps_consents else None)
        self.judge = Referee(POLICIES[name], str(ZONE))
        self.name, self.plan, self.settled = name, None, {}
        self.decided: dict[str, tuple[Customer, str, float]] = {}
        self.outcomes: list[tuple[str, str, float]] = []
        self.loaded, self.events = float("-inf"), 0
        self.desks = [self._desk(), self._desk()]
        self.worker = 0

    def _desk(self) -> Desk:
        desk = Desk(self.cast.champions, SqliteStore(self.file))
        desk.decider.clock = lambda: self.now
        return desk

    @property
    def desk(self) -> Desk:
        return self.desks[self.worker]

    @property
    def decider(self) -> Decider:
        return self.desk.decider

    @property
    def engine(self) -> Any:
        return self.cast.engines[self.name]

    @rule(edge=st.sampled_from(("start", "end", "00:00")), seconds=st.sampled_from((-2, -1, -1, 0)), who=some_people)
    def clock_strikes(self, edge: str, seconds: int, who: list[int]) -> None:
        """The quiet hours begin or end where the first lives, or a day does; the decision comes a second later."""
        clock = self.judge.policy.get("quiet_hours", {}).get(edge, "00:00")
        local = datetime.fromtimestamp(self.now, ZoneInfo(self.judge.homes.get(self.people[who[0]].person, str(ZONE)))) + timedelta(days=1)
        hour, minute = map(int, clock.split(":"))
        self._until(local.replace(hour=hour, minute=minute, second=0).timestamp() + seconds)
        self._decide(who, None)

    @rule(night=st.sampled_from(NIGHTS), minutes=st.integers(0, 90), who=some_people)
    def clocks_change(self, night: str, minutes: int, who: list[int]) -> None:
        self._until(datetime.fromisoformat(night).replace(tzinfo=UTC).timestamp() + 60 * minutes)
        self._decide(who, None)

    def _until(self, moment: float) -> None:
        if self.now < moment <= self.begin + 120 * DAY:
            self.now = float(moment)

    @rule(restarts=st.booleans())
    def another_worker_answers(self, restarts: bool) -> None:
        self.worker = 1 - self.worker
        if restarts:
            self.desks[self.worker] = self._desk()

    @rule(name=policies)
    def policy_changes(self, name: str) -> None:
        self.name = name
        self.judge.obey(POLICIES[name])

    @rule(name=policies, days=st.sampled_from((1, 4, 9)), hour=st.sampled_from((10, 22, 23)), order=st.permutations(range(PEOPLE)))
    def everybody_evening_and_morning(self, name: str, days: int, hour: int, order: list[int]) -> None:
        """Under another policy, part of them late in the evening and the others the morning after, when the late contacts are made."""
        self.policy_changes(name)
        local = datetime.fromtimestamp(self.now, ZONE) + timedelta(days=days)
        self._until(local.replace(hour=hour, minute=0, second=0).timestamp())
        everybody = [place for place in order if place < len(self.people)]
        self._decide(everybody[:15], None)
        self._until(self.now + 11 * 3600)
        self._decide(everybody[15:], None)

    # Decisions

    @rule(visits=st.lists(st.tuples(st.sampled_from(STEPS), some_people), min_size=2, max_size=6), occasion=st.sampled_from(OCCASIONS))
    def service_decides(self, visits: list[tuple[float, list[int]]], occasion: str | None) -> None:
        for step, who in visits:
            self._until(self.now + step)
            self._decide(who, occasion)

    def _decide(self, who: list[int], occasion: str | None) -> None:
        self.now += 1
        customers = [self.people[place] for place in who]
        names = [one.person for one in customers]
        ones = [self.engine.found(name) for name in names]
        told = self.decider.decide(self.engine, ones, names, occasion, [False] * len(names))
        for customer, answer in zip(customers, told, strict=True):
            planned = None if occasion else self._settled(customer.person)
            verdict = self.judge.decide(customer, self.now, self._prices(), occasion, answer["tier"], planned)
            self._agree(verdict, customer, answer)
            self._keep(answer["decision_id"], customer, verdict)

    def _agree(self, verdict: Verdict, customer: Customer, answer: dict[str, Any]) -> None:
        after = answer["send_after"] and datetime.fromisoformat(answer["send_after"]).timestamp()
        said = {name: answer[name] for name in ("tier", "strategy", "channel", "binding", "blocked")} | {"send_after": after}
        meant = {name: getattr(verdict, name) for name in said}
        assert said == meant, f"at {datetime.fromtimestamp(self.now, ZONE)} under {self.name!r} about {customer}: {said} is not {meant}"

    def _keep(self, id: str, customer: Customer, verdict: Verdict) -> None:
        assert id not in self.decided
        self.decided[id] = (customer, verdict.channel or "", self.now)
        self.judge.book(id, customer, verdict)
        if verdict.made is not None:
            self._assert_within(id, customer, verdict)

    def _assert_within(self, id: str, customer: Customer, verdict: Verdict) -> None:
        """What must hold of a contact just booked, read from the store's file: paid from its day, consented, under every cap."""
        told = self.judge.policy
        with closing(sqlite3.connect(self.file)) as db:
            (day,) = db.execute("SELECT DISTINCT day FROM ledger WHERE decision = ?", (id,)).fetchone() or (None,)
            spent = dict(db.execute("SELECT resource, sum(used * (1 - returned)) FROM ledger WHERE day = ? GROUP BY resource", (day,)))
            mine = db.execute("SELECT at, channel FROM contact WHERE customer = ? AND NOT failed", (customer.person,)).fetchall()
        for name in self.judge.use(verdict.tier):
            limit = told["budget"]["per_day"] if name == "budget" else told["capacity"][name]["hours_per_day"]
            assert spent.get(name, 0) <= millionths(limit) or not millionths(self.judge.use(verdict.tier)[name])
        for cap in told.get("caps", []):
            if cap["channel"] in ("any", verdict.channel) and cap.get("segment", customer.segment) == customer.segment:
                counted = [at for at, channel in mine if cap["channel"] in ("any", channel)]
                assert sum(at > (verdict.made or 0) - float(cap["days"]) * DAY for at in counted) <= cap["contacts"]
        assert self.judge.open(customer.person, verdict.channel or "")

    def _prices(self) -> dict[str, dict[str, float]]:
        """The plan's prices by day, while it is in force: for two days and its policy; days beyond it are as its last one."""
        if self.plan is None or self.plan["policy"] != POLICIES[self.name] or self.now - self.plan["at"] > 2 * DAY:
            return {}
        begun, known = datetime.fromtimestamp(self.plan["at"], ZONE).date(), self.plan["prices"]
        return {(begun + timedelta(days=number)).isoformat(): known[min(number, len(known) - 1)] for number in range(5)}

    def _settled(self, person: str) -> str | None:
        return self.settled.get(person) if self._prices() else None

    @rule(prices_only=st.booleans())
    def everybody_is_decided_about(self, prices_only: bool) -> None:
        self.now += 1
        out = Path(self.folder.name) / "day.parquet"
        Round(self.engine, self.decider, self.cast.shop.places.features, prices_only=prices_only).run(out)
        found = {row["customer_id"]: row for row in pq.read_table(out).to_pylist()}
        plan = self.decider.store.meta("plan")
        self.plan = {"at": self.now, "policy": POLICIES[self.name], "prices": plan["prices"]}
        with closing(sqlite3.connect(self.file)) as db:
            self.settled = {who: TIERS[tier] for who, tier in db.execute("SELECT customer, tier FROM planned")}
        verdicts = {one: self._meant(one, found[one.person]) for one in self.people}
        for customer, verdict in verdicts.items():
            if not prices_only and verdict.tier != "none":
                self._keep(found[customer.person]["decision_id"], customer, verdict)

    def _meant(self, customer: Customer, row: dict[str, Any]) -> Verdict:
        """What the referee says of a tier that was chosen for all together; nothing was booked in between."""
        verdict = self.judge.decide(customer, self.now, self._prices(), None, None, row["tier"])
        said = {name: row[name] or None for name in ("tier", "strategy", "channel", "binding")}
        blocked = {tier: row[f"blocked_{tier}"] for tier in TIERS[1:] if row[f"blocked_{tier}"]}
        assert said | {"blocked": blocked} == {name: getattr(verdict, name) for name in (*said, "blocked")}, f"about {customer}"
        return verdict

    # What is told

    @precondition(lambda self: getattr(self, "decided", None))
    @rule(told=st.lists(st.tuples(st.integers(1, 15), kinds, st.sampled_from((0.0, 0.3, 0.7, 1.0))), min_size=2, max_size=6))
    def outcomes_are_told(self, told: list[tuple[int, str, float]]) -> None:
        for back, kind, late in told:
            self.now += 1
            ids = [one.decision for one in self.judge.contacts if one.decision] or list(self.decided)
            id = (list(self.decided) if back % 5 == 0 else ids)[-min(back, len(ids))]
            at = told_moment(self.decided[id][2] + int((self.now - self.decided[id][2]) * late))
            self.outcomes.append((id, kind, at))
            self._happened(id, kind, at)
        whom = {self.decided[id][0].person for id, _, _ in self.outcomes[-len(told) :]}
        self._decide([place for place, one in enumerate(self.people) if one.person in whom], None)

    @precondition(lambda self: getattr(self, "outcomes", None))
    @rule(data=st.data())
    def outcome_is_told_again(self, data: st.DataObject) -> None:
        self.now += 1
        self._happened(*data.draw(st.sampled_from(self.outcomes)))

    def _happened(self, id: str, kind: str, at: float) -> None:
        told = schemas.Outcome(decision_id=id, kind=kind, at=datetime.fromtimestamp(at, UTC))
        self.desk.add_outcomes([told])
        customer, channel, _ = self.decided[id]
        self.judge.happened(id, customer.person, channel, kind, at, self.now)

    @rule(who=person, channel=any_channel, granted=granted)
    def consent_changes(self, who: int, channel: str, granted: bool) -> None:
        self.now += 1
        name = self.people[who].person
        change = schemas.ConsentChange(channel=channel or None, granted=granted)
        self.desk.set_consents(schemas.OneCustomer(pseudonym=name), schemas.ConsentRequest(consents=[change]))
        self.judge.consent(name, channel, granted, self.now)

    @rule(who=person, zone=st.sampled_from(ZONES))
    def customer_moves(self, who: int, zone: str) -> None:
        name = self.people[who].person
        self.desk.set_consents(schemas.OneCustomer(pseudonym=name), schemas.ConsentRequest(consents=[], timezone=zone))
        self.judge.homes[name] = zone

    @rule(who=person, ago=st.sampled_from((0, 3600, 10 * 3600, 2 * DAY, 9 * DAY)), by_event=st.booleans())
    def customer_orders(self, who: int, ago: float, by_event: bool) -> None:
        self.now += 1
        name, at = self.people[who].person, told_moment(self.now - ago)
        self.world.orders.append((name, at, self.now))
        if by_event:
            self._event(name, "orders", {"order_id": f"o-{len(self.world.orders)}", "ordered_at": at})
            self.judge.answers.append((name, at))

    def _event(self, name: str, table: str, row: dict[str, Any]) -> None:
        self.events += 1
        moments = {key: datetime.fromtimestamp(value, UTC) for key, value in row.items() if key.endswith("_at")}
        plain = histories.plain(table, row | moments, ZONE)
        inbox.keep(self.engine, self.desk.store, [NewEvent(name, f"e-{self.events}", table, plain)], self.now)

    # Contacts that the shop lists, and loads

    @rule(who=person, ago=st.sampled_from((0, 1800, DAY, 4 * DAY, 8 * DAY)), channel=st.sampled_from(CHANNELS), tier=st.sampled_from((None, 1, 2, 3)), by_event=st.booleans())  # fmt: skip
    def shop_contacts(self, who: int, ago: float, channel: str, tier: int | None, by_event: bool) -> None:
        self.now += 1
        self._sent(self.people[who].person, told_moment(self.now - ago), channel, tier, None, by_event)

    @precondition(lambda self: hasattr(self, "judge") and self._made)
    @rule(data=st.data(), names=st.booleans(), tells_tier=st.booleans(), by_event=st.booleans(), delay=st.sampled_from((0, 0, 40, 3600)))
    def shop_lists_a_decided_contact(self, data: st.DataObject, names: bool, tells_tier: bool, by_event: bool, delay: float) -> None:
        self.now += 1
        contact = data.draw(st.sampled_from(self._made[-12:]))
        at = told_moment(min(contact.at + delay, self.now))
        if any(who == contact.person and min(contact.at, at) <= until < max(contact.at, at) for who, until in self.judge.answers):
            return  # whether it is answered would hang on when it was made
        self._sent(contact.person, at, contact.channel, contact.tier if tells_tier else None, contact.decision if names else None, by_event)

    @property
    def _made(self) -> list[Contact]:
        return [one for one in self.judge.contacts if one.decision and one.at <= self.now]

    def _sent(self, name: str, at: float, channel: str, tier: int | None, decision: str | None, by_event: bool) -> None:
        one = Told(f"s-{len(self.world.sent)}", name, at, channel, tier, decision, self.now)
        self.world.sent.append(one)
        if by_event:
            row = {"contact_id": one.id, "sent_at": at, "channel": channel, "tier": tier, "decision_id": decision}
            self._event(name, "contacts", {key: value for key, value in row.items() if value is not None})
            self.judge.list_contacts([one])

    @rule(ago=st.sampled_from((0, 0, 3600, DAY)))
    def shop_is_loaded(self, ago: float) -> None:
        self.now += 1
        until = self.now - ago
        if until <= self.loaded:
            return
        with TemporaryDirectory() as folder:
            load(self.desk.store, written(Path(folder), self.world, self.begin, until), str(ZONE))
        self.loaded = until
        self.judge.tracked = self.world.consents is not None
        self.judge.consents += [word for word in self.world.consents or () if word[3] <= until]
        self.judge.answers += [(who, at) for who, at, came in self.world.orders if came <= until]
        self.judge.list_contacts([one for one in self.world.sent if one.came <= until])

    @precondition(lambda self: hasattr(self, "world") and self.world.consents is not None)
    @rule(who=person, channel=any_channel, granted=granted, ago=st.sampled_from((0, 0, 60, DAY)))
    def consent_is_told_by_the_shop(self, who: int, channel: str, granted: bool, ago: float) -> None:
        """In its tables: it holds from its own moment on, once it is loaded."""
        assert self.world.consents is not None
        self.world.consents.append((self.people[who].person, channel, granted, self.now - ago))

    @precondition(lambda self: hasattr(self, "judge"))
    @invariant()
    def check_everything(self) -> None:
        """Contacts and money of the store's file are the referee's."""
        with closing(sqlite3.connect(self.file)) as db:
            contacts = db.execute("SELECT customer, at, tier, channel, decision, answered, failed FROM contact").fetchall()
            ledger = db.execute("SELECT decision, day, resource, used, used * returned FROM ledger").fetchall()
            spend = db.execute("SELECT day, resource, used FROM spend WHERE used <> 0").fetchall()
            ids = [id for (id,) in db.execute("SELECT id FROM decision")]
        judge = self.judge
        self._same(
            contacts, ((one.person, one.at, one.tier, one.channel, one.decision, judge.answered(one), one.failed) for one in judge.contacts)
        )
        charged = ((one, name, units) for one in judge.contacts for name, units in one.charge.items() if units)
        self._same(ledger, ((one.decision, one.day, name, units, one.back.get(name, 0) * one.failed) for one, name, units in charged))
        self._same(spend, ((day, name, used) for (day, name), used in judge.spent.items() if used))
        assert len(ids) == len(set(ids))
        assert set(ids) <= set(self.decided)

    def _same(self, kept: Iterable[Any], meant: Iterable[Any]) -> None:
        left, right = Counter(kept), Counter(meant)
        assert left == right, f"at {self.now}: the store has {left - right}, the referee {right - left}"

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> type[ShopDays]:
    class Played(ShopDays):
        cast = Cast(light_shop(tmp_path_factory))

    return Played


def test_a_shop_at_play_is_as_the_referee_has_it(machine: type[ShopDays]) -> None:
    run_state_machine_as_test(machine, settings=SUITE)


@pytest.mark.slow
def test_many_shops_at_play_are_as_the_referee_has_it(machine: type[ShopDays]) -> None:
    run_state_machine_as_test(machine, settings=LONG)
