"""Decisions about scored customers, one transaction for what was spent, what is decided and what is logged.

Two workers never decide at the same time, so that budget, capacities and caps hold to the last contact, also after a kill: what the
transaction did not write was not answered either.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import orjson

from serving import decide
from serving.allocate import choose
from serving.decide import NO_OCCASION, OCCASIONS, REASONS, Binding, Floats, Ints, Options, Situation
from serving.load import LOADED
from serving.online import DAY_SECONDS, UNITS, OnlineStore, Standing
from serving.policy import CHANNELS, TIERS, Policy
from serving.score import Engine, One, gains

PLAN = "plan"
"""Key of the day's shadow prices, set by `holdfast decide`."""
PLAN_DAYS = 2.0
"""Prices older than this count no more."""


@dataclass(frozen=True)
class Decided:
    """n decisions as they are logged: what was chosen among which options, at which prices."""

    situation: Situation
    options: Options
    tiers: Ints
    rule: Ints
    channel: Ints
    prices_K: Floats
    propensity_N: Floats

    def at(self, rows: Any) -> "Decided":
        """Some of the decisions."""
        tiers, rule, channel, propensity_N = (values[rows] for values in (self.tiers, self.rule, self.channel, self.propensity_N))
        return Decided(self.situation.at(rows), self.options.at(rows), tiers, rule, channel, self.prices_K, propensity_N)


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
            now, tracked = self.clock(), self.tracked
            known = self.store.standing(names, policy.consent.purpose, now - remembered_days(policy) * DAY_SECONDS)
            s = engine.situations(ones, standings(policy, known, [_segment(one) for one in ones], occasion, now, tracked))
            decided = self._choose(engine, s, why, now)
            ids = [uuid.uuid4().hex for _ in ones]
            made = list(bodies(engine, ones, decided, ids, now, occasion, known))
            rows = [scored.rows.packed(place) if fresh else None for (scored, place), fresh in zip(ones, live, strict=True)]
            told = [orjson.dumps(body).decode() for body in made]
            self.store.record(zip(ids, [now] * len(ids), names, told, rows, strict=True))
            self.store.add_contacts(
                (name, now, tier, CHANNELS[channel], False, id)
                for name, tier, channel, id in zip(names, decided.tiers.tolist(), decided.channel.tolist(), ids, strict=True)
                if tier
            )
            consents = [consent(policy, one, tracked) for one in known]
            answers = [{**_told(body), "consent": consented} for body, consented in zip(made, consents, strict=True)]
            also(answers)
        return answers

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

    def _choose(self, engine: Engine, s: Situation, reason: Ints, now: float) -> Decided:
        policy, day = engine.policy, self.day(engine.zone, now)
        found, prices_K = decide.options(policy, s), self.prices(policy, now)
        spent = self.store.spent(day)
        left_K = limits(policy) - np.array([spent.get(name, 0) for name in policy.resources], dtype=np.int64)
        tiers, found = afford(policy, found, prices_K, left_K)
        used_K = units(policy)[:, tiers].sum(axis=1)
        self.store.spend(day, dict(zip(policy.resources, used_K.tolist(), strict=True)))
        rule, channel = decide.refined(policy, s, found, tiers, reason)
        return Decided(s, found, tiers, rule, channel, prices_K, np.ones(len(s)))

    def prices(self, policy: Policy, now: float) -> Floats:
        """The day's shadow prices of this policy's resources; zeros without a plan of the last days."""
        plan = self.store.meta(PLAN)
        if not plan or plan["policy"] != policy.digest or now - plan["at"] > PLAN_DAYS * DAY_SECONDS:
            return np.zeros(len(policy.resources))
        return np.array([plan["prices"].get(name, 0.0) for name in policy.resources])

    def day(self, zone: ZoneInfo, now: float) -> str:
        """The shop's local day, to which budget and capacities belong."""
        return datetime.fromtimestamp(now, zone).date().isoformat()


def units(policy: Policy) -> Ints:
    """What a contact of each tier uses, in whole millionths, shape (resources, 4)."""
    return np.rint(policy.use_KT * UNITS).astype(np.int64)


def limits(policy: Policy) -> Ints:
    """What there is of each resource in a day, in whole millionths, shape (resources,)."""
    return np.rint(policy.limits_K * UNITS).astype(np.int64)


def afford(policy: Policy, found: Options, prices_K: Floats, left_K: Ints) -> tuple[Ints, Options]:
    """Tiers (n,) at the day's prices that what is left can pay, one customer after another; what it cannot pay is blocked."""
    use_KT, left_K = units(policy), left_K.copy()
    tiers = choose(found.allowed_NT, policy.use_KT, prices_K)
    blocked_NT = found.blocked_NT.copy()
    for row in np.flatnonzero(tiers):
        while (lacking_K := use_KT[:, tiers[row]] > left_K).any():
            why = Binding.BUDGET if policy.resources[int(lacking_K.argmax())] == "budget" else Binding.CAPACITY
            blocked_NT[row, tiers[row]] = why
            allowed_1T = np.where(blocked_NT[row : row + 1] > 0, -np.inf, found.gains_NT[row : row + 1])
            tiers[row] = choose(allowed_1T, policy.use_KT, prices_K)[0]
        left_K -= use_KT[:, tiers[row]]
    return tiers, Options(found.gains_NT, blocked_NT, found.rule_NT, found.channel_NT)


def standings(
    policy: Policy, known: Sequence[Standing], segment: Sequence[int], occasion: str | None, now: float, tracked: bool
) -> dict[str, Any]:
    """The store's fields of a `Situation`, shape (n, ...) each."""
    n = len(known)
    found = decide.open_standings(n)
    found["occasion"] = np.full(n, NO_OCCASION if occasion is None else [one.value for one in OCCASIONS].index(occasion))
    for row, one in enumerate(known):
        default = getattr(policy.consent, "unknown" if tracked or one.consents else "untracked") == "allow"
        anywhere = one.consents.get("", default)
        found["open_NC"][row] = [one.consents.get(channel, anywhere) for channel in CHANNELS]
        if one.contacts:
            last = one.contacts[-1]
            found["last_tier"][row], found["answered"][row] = last.tier, last.answered
            found["last_age_days"][row] = (now - last.at) / DAY_SECONDS
            found["capped_NC"][row] = _capped(policy, one, decide.SEGMENTS[segment[row]], now)
    return found


def _capped(policy: Policy, one: Standing, segment: Any, now: float) -> list[bool]:
    """Which channels have reached a cap."""
    full = dict.fromkeys(CHANNELS, False)
    for cap in policy.caps:
        if cap.segment not in (None, segment):
            continue
        recent = [c for c in one.contacts if c.at > now - cap.days * DAY_SECONDS and cap.channel in ("any", c.channel)]
        if len(recent) >= cap.contacts:
            full |= dict.fromkeys(CHANNELS if cap.channel == "any" else (cap.channel,), True)
    return list(full.values())


def consent(policy: Policy, one: Standing, tracked: bool) -> str:
    """Whether any channel is open to a contact: granted, denied, or not_tracked where the shop keeps no consents and the policy allows."""
    if one.consents:
        return "granted" if any(one.consents.values()) else "denied"
    if tracked:
        return "granted" if policy.consent.unknown == "allow" else "denied"
    return "not_tracked" if policy.consent.untracked == "allow" else "denied"


def _segment(one: One) -> int:
    scored, place = one
    if scored.segment is None:
        raise ValueError("a table without lifecycle stages allows no decision")
    return scored.segment[place]


def remembered_days(policy: Policy) -> float:
    """How far back contacts matter to a policy."""
    return max(policy.contact.ladder_days, *(cap.days for cap in policy.caps), policy.contact.min_gap_days)


def bodies(
    engine: Engine, ones: Sequence[One], decided: Decided, ids: Sequence[str], now: float, occasion: str | None, known: Sequence[Standing]
) -> Any:
    """What is logged of each decision: enough to make it again to the last bit."""
    policy, s = engine.policy, decided.situation
    why, given_up = decide.binding(policy, decided.options, decided.tiers, decided.prices_K)
    runner_up, marginal = runners_up(decided, policy), decide.choice(policy, decided.options, decided.prices_K) != decided.tiers
    at = datetime.fromtimestamp(now, UTC).isoformat()
    versions = {"model_version": engine.version, "policy_version": policy.version, "policy_digest": policy.digest}
    prices = dict(zip(policy.resources, decided.prices_K.tolist(), strict=True))
    named = [binding.told for binding in Binding]
    fields = tuple(Situation.__dataclass_fields__)
    situations = zip(*(getattr(s, name).tolist() for name in fields), strict=True)
    columns = (decided.tiers, decided.rule, decided.channel, runner_up, why, given_up, marginal, decided.propensity_N)
    rows = zip(*(values.tolist() for values in (*columns, decided.options.gains_NT, decided.options.blocked_NT)), strict=True)
    for (scored, place), id, standing, situation, row in zip(ones, ids, known, situations, rows, strict=True):
        tier, rule, channel, second, bound, amount, at_margin, propensity, gained, blocked = row
        act = decide.action(policy, tier, rule, channel)
        yield {
            "decision_id": id,
            "at": at,
            "snapshot": scored.snapshot[place].isoformat(),
            "fingerprint": scored.fingerprint(place),
            "churn_probability": scored.p[place],
            **act,
            "send_after": _send_after(policy, act["channel"], now, standing.timezone, engine.zone),
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
        }


def runners_up(decided: Decided, policy: Policy) -> Ints:
    """The tier next in line at the day's prices, (n,); -1 where there is no other."""
    priced_NT = decided.options.allowed_NT - decided.prices_K @ policy.use_KT
    priced_NT[np.arange(len(decided.tiers)), decided.tiers] = -np.inf
    best = priced_NT.argmax(axis=1)
    return np.where(np.isfinite(priced_NT[np.arange(len(best)), best]), best, -1)


def _send_after(policy: Policy, channel: str | None, now: float, timezone: str | None, zone: ZoneInfo) -> str | None:
    if channel is None:
        return None
    after = decide.send_after(policy, channel, datetime.fromtimestamp(now, UTC), ZoneInfo(timezone) if timezone else zone)
    return after.isoformat() if after else None


_INNER = ("situation", "prices", "rule", "marginal", "at", "snapshot", "fingerprint", "model_version", "policy_version", "policy_digest")


def _told(body: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer says of a logged decision."""
    return {name: value for name, value in body.items() if name not in _INNER}
