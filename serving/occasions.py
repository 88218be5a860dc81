"""Moments that ask for a decision [S 4]: when a customer is to be looked at, and what the customer's rows say then of each occasion.

The truth is the state: all rows whose event time is reached, in whichever order they were told. A row that is told only plans a look, at
the earliest moment at which it can bring an occasion; a look that comes too early plans the next one.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from features.domain import COMPLAINT_OPEN_DAYS, HORIZON_DAYS
from serving.online import DAY_SECONDS
from serving.policy import Occasion

YEAR_DAYS = 365
BATCH_DAYS = 1.0
"""A first order that only the batch knows is looked up so long after any order is told: less than its anniversary's window."""


@dataclass(frozen=True)
class Window:
    """An occasion comes ``after_days`` from what begins it, and is one for ``within_days`` from then on."""

    after_days: float
    within_days: float
    several: bool = False
    """Whether a customer may have more than one at a time; else a later one takes the place of those before it."""

    def due(self, began: float) -> float:
        """The moment at which the occasion comes, in seconds since 1970."""
        return began + self.after_days * DAY_SECONDS

    def passed(self, due: float, now: float) -> bool:
        """Whether the occasion is none any more."""
        return now >= due + self.within_days * DAY_SECONDS

    def new(self, due: float, served: Collection[float]) -> bool:
        """Whether nobody has decided about it: ``served`` are the moments of those decided about."""
        return due not in served and (self.several or due > max(served, default=-math.inf))


WINDOWS = {
    # of exactly one order; the guidance to the second one must leave time until the 7 days of its touchpoint are over
    Occasion.FIRST_ORDER: Window(1, 3),
    # of the first order, every year; a congratulation that is later than a long weekend is none
    Occasion.ANNIVERSARY: Window(YEAR_DAYS, 3),
    # since the last order; a month later the wake-up is no longer about the 90 days, and the daily round sees the silence anyway
    Occasion.SILENT: Window(HORIZON_DAYS, 30),
    # since the last addition that neither a payment nor an order follows; what was wanted is forgotten after a week
    Occasion.CART_LEFT: Window(1, 7),
    # at once, each complaint until it is resolved; from then on the touchpoint of the open complaint speaks for it
    Occasion.COMPLAINT: Window(0, COMPLAINT_OPEN_DAYS, several=True),
}
NEEDS = {
    Occasion.FIRST_ORDER: ("orders",),
    Occasion.ANNIVERSARY: ("orders",),
    Occasion.SILENT: ("orders",),
    Occasion.CART_LEFT: ("orders", "events"),
    Occasion.COMPLAINT: ("tickets",),
}
"""Canonical tables that tell of each occasion."""
_OF_ORDERS = tuple(occasion for occasion, tables in NEEDS.items() if "orders" in tables)


@dataclass(frozen=True)
class Spell:
    """From when until when something counts: an order until it is cancelled, a complaint until it is resolved; seconds since 1970."""

    start: float
    end: float = math.inf


@dataclass(frozen=True)
class Known:
    """What the rows of a person say that occasions hang on; moments in seconds since 1970, those of the future included."""

    orders: Sequence[Spell] = ()
    complaints: Sequence[Spell] = ()
    carts: Sequence[float] = ()
    pays: Sequence[float] = ()

    @classmethod
    def of(cls, tables: Mapping[str, pa.Table], zone: ZoneInfo) -> "Known":
        """What canonical tables of one person say; their times are the shop's local ones."""
        orders = _rows(tables, "orders", "ordered_at", "cancelled_at")
        tickets = _rows(tables, "tickets", "opened_at", "resolved_at", "complaint")
        events = _rows(tables, "events", "happened_at", "kind")
        return cls(
            [_spell(ordered, cancelled, zone) for ordered, cancelled in orders],
            [_spell(opened, resolved, zone) for opened, resolved, complaint in tickets if complaint],
            [_seconds(happened, zone) for happened, kind in events if kind == "add_to_cart"],
            [_seconds(happened, zone) for happened, kind in events if kind == "pay"],
        )

    def ordered(self, now: float) -> list[float]:
        """When the orders were placed that count at a moment."""
        return [order.start for order in self.orders if order.start <= now < order.end]

    def changes(self, now: float) -> list[float]:
        """Moments after ``now`` at which something begins or ceases to count."""
        spells = [moment for spell in (*self.orders, *self.complaints) for moment in (spell.start, spell.end)]
        return [moment for moment in (*spells, *self.carts, *self.pays) if now < moment < math.inf]


@dataclass(frozen=True)
class Look:
    """What a look at a customer says of one occasion: since when it is ``there`` undecided (empty: it is not), and when to look again."""

    there: tuple[float, ...]
    again: float | None


def look(occasion: Occasion, known: Known, now: float, served: Collection[float]) -> Look:
    """Whether a person has an occasion that nobody has decided about; ``served``: the moments of those decided about.

    Between two changes only time passes, so that nothing comes before the next change, or the next moment of what is known.
    """
    window = WINDOWS[occasion]
    moments = [due for due in _DUE[occasion](known, now) if window.new(due, served)]
    there = tuple(due for due in moments if due <= now and not window.passed(due, now))
    later = [due for due in moments if due > now] + known.changes(now)
    return Look(there, min(later, default=None))


def _first_order(known: Known, now: float) -> list[float]:
    orders = known.ordered(now)
    return [WINDOWS[Occasion.FIRST_ORDER].due(orders[0])] if len(orders) == 1 else []


def _anniversary(known: Known, now: float) -> list[float]:
    """The last one and the next."""
    orders = known.ordered(now)
    if not orders:
        return []
    first, year = min(orders), YEAR_DAYS * DAY_SECONDS
    years = int((now - first) // year)
    return [first + number * year for number in (years, years + 1) if number]


def _silent(known: Known, now: float) -> list[float]:
    orders = known.ordered(now)
    return [WINDOWS[Occasion.SILENT].due(max(orders))] if orders else []


def _cart_left(known: Known, now: float) -> list[float]:
    added = max((cart for cart in known.carts if cart <= now), default=None)
    if added is None or any(added <= bought <= now for bought in (*known.pays, *known.ordered(now))):
        return []
    return [WINDOWS[Occasion.CART_LEFT].due(added)]


def _complaint(known: Known, now: float) -> list[float]:
    return [WINDOWS[Occasion.COMPLAINT].due(one.start) for one in known.complaints if one.start <= now < one.end]


_DUE: dict[Occasion, Callable[[Known, float], list[float]]] = {
    Occasion.FIRST_ORDER: _first_order,
    Occasion.ANNIVERSARY: _anniversary,
    Occasion.SILENT: _silent,
    Occasion.CART_LEFT: _cart_left,
    Occasion.COMPLAINT: _complaint,
}
"""When the occasions come, or have come, that what counts at a moment brings."""


def of_event(table: str, row: Mapping[str, Any], zone: ZoneInfo, now: float) -> dict[Occasion, float]:
    """When to look for which occasions because of a new row as the online store keeps it: no later than the row can bring one.

    What only ends occasions (a payment, a resolution) plans nothing: the look that is planned already will see it.
    """
    if table == "orders":
        return _of_order(row, zone, now)
    if table == "events" and row["kind"] == "add_to_cart":
        return _unless_passed(Occasion.CART_LEFT, _seconds(row["happened_at"], zone), now)
    if table == "tickets" and row.get("complaint"):
        return _unless_passed(Occasion.COMPLAINT, _seconds(row["opened_at"], zone), now)
    return {}


def _of_order(row: Mapping[str, Any], zone: ZoneInfo, now: float) -> dict[Occasion, float]:
    ordered = _seconds(row["ordered_at"], zone)
    planned = _unless_passed(Occasion.FIRST_ORDER, ordered, now) | _unless_passed(Occasion.SILENT, ordered, now)
    year, window = YEAR_DAYS * DAY_SECONDS, WINDOWS[Occasion.ANNIVERSARY]
    years = max(1.0, (now - window.within_days * DAY_SECONDS - ordered) // year + 1)
    planned[Occasion.ANNIVERSARY] = min(ordered + years * year, max(ordered, now) + BATCH_DAYS * DAY_SECONDS)
    if row.get("cancelled_at"):  # an order before it may be the only, the first or the last one now
        cancelled = _seconds(row["cancelled_at"], zone)
        return {occasion: min(planned.get(occasion, cancelled), cancelled) for occasion in _OF_ORDERS}
    return planned


def _unless_passed(occasion: Occasion, began: float, now: float) -> dict[Occasion, float]:
    window = WINDOWS[occasion]
    due = window.due(began)
    return {} if window.passed(due, now) else {occasion: due}


def _rows(tables: Mapping[str, pa.Table], name: str, *columns: str) -> list[tuple[Any, ...]]:
    """Some columns of a table, row by row; no rows where the table is not there."""
    return list(zip(*(tables[name][column].to_pylist() for column in columns), strict=True)) if name in tables else []


def _spell(start: datetime, end: datetime | None, zone: ZoneInfo) -> Spell:
    return Spell(_seconds(start, zone), math.inf if end is None else _seconds(end, zone))


def _seconds(local: datetime | str, zone: ZoneInfo) -> float:
    """A local time of the shop, also as text, in seconds since 1970."""
    return (datetime.fromisoformat(local) if isinstance(local, str) else local).replace(tzinfo=zone).timestamp()


def today(occasion: Occasion, rows: pa.Table) -> Any:
    """Which rows of a feature table have the occasion on the day before their snapshot, shape (n,) of bool.

    This is the batch's side (`holdfast decide --occasion`): it sees everybody, where the service sees customers of whom events were told.
    It knows days, not moments, and remembers nothing: asked once for each day's table it has a first order, an anniversary or a silence
    once, a cart left or an open complaint on each day that it lasts. Neither side knows what the other has decided; only the policy's gap
    and ladder keep their contacts apart, so that a shop that tells events asks the batch for no occasion.

    An anniversary is that of the first order. Where the table lacks the source nobody has the occasion.
    """
    within = {
        Occasion.FIRST_ORDER: lambda: (_column(rows, "frequency_orders") == 1) & _lies(_column(rows, "recency_days"), 1, 2),
        Occasion.ANNIVERSARY: lambda: (_column(rows, "tenure_days") >= YEAR_DAYS) & (_column(rows, "tenure_days") % YEAR_DAYS < 1),
        Occasion.SILENT: lambda: _lies(_column(rows, "recency_days"), HORIZON_DAYS, HORIZON_DAYS + 1),
        Occasion.CART_LEFT: lambda: _column(rows, "tp_cart_left") > 0,
        Occasion.COMPLAINT: lambda: _column(rows, "complaints_open") > 0,
    }
    return np.asarray(within[occasion]())


def _column(rows: pa.Table, name: str) -> Any:
    return rows[name].to_numpy() if name in rows.column_names else np.full(rows.num_rows, np.nan)


def _lies(days: Any, low: float, high: float) -> Any:
    return (days >= low) & (days < high)
