"""What the service remembers between requests: histories, consents, contacts, decisions, and what the day has spent.

`OnlineStore` is the interface; the embedded one is `sqlite_store.SqliteStore`. Customers are pseudonyms; times are seconds since 1970.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from features.errors import InputError

UNITS = 1_000_000
"""Money and hours are added up in whole millionths, so that no sum is ever off."""
DAY_SECONDS = 86_400.0
BUSY_SECONDS = 10.0
"""A writer waits so long for another's transaction."""


class StoreBusy(InputError):
    """Another writer did not finish in time; nothing was written. A command ends with 2, the service answers 503."""

    def __init__(self, place: str, seconds: float) -> None:
        fix = "wait until the other command or the service's write is done, then run this again"
        super().__init__(place, f"another process has been writing to the online store for more than {seconds:g} s", fix)


class KeptAnswer(NamedTuple):
    """An answer that is kept: digest of its request, JSON of its head, and by place in the request whose each result is, and its JSON."""

    body: str
    head: str
    rows: Mapping[int, tuple[str | None, str]]


@dataclass(frozen=True)
class PastContact:
    """A contact of one customer."""

    at: float
    tier: int
    channel: str
    answered: bool
    segment: str = ""


class Charge(NamedTuple):
    """What the contact of a decision uses of a resource on a day, in millionths; ``returns``: it is given back should the contact fail."""

    decision: str | None
    day: str
    resource: str
    used: int
    returns: bool = False


@dataclass(frozen=True)
class Listed:
    """A contact as the shop lists it: under its own ``id``; ``tier`` and ``decision`` are None where it does not tell."""

    id: str
    customer: str
    at: float
    channel: str
    tier: int | None
    answered: bool
    decision: str | None = None


@dataclass(frozen=True)
class KeptContact:
    """A contact that the store keeps, under a number; ``decision`` of ours, and ``listed``, the shop's id, where there is one."""

    number: int
    customer: str
    at: float
    tier: int
    channel: str
    decision: str | None
    listed: str | None
    answered: bool
    told_tier: int | None
    """As the shop tells it, which may not tell it."""
    guessed: bool
    """Whether it was taken for the shop's contact ``listed`` without its naming the decision."""


@dataclass(frozen=True)
class Standing:
    """Where we stand with one customer: consents by channel ('' any: granted or not), contacts, oldest first, and the time zone.

    Contacts are those that were made, or are planned and not known to have failed.
    """

    consents: Mapping[str, bool]
    contacts: Sequence[PastContact]
    timezone: str | None = None


class OnlineStore(ABC):
    """Everything of one shop that the service keeps; all writes within `transaction` are whole or not at all, across all workers."""

    @abstractmethod
    @contextmanager
    def transaction(self, urgent: bool = False) -> Iterator[None]:
        """Nobody else writes until the end; an exception undoes what was written. Who is ``urgent`` is let in before all who are not."""

    def interrupt(self, thread: int) -> None:  # noqa: B027
        """Have the query that a thread is at fail, if it is at one."""

    def give_up(self) -> None:  # noqa: B027
        """Undo whatever this thread has begun, wherever it was cut off, and have it start anew."""

    @abstractmethod
    def meta(self, key: str) -> Any:
        """A small value by key, None where there is none: what was loaded, the day's plan."""

    @abstractmethod
    def set_meta(self, key: str, value: Any) -> None:
        """Keep a small value (JSON)."""

    @abstractmethod
    def set_persons(self, rows: Iterable[tuple[str, str]]) -> None:
        """Keep who is another (customer, person) in place of what was kept.

        Everything else is kept by customer, and read for all ids of a person: a link that comes or goes moves nothing.
        """

    @abstractmethod
    def persons(self, customers: Sequence[str]) -> list[str]:
        """The person of each customer: mostly the customer."""

    @abstractmethod
    def ids_of(self, customer: str) -> list[str]:
        """All ids of a customer's person, the person's own first."""

    @abstractmethod
    def put_histories(self, rows: Iterable[tuple[str, str, bytes]]) -> None:
        """Keep (customer, canonical table, Arrow record batch) as what the batch knows."""

    @abstractmethod
    def history(self, customer: str) -> dict[str, bytes]:
        """Record batches of a customer by canonical table; empty where the batch knows nothing."""

    @abstractmethod
    def add_events(self, customer: str, events: Sequence[tuple[str, str, dict[str, Any]]], now: float) -> int:
        """Keep (event id, canonical table, row) of a customer; ids seen before are left alone. Returns how many were new."""

    @abstractmethod
    def events(self, customer: str) -> list[tuple[str, dict[str, Any]]]:
        """(canonical table, row) of a customer since the last load, in the order they came."""

    @abstractmethod
    def set_consents(self, rows: Iterable[tuple[str, str, str, bool, float]]) -> None:
        """Keep (customer, purpose, channel, granted, since) where it is not older than what is kept; at one moment a withdrawal wins."""

    @abstractmethod
    def consented_until(self, customer: str, purpose: str) -> float | None:
        """Since when the latest consent of a customer's person for a purpose holds."""

    @abstractmethod
    def set_timezone(self, customer: str, timezone: str) -> None:
        """Keep where a customer lives, for quiet hours."""

    @abstractmethod
    def add_contacts(self, rows: Iterable[tuple[str, float, int, str, bool, str | None]]) -> None:
        """Keep (customer, at, tier, channel, answered, decision id or None)."""

    @abstractmethod
    def contacts(self, customers: Sequence[str] | None = None) -> list[KeptContact]:
        """Contacts under any of these ids, or of everybody, oldest first."""

    @abstractmethod
    def list_contacts(self, rows: Iterable[Listed], came: float | None = None) -> None:
        """Keep contacts that only the shop lists; ``came``: when it told of them, None by a load. One of the same id is replaced."""

    @abstractmethod
    def match_contacts(self, rows: Iterable[tuple[int, Listed]]) -> None:
        """Keep what the shop says of contacts by their number: its id, when it made them, and whether they were answered."""

    @abstractmethod
    def forget_contacts(self, until: float) -> None:
        """Drop contacts that only the shop lists, by a load or told up to a moment: a new load brings them again."""

    @abstractmethod
    def forget_events(self, until: float) -> None:
        """Drop events that came up to a moment: the batch knows them now."""

    @abstractmethod
    def standing(self, customers: Sequence[str], purpose: str, since: float) -> list[Standing]:
        """Consents for a purpose, and contacts since a moment, of the person of each customer."""

    @abstractmethod
    def answer(self, customer: str, until: float) -> None:
        """Mark contacts up to a moment as answered: the person has responded or ordered. That is kept for contacts yet to be told."""

    @abstractmethod
    def answers(self, customers: Sequence[str] | None = None) -> dict[str, float]:
        """The latest moment up to which contacts are answered, by customer id: of these ids, or of all."""

    @abstractmethod
    def answer_decision(self, decision: str) -> None:
        """Mark the contact of a decision as answered, whatever the clocks say."""

    @abstractmethod
    def unanswered(self) -> dict[str, float]:
        """When the first contact without an answer was made, by customer."""

    @abstractmethod
    def spent(self, day: str) -> dict[str, int]:
        """What the contacts of a day use of each resource, in millionths: the sum of the ledger."""

    @abstractmethod
    def charge(self, charges: Iterable[Charge]) -> None:
        """Book what contacts use."""

    @abstractmethod
    def set_failed(self, decision: str, failed: bool) -> None:
        """Whether the contact of a decision could not be made: then it counts for nothing, and gives back what it is to give back."""

    @abstractmethod
    def set_planned(self, rows: Iterable[tuple[str, int]]) -> None:
        """Keep the tiers that the day's plan has settled for customers at the margin, in place of what was kept."""

    @abstractmethod
    def planned(self, customers: Sequence[str]) -> dict[str, int]:
        """Tiers that the day's plan has settled, by customer."""

    @abstractmethod
    def record(self, decisions: Iterable[tuple[str, float, str, str, bytes | None]]) -> None:
        """Append (id, at, customer, JSON, feature row or None) to the decision log, which is never changed."""

    @abstractmethod
    def decision(self, id: str) -> tuple[str, dict[str, Any], bytes | None] | None:
        """Customer, body and feature row of a decision."""

    @abstractmethod
    def decisions_of(self, customer: str, limit: int) -> list[dict[str, Any]]:
        """The latest decisions about a customer's person, latest first."""

    @abstractmethod
    def feed(self, after: int, limit: int) -> list[tuple[int, str, dict[str, Any]]]:
        """(number, customer, body) of decisions after a number, in order."""

    @abstractmethod
    def add_outcome(self, decision: str, kind: str, at: float, value: float | None) -> bool:
        """Keep what happened to a decision; False where the same was told before."""

    @abstractmethod
    def outcomes_of(self, decision: str) -> list[dict[str, Any]]:
        """What happened to a decision."""

    @abstractmethod
    def plan_occasion(self, customer: str, occasion: str, look: float) -> None:
        """Have the customer looked at for an occasion at a moment, unless an earlier one is planned."""

    @abstractmethod
    def cancel_occasion(self, customer: str, occasion: str) -> None:
        """Nobody needs to look, under whichever id of the customer's person it was planned."""

    @abstractmethod
    def take_due(self, now: float, limit: int, lease: float) -> list[tuple[str, str]]:
        """(customer, occasion) to look at now, for whoever asks first; due again after ``lease`` seconds unless cancelled by then."""

    @abstractmethod
    def serve_occasion(self, customer: str, occasion: str, due: Iterable[float]) -> None:
        """Remember which of a customer's occasions were decided about: those that came at these moments."""

    @abstractmethod
    def served(self, customer: str, occasion: str) -> set[float]:
        """The moments at which the occasions came that were decided about, of all ids of the customer's person."""

    @abstractmethod
    def kept_answer(self, key: str, since: float) -> KeptAnswer | None:
        """The answer of a key, unless it is older; rows of who was erased are missing."""

    @abstractmethod
    def keep_answer(self, key: str, body: str, at: float, head: str, rows: Sequence[tuple[str | None, str]]) -> None:
        """Keep an answer in place of an older one of its key."""

    @abstractmethod
    def forget_answers(self, until: float, limit: int) -> int:
        """Drop some of the answers up to a moment, oldest first; returns how many rows went."""

    @abstractmethod
    def position(self) -> int:
        """Number of the last decision in the log."""

    @abstractmethod
    def consents_state(self) -> tuple[float, ...]:
        """Changes with every consent given or withdrawn and every erasure."""

    @abstractmethod
    def contacts_state(self) -> tuple[int, ...]:
        """Changes with every contact that is added, dropped, or found to have failed or to have been made."""

    @abstractmethod
    def known(self) -> set[str]:
        """Customers whose person has a consent, a contact or a time zone."""

    @abstractmethod
    def knows(self, customers: Sequence[str]) -> set[str]:
        """Those of whom anything is kept, and those who were erased."""

    @abstractmethod
    def fresh(self, customers: Sequence[str]) -> set[str]:
        """Those of whose person events came since the last load."""

    @abstractmethod
    def erase(self, customer: str) -> list[str]:
        """Remove everything of a customer's person; what stays is a one-way digest of each id. Returns the ids.

        Old pages leave the disk with it, or with the eraser where somebody still reads them.
        """

    @abstractmethod
    def erased(self, customers: Sequence[str]) -> set[str]:
        """Those who were erased."""

    def who(self, customers: Sequence[str]) -> tuple[list[str], set[str]]:
        """The person of each customer, and the customers among them who were erased."""
        return self.persons(customers), self.erased(customers)


def in_force(told: Mapping[str, tuple[bool, float]]) -> dict[str, bool]:
    """Consents by channel; a word for any channel ('') overrules older ones for a single channel, a withdrawal those of its moment too."""
    allowed, blanket = told.get("", (True, float("-inf")))
    return {
        channel: granted for channel, (granted, since) in told.items() if since > blanket or (since == blanket and (allowed or not granted))
    }
