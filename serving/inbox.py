"""New events: told apart and made plain before the writer's turn, kept in parts, each whole or not at all, with what they plan."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from serving import histories, listed, occasions
from serving.naming import Named, Who, named
from serving.online import Listed, OnlineStore
from serving.policy import Occasion
from serving.score import Engine

ROWS_AT_ONCE = 100
"""Rows of one transaction, an order's lines among them: a consent waits for one such part at most (some milliseconds)."""
COUNTS = ("accepted", "known", "erased", "unknown", "nobody")
_MOMENTS = ("ordered_at", "happened_at", "opened_at", "sent_at")


class NewEvent(NamedTuple):
    """An event ready to be kept; ``moment``: when it happened, None for a row without a time, and where the row alone is to tell."""

    customer: str
    id: str
    table: str
    row: dict[str, Any]
    moment: float | None = None


def prepared(engine: Engine, store: OnlineStore, events: Sequence[Any]) -> tuple[list[NewEvent], Counter[str]]:
    """The events to keep, and how many are of nobody or of a pseudonym that is unknown."""
    texts = list(dict.fromkeys(event.customer_id for event in events))
    whom = dict(zip(texts, named(engine, store, texts), strict=True))
    ours = {one.pseudonym for one in whom.values() if one.who is Who.CUSTOMER}
    kept, left = [], Counter[str]()
    for event in events:
        one = whom[event.customer_id]
        if refused := _refused(one, ours):
            left[refused] += 1
            continue
        row = histories.plain(event.table, event.row, engine.zone)
        kept.append(NewEvent(one.pseudonym, event.event_id, event.table, row, _moment(event.row, engine.zone)))
    return kept, left


def _moment(row: Mapping[str, Any], zone: ZoneInfo) -> float | None:
    """When a row happened; with an offset also in the hour that comes twice, which the local time of a kept row does not tell apart."""
    told = next((row[key] for key in _MOMENTS if row.get(key) is not None), None)
    if told is None:
        return None
    at = datetime.fromisoformat(told) if isinstance(told, str) else told
    return float((at if at.tzinfo else at.replace(tzinfo=zone)).timestamp())


def _refused(one: Named, ours: set[str]) -> str | None:
    """What an event that is not kept counts as; a pseudonym made of another id of the same request is known."""
    if one.who is Who.NOBODY:
        return "nobody"
    return "unknown" if one.who is Who.UNKNOWN and one.pseudonym not in ours else None


def parts(events: Sequence[NewEvent]) -> Iterator[list[NewEvent]]:
    """Events in the order they came, as many at a time as one transaction may keep; at least one."""
    part: list[NewEvent] = []
    size = 0
    for event in events:
        rows = 1 + len(event.row.get("lines", ()))
        if part and size + rows > ROWS_AT_ONCE:
            yield part
            part, size = [], 0
        part.append(event)
        size += rows
    if part:
        yield part


def keep(engine: Engine, store: OnlineStore, events: Sequence[NewEvent], now: float) -> Counter[str]:
    """Keep events in one transaction; plan when to look for the occasions that they may bring. Told again, one changes nothing."""
    counts = Counter[str]()
    with store.transaction():
        gone = store.erased(list({event.customer for event in events}))
        customers: dict[str, _Customer] = {}
        contacts: list[Listed] = []
        for event in events:
            if event.customer in gone:
                counts["erased"] += 1
                continue
            customer = customers.get(event.customer) or customers.setdefault(event.customer, _Customer(engine, store, event.customer))
            new = store.add_events(event.customer, [(event.id, event.table, event.row)], now)
            counts["accepted" if new else "known"] += 1
            if new:
                customer.learn(event, now)
            if new and event.table == "contacts":
                contacts += _contact(engine, event)
        listed.keep(store, contacts, engine.zone, now)
        for customer in customers.values():
            customer.answer()
            customer.plan()
    return counts


def _contact(engine: Engine, event: NewEvent) -> Iterator[Listed]:
    """A contact that the shop tells of, unless it stands for a hold-out."""
    row = event.row
    at = event.moment or _moment(row, engine.zone) or 0.0
    tier = None if row.get("tier") is None else round(row["tier"])
    answered = bool(row.get("clicked_at") or row.get("converted_at"))
    if tier != 0:
        yield Listed(row["contact_id"], event.customer, at, row.get("channel") or "", tier, answered, row.get("decision_id"))


class _Customer:
    """What new events mean for one customer; what is known of the customer is looked up once, however many events there are."""

    def __init__(self, engine: Engine, store: OnlineStore, name: str) -> None:
        self.engine, self.store, self.name = engine, store, name
        self.ids = store.ids_of(name)
        self.answered: float | None = None
        self.contacted = False
        self.looks: dict[Occasion, float] = {}
        """The earliest moment at which to look for each occasion."""

    def learn(self, event: NewEvent, now: float) -> None:
        """Note what an event answers, and when to look for which occasions because of it; nothing else of the customer is read."""
        moment = event.moment or _moment(event.row, self.engine.zone) or now
        self.contacted |= event.table == "contacts"
        if event.table == "orders" and not event.row.get("cancelled_at"):
            self.answered = max(moment, self.answered or moment)
        for occasion, look in occasions.of_event(event.table, event.row, self.engine.zone, now).items():
            self.looks[occasion] = min(look, self.looks.get(occasion, look))

    def plan(self) -> None:
        """Plan to look at the customer again."""
        for occasion, look in self.looks.items():
            self.store.plan_occasion(self.ids[0], occasion.value, look)

    def answer(self) -> None:
        """Orders answer the contacts before them, the batch's those that are told after it."""
        if self.contacted:
            moments = [moment for id in self.ids if (moment := histories.last_order(self.store.history(id), self.engine.zone))]
            self.answered = max([*moments, *([self.answered] if self.answered else [])], default=None)
        if self.answered is not None:
            self.store.answer(self.name, self.answered)
