"""What a policy means, written down a second time: slow and plain, from the policy's TOML text alone, so that it can judge the code.

Nothing here comes from the code under test, and nothing is clever: a contact is looked at one by one, quiet hours pass minute by
minute, money is counted in whole millionths.
"""

import tomllib
from dataclasses import dataclass
from datetime import datetime, time
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from tests.serving.books import Books, Contact

DAY = 86_400.0
TIERS = ("none", "nudge", "offer", "concierge")
CHANNELS = ("push", "e-mail", "sms", "wechat", "call")
Blocks = dict[str, str]
Prices = dict[str, dict[str, float]]
"""By day and resource."""


@dataclass(frozen=True)
class Customer:
    """What the model and the data say of a person."""

    person: str
    p: float
    value: float
    segment: str
    silence_days: float
    touchpoints: frozenset[str] = frozenset()
    reason: str | None = None


@dataclass(frozen=True)
class Verdict:
    """A decision: what blocks which tier, and of the tier taken what is said, where, and when it is made."""

    tier: str
    blocked: Blocks
    binding: str | None
    strategy: str | None = None
    channel: str | None = None
    made: float | None = None
    send_after: float | None = None


def millionths(amount: Any) -> int:
    """Money or hours in whole millionths."""
    return int((Decimal(amount) * 1_000_000).to_integral_value(ROUND_HALF_EVEN))


@lru_cache(maxsize=100_000)
def first_loud(minute: int, zone: str, start: str, end: str) -> int:
    """The first whole minute since 1970, from one on, that lies outside the quiet hours of a zone's clocks."""
    while silent(minute * 60.0, zone, start, end):
        minute += 1
    return minute


def silent(at: float, zone: str, start: str, end: str) -> bool:
    """Whether a zone's clocks show quiet hours, which may go over midnight."""
    clock = datetime.fromtimestamp(at, ZoneInfo(zone)).time()
    begin, stop = time.fromisoformat(start), time.fromisoformat(end)
    return (clock >= begin or clock < stop) if begin > stop else begin <= clock < stop


class Referee(Books):
    """One shop: its policy, and what has happened in it."""

    def __init__(self, text: str, zone: str) -> None:
        super().__init__(zone)
        self.obey(text)

    def obey(self, text: str) -> None:
        """Put another policy into force."""
        self.policy = tomllib.loads(text, parse_float=Decimal)

    def made(self, person: str, channel: str, now: float) -> float:
        """When a contact through a channel is made: now, or at the end of the quiet hours."""
        quiet = self.policy.get("quiet_hours")
        if quiet is None or channel not in listed(quiet["channels"]):
            return now
        hours = (self.homes.get(person, self.zone), quiet["start"], quiet["end"])
        return first_loud(int(now // 60) + 1, *hours) * 60.0 if silent(now, *hours) else now

    # What has happened between the shop and a person

    def open(self, person: str, channel: str) -> bool:
        """Whether consent allows a channel."""
        words = [(since, not granted, granted, of) for who, of, granted, since in self.consents if who == person]
        mine = [word for word in words if word[3] in ("", channel)]
        if mine:
            return max(mine)[2]  # the latest; of two at one moment the withdrawal
        consent = self.policy["consent"]
        return bool((consent["unknown"] if self.tracked or words else consent["untracked"]) == "allow")

    def near(self, person: str, made: float) -> bool:
        """Whether another contact lies within the minimum gap, before or after."""
        gap = float(self.policy["contact"]["min_gap_days"]) * DAY
        return any(abs(one.at - made) < gap for one in self.those_of(person))

    def capped(self, customer: Customer, channel: str, made: float) -> bool:
        """Whether a cap leaves no room for another contact."""
        for cap in self.policy.get("caps", []):
            if cap.get("segment", customer.segment) != customer.segment or cap["channel"] not in ("any", channel):
                continue
            counted = [one for one in self.those_of(customer.person) if cap["channel"] in ("any", one.channel)]
            if sum(one.at > made - float(cap["days"]) * DAY for one in counted) >= cap["contacts"]:
                return True
        return False

    # Who may be contacted how

    def action(self, customer: Customer, tier: str, occasion: str | None, reason: str | None) -> dict[str, Any]:
        """Strategy and channels of the first rule that fits and names the tier."""
        words = {"segment": {customer.segment}, "touchpoint": set(customer.touchpoints), "reason": {reason}, "occasion": {occasion}}
        for rule in self.policy["rules"]:
            if tier in rule and all(name not in rule or set(listed(rule[name])) & word for name, word in words.items()):
                return dict(rule[tier])
        raise AssertionError("the last rule fits everybody")

    def rungs(self, customer: Customer, now: float) -> tuple[set[int], bool]:
        """Tiers that the ladder allows, and whether the person has climbed to its end in vain."""
        rules, known = self.policy["contact"], self.those_of(customer.person)
        every = {1, 2, 3}
        if not known:
            return every, False
        last, age = known[-1], (now - known[-1].at) / DAY
        if age >= float(rules["ladder_days"]):
            return every, False
        if self.answered(last):
            return {tier for tier in every if tier <= max(last.tier - 1, 1)}, False
        if age < float(rules["climb_after_days"]):
            return set(), False
        return {min(last.tier + 1, 3)}, last.tier == 3

    def blocks(self, customer: Customer, tier: str, now: float, occasion: str | None) -> tuple[str | None, list[str]]:
        """The first reason against a tier, and the channels that it may take, in order."""
        person, channels = customer.person, listed(self.action(customer, tier, occasion, None)["channels"])
        rungs, in_vain = self.rungs(customer, now)
        end = self.policy["unrecoverable"]
        opened = [one for one in channels if self.open(person, one)]
        apart = [one for one in opened if not self.near(person, self.made(person, one, now))]
        free = [one for one in apart if not self.capped(customer, one, self.made(person, one, now))]
        reasons = {
            "no_consent": not opened,
            "unrecoverable": customer.silence_days > float(end["silence_days"]) or (end["after_concierge"] and in_vain),
            "minimum_gap": not apart,
            "ladder": TIERS.index(tier) not in rungs,
            "contact_cap": not free,
            "low_risk": customer.p < float(self.policy["contact"]["min_churn_probability"]) and occasion is None,
        }
        return next((name for name, holds in reasons.items() if holds), None), free

    # Money

    def use(self, tier: str) -> dict[str, Any]:
        """What a contact takes of each resource."""
        if tier == "none":
            return {}
        money = {"budget": self.policy["costs"][tier]} if "budget" in self.policy else {}
        hours = self.policy.get("capacity", {})
        return money | ({tier: hours[tier]["hours_per_contact"]} if tier in hours else {})

    def left(self, resource: str, day: str) -> int:
        """What a day has left, in millionths: never less than nothing."""
        amount = self.policy["budget"]["per_day"] if resource == "budget" else self.policy["capacity"][resource]["hours_per_day"]
        return max(millionths(amount) - self.spent.get((day, resource), 0), 0)

    def lacks(self, tier: str, day: str) -> str | None:
        """What a day has too little of for a contact."""
        short = [name for name, amount in self.use(tier).items() if millionths(amount) > self.left(name, day)]
        return None if not short else "budget" if "budget" in short else "capacity"

    def gain(self, customer: Customer, tier: str) -> float:
        """Expected gain of a tier."""
        if tier == "none":
            return 0.0
        effect = float(self.policy["effects"][customer.segment][tier])
        return customer.p * effect * customer.value - float(self.policy["costs"][tier])

    def dearest(self, tier: str, prices: dict[str, float]) -> str:
        """The scarce resource that a contact costs most of, at some prices."""
        costs = {name: prices.get(name, 0.0) * float(amount) for name, amount in self.use(tier).items()}
        return "budget" if max(costs, key=lambda name: costs[name], default="") == "budget" else "capacity"

    # The decision

    def decide(
        self,
        customer: Customer,
        now: float,
        prices: Prices | None = None,
        occasion: str | None = None,
        taken: str | None = None,
        planned: str | None = None,
    ) -> Verdict:
        """Judge one customer; ``prices`` by day and resource. Of tiers whose worth differs by a rounding the one ``taken`` will do.

        With a ``planned`` tier, chosen for all customers together, it is that one, if the customer may get it.
        """
        found = {tier: self.blocks(customer, tier, now, occasion) for tier in TIERS[1:]}
        blocked = {tier: why for tier, (why, _) in found.items() if why}
        made = {tier: self.made(customer.person, free[0], now) for tier, (why, free) in found.items() if not why}
        price = {tier: (prices or {}).get(self.day(at), {}) for tier, at in made.items()}
        worth = {"none": 0.0}
        for tier in made:
            worth[tier] = self.gain(customer, tier) - sum(price[tier].get(name, 0.0) * float(n) for name, n in self.use(tier).items())
        while True:
            tier = planned if planned in worth else highest(worth, taken)
            if tier == "none" or tier not in made or not (lacking := self.lacks(tier, self.day(made[tier]))):
                break
            blocked[tier] = lacking
            del worth[tier]
        best = max(TIERS, key=lambda one: self.gain(customer, one))
        binding = None if best == tier else blocked.get(best) or self.dearest(best, price[best])
        if tier == "none" or tier not in made:
            return Verdict(tier, blocked, binding)
        strategy, channel = self.said(customer, tier, found[tier][1][0], now, occasion)
        at = self.made(customer.person, channel, now)
        return Verdict(tier, blocked, binding, strategy, channel, at, at if at != now else None)

    def said(self, customer: Customer, tier: str, channel: str, now: float, occasion: str | None) -> tuple[str, str]:
        """Strategy and channel: the churn reason's action, where it has a channel that is free on the same day, else the first one."""
        day = self.day(self.made(customer.person, channel, now))
        action = self.action(customer, tier, occasion, customer.reason)
        for one in listed(action["channels"]):
            at = self.made(customer.person, one, now)
            fine = self.open(customer.person, one) and not self.near(customer.person, at) and not self.capped(customer, one, at)
            if fine and self.day(at) == day:
                return action["strategy"], one
        return self.action(customer, tier, occasion, None)["strategy"], channel

    def book(self, id: str, customer: Customer, verdict: Verdict) -> None:
        """Keep the contact of a decision, and take what it uses from the day on which it is made."""
        if verdict.made is None:
            return
        rule = {"cost": "returned", "hours": "spent"} | self.policy.get("failed", {})
        charge = {name: millionths(amount) for name, amount in self.use(verdict.tier).items()}
        back = {name: n for name, n in charge.items() if rule["cost" if name == "budget" else "hours"] == "returned"}
        tier, day = TIERS.index(verdict.tier), self.day(verdict.made)
        self.contacts.append(Contact(customer.person, verdict.made, tier, verdict.channel or "", id, day, charge, back))
        self.charge(day, charge, 1)


def listed(words: Any) -> list[str]:
    """One word or a list of them."""
    return words if isinstance(words, list) else [words]


def highest(worth: dict[str, float], taken: str | None) -> str:
    """The tier worth most, the weakest of equals; where only roundings part two, the one taken."""
    best = max((tier for tier in TIERS if tier in worth), key=lambda tier: worth[tier])
    if taken in worth and 0 < worth[best] - worth[taken] <= 1e-9 * max(abs(worth[best]), 1e-3):
        return taken
    return best
