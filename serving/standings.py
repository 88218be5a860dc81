"""Where customers stand with us at the moment of a decision: what consents, minimum gap and caps leave open by channel, and the ladder.

A contact counts from when it is made, which the quiet hours may put off (`quiet.py`): gap and caps look from the moment at which the new
contact would be made to the moments of the others, past and planned; the ladder looks from the decision back to the last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property, lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from serving import decide
from serving.decide import NO_OCCASION, OCCASIONS, SEGMENTS, Bools, Ints
from serving.online import DAY_SECONDS, PastContact, Standing
from serving.policy import CHANNELS, Cap, Policy, Segment
from serving.quiet import made_at


@dataclass(frozen=True)
class DecisionMoment:
    """The moment of a decision under a policy.

    ``zone``: of the shop, whose local days budget and capacities belong to; ``tracked``: whether the shop keeps consents.
    """

    policy: Policy
    now: float
    zone: ZoneInfo
    tracked: bool

    @cached_property
    def today(self) -> date:
        """The shop's local day."""
        return self.local_day(self.now)

    def local_day(self, moment: float) -> date:
        """The shop's local day of a moment."""
        return datetime.fromtimestamp(moment, self.zone).date()

    @cached_property
    def since(self) -> float:
        """From when on contacts matter."""
        return self.now - remembered_days(self.policy) * DAY_SECONDS

    @cached_property
    def _made(self) -> dict[str | None, dict[str, float]]:
        return {}

    def made(self, timezone: str | None) -> dict[str, float]:
        """By channel, when a contact is made with a customer of a time zone; None: the shop's."""
        if timezone not in self._made:
            self._made[timezone] = made_at(self.policy, self.now, ZoneInfo(timezone) if timezone else self.zone)
        return self._made[timezone]

    def days(self, timezone: str | None) -> list[int]:
        """By channel, in order, the local days of the shop from now to that moment."""
        return [(self.local_day(moment) - self.today).days for moment in self.made(timezone).values()]


def standings(moment: DecisionMoment, known: Sequence[Standing], segment: Sequence[int], occasion: str | None) -> dict[str, Any]:
    """The store's fields of a `Situation`, shape (n, ...) each."""
    policy, found = moment.policy, unknown_standings(moment, segment, occasion)
    for row, one in enumerate(known):
        default = open_by_default(policy, one, moment.tracked)
        found["open_NC"][row] = [allowed(one, channel, default) for channel in CHANNELS]
        if one.timezone:
            found["day_NC"][row] = moment.days(one.timezone)
        if one.contacts:
            last, made = one.contacts[-1], moment.made(one.timezone)
            found["last_tier"][row], found["answered"][row] = last.tier, last.answered
            found["last_age_days"][row] = (moment.now - last.at) / DAY_SECONDS
            found["near_NC"][row] = [near(policy, one.contacts, at) for at in made.values()]
            found["capped_NC"][row] = [capped(policy, one.contacts, SEGMENTS[segment[row]], *each) for each in made.items()]
    return found


def unknown_standings(moment: DecisionMoment, segment: Sequence[int] | Ints, occasion: str | None) -> dict[str, Any]:
    """The same of n customers of whom the store knows nothing, who live where the shop is."""
    policy, found = moment.policy, decide.open_standings(len(segment))
    found["occasion"][:] = NO_OCCASION if occasion is None else [one.value for one in OCCASIONS].index(occasion)
    found["open_NC"][:] = open_by_default(policy, Standing({}, ()), moment.tracked)
    found["day_NC"][:] = moment.days(None)
    found["capped_NC"] = _never(policy)[np.asarray(segment, dtype=np.int64)]
    return found


@lru_cache(maxsize=16)
def _never(policy: Policy) -> Bools:
    """Channels that caps of 0 close to a segment, (segments, channels)."""
    return np.array([[capped(policy, (), one, channel, 0.0) for channel in CHANNELS] for one in SEGMENTS])


def allowed(one: Standing, channel: str, default: bool) -> bool:
    """Whether consent allows a channel: its own word, else the word for any, else the default."""
    return one.consents.get(channel, one.consents.get("", default))


def open_by_default(policy: Policy, one: Standing, tracked: bool) -> bool:
    """Whether a channel without a word is open: where the shop keeps consents, or has any of this customer, it should have one."""
    return getattr(policy.consent, "unknown" if tracked or one.consents else "untracked") == "allow"


def near(policy: Policy, contacts: Sequence[PastContact], at: float) -> bool:
    """Whether another contact lies within the minimum gap of a moment, before or after it."""
    return any(abs(one.at - at) < policy.contact.min_gap_days * DAY_SECONDS for one in contacts)


def capped(policy: Policy, contacts: Sequence[PastContact], segment: Segment, channel: str, at: float) -> bool:
    """Whether some cap leaves no contact through a channel at a moment."""
    return any(
        cap.contacts == 0 or sum(counts(cap, one, at) for one in contacts) >= cap.contacts
        for cap in policy.caps
        if cap.channel in ("any", channel) and cap.segment in (None, segment)
    )


def counts(cap: Cap, one: PastContact, at: float) -> bool:
    """Whether a contact counts for a cap at a moment: made within its days before, or planned for later."""
    return one.at > at - cap.days * DAY_SECONDS and cap.channel in ("any", one.channel)


def consent(policy: Policy, one: Standing, tracked: bool) -> str:
    """Whether any channel is open to a contact: granted, denied, or not_tracked where the shop keeps no consents and the policy allows."""
    if one.consents:
        return "granted" if any(one.consents.values()) else "denied"
    if tracked:
        return "granted" if policy.consent.unknown == "allow" else "denied"
    return "not_tracked" if policy.consent.untracked == "allow" else "denied"


def remembered_days(policy: Policy) -> float:
    """How far back contacts matter to a policy."""
    return max(policy.contact.ladder_days, *(cap.days for cap in policy.caps), policy.contact.min_gap_days)
