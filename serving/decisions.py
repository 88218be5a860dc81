"""Decisions about scored customers, one transaction for what was spent, what is decided and what is logged.

Two workers never decide at the same time, so that budget, capacities and caps hold to the last contact, also after a kill: what the
transaction did not write was not answered either.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import orjson

from serving import decide, ledger
from serving.decide import REASONS, SEGMENTS, Binding, Floats, Ints, Options, Situation
from serving.ledger import Booked
from serving.load import LOADED
from serving.online import DAY_SECONDS, OnlineStore
from serving.policy import CHANNELS, TIERS, Policy
from serving.score import Engine, One, gains
from serving.standings import DecisionMoment, consent, standings

PLAN = "plan"
"""Key of the day's plan, set by `holdfast decide`: shadow prices, and where customers at the margin are settled (`OnlineStore.planned`)."""
PLAN_DAYS = 2.0
"""Prices older than this count no more."""


@dataclass(frozen=True)
class Decided:
    """n decisions as they are logged: what was chosen among which options, at which prices (days, resources).

    ``why_N``: what a strategy says kept a customer from the tier of the highest gain (`decide.Binding`), 0 where prices and limits did.
    """

    situation: Situation
    options: Options
    tiers: Ints
    rule: Ints
    channel: Ints
    prices_DK: Floats
    propensity_N: Floats
    why_N: Ints

    def at(self, rows: Any) -> "Decided":
        """Some of the decisions."""
        by_customer = {name: getattr(self, name)[rows] for name in ("tiers", "rule", "channel", "propensity_N", "why_N")}
        return replace(self, situation=self.situation.at(rows), options=self.options.at(rows), **by_customer)

    def booked(self, moment: DecisionMoment, names: Sequence[str], ids: Sequence[str], zones: Sequence[str | None]) -> Iterator[Booked]:
        """The contacts among n decisions with these ids, about customers in these time zones (None: the shop's)."""
        for row in np.flatnonzero(self.tiers).tolist():
            channel = CHANNELS[self.channel[row]]
            at = moment.made(zones[row])[channel]
            day, segment = moment.local_day(at).isoformat(), SEGMENTS[self.situation.segment[row]]
            yield Booked(ids[row], names[row], at, day, int(self.tiers[row]), channel, segment)


class Gone(Exception):
    """A customer was erased while the decision was prepared; nothing was written."""


class Decider:
    """Decides and logs; ``clock`` gives seconds since 1970."""

    def __init__(self, store: OnlineStore, clock: Callable[[], float] = time.time) -> None:
        self.store, self.clock = store, clock

    def decide(
        self,
        engine: Engine,
        ones: Sequence[One],
        names: Sequence[str],
        occasion: str | None,
        live: Sequence[bool],
        also: Callable[[Sequence[dict[str, Any]]], None] = lambda told: None,
    ) -> list[Any]:
        """Decide about customers by pseudonym, in order; returns the fields of `schemas.Decided` that a decision adds to a score.

        ``live``: whether the features were computed for this request; then the log keeps the row, else it names the table's snapshot.
        ``also`` is done with what is returned, in the same transaction. Whoever must not wait long calls `reasons` before.
        """
        if not ones:
            return []
        policy, why = engine.policy, self.reasons(engine, ones, occasion)
        with self.store.transaction():
            if self.store.erased(names):
                raise Gone
            moment = self.moment(engine)
            known = self.store.standing(names, policy.consent.purpose, moment.since)
            s = engine.situations(ones, standings(moment, known, [_segment(one) for one in ones], occasion))
            planned_N = self._planned(engine, moment, names, live) if occasion is None else None
            decided = self._choose(moment, s, why, planned_N)
            ids = [uuid.uuid4().hex for _ in ones]
            zones = [one.timezone for one in known]
            made = list(bodies(engine, ones, decided, ids, moment, occasion, zones))
            rows = [scored.rows.packed(place) if fresh else None for (scored, place), fresh in zip(ones, live, strict=True)]
            told = [orjson.dumps(body).decode() for body in made]
            self.store.record(zip(ids, [moment.now] * len(ids), names, told, rows, strict=True))
            ledger.book(self.store, moment, list(decided.booked(moment, names, ids, zones)))
            consents = [consent(policy, one, moment.tracked) for one in known]
            answers = [{**_told(body), "consent": consented} for body, consented in zip(made, consents, strict=True)]
            also(answers)
        return answers

    def moment(self, engine: Engine) -> DecisionMoment:
        """Now, under an engine's policy."""
        return DecisionMoment(engine.policy, self.clock(), engine.zone, self.tracked)

    @property
    def tracked(self) -> bool:
        """Whether the shop keeps consents at all."""
        return bool((self.store.meta(LOADED) or {}).get("consents"))

    def reasons(self, engine: Engine, ones: Sequence[One], occasion: str | None) -> Ints:
        """Churn reasons (n,) of those who may be contacted, -1 for the others: what is said hangs on them. Kept with the scores."""
        least = engine.policy.contact.min_churn_probability
        places = [place for place, (scored, row) in enumerate(ones) if occasion or scored.p[row] >= least]
        reason = np.full(len(ones), -1)
        reason[places] = [REASONS.index(why[1]) for why in engine.explain_all([ones[place] for place in places])]  # type: ignore[arg-type]
        return reason

    def _choose(self, moment: DecisionMoment, s: Situation, reason: Ints, planned_N: Ints | None) -> Decided:
        policy, found = moment.policy, decide.options(moment.policy, s)
        days = days_of(moment, found)
        prices_DK = self.prices(moment, days)
        tiers, found = afford(policy, found, prices_DK, self.left(policy, days), planned_N)
        rule, channel = decide.refined(policy, s, found, tiers, reason)
        return Decided(s, found, tiers, rule, channel, prices_DK, np.ones(len(s)), np.zeros(len(s), dtype=np.int64))

    def _planned(self, engine: Engine, moment: DecisionMoment, names: Sequence[str], live: Sequence[bool]) -> Ints:
        """Tiers (n,) that the plan in force has settled for customers at the margin, -1 for others and for who has changed since."""
        plan = self.plan(moment)
        found = self.store.planned(names) if plan and plan.get("table") == table_of(engine) else {}
        return np.array([-1 if fresh else found.get(name, -1) for name, fresh in zip(names, live, strict=True)], dtype=np.int64)

    def left(self, policy: Policy, days: Sequence[date]) -> Ints:
        """What some days have left of each resource, in whole millionths (days, resources); never below 0, whatever was spent before."""
        spent = [self.store.spent(day.isoformat()) for day in days]
        spent_DK = np.array([[one.get(name, 0) for name in policy.resources] for one in spent], dtype=np.int64)
        left_DK: Ints = np.maximum(policy.limits_units_K - spent_DK.reshape(len(days), -1), 0)
        return left_DK

    def plan(self, moment: DecisionMoment) -> dict[str, Any] | None:
        """The plan in force, which `holdfast decide` has made: of this policy, and of late."""
        plan: dict[str, Any] | None = self.store.meta(PLAN)
        late = plan is not None and moment.now - plan["at"] <= PLAN_DAYS * DAY_SECONDS
        return plan if plan and late and plan["policy"] == moment.policy.digest else None

    def prices(self, moment: DecisionMoment, days: Sequence[date]) -> Floats:
        """Shadow prices of resources on some days (days, resources), of the plan's nearest day; zeros where no plan is in force."""
        plan, names = self.plan(moment), moment.policy.resources
        if plan is None:
            return np.zeros((len(days), len(names)))
        begun, known = date.fromisoformat(plan["day"]), plan["prices"]
        of_days = [known[min(max((day - begun).days, 0), len(known) - 1)] for day in days]
        return np.array([[one.get(name, 0.0) for name in names] for one in of_days]).reshape(len(days), len(names))


def table_of(engine: Engine) -> str:
    """Which model has scored which snapshot: a plan's word on a customer holds for these alone."""
    scored = engine.lookup and engine.lookup.scored
    return f"{engine.version} {scored.snapshot[0].isoformat()}" if scored else engine.version


def days_of(moment: DecisionMoment, found: Options) -> list[date]:
    """The shop's local days on which contacts can be made, from the day of the decision on."""
    return [moment.today + timedelta(days=number) for number in range(1 + int(found.day_NT.max(initial=0)))]


def afford(policy: Policy, found: Options, prices_DK: Floats, left_DK: Ints, planned_N: Ints | None = None) -> tuple[Ints, Options]:
    """Tiers (n,) at the days' prices that what is left of the days can pay, one customer after another; what it cannot pay is blocked.

    A tier that the day's plan has settled (``planned_N``, -1: none) stands where it is allowed: prices leave such customers a tie.
    """
    use_KT, left_DK, blocked_NT = policy.units_KT, left_DK.copy(), found.blocked_NT.copy()
    priced_NT, why_K = decide.priced(policy, found, prices_DK), decide.ran_out(policy)
    tiers = priced_NT.argmax(axis=1)
    if planned_N is not None:
        settled = np.flatnonzero(np.isfinite(priced_NT[np.arange(len(tiers)), planned_N]) & (planned_N >= 0))
        tiers[settled] = planned_N[settled]
    for row in np.flatnonzero(tiers).tolist():
        for _ in range(len(TIERS)):
            tier, day = int(tiers[row]), int(found.day_NT[row, tiers[row]])
            lacking_K = use_KT[:, tier] > left_DK[day]
            if tier == 0 or not lacking_K.any():
                break
            blocked_NT[row, tier], priced_NT[row, tier] = why_K[int(lacking_K.argmax())], -np.inf
            tiers[row] = priced_NT[row].argmax()
        left_DK[day] -= use_KT[:, tier]
    return tiers, replace(found, blocked_NT=blocked_NT)


def _segment(one: One) -> int:
    scored, place = one
    if scored.segment is None:
        raise ValueError("a table without lifecycle stages allows no decision")
    return scored.segment[place]


def bodies(
    engine: Engine,
    ones: Sequence[One],
    decided: Decided,
    ids: Sequence[str],
    moment: DecisionMoment,
    occasion: str | None,
    zones: Sequence[str | None],
) -> Any:
    """What is logged of each decision, enough to make it again to the last bit; ``zones``: where customers live, None for the shop's."""
    policy, s = engine.policy, decided.situation
    why, given_up = decide.binding(policy, decided.options, decided.tiers, decided.prices_DK, decided.why_N)
    runner_up, marginal = runners_up(decided, policy), decide.choice(policy, decided.options, decided.prices_DK) != decided.tiers
    at = datetime.fromtimestamp(moment.now, UTC).isoformat()
    versions = {"model_version": engine.version, "policy_version": policy.version, "policy_digest": policy.digest}
    prices = [dict(zip(policy.resources, each, strict=True)) for each in decided.prices_DK.tolist()]
    named = [binding.told for binding in Binding]
    fields = tuple(Situation.__dataclass_fields__)
    situations = zip(*(getattr(s, name).tolist() for name in fields), strict=True)
    columns = (decided.tiers, decided.rule, decided.channel, runner_up, why, given_up, marginal, decided.propensity_N, decided.why_N)
    rows = zip(*(values.tolist() for values in (*columns, decided.options.gains_NT, decided.options.blocked_NT)), strict=True)
    for (scored, place), id, timezone, situation, row in zip(ones, ids, zones, situations, rows, strict=True):
        tier, rule, channel, second, bound, amount, at_margin, propensity, strategy_says, gained, blocked = row
        act = decide.action(policy, tier, rule, channel)
        yield {
            "decision_id": id,
            "at": at,
            "snapshot": scored.snapshot[place].isoformat(),
            "fingerprint": scored.fingerprint(place),
            "churn_probability": scored.p[place],
            **act,
            "send_after": _send_after(moment, act["channel"], timezone),
            "runner_up": None if second < 0 else TIERS[second],
            "binding": named[bound],
            "gain_given_up": round(amount, 4),
            "expected_gain": gains(gained),
            "blocked": {TIERS[t]: named[code] for t, code in enumerate(blocked) if code},
            "propensity": propensity,
            "occasion": occasion,
            **versions,
            "prices": prices,
            "situation": dict(zip(fields, situation, strict=True)),
            "rule": rule,
            "marginal": at_margin,
            "why": strategy_says,
        }


def runners_up(decided: Decided, policy: Policy) -> Ints:
    """The tier next in line at the day's prices, (n,); -1 where there is no other."""
    priced_NT = decide.priced(policy, decided.options, decided.prices_DK)
    priced_NT[np.arange(len(decided.tiers)), decided.tiers] = -np.inf
    best = priced_NT.argmax(axis=1)
    return np.where(np.isfinite(priced_NT[np.arange(len(best)), best]), best, -1)


def _send_after(moment: DecisionMoment, channel: str | None, timezone: str | None) -> str | None:
    """The end of the quiet hours in the customer's time zone, None where the contact is made at once."""
    if channel is None or (at := moment.made(timezone)[channel]) == moment.now:
        return None
    return datetime.fromtimestamp(at, ZoneInfo(timezone) if timezone else moment.zone).isoformat()


_VERSIONS = ("fingerprint", "model_version", "policy_version", "policy_digest")
_INNER = ("situation", "prices", "rule", "marginal", "why", "at", "snapshot", *_VERSIONS)


def _told(body: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer says of a logged decision."""
    return {name: value for name, value in body.items() if name not in _INNER}
