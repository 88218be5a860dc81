"""The daily decisions: everybody of the latest snapshot, the day's budget and capacities shared out so that the gain is greatest."""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import InputError
from features.files import replacing
from serving import day_file, decide, ledger, occasions
from serving.batch import everybody
from serving.decide import REASONS, Binding, Floats, Ints, Options, Situation
from serving.decisions import PLAN, Decided, Decider, bodies, days_of, table_of
from serving.online import UNITS
from serving.policy import TIERS, Occasion, Policy
from serving.score import Engine, Lookup, Scored
from serving.standings import DecisionMoment, standings, unknown_standings
from serving.strategies import Budgeted, Chosen, Strategy

CHUNK = 100_000
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Day:
    """What a day's decisions come to.

    ``used``, ``limits`` and ``prices`` by resource; of contacts that quiet hours put off to a later day, by resource and that day.
    """

    at: datetime
    customers: int
    contacts: dict[str, int]
    cost: float
    expected_gain: float
    bound: float
    gap: float
    used: dict[str, float]
    limits: dict[str, float]
    prices: dict[str, float]
    given_up: dict[str, float]
    """Expected gain that each constraint costs."""
    agreement: float
    """Share of customers whom the service, at the day's prices, gives the same tier."""


class _Moved(Exception):
    """The service decided while the batch did."""


@dataclass(frozen=True)
class _Made:
    """One attempt at the day's decisions."""

    chosen: Chosen
    decided: Decided
    ids: Sequence[str]
    zones: Sequence[str | None]
    days: Sequence[date]
    left_DK: Ints


@dataclass(frozen=True)
class Round:
    """Everybody of the latest snapshot, or everybody with an occasion, to decide about now.

    All or nothing: a failure leaves store and file as they were. With ``prices_only`` nothing is reserved: the service then
    spends the day's budget at the prices found.
    """

    engine: Engine
    decider: Decider
    features: Path
    occasion: Occasion | None = None
    strategy: Strategy = Budgeted()  # noqa: RUF009
    prices_only: bool = False
    progress: Progress = lambda text: None

    def run(self, out: Path) -> Day:
        """Decide, write every decision to ``out``, keep the prices for the service, and reserve the contacts.

        What the service decides meanwhile makes the round start over; the second time it has to wait.
        """
        self.progress(f"deciding about {len(self.places):,} customers")
        for alone in (False, True):
            with self.decider.store.transaction() if alone else nullcontext():
                try:
                    return self._attempt(out, alone)
                except _Moved:
                    self.progress("the service decided meanwhile: once more, alone")
        raise AssertionError("alone nobody else decides")

    def _attempt(self, out: Path, alone: bool) -> Day:
        store = self.decider.store
        for name in ("places", "ids"):  # who was erased or joined since an attempt before
            self.__dict__.pop(name, None)
        before = self._state()
        made = self._make()
        with replacing(out) as temporary:
            self._write(temporary, made)
            with nullcontext() if alone else store.transaction():
                if self._state() != before:
                    raise _Moved
                self._keep(made)
        return self._day(made)

    def _state(self) -> tuple[Any, ...]:
        """What must be the same when the contacts are kept as when they were decided."""
        store = self.decider.store
        return store.position(), store.consents_state(), store.contacts_state()

    @cached_property
    def scored(self) -> Scored:
        """Everybody of the latest snapshot."""
        return everybody(self.engine, self.features)

    @cached_property
    def places(self) -> Ints:
        """Positions of those to decide about."""
        there = np.ones(len(self.scored), dtype=bool)
        if self.occasion is not None:
            there &= occasions.today(self.occasion, Lookup.rows(self.features, self.engine.manifest))
        names, store = self.scored.customer_id, self.decider.store
        gone = store.erased(names) | set(self.engine.ids.not_customers)
        persons, in_table = store.persons(names), set(names)
        seen: set[str] = set()
        for place, (name, person) in enumerate(zip(names, persons, strict=True)):
            # whom the store has joined since the table was made: one row stands for the person
            stands = name == person or (person not in in_table and person not in seen)
            seen.add(person)
            there[place] &= stands and name not in gone
        return np.flatnonzero(there)

    @cached_property
    def ids(self) -> list[str]:
        """Their pseudonyms."""
        return [self.scored.customer_id[place] for place in self.places]

    @cached_property
    def now(self) -> float:
        """The moment of the decisions, in seconds since 1970."""
        return self.decider.clock()

    @cached_property
    def moment(self) -> DecisionMoment:
        """The moment of the decisions, under the engine's policy."""
        return DecisionMoment(self.engine.policy, self.now, self.engine.zone, self.decider.tracked)

    def _make(self) -> _Made:
        policy = self.engine.policy
        s, zones = self._situation()
        found = decide.options(policy, s)
        days = days_of(self.moment, found)
        left_DK = self.decider.left(policy, days)
        columns = _Columns(policy, len(days))
        chosen = self.strategy.choose(columns.gains(found), s.p, columns.use, left_DK.ravel(), self.ids)
        tiers = columns.tiers(chosen.tiers)
        self.progress(f"allocated: {np.count_nonzero(tiers):,} contacts")
        rule, channel = self._said(s, found, tiers)
        why_N, prices_DK = self._why(chosen), columns.prices(chosen.prices_K)
        decided = Decided(s, found, tiers, rule, channel, prices_DK, chosen.propensity_N, why_N)
        return _Made(chosen, decided, _ids(len(s)), zones, days, left_DK)

    def _why(self, chosen: Chosen) -> Ints:
        """What the strategy says kept each customer from the tier of the highest gain (`Binding`), 0 where prices and limits did."""
        ran_out_K, resources = decide.ran_out(self.engine.policy), len(self.engine.policy.resources)
        own_N = np.where(chosen.own_N, Binding[self.strategy.own.upper()], Binding.NOTHING)
        return np.where(chosen.lacking_N < 0, own_N, ran_out_K[chosen.lacking_N % resources] if resources else own_N)

    def _situation(self) -> tuple[Situation, list[str | None]]:
        """Everybody's situation and time zone (None: the shop's); only those whom the store knows of are looked at one by one."""
        policy, store = self.engine.policy, self.decider.store
        if self.scored.segment is None:
            fix = "decide with a model whose features this project built"
            raise InputError(str(self.features), "tells neither value nor lifecycle stage: there is nothing to decide on", fix)
        segment = np.array(self.scored.segment, dtype=np.int64)[self.places]
        there, occasion = store.known(), self.occasion and self.occasion.value
        standing, zones = unknown_standings(self.moment, segment, occasion), list[str | None]([None] * len(segment))
        rows = np.array([row for row, name in enumerate(self.ids) if name in there], dtype=np.int64)
        for start in range(0, rows.size, CHUNK):
            some = rows[start : start + CHUNK]
            known = store.standing([self.ids[row] for row in some], policy.consent.purpose, self.moment.since)
            for row, one in zip(some.tolist(), known, strict=True):
                zones[row] = one.timezone
            for name, values in standings(self.moment, known, segment[some].tolist(), occasion).items():
                standing[name][some] = values
        p, value, silence = (np.array(getattr(self.scored, name))[self.places] for name in ("p", "value", "silence_days"))
        return Situation(p, value, segment, self.scored.touchpoints_NP[self.places], silence, **standing), zones

    def _said(self, s: Situation, found: Options, tiers: Ints) -> tuple[Ints, Ints]:
        """Rule and channel of those contacted, once the reasons are known that decide what is said."""
        contacted = np.flatnonzero(tiers)
        rule, channel = np.full(len(s), -1), np.full(len(s), -1)
        if contacted.size:
            some, reason = s.at(contacted), np.full(contacted.size, -1)
            matters = np.flatnonzero(decide.reason_matters(self.engine.policy, some, tiers[contacted]))
            why = self.engine.churn_reasons(self.scored, self.places[contacted[matters]].tolist(), self._explained(matters.size))
            reason[matters] = [REASONS.index(one) for one in why]  # type: ignore[arg-type]
            rule[contacted], channel[contacted] = decide.refined(self.engine.policy, some, found.at(contacted), tiers[contacted], reason)
        return rule, channel

    def _explained(self, number: int) -> Callable[[int], None]:
        return lambda done: self.progress(f"churn reasons of {done:,} of the {number:,} contacts in which they decide what is said")

    def _keep(self, made: _Made) -> None:
        """The day's plan and, unless told otherwise, the contacts: reserved, and logged as the service logs its own."""
        if self.occasion is None and made.chosen.allocation is not None:
            self._keep_plan(made)
        if self.prices_only:
            return
        store, moment = self.decider.store, self.moment
        rows = np.flatnonzero(made.decided.tiers).tolist()
        some, names, ids = made.decided.at(rows), [self.ids[row] for row in rows], [made.ids[row] for row in rows]
        zones = [made.zones[row] for row in rows]
        ones = [(self.scored, int(self.places[row])) for row in rows]
        told = bodies(self.engine, ones, some, ids, moment, self.occasion and self.occasion.value, zones)
        store.record(
            (body["decision_id"], moment.now, name, orjson.dumps(body).decode(), None) for name, body in zip(names, told, strict=True)
        )
        ledger.book(store, moment, list(some.booked(moment, names, ids, zones)))

    def _keep_plan(self, made: _Made) -> None:
        """Prices, and the tiers of those whom they leave a tie: whom a strategy has drawn is no part of it."""
        policy, decided = self.engine.policy, made.decided
        prices = [dict(zip(policy.resources, of_day, strict=True)) for of_day in decided.prices_DK.tolist()]
        day, table = self.moment.today.isoformat(), table_of(self.engine)
        plan = {"at": self.now, "policy": policy.digest, "table": table, "day": day, "prices": prices}
        self.decider.store.set_meta(PLAN, plan)
        settled = np.flatnonzero((decide.choice(policy, decided.options, decided.prices_DK) != decided.tiers) & (decided.why_N == 0))
        self.decider.store.set_planned((self.ids[row], int(decided.tiers[row])) for row in settled)

    def _write(self, file: Path, made: _Made) -> None:
        """Every decision, contacted or not, with the situation it was made in."""
        policy, n = self.engine.policy, len(self.places)
        constant = {
            "at": pa.scalar(datetime.fromtimestamp(self.now, UTC), pa.timestamp("us", "UTC")),
            "occasion": pa.scalar(self.occasion.value if self.occasion else "", pa.string()),
            "model_version": pa.scalar(self.engine.version, pa.string()),
            "policy_version": pa.scalar(policy.version, pa.string()),
            "policy_digest": pa.scalar(policy.digest, pa.string()),
            "effects_source": pa.scalar(policy.effects_source, pa.string()),
        }
        keys = {
            "decision_id": made.ids,
            "customer_id": self.ids,
            "snapshot": pa.array([self.scored.snapshot[place] for place in self.places], pa.timestamp("us")),
        }
        told = day_file.columns(made.decided, policy) | {name: pa.repeat(value, n) for name, value in constant.items()}
        prices = {
            f"price.{day}.{name}": repr(price)
            for day, of_day in enumerate(made.decided.prices_DK.tolist())
            for name, price in zip(policy.resources, of_day, strict=True)
        }
        rows = pa.table(keys | told).replace_schema_metadata(prices)
        pq.write_table(rows, file, compression="zstd", compression_level=1, row_group_size=CHUNK)

    def _day(self, made: _Made) -> Day:
        policy, decided, rows = self.engine.policy, made.decided, np.arange(len(self.places))
        why, given_up = decide.binding(policy, decided.options, decided.tiers, decided.prices_DK, decided.why_N)
        amount = np.bincount(why, given_up, len(Binding))
        online = decide.choice(policy, decided.options, decided.prices_DK)
        value = float(decided.options.gains_NT[rows, decided.tiers].sum())
        proof, counts = made.chosen.allocation, np.bincount(decided.tiers, minlength=len(TIERS)).tolist()
        return Day(
            datetime.fromtimestamp(self.now, UTC),
            len(rows),
            dict(zip(TIERS, counts, strict=True)),
            int(policy.cost_units_T @ counts) / UNITS,
            value,
            proof.bound if proof else value,
            proof.gap if proof else 0.0,
            self._by_resource(made, self._used(made) / UNITS),
            self._by_resource(made, made.left_DK / UNITS),
            self._by_resource(made, decided.prices_DK),
            {str(binding.told): float(amount[binding]) for binding in Binding if amount[binding] > 0},
            float(np.mean(online == decided.tiers)) if len(rows) else 1.0,
        )

    def _used(self, made: _Made) -> Ints:
        """What the contacts use of each day's resources, in whole millionths (days, resources)."""
        tiers, use_KT = made.decided.tiers, self.engine.policy.units_KT
        day_N = made.decided.options.day_NT[np.arange(len(tiers)), tiers]
        return np.array([use_KT[:, tiers[day_N == day]].sum(axis=1) for day in range(len(made.days))])

    def _by_resource(self, made: _Made, of_DK: Any) -> dict[str, float]:
        days = ["", *(f" {day}" for day in made.days[1:])]
        names = [f"{name}{day}" for day in days for name in self.engine.policy.resources]
        return dict(zip(names, np.ravel(of_DK).tolist(), strict=True))


@dataclass(frozen=True)
class _Columns:
    """What strategies choose among: no contact, and each tier on each day on which it can be made, by tier and then day.

    What a column uses, and of which day, is so the same for everybody; a customer has one column of each tier.
    """

    policy: Policy
    days: int

    def gains(self, found: Options) -> Floats:
        """Gains (n, columns), minus infinity where a customer has not the column."""
        n = len(found.gains_NT)
        gains_NC = np.full((n, 1 + (len(TIERS) - 1) * self.days), -np.inf)
        gains_NC[:, 0] = 0.0
        for tier in range(1, len(TIERS)):
            gains_NC[np.arange(n), 1 + (tier - 1) * self.days + found.day_NT[:, tier]] = found.allowed_NT[:, tier]
        return gains_NC

    @property
    def use(self) -> Ints:
        """Millionths that each column uses of each day's resources, (days x resources, columns)."""
        use_KT = self.policy.units_KT[:, 1:]
        by_day = [np.kron(use_KT, np.arange(self.days) == day) for day in range(self.days)]
        without = np.zeros((self.days * len(use_KT), 1), dtype=np.int64)
        return np.column_stack([without, np.concatenate(by_day).astype(np.int64)])

    def tiers(self, columns: Ints) -> Ints:
        """The tier of each column."""
        return np.where(columns > 0, (columns - 1) // self.days + 1, 0)

    def prices(self, prices_K: Floats) -> Floats:
        """Prices of each day's resources (days, resources), in gain per unit of money or hour."""
        prices_DK: Floats = prices_K.reshape(self.days, -1) * UNITS
        return prices_DK


def _ids(n: int) -> list[str]:
    digits = os.urandom(16 * n).hex()
    return [digits[place : place + 32] for place in range(0, 32 * n, 32)]
