"""What contacts use up, booked on the local day on which they are made, in whole millionths; what must hold is asserted as it is booked.

The checks here read what was written, not what was decided: a fault of the decision path ends in a `Breach`, and nothing is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from features.errors import RefusedError
from serving.online import Charge, OnlineStore
from serving.policy import Policy
from serving.standings import DecisionMoment, allowed, counts, open_by_default


class Breach(RefusedError):
    """A contact would have broken what must always hold, by a fault of ours; nothing of its transaction was kept."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"the decision would have made {rule}: nothing of it was kept; this is a fault of the service")


@dataclass(frozen=True)
class Booked:
    """A contact to be made: ``at`` a moment, paid from that ``day`` of the shop."""

    decision: str
    customer: str
    at: float
    day: str
    tier: int
    channel: str
    segment: str


def book(store: OnlineStore, moment: DecisionMoment, contacts: Sequence[Booked]) -> None:
    """Keep contacts and what they use, within a transaction of the store. Raises Breach.

    What a contact gives back should it fail is settled now, by the policy it was decided under (`[failed]`).
    """
    policy = moment.policy
    use_KT = policy.units_KT
    back = [policy.failed.cost if name == "budget" else policy.failed.hours for name in policy.resources]
    store.add_contacts((one.customer, one.at, one.tier, one.channel, False, one.decision) for one in contacts)
    store.charge(
        Charge(one.decision, one.day, name, int(use_KT[place, one.tier]), back[place] == "returned")
        for one in contacts
        for place, name in enumerate(policy.resources)
        if use_KT[place, one.tier]
    )
    _assert_paid(store, policy, contacts)
    _assert_allowed(store, moment, contacts)


def _assert_paid(store: OnlineStore, policy: Policy, contacts: Sequence[Booked]) -> None:
    """No day's budget or hours are exceeded by contacts that use them."""
    use_KT, limits_K = policy.units_KT, policy.limits_units_K
    for day in sorted({one.day for one in contacts}):
        spent, tiers = store.spent(day), sorted({one.tier for one in contacts if one.day == day})
        for place, name in enumerate(policy.resources):
            if use_KT[place, tiers].any() and spent.get(name, 0) > limits_K[place]:
                raise Breach(f"more than the {name} of a day")


def _assert_allowed(store: OnlineStore, moment: DecisionMoment, contacts: Sequence[Booked]) -> None:
    """Every contact has consent and, it included, no cap is exceeded."""
    policy = moment.policy
    known = store.standing([one.customer for one in contacts], policy.consent.purpose, moment.since)
    for one, standing in zip(contacts, known, strict=True):
        if not allowed(standing, one.channel, open_by_default(policy, standing, moment.tracked)):
            raise Breach(f"a contact by {one.channel} without consent")
        for cap in (cap for cap in policy.caps if cap.channel in ("any", one.channel) and cap.segment in (None, one.segment)):
            if sum(counts(cap, other, one.at) for other in standing.contacts) > cap.contacts:
                raise Breach(f"more contacts by {cap.channel} than {cap.contacts} in {cap.days:g} days")
