"""What the service remembers between requests: histories, consents, contacts, decisions, and what the day has spent.

`OnlineStore` is the interface; the embedded one is `sqlite_store.SqliteStore`. Customers are pseudonyms; times are seconds since 1970.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

UNITS = 1_000_000
"""Money and hours are added up in whole millionths, so that no sum is ever off."""
DAY_SECONDS = 86_400.0
BUSY_SECONDS = 10.0
"""A writer waits so long for another's transaction."""


class StoreBusy(RuntimeError):
    """Another writer did not finish in time; nothing was written."""


@dataclass(frozen=True)
class PastContact:
    """A contact of one customer."""

    at: float
    tier: int
    channel: str
    answered: bool
    segment: str = ""


@dataclass(frozen=True)
class Standing:
    """Where we stand with one customer: consents by channel ('' any: granted or not), recent contacts, oldest first, and the time zone."""

    consents: Mapping[str, bool]
    contacts: Sequence[PastContact]
    timezone: str | None = None


class OnlineStore(ABC):
    """Everything of one shop that the service keeps; all writes within `transaction` are whole or not at all, across all workers."""

    @abstractmethod
    @contextmanager
    def transaction(self, urgent: bool = False) -> Iterator[None]:
        """Nobody else writes until the end; an exception undoes what was written. Who is ``urgent`` is let in before all who are not."""

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
    def ordered(self, customers: Sequence[str]) -> tuple[bool, set[str]]:
        """Whether the batch knows orders of any of some customers, and the first and last id, as text, of orders told since.

        The time that it takes does not depend on how many there are.
        """

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
    def forget_contacts(self) -> None:
        """Drop contacts that no decision of ours made: a new load brings them again."""

    @abstractmethod
    def forget_events(self, until: float) -> None:
        """Drop events that came up to a moment: the batch knows them now."""

    @abstractmethod
    def standing(self, customers: Sequence[str], purpose: str, since: float) -> list[Standing]:
        """Consents for a purpose, and contacts since a moment, of the person of each customer."""

    @abstractmethod
    def answer(self, customer: str, until: float) -> None:
        """Mark contacts up to a moment as answered: the person has responded or ordered."""

    @abstractmethod
    def spent(self, day: str) -> dict[str, int]:
        """What a day has used of each resource, in millionths."""

    @abstractmethod
    def spend(self, day: str, used: Mapping[str, int]) -> None:
        """Add to what a day has used."""

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
    def plan_occasion(self, customer: str, occasion: str, due: float) -> None:
        """Ask for a decision at a moment, in place of an earlier one for the same occasion of the customer's person."""

    @abstractmethod
    def cancel_occasion(self, customer: str, occasion: str) -> None:
        """The reason for it is gone, under whichever id of the customer's person it was planned."""

    @abstractmethod
    def take_due(self, now: float, limit: int, lease: float) -> list[tuple[str, str]]:
        """(customer, occasion) that are due, for whoever asks first; due again after ``lease`` seconds unless cancelled by then."""

    @abstractmethod
    def position(self) -> int:
        """Number of the last decision in the log."""

    @abstractmethod
    def consents_state(self) -> tuple[float, ...]:
        """Changes with every consent given or withdrawn and every erasure."""

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
