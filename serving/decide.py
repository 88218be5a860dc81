"""Who gets which tier, and why not another: expected gains under hard constraints, for one customer and for a million.

    gain(tier) = churn probability x effect(segment, tier) x value - cost(tier)      [P 9.1, S FAQ 2]

A tier is *blocked* where consent, caps, the gap between contacts, the ladder or common sense forbid it; among the others the one
with the highest gain at the day's shadow prices is chosen. What the constraints take away is told as the gain given up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from features.domain import TOUCHPOINTS, ChurnReason, PlanStage, Stage, Tier, ValueSegment
from serving.policy import CHANNELS, CONTACTS, TIERS, Occasion, Policy, Segment

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
SEGMENTS, REASONS, OCCASIONS = tuple(Segment), tuple(ChurnReason), tuple(Occasion)
UNKNOWN_REASON = REASONS.index(ChurnReason.UNKNOWN)
NO_OCCASION = -1
_BITS = 1 << np.arange(len(TOUCHPOINTS))
NEEDS = ("tenure_days", "frequency_orders", "order_value_mean", "recency_days")
"""Features without which there is no decision (a table of another feature store may lack them)."""


class Binding(IntEnum):
    """What keeps a customer from a tier; of the first six the first that holds, in this order.

    The next two run out when it is the customer's turn, the last two are words of a strategy that does not look for the highest gain.
    """

    NOTHING = 0
    NO_CONSENT = 1
    UNRECOVERABLE = 2
    MINIMUM_GAP = 3
    LADDER = 4
    CONTACT_CAP = 5
    LOW_RISK = 6
    BUDGET = 7
    CAPACITY = 8
    STRATEGY = 9
    RANDOMISED = 10

    @property
    def told(self) -> str | None:
        """As answers name it."""
        return None if self is Binding.NOTHING else self.name.lower()


@dataclass(frozen=True)
class Situation:
    """What a policy looks at, of n customers: the model's side, and what has happened between us and them.

    By channel: ``open_NC``, consent allows it; ``near_NC``, another contact lies within the minimum gap of the moment at which this one
    would be made; ``capped_NC``, a cap is reached then; ``day_NC``, how many local days of the shop after the decision that moment is.
    ``last_tier``: of the last contact (0: none), made ``last_age_days`` ago (inf; below 0 while it is to come), and whether it was
    ``answered`` by a response or an order.
    """

    p: Floats
    value: Floats
    segment: Ints
    touchpoints_NP: Bools
    silence_days: Floats
    occasion: Ints
    open_NC: Bools
    near_NC: Bools
    capped_NC: Bools
    day_NC: Ints
    last_tier: Ints
    last_age_days: Floats
    answered: Bools

    def __len__(self) -> int:
        return len(self.p)

    def at(self, rows: Any) -> "Situation":
        """Some of the customers."""
        return Situation(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @classmethod
    def from_json(cls, value: Mapping[str, Any], policy: Policy) -> "Situation":
        """The situation of one customer from its fields, to the last bit; JSON knows no infinity and has null for it.

        In logs of before 2026-11-27 a contact counted from its decision and on its day, and the gap alike for all channels.
        """
        near = value["last_age_days"] is not None and value["last_age_days"] < policy.contact.min_gap_days
        told = {"near_NC": [near] * len(CHANNELS), "day_NC": [0] * len(CHANNELS), **value}
        return cls(**{name: np.array([np.inf if told[name] is None else told[name]]) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Options:
    """Each customer's tiers, shape (n, 4): gain, what blocks it (`Binding`), its rule and channel (-1: none) in the policy.

    ``day_NT``: local days of the shop from the decision to the contact, which is paid from that day's budget and hours.
    """

    gains_NT: Floats
    blocked_NT: Ints
    rule_NT: Ints
    channel_NT: Ints
    day_NT: Ints

    @property
    def allowed_NT(self) -> Floats:
        """Gains, minus infinity where a tier is blocked: what is allocated."""
        return np.where(self.blocked_NT > 0, -np.inf, self.gains_NT)

    def at(self, rows: Any) -> "Options":
        """Some of the customers."""
        return Options(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def options(policy: Policy, s: Situation) -> Options:
    """Gains and constraints of every tier of n customers; rules that ask for a churn reason are left to `refined`."""
    rule_NT = rules(policy, s.touchpoints_NP, s.segment, np.full(len(s), -1), s.occasion)
    channels = _Channels.of(policy, rule_NT, s)
    gains_NT = gains(policy, s.p, s.value, s.segment)
    return Options(gains_NT, _blocked(policy, s, channels), rule_NT, channels.first_NT, channels.day_NT)


def gains(policy: Policy, p: Floats, value: Floats, segment: Ints) -> Floats:
    """Expected gain of every tier of n customers, (n, 4); see the formula above."""
    gains_NT = np.zeros((len(p), len(TIERS)))
    gains_NT[:, 1:] = p[:, None] * policy.effect_SC[segment] * value[:, None] - policy.cost_T[1:]
    return gains_NT


@dataclass(frozen=True)
class Recommended:
    """What would be best for n customers if nothing had happened between us and them: no word on consent, no contact, no budget.

    ``gains_NT`` (n, 4); ``tiers``, ``rule`` and ``channel`` (n,) each, the last two -1 for tier none.
    """

    gains_NT: Floats
    tiers: Ints
    rule: Ints
    channel: Ints


def recommended(
    policy: Policy, p: Floats, value: Floats, segment: Ints, touchpoints_NP: Bools, silence_days: Floats, reason: Ints
) -> Recommended:
    """`options` and `refined` of customers in `open_standings`, where few constraints are left: a tenth of the time for one row."""
    gains_NT = gains(policy, p, value, segment)
    left_alone = (p < policy.contact.min_churn_probability) | (silence_days > policy.unrecoverable.silence_days)
    tiers = np.where(left_alone, 0, gains_NT.argmax(axis=1))
    rule = rules(policy, touchpoints_NP, segment, reason)[np.arange(len(p)), tiers]
    return Recommended(gains_NT, tiers, rule, _orders(policy)[rule, tiers, 0])


def _blocked(policy: Policy, s: Situation, channels: "_Channels") -> Ints:
    tier_T = np.arange(len(TIERS))
    recent = (s.last_tier > 0) & (s.last_age_days < policy.contact.ladder_days)
    silent = recent & ~s.answered
    climbing = silent & (s.last_age_days >= policy.contact.climb_after_days)
    next_N1 = np.minimum(s.last_tier + 1, Tier.CONCIERGE)[:, None]
    lower_N1 = np.maximum(s.last_tier - 1, Tier.NUDGE)[:, None]
    gave_up = climbing & (s.last_tier == Tier.CONCIERGE) & policy.unrecoverable.after_concierge
    ladder_NT = (silent & ~climbing)[:, None] | (climbing[:, None] & (tier_T != next_N1))
    ladder_NT |= (recent & s.answered)[:, None] & (tier_T > lower_N1)
    low_risk = (s.p < policy.contact.min_churn_probability) & (s.occasion == NO_OCCASION)
    checks = (
        (Binding.NO_CONSENT, ~channels.open_NT),
        (Binding.UNRECOVERABLE, ((s.silence_days > policy.unrecoverable.silence_days) | gave_up)[:, None]),
        (Binding.MINIMUM_GAP, ~channels.apart_NT),
        (Binding.LADDER, ladder_NT),
        (Binding.CONTACT_CAP, channels.first_NT < 0),
        (Binding.LOW_RISK, low_risk[:, None]),
    )
    blocked_NT = np.zeros((len(s), len(TIERS)), dtype=np.int64)
    for why, holds in reversed(checks):
        blocked_NT = np.where(holds, int(why), blocked_NT)
    blocked_NT[:, Tier.NONE] = 0
    return blocked_NT


def rules(policy: Policy, touchpoints_NP: Bools, segment: Ints, reason: Ints, occasion: Ints | int = NO_OCCASION) -> Ints:
    """Position of the rule of each tier, shape (n, 4); -1 for tier none. A reason of -1 fits no rule that asks for one."""
    bits = touchpoints_NP @ _BITS
    key = ((bits * (len(REASONS) + 1) + reason + 1) * (len(OCCASIONS) + 1) + occasion + 1) * len(SEGMENTS) + segment
    if len(key) == 1:
        return np.array([_rule(policy, int(key[0]))])
    found, place = np.unique(key, return_inverse=True)
    return np.array([_rule(policy, int(one)) for one in found], dtype=np.int64).reshape(-1, len(TIERS))[place]


@lru_cache(maxsize=100_000)
def _rule(policy: Policy, key: int) -> tuple[int, ...]:
    """The first rule for each tier; ``key`` packs touchpoints, reason, occasion and segment (see `rules`)."""
    key, segment = divmod(key, len(SEGMENTS))
    key, occasion = divmod(key, len(OCCASIONS) + 1)
    bits, reason = divmod(key, len(REASONS) + 1)
    touched = {one.name for place, one in enumerate(TOUCHPOINTS) if bits >> place & 1}
    words: dict[str, set[Any]] = {"segment": {SEGMENTS[segment]}, "touchpoint": touched}
    words |= {"reason": {REASONS[reason - 1]} if reason else set(), "occasion": {OCCASIONS[occasion - 1]} if occasion else set()}
    fitting = [(place, rule) for place, rule in enumerate(policy.rules) if _fits(rule, words)]
    return (-1, *(next(place for place, rule in fitting if getattr(rule, tier)) for tier in CONTACTS))


def _fits(rule: Any, words: dict[str, set[Any]]) -> bool:
    return all(not getattr(rule, name) or not found.isdisjoint(getattr(rule, name)) for name, found in words.items())


@dataclass(frozen=True)
class _Channels:
    """Of each tier's action, (n, 4) each: the first channel that consent, gap and caps allow (-1: none) and the day of such a contact.

    ``open_NT``: whether consent allows any channel; ``apart_NT``: whether one of these keeps the gap.
    """

    first_NT: Ints
    day_NT: Ints
    open_NT: Bools
    apart_NT: Bools

    @classmethod
    def of(cls, policy: Policy, rule_NT: Ints, s: Situation, on_N: Ints | None = None) -> "_Channels":
        """``on_N``: only channels of contacts made on this day of each customer."""
        order_NTC = _orders(policy)[rule_NT, np.arange(len(TIERS))]
        rows = np.arange(len(s))[:, None, None]
        open_NTC = s.open_NC[rows, order_NTC] & (order_NTC >= 0)
        apart_NTC = open_NTC & ~s.near_NC[rows, order_NTC]
        free_NTC = apart_NTC & ~s.capped_NC[rows, order_NTC]
        day_NTC = s.day_NC[rows, order_NTC]
        if on_N is not None:
            free_NTC &= day_NTC == on_N[:, None, None]
        there_NT = free_NTC.any(axis=2)
        first = (rows[:, :, 0], np.arange(len(TIERS)), free_NTC.argmax(axis=2))
        first_NT, day_NT = np.where(there_NT, order_NTC[first], -1), np.where(there_NT, day_NTC[first], 0)
        return cls(first_NT, day_NT, np.asarray(open_NTC.any(axis=2)), np.asarray(apart_NTC.any(axis=2)))


@lru_cache(maxsize=16)
def _orders(policy: Policy) -> Ints:
    """Channels of each rule's action by tier in order of preference, shape (rules, 4, channels), -1 beyond them."""
    order_RTC = np.full((len(policy.rules), len(TIERS), len(CHANNELS)), -1)
    for place, rule in enumerate(policy.rules):
        for tier, name in enumerate(TIERS):
            action = getattr(rule, name, None)
            if action:
                order_RTC[place, tier, : len(action.channels)] = [CHANNELS.index(channel) for channel in action.channels]
    return order_RTC


def refined(policy: Policy, s: Situation, found: Options, tiers: Ints, reason: Ints) -> tuple[Ints, Ints]:
    """Rule and channel (n,) of the chosen tiers once churn reasons are known; a reason changes what is said, never tier or day.

    Where no channel of the reason's action is allowed on the day, the action chosen without it stays.
    """
    rows = np.arange(len(s))
    rule_NT = rules(policy, s.touchpoints_NP, s.segment, reason, s.occasion)
    channel_NT = _Channels.of(policy, rule_NT, s, found.day_NT[rows, tiers]).first_NT
    rule, channel = rule_NT[rows, tiers], channel_NT[rows, tiers]
    keep = channel < 0
    return np.where(keep, found.rule_NT[rows, tiers], rule), np.where(keep, found.channel_NT[rows, tiers], channel)


def reason_matters(policy: Policy, s: Situation, tiers: Ints) -> Bools:
    """For whom (n,) the churn reason decides what is said at these tiers; for the others it need not be found."""
    rows = np.arange(len(s))

    def said(reason: int) -> Ints:
        return rules(policy, s.touchpoints_NP, s.segment, np.full(len(s), reason), s.occasion)[rows, tiers]

    without = said(-1)
    return np.any([said(reason) != without for reason in range(len(REASONS))], axis=0)


def priced(policy: Policy, found: Options, prices_DK: Floats) -> Floats:
    """Allowed gains less what each tier uses at the prices of the day on which it is made, (n, 4); minus infinity where blocked.

    ``prices_DK`` (days, resources): in gain per unit, of the day of the decision and those after it.
    """
    cost_DT = prices_DK @ policy.use_KT
    allowed_NT: Floats = found.allowed_NT - cost_DT[found.day_NT, np.arange(len(TIERS))]
    return allowed_NT


def choice(policy: Policy, found: Options, prices_DK: Floats) -> Ints:
    """The allowed tier of the highest gain at some prices (n,), ties to the weakest: the service's rule."""
    return priced(policy, found, prices_DK).argmax(axis=1)


def binding(policy: Policy, found: Options, tiers: Ints, prices_DK: Floats, why_N: Ints | None = None) -> tuple[Ints, Floats]:
    """What kept each customer from the tier of the highest gain (`Binding`), and the gain given up, (n,) each.

    Where nothing blocks that tier it is what ``why_N`` says, and where that says nothing (0) the scarce resource that the contact would
    have cost most of.
    """
    rows = np.arange(len(tiers))
    best = found.gains_NT.argmax(axis=1)
    given_up = found.gains_NT[rows, best] - found.gains_NT[rows, tiers]
    why = found.blocked_NT[rows, best]
    if why_N is not None:
        why = np.where(why == 0, why_N, why)
    if len(policy.resources):
        prices_NK = prices_DK[found.day_NT[rows, best]]
        scarce_N = (prices_NK * policy.use_KT[:, best].T).argmax(axis=1)
        why = np.where(why == 0, ran_out(policy)[scarce_N], why)
    return np.where(best == tiers, 0, why), np.where(best == tiers, 0.0, given_up)


def ran_out(policy: Policy) -> Ints:
    """The `Binding` of each resource of a policy, shape (resources,)."""
    return np.array([Binding.BUDGET if name == "budget" else Binding.CAPACITY for name in policy.resources], dtype=np.int64)


def values(policy: Policy, tenure_days: Floats, orders: Floats, order_value: Floats) -> Floats:
    """Value of customers (n,) in the shop's currency. Orders a year are counted over at least a year, so that a first order is no habit."""
    a_year = orders / (np.maximum(tenure_days, 365) / 365)
    return order_value * a_year * policy.value.lifetime_years * policy.value.margin


@cache
def segment(value: str, stage: str, plan: str, price_sensitive: bool) -> int:
    """Position in ``SEGMENTS`` of the first segment that fits a value segment, the two lifecycle stages and the flag."""
    fits = {
        Segment.HIGH_VALUE: value == ValueSegment.HIGH,
        Segment.PRICE_SENSITIVE: price_sensitive,
        Segment.NEW: stage == Stage.NEW,
        Segment.SILENT: plan in (PlanStage.SILENT, PlanStage.CHURNED),
        Segment.LOYAL: stage == Stage.LOYAL,
    }
    return SEGMENTS.index(next((one for one, holds in fits.items() if holds), Segment.STANDARD))


def open_standings(n: int) -> dict[str, Any]:
    """The store's fields of a `Situation` of customers whom nothing keeps from a contact at once."""
    by_channel = (n, len(CHANNELS))
    return {
        "occasion": np.full(n, NO_OCCASION),
        "open_NC": np.ones(by_channel, dtype=bool),
        "near_NC": np.zeros(by_channel, dtype=bool),
        "capped_NC": np.zeros(by_channel, dtype=bool),
        "day_NC": np.zeros(by_channel, dtype=np.int64),
        "last_tier": np.zeros(n, dtype=np.int64),
        "last_age_days": np.full(n, np.inf),
        "answered": np.zeros(n, dtype=bool),
    }


def action(policy: Policy, tier: int, rule: int, channel: int) -> dict[str, Any]:
    """Tier, strategy and channel in words; none has neither strategy nor channel."""
    if tier == Tier.NONE:
        return {"tier": TIERS[tier], "strategy": None, "channel": None}
    return {"tier": TIERS[tier], "strategy": getattr(policy.rules[rule], TIERS[tier]).strategy, "channel": CHANNELS[channel]}
