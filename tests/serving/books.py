"""What has happened in a shop that a referee watches: contacts, words on consent, answers, outcomes, and what the days have spent."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from zoneinfo import ZoneInfo

ANSWERS = ("responded", "converted", "recovered")
PROOFS = ("delivered", "opened", *ANSWERS, "refused", "unsubscribed")
"""Outcomes that only a contact which was made can have."""
TICK = 1e-3
"""A word on consent that is told now is so much later than one that is dated later than now."""


@dataclass
class Contact:
    """A contact made or planned; ``charge`` is what it took of its day, ``back`` what of it goes back should it fail."""

    person: str
    at: float
    tier: int
    channel: str
    decision: str | None = None
    day: str = ""
    charge: dict[str, int] = field(default_factory=dict)
    back: dict[str, int] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)
    listed: "Told | None" = None

    @property
    def failed(self) -> bool:
        """It was told not to have been made, and nothing proves that it was."""
        return "failed" in self.kinds and not self.kinds & set(PROOFS)


@dataclass(frozen=True)
class Told:
    """A contact as the shop lists it under its own id; tier and decision are None where it does not tell. ``came``: when it told."""

    id: str
    person: str
    at: float
    channel: str
    tier: int | None = None
    decision: str | None = None
    came: float = 0.0


class Books:
    """The memory of one shop, by the shop's own days."""

    def __init__(self, zone: str) -> None:
        self.zone = zone
        self.contacts: list[Contact] = []
        self.spent: dict[tuple[str, str], int] = {}
        """By day and resource."""
        self.consents: list[tuple[str, str, bool, float]] = []
        """(person, channel or '' for any, granted, since)"""
        self.answers: list[tuple[str, float]] = []
        self.homes: dict[str, str] = {}
        self.tracked = False
        """Whether the shop keeps consents."""
        self.outcomes: set[tuple[str, str, float]] = set()

    def day(self, at: float) -> str:
        """The shop's date."""
        return datetime.fromtimestamp(at, ZoneInfo(self.zone)).date().isoformat()

    def those_of(self, person: str) -> list[Contact]:
        """Contacts that were made or will be, the latest last."""
        return sorted((one for one in self.contacts if one.person == person and not one.failed), key=lambda one: (one.at, one.tier))

    def answered(self, contact: Contact) -> bool:
        """Whether the person has answered it, or anything since: by an order, a response, a conversion."""
        own = bool(contact.kinds & set(ANSWERS))
        return own or any(who == contact.person and until >= contact.at for who, until in self.answers)

    def charge(self, day: str, charge: dict[str, int], sign: int) -> None:
        """Take what a contact uses from its day (1), or give it back (-1)."""
        for name, units in charge.items():
            self.spent[day, name] = self.spent.get((day, name), 0) + sign * units

    def happened(self, id: str, person: str, channel: str, kind: str, at: float, now: float) -> None:
        """An outcome of a decision about a person, by a channel ('' where nobody was contacted); told again it changes nothing."""
        if (id, kind, at) in self.outcomes:
            return
        self.outcomes.add((id, kind, at))
        if kind in ANSWERS:
            self.answers.append((person, at))
        if kind == "unsubscribed":
            self.consent(person, channel, False, now)
        for contact in self.contacts:
            if contact.decision == id:
                self._proved(contact, kind)

    def _proved(self, contact: Contact, kind: str) -> None:
        """What was not made gives back what it was to give back, until a proof comes that it was made."""
        before = contact.failed
        contact.kinds.add(kind)
        if contact.failed != before:
            self.charge(contact.day, contact.back, -1 if contact.failed else 1)

    def consent(self, person: str, channel: str, granted: bool, now: float) -> None:
        """A word that is told now: later than every word before it."""
        latest = max((since for who, _, _, since in self.consents if who == person), default=float("-inf"))
        self.consents.append((person, channel, granted, now if latest < now else latest + TICK))

    def list_contacts(self, rows: Iterable[Told]) -> None:
        """Contacts that the shop lists, each with its own id: decided ones, or its own. First those that name what they are."""
        for row in sorted(rows, key=lambda row: (self._named(row) is None, row.at, row.id)):
            found = self._named(row) or next((one for one in self.contacts if self._alike(one, row)), None)
            if found is None:
                found = Contact(row.person, row.at, row.tier or 1, row.channel)
                self.contacts.append(found)
            guess = found.listed
            found.at, found.listed = row.at, row
            if guess and guess.id != row.id and guess.decision is None:  # what was taken for it is a contact of its own
                self.contacts.append(Contact(guess.person, guess.at, guess.tier or 1, guess.channel, listed=guess))

    def _named(self, row: Told) -> Contact | None:
        """The contact that the shop has listed under the same id before, or whose decision it names."""
        named = [one for one in self.contacts if one.decision is not None and one.decision == row.decision]
        return next(iter(named + [one for one in self.contacts if one.listed and one.listed.id == row.id]), None)

    def _alike(self, one: Contact, row: Told) -> bool:
        """Whether a contact that was decided, and is not listed yet, can be the one."""
        free = one.decision is not None and one.listed is None and row.tier in (None, one.tier)
        return free and (one.person, one.channel, self.day(one.at)) == (row.person, row.channel, self.day(row.at))
