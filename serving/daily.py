"""The daily decisions: everybody of the latest snapshot, the day's budget and capacities shared out so that the gain is greatest."""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from features.domain import RISK_HIGH, RISK_MEDIUM, RiskBand
from features.errors import InputError
from features.files import replacing
from serving import decide, occasions
from serving.batch import everybody
from serving.decide import NO_OCCASION, OCCASIONS, REASONS, SEGMENTS, Binding, Ints, Options, Situation
from serving.decisions import PLAN, Decided, Decider, bodies, limits, remembered_days, runners_up, standings, units
from serving.online import DAY_SECONDS, UNITS
from serving.policy import CHANNELS, TIERS, Occasion
from serving.score import Engine, Lookup, Scored
from serving.strategies import Budgeted, Chosen, Strategy

CHUNK = 100_000
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Day:
    """What a day's decisions come to."""

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
    left_K: Ints


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
        before = store.position(), store.consents_state()
        made = self._make()
        with replacing(out) as temporary:
            self._write(temporary, made)
            with nullcontext() if alone else store.transaction():
                if (store.position(), store.consents_state()) != before:
                    raise _Moved
                self._keep(made)
        return self._day(made)

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

    @property
    def _day_of(self) -> str:
        return self.decider.day(self.engine.zone, self.now)

    def _make(self) -> _Made:
        policy, s = self.engine.policy, self._situation()
        found = decide.options(policy, s)
        spent = self.decider.store.spent(self._day_of)
        left_K = np.maximum(limits(policy) - np.array([spent.get(name, 0) for name in policy.resources], dtype=np.int64), 0)
        chosen = self.strategy.choose(found.allowed_NT, s.p, policy.use_KT, left_K / UNITS)
        self.progress(f"allocated: {np.count_nonzero(chosen.tiers):,} contacts")
        rule, channel = self._said(s, found, chosen.tiers)
        decided = Decided(s, found, chosen.tiers, rule, channel, chosen.prices_K, chosen.propensity_N)
        return _Made(chosen, decided, _ids(len(s)), left_K)

    def _situation(self) -> Situation:
        """Everybody's situation; only those whom the store knows of are looked at one by one."""
        n, policy, store, tracked = len(self.places), self.engine.policy, self.decider.store, self.decider.tracked
        if self.scored.segment is None:
            fix = "decide with a model whose features this project built"
            raise InputError(str(self.features), "tells neither value nor lifecycle stage: there is nothing to decide on", fix)
        segment = np.array(self.scored.segment)[self.places]
        standing = decide.open_standings(n)
        standing["open_NC"][:] = getattr(policy.consent, "unknown" if tracked else "untracked") == "allow"
        standing["occasion"][:] = NO_OCCASION if self.occasion is None else OCCASIONS.index(self.occasion)
        there, occasion = store.known(), self.occasion and self.occasion.value
        rows = np.array([row for row, name in enumerate(self.ids) if name in there], dtype=np.int64)
        for start in range(0, rows.size, CHUNK):
            some = rows[start : start + CHUNK]
            known = store.standing(
                [self.ids[row] for row in some], policy.consent.purpose, self.now - remembered_days(policy) * DAY_SECONDS
            )
            for name, values in standings(policy, known, segment[some].tolist(), occasion, self.now, tracked).items():
                standing[name][some] = values
        p, value, silence = (np.array(getattr(self.scored, name))[self.places] for name in ("p", "value", "silence_days"))
        return Situation(p, value, segment, self.scored.touchpoints_NP[self.places], silence, **standing)

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
        """The day's prices and, unless told otherwise, the contacts: reserved, and logged as the service logs its own."""
        policy, store, now = self.engine.policy, self.decider.store, self.now
        if self.occasion is None and made.chosen.allocation is not None:
            prices = dict(zip(policy.resources, made.decided.prices_K.tolist(), strict=True))
            store.set_meta(PLAN, {"at": now, "policy": policy.digest, "prices": prices})
        if self.prices_only:
            return
        used_K = units(policy)[:, made.decided.tiers].sum(axis=1)
        store.spend(self._day_of, dict(zip(policy.resources, used_K.tolist(), strict=True)))
        rows = np.flatnonzero(made.decided.tiers)
        some, names = made.decided.at(rows), [self.ids[row] for row in rows.tolist()]
        known, ids = store.standing(names, policy.consent.purpose, now), [made.ids[row] for row in rows.tolist()]
        ones = [(self.scored, int(self.places[row])) for row in rows]
        told = bodies(self.engine, ones, some, ids, now, self.occasion and self.occasion.value, known)
        store.record((body["decision_id"], now, name, orjson.dumps(body).decode(), None) for name, body in zip(names, told, strict=True))
        contacts = zip(names, some.tiers.tolist(), some.channel.tolist(), ids, strict=True)
        store.add_contacts((name, now, tier, CHANNELS[channel], False, id) for name, tier, channel, id in contacts)

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
        told = _columns(made.decided, policy) | {name: pa.repeat(value, n) for name, value in constant.items()}
        prices = {f"price.{name}": repr(price) for name, price in zip(policy.resources, made.decided.prices_K.tolist(), strict=True)}
        rows = pa.table(keys | told).replace_schema_metadata(prices)
        pq.write_table(rows, file, compression="zstd", compression_level=1, row_group_size=CHUNK)

    def _day(self, made: _Made) -> Day:
        policy, decided, rows = self.engine.policy, made.decided, np.arange(len(self.places))
        why, given_up = decide.binding(policy, decided.options, decided.tiers, decided.prices_K)
        amount = np.bincount(why, given_up, len(Binding))
        online = decide.choice(policy, decided.options, decided.prices_K)
        value = float(decided.options.gains_NT[rows, decided.tiers].sum())
        used_K = units(policy)[:, decided.tiers].sum(axis=1) / UNITS
        proof = made.chosen.allocation
        told = {
            name: dict(zip(policy.resources, amounts.tolist(), strict=True))
            for name, amounts in (("used", used_K), ("left", made.left_K / UNITS))
        }
        return Day(
            datetime.fromtimestamp(self.now, UTC),
            len(rows),
            {tier: int(np.sum(decided.tiers == place)) for place, tier in enumerate(TIERS)},
            float(policy.cost_T[decided.tiers].sum()),
            value,
            proof.bound if proof else value,
            proof.gap if proof else 0.0,
            told["used"],
            told["left"],
            dict(zip(policy.resources, decided.prices_K.tolist(), strict=True)),
            {str(binding.told): float(amount[binding]) for binding in Binding if amount[binding] > 0},
            float(np.mean(online == decided.tiers)) if len(rows) else 1.0,
        )


def _columns(decided: Decided, policy: Any) -> dict[str, Any]:
    s, found = decided.situation, decided.options
    why, given_up = decide.binding(policy, found, decided.tiers, decided.prices_K)
    texts = ["", *(getattr(getattr(rule, tier), "strategy", "") for rule in policy.rules for tier in TIERS[1:])]
    said = np.where(decided.tiers > 0, decided.rule * 3 + decided.tiers, 0)
    bound = [binding.told or "" for binding in Binding]
    return {
        "churn_probability": s.p,
        "risk_band": _words(np.digitize(s.p, [RISK_MEDIUM, RISK_HIGH]), [RiskBand.LOW, RiskBand.MEDIUM, RiskBand.HIGH]),
        "segment": _words(s.segment, SEGMENTS),
        "customer_value": s.value,
        "tier": _words(decided.tiers, TIERS),
        "strategy": _words(said, texts),
        "channel": _words(decided.channel + 1, ("", *CHANNELS)),
        "runner_up": _words(runners_up(decided, policy) + 1, ("", *TIERS)),
        "binding": _words(why, bound),
        "gain_given_up": given_up,
        "propensity": decided.propensity_N,
        **{f"expected_gain_{tier}": found.gains_NT[:, place] for place, tier in enumerate(TIERS)},
        **{f"blocked_{tier}": _words(found.blocked_NT[:, place], bound) for place, tier in enumerate(TIERS) if place},
        "marginal": decide.choice(policy, found, decided.prices_K) != decided.tiers,
        "touchpoint_bits": _bits(s.touchpoints_NP),
        "silence_days": s.silence_days,
        "open_bits": _bits(s.open_NC),
        "capped_bits": _bits(s.capped_NC),
        "last_tier": s.last_tier,
        "last_age_days": s.last_age_days,
        "answered": s.answered,
    }


def read(file: Path, id: str) -> tuple[Situation, dict[str, Any], dict[str, float]] | None:
    """The situation, the row and the prices of one decision of a day's file; None where it is not there."""
    rows = pq.read_table(file, filters=[("decision_id", "=", id)])
    if not rows.num_rows:
        return None
    (row,) = rows.to_pylist()
    flags = {name: [bool(row[f"{bits}_bits"] >> k & 1) for k in range(width)] for name, bits, width in _FLAGS}
    plain = {
        "p": row["churn_probability"],
        "value": row["customer_value"],
        "segment": [segment.value for segment in SEGMENTS].index(row["segment"]),
        "occasion": [one.value for one in OCCASIONS].index(row["occasion"]) if row["occasion"] else NO_OCCASION,
    }
    plain |= {name: row[name] for name in ("silence_days", "last_tier", "last_age_days", "answered")}
    prices = {k.decode().removeprefix("price."): float(v) for k, v in rows.schema.metadata.items() if k.startswith(b"price.")}
    return Situation.from_json(plain | flags), row, prices


_FLAGS = (("touchpoints_NP", "touchpoint", 8), ("open_NC", "open", len(CHANNELS)), ("capped_NC", "capped", len(CHANNELS)))


def _ids(n: int) -> list[str]:
    digits = os.urandom(16 * n).hex()
    return [digits[place : place + 32] for place in range(0, 32 * n, 32)]


def _words(places: Any, words: Sequence[Any]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.asarray(places), pa.int32()), pa.array([str(word) for word in words], pa.string()))


def _bits(flags: Any) -> Any:
    return flags @ (1 << np.arange(flags.shape[1]))
