"""Contacts that the shop lists, by a load or an event: those that Holdfast decided are told from the others, so that none counts twice.

A listed contact is the decided one that it names; or the one it was taken for before; or, in the order they were sent, one of the same
person, channel and local day of the shop, and tier where the shop tells it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from zoneinfo import ZoneInfo

from serving.online import KeptContact, Listed, OnlineStore


def keep(store: OnlineStore, listed: Sequence[Listed], zone: ZoneInfo, came: float | None = None) -> int:
    """Keep listed contacts, within a transaction; returns how many are decisions of ours. ``came``: when they were told, None by a load."""
    listed = list({one.id: one for one in listed}.values())  # told again, it takes the place of what was told before
    if not listed:
        return 0
    customers = None if came is None else [id for name in {one.customer for one in listed} for id in store.ids_of(name)]
    ours = {one.number: one for one in store.contacts(customers) if one.decision is not None}
    matched = _matched(store, listed, list(ours.values()), zone)
    others = [one for one in listed if one.id not in matched]
    store.match_contacts((matched[one.id], one) for one in listed if one.id in matched)
    store.list_contacts([*_given_up([ours[number] for number in matched.values()], {one.id for one in listed}), *others], came)
    if customers is None:
        answered(store, store.answers().items())
    else:
        for customer, moment in store.answers(customers).items():
            store.answer(customer, moment)
    return len(matched)


def _matched(store: OnlineStore, listed: Sequence[Listed], ours: Sequence[KeptContact], zone: ZoneInfo) -> dict[str, int]:
    """Our contact's number by the listed one's id: those that name the decision first, then those matched before, then the rest."""
    by_decision = {one.decision: one.number for one in ours}
    found = {one.id: by_decision[one.decision] for one in listed if one.decision in by_decision}
    taken = set(found.values())
    before = {one.listed: one.number for one in ours if one.listed and one.number not in taken}
    found |= {one.id: before[one.id] for one in listed if one.id not in found and one.id in before}
    taken |= set(found.values())
    left = [one for one in ours if one.listed is None and one.number not in taken]
    return found | _alike(store, [one for one in listed if one.id not in found], left, zone)


def _alike(store: OnlineStore, listed: Sequence[Listed], ours: Sequence[KeptContact], zone: ZoneInfo) -> dict[str, int]:
    """Of those left: by person, channel, day and, where it is told, tier, in the order they were sent."""
    left: dict[tuple[str, str, date], list[KeptContact]] = defaultdict(list)
    for person, mine in zip(store.persons([one.customer for one in ours]), ours, strict=True):
        left[person, mine.channel, _day(mine.at, zone)].append(mine)
    found, persons = {}, store.persons([one.customer for one in listed])
    for person, one in sorted(zip(persons, listed, strict=True), key=lambda each: (each[1].at, each[1].id)):
        same = left[person, one.channel, _day(one.at, zone)]
        alike = next((mine for mine in same if one.tier in (None, mine.tier)), None)
        if alike:
            same.remove(alike)
            found[one.id] = alike.number
    return found


def _given_up(matched: Iterable[KeptContact], ids: set[str]) -> Iterator[Listed]:
    """Contacts that were taken for one of ours until another named its decision, and are not listed again: they are the shop's own."""
    for mine in matched:
        if mine.guessed and mine.listed not in ids:
            yield Listed(str(mine.listed), mine.customer, mine.at, mine.channel, mine.told_tier, mine.answered)


def _day(moment: float, zone: ZoneInfo) -> date:
    return datetime.fromtimestamp(moment, zone).date()


def answered(store: OnlineStore, orders: Iterable[tuple[str, float]]) -> None:
    """Mark contacts as answered up to a moment, by (customer, moment); only persons with one that waits for an answer are looked at."""
    told = list(orders)
    persons = set(store.persons(list(store.unanswered()))) if told else set()
    for (customer, moment), person in zip(told, store.persons([customer for customer, _ in told]), strict=True):
        if person in persons:
            store.answer(customer, moment)
