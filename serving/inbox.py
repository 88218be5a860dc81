"""New events: told apart and made plain before the writer's turn, kept in parts, each whole or not at all, with what they plan."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from serving import histories, occasions
from serving.naming import Named, Who, named
from serving.online import OnlineStore
from serving.score import Engine

ROWS_AT_ONCE = 100
"""Rows of one transaction, an order's lines among them: a consent waits for one such part at most (some milliseconds)."""
COUNTS = ("accepted", "known", "erased", "unknown", "nobody")
_MOMENTS = ("ordered_at", "happened_at", "opened_at")


class NewEvent(NamedTuple):
    """An event ready to be kept."""

    customer: str
    id: str
    table: str
    row: dict[str, Any]


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
        kept.append(NewEvent(one.pseudonym, event.event_id, event.table, histories.plain(event.table, event.row, engine.zone)))
    return kept, left


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
    """Keep events in one transaction; plan and call off the occasions that they are about. Told again, one changes nothing."""
    counts = Counter[str]()
    with store.transaction():
        gone = store.erased(list({event.customer for event in events}))
        customers: dict[str, _Customer] = {}
        for event in events:
            if event.customer in gone:
                counts["erased"] += 1
                continue
            customer = customers.get(event.customer) or customers.setdefault(event.customer, _Customer(engine, store, event.customer))
            new = store.add_events(event.customer, [(event.id, event.table, event.row)], now)
            counts["accepted" if new else "known"] += 1
            if new:
                customer.learn(event, now)
        for customer in customers.values():
            customer.answer()
    return counts


class _Customer:
    """What new events mean for one customer; what is known of the customer is looked up once, however many events there are."""

    def __init__(self, engine: Engine, store: OnlineStore, name: str) -> None:
        self.engine, self.store, self.name = engine, store, name
        self.ids = store.ids_of(name)
        self.answered: float | None = None
        self.buyer = False
        """Whether the batch knows orders of the customer."""
        self.orders: set[str] | None = None
        """Some ids of orders told since, of two at least where there are two; None until somebody asks."""

    def learn(self, event: NewEvent, now: float) -> None:
        """Plan and call off occasions."""
        at = next((event.row[key] for key in _MOMENTS if key in event.row), None)
        moment = datetime.fromisoformat(at).replace(tzinfo=self.engine.zone).timestamp() if at else now
        first = event.table == "orders" and self._first(event.row["order_id"])
        if event.table == "orders" and not event.row.get("cancelled_at"):
            self.answered = max(moment, self.answered or moment)
        for occasion, after in occasions.of_event(event.table, event.row, first).items():
            if after is None:
                self.store.cancel_occasion(self.ids[0], occasion.value)
            else:
                self.store.plan_occasion(self.ids[0], occasion.value, moment + after.total_seconds())

    def _first(self, order: str) -> bool:
        """Whether neither the batch nor an event knows another order of the customer; the order itself is kept by now."""
        if self.orders is None:
            batch, self.orders = self.store.ordered(self.ids)
            self.buyer = batch or any(self.engine.found(id) for id in self.ids)
        self.orders.add(order)
        return not self.buyer and self.orders == {order}

    def answer(self) -> None:
        """Orders answer the contacts before them."""
        if self.answered is not None:
            self.store.answer(self.name, self.answered)
