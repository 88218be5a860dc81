"""What a policy file must not say, and what it hardly means: `faults` refuse it when it is read, `doubts` are warnings.

The parts of a policy check themselves (`policy.py`); here is what only shows between them. A policy that was in force before a rule
came is still read from the log, so that its decisions can be made again; a file that breaks one is not.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from serving.online import UNITS

if TYPE_CHECKING:
    from serving.policy import Action, Cap, Policy

MOST_MONEY, MOST_HOURS = 9_000_000_000, 1_000_000
"""In whole millionths these, and sums within a day's limit, are exact as binary numbers too."""
MOST_CONTACTS, MOST_YEARS = 1_000_000, 1_000
PURPOSE = r"^[a-z][a-z_]{0,31}$"
"""Purposes of consents, as the policy, the API and so the tables of consents spell them."""
QUIET_HOURS_MOST = 20
GAP_SURE_DAYS = 2.0
"""A planned contact is less than this ahead: quiet hours end within a day."""
SHOWN = 80


@dataclass(frozen=True)
class Remark:
    """A key of the file, its value, and the rule that it breaks or the reason to doubt it."""

    key: str
    value: Any
    rule: str

    def __str__(self) -> str:
        return f"{self.key} = {shown(self.value)}: {self.rule}"


def shown(value: Any) -> str:
    """A value as a message shows it, whatever its length."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def faults(policy: "Policy") -> Iterator[Remark]:
    """Why a policy file is refused."""
    for check in (_too_large, _parts_of_millionths, _purpose, _blank, _named_twice, _quiet_never_or_always, _caps_twice, _ladder):
        yield from check(policy)


def doubts(policy: "Policy") -> list[Remark]:
    """What a policy says that has no effect, or one that is hardly meant; each can be stated exactly."""
    checks: tuple[Callable[[Policy], Iterator[Remark]], ...]
    checks = (_contact, _consent, _quiet_hours, _budget, _capacity, _caps, _costs, _effects, _unreached, _empty)
    return [remark for check in checks for remark in check(policy)]


# Faults


@dataclass(frozen=True)
class _Amount:
    key: str
    value: float
    most: int


def _amounts(policy: "Policy") -> Iterator[_Amount]:
    """All money and hours of a policy."""
    if policy.budget:
        yield _Amount("budget.per_day", policy.budget.per_day, MOST_MONEY)
    for tier, cost in policy.costs:
        yield _Amount(f"costs.{tier}", cost, MOST_MONEY)
    for tier, capacity in policy.capacity.items():
        for name, hours in capacity:
            yield _Amount(f"capacity.{tier}.{name}", hours, MOST_HOURS)


def _too_large(policy: "Policy") -> Iterator[Remark]:
    numbers = list(_amounts(policy))
    numbers += [_Amount(f"caps.{place}.contacts", cap.contacts, MOST_CONTACTS) for place, cap in enumerate(policy.caps)]
    numbers.append(_Amount("value.lifetime_years", policy.value.lifetime_years, MOST_YEARS))
    for number in numbers:
        if number.value > number.most:
            fix = "" if number.key.startswith(("costs", "value")) else "; leave the section out for no limit"
            yield Remark(number.key, number.value, f"at most {number.most:,}{fix}")


def _parts_of_millionths(policy: "Policy") -> Iterator[Remark]:
    for amount in _amounts(policy):
        if amount.value <= amount.most and Decimal(repr(amount.value)) * UNITS % 1:
            yield Remark(amount.key, amount.value, "money and hours are counted in whole millionths: give at most 6 decimals")


def _purpose(policy: "Policy") -> Iterator[Remark]:
    if not re.fullmatch(PURPOSE[1:-1], policy.consent.purpose):
        rule = (
            "small letters a to z and _, a letter first, at most 32, as the API takes it; where the table of consents spells"
            ' it otherwise, map it there (`purpose = "lower(...)"`)'
        )
        yield Remark("consent.purpose", policy.consent.purpose, rule)


def _blank(policy: "Policy") -> Iterator[Remark]:
    texts = {"version": policy.version} | {f"{key}.strategy": action.strategy for key, action in _actions(policy)}
    for key, text in texts.items():
        if not text.strip():
            yield Remark(key, text, "says nothing: give it a text")


def _named_twice(policy: "Policy") -> Iterator[Remark]:
    lists: dict[str, Sequence[str]] = {"quiet_hours.channels": policy.quiet_hours.channels} if policy.quiet_hours else {}
    for place, rule in enumerate(policy.rules):
        lists |= {f"rules.{place}.{name}": words for name, words in rule.asked.items()}
    lists |= {f"{key}.channels": action.channels for key, action in _actions(policy)}
    for key, words in lists.items():
        if twice := [str(word) for word, times in Counter(words).items() if times > 1]:
            yield Remark(key, [str(word) for word in words], f"names {', '.join(twice)} more than once: leave one out")


def _quiet_never_or_always(policy: "Policy") -> Iterator[Remark]:
    if policy.quiet_hours and policy.quiet_hours.start == policy.quiet_hours.end:
        rule = "the same as start, which is never or always: leave the section out for no quiet hours"
        yield Remark("quiet_hours.end", f"{policy.quiet_hours.end}", rule)


def _caps_twice(policy: "Policy") -> Iterator[Remark]:
    first: dict[Any, int] = {}
    for place, cap in enumerate(policy.caps):
        same = first.setdefault((cap.channel, cap.segment, cap.days), place)
        if same != place:
            rule = f"caps.{same} is of the same channel, segment and days: leave one out"
            yield Remark(f"caps.{place}.contacts", cap.contacts, rule)


def _ladder(policy: "Policy") -> Iterator[Remark]:
    contact = policy.contact
    if contact.ladder_days < contact.climb_after_days:
        rule = f"shorter than climb_after_days = {contact.climb_after_days}: nobody would ever climb; give it at least as many"
        yield Remark("contact.ladder_days", contact.ladder_days, rule)
    if contact.min_gap_days > contact.ladder_days:
        rule = (
            f"longer than ladder_days = {contact.ladder_days}: the ladder would be forgotten before anybody may be contacted;"
            " give it at most as many"
        )
        yield Remark("contact.min_gap_days", contact.min_gap_days, rule)


# Doubts


def _contact(policy: "Policy") -> Iterator[Remark]:
    contact = policy.contact
    if contact.min_churn_probability == 0:
        yield Remark("contact.min_churn_probability", contact.min_churn_probability, "nobody is ever of low risk")
    if contact.min_churn_probability == 1:
        rule = "without an occasion nobody is contacted whose probability is below 1"
        yield Remark("contact.min_churn_probability", contact.min_churn_probability, rule)
    if contact.min_gap_days > contact.climb_after_days:
        rule = f"longer than climb_after_days = {contact.climb_after_days}: the climb waits for the gap"
        yield Remark("contact.min_gap_days", contact.min_gap_days, rule)
    if contact.ladder_days == contact.climb_after_days:
        rule = "the same as climb_after_days: nobody ever climbs, since the contact is forgotten by then"
        yield Remark("contact.ladder_days", contact.ladder_days, rule)


def _consent(policy: "Policy") -> Iterator[Remark]:
    if policy.consent.unknown == "allow":
        rule = "the shop keeps consents, and those without a word are contacted all the same: many laws ask for consent first"
        yield Remark("consent.unknown", "allow", rule)


def _quiet_hours(policy: "Policy") -> Iterator[Remark]:
    quiet = policy.quiet_hours
    if quiet is None:
        return
    if _channels(policy).isdisjoint(quiet.channels):
        yield Remark("quiet_hours.channels", list(quiet.channels), "no rule uses such a channel: the quiet hours never count")
    if (hours := (_hour(quiet.end) - _hour(quiet.start)) % 24) > QUIET_HOURS_MOST:
        rule = f"{hours:.4g} of 24 hours are quiet: are start and end turned round?"
        yield Remark("quiet_hours.end", f"{quiet.end}", rule)


def _budget(policy: "Policy") -> Iterator[Remark]:
    if policy.budget is None:
        return
    per_day = policy.budget.per_day
    costs = {tier: cost for tier, cost in policy.costs if cost}
    if not costs:
        yield Remark("budget.per_day", per_day, "no tier has a cost: the budget never counts")
    elif per_day < min(costs.values()):
        rule = f"less than the cheapest contact with a cost ({min(costs.values())}): none with a cost is ever made"
        yield Remark("budget.per_day", per_day, rule)
    else:
        for tier, cost in costs.items():
            if cost > per_day:
                yield Remark(f"costs.{tier}", cost, f"more than budget.per_day = {per_day}: no {tier} is ever made")


def _capacity(policy: "Policy") -> Iterator[Remark]:
    for tier, capacity in policy.capacity.items():
        if capacity.hours_per_day < capacity.hours_per_contact:
            rule = f"less than a single contact takes (hours_per_contact = {capacity.hours_per_contact}): no {tier} is ever made"
            yield Remark(f"capacity.{tier}.hours_per_day", capacity.hours_per_day, rule)


def _caps(policy: "Policy") -> Iterator[Remark]:
    used, gap = _channels(policy), policy.contact.min_gap_days
    for place, cap in enumerate(policy.caps):
        key, named = f"caps.{place}", "" if cap.segment is None else f" of segment {cap.segment}"
        if cap.channel != "any" and cap.channel not in used:
            yield Remark(f"{key}.channel", cap.channel, "no rule uses this channel: the cap never counts")
        if cap.contacts == 0:
            by = "" if cap.channel == "any" else f" by {cap.channel}"
            yield Remark(f"{key}.contacts", 0, f"nobody{named} is ever contacted{by}")
        elif GAP_SURE_DAYS <= gap >= cap.days:
            yield Remark(f"{key}.days", cap.days, f"never binds: contact.min_gap_days = {gap} keeps two contacts apart for as long")
        tighter = (other for other, one in enumerate(policy.caps) if other != place and _as_tight(one, cap))
        if (other := next(tighter, None)) is not None:
            yield Remark(f"{key}.contacts", cap.contacts, f"never binds: caps.{other} ({_said(policy.caps[other])}) is at least as tight")


def _as_tight(one: "Cap", other: "Cap") -> bool:
    """Whether whoever has reached the other cap has reached this one, which then bars all that the other bars."""
    wider = one.channel in ("any", other.channel) and one.segment in (None, other.segment)
    always = one.contacts == 0 < other.contacts
    return wider and (always or one.days >= other.days) and one.contacts <= other.contacts


def _said(cap: "Cap") -> str:
    segment = f", segment {cap.segment}" if cap.segment else ""
    return f"channel {cap.channel}{segment}, {cap.contacts} in {cap.days:g} days"


def _costs(policy: "Policy") -> Iterator[Remark]:
    for tier, cost in policy.costs:
        if tier != "nudge" and cost == 0:
            yield Remark(f"costs.{tier}", cost, "costs nothing: neither its gain nor the budget ever speaks against it")


def _effects(policy: "Policy") -> Iterator[Remark]:
    costs = dict(policy.costs)
    for segment, effects in policy.effects.items():
        for tier, effect in effects:
            better = (other for other, more in effects if more > effect and costs[other] <= costs[tier])
            if effect == 0:
                yield Remark(f"effects.{segment}.{tier}", effect, "wins nobody back: its gain is never above that of no contact")
            elif other := next(better, None):
                rule = f"less than {other} = {getattr(effects, other)}, which costs no more: its gain is never higher"
                yield Remark(f"effects.{segment}.{tier}", effect, rule)


def _unreached(policy: "Policy") -> Iterator[Remark]:
    for place, rule in enumerate(policy.rules):
        for tier, action in rule.actions.items():
            earlier = (k for k, before in enumerate(policy.rules[:place]) if tier in before.actions and before.fits_all_of(rule))
            if (hiding := next(earlier, None)) is not None:
                why = f"never said: rules.{hiding} names the tier and fits all that this rule fits; put it after this one"
                yield Remark(f"rules.{place}.{tier}", action.strategy, why)


def _empty(policy: "Policy") -> Iterator[Remark]:
    for place, rule in enumerate(policy.rules):
        for name, words in rule.asked.items():
            if name in rule.model_fields_set and not words:
                yield Remark(f"rules.{place}.{name}", [], "an empty list asks for nothing: the rule fits any; leave the key out")


def _actions(policy: "Policy") -> Iterator[tuple[str, "Action"]]:
    """(key, action) of every rule."""
    for place, rule in enumerate(policy.rules):
        for tier, action in rule.actions.items():
            yield f"rules.{place}.{tier}", action


def _channels(policy: "Policy") -> set[str]:
    return {channel for _, action in _actions(policy) for channel in action.channels}


def _hour(clock: time) -> float:
    return clock.hour + clock.minute / 60 + clock.second / 3600
