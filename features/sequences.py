"""The same history as sequences for the LSTM: weeks by channel, and the last events one by one."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.events import Events, Floats, Ints, filled, lengths, sort_by
from features.history import History

WEEKS = 52
LAST_EVENTS = 64
"""At most this many events, the latest of all kinds, oldest first."""
_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Channel:
    """A weekly sum of a measure (None: number of events) of one kind of event.

    ``feature`` is the one that says in words what the channel shows: reasons are told by it.
    """

    name: str
    kind: str
    measure: str | None
    source: str
    feature: str


CHANNELS = (
    Channel("orders", "order", None, "orders", "orders_half_life_90d"),
    Channel("spend", "order", "spend", "orders", "spend_half_life_90d"),
    Channel("units", "order", "units", "orders", "units_90d"),
    Channel("products", "item", None, "orders", "products_90d"),
    Channel("returns", "return", None, "orders", "returns_90d"),
    Channel("views", "browse", "views", "events", "views_90d"),
    Channel("cart_adds", "browse", "adds", "events", "cart_adds_90d"),
    Channel("sessions", "browse", "sessions", "events", "sessions_90d"),
    Channel("seconds", "browse", "seconds", "events", "browse_minutes_90d"),
    Channel("contacts_sent", "contact", None, "contacts", "contacts_sent_90d"),
    Channel("contacts_opened", "opened", None, "contacts", "contacts_opened_90d"),
    Channel("contacts_clicked", "clicked", None, "contacts", "contacts_clicked_90d"),
    Channel("coupons_claimed", "coupon", None, "coupons", "coupons_claimed_90d"),
    Channel("tickets", "ticket", None, "tickets", "tickets_365d"),
    Channel("complaints", "ticket", "complaint", "tickets", "complaints_365d"),
    Channel("reviews", "review", None, "reviews", "reviews_total"),
    Channel("deliveries", "delivery", None, "deliveries", "deliveries_total"),
    Channel("points_earned", "points", "earned", "points", "points_earned_90d"),
    Channel("points_spent", "points", "spent", "points", "points_spent_90d"),
)
"""Values are log(1 + x). The first five are always there, zeros without their source. No season: see `seasons.py`."""
EVENT_KINDS: dict[str, str] = {
    "order": "orders_half_life_90d",
    "return": "returns_90d",
    "browse": "browse_days_90d",
    "contact": "contacts_sent_90d",
    "coupon": "coupons_claimed_90d",
    "ticket": "tickets_365d",
    "review": "reviews_total",
    "delivery": "deliveries_total",
}
"""What the last events tell, and the feature that says so in words: their type is the position here plus one (0 is padding)."""


def channels(sources: Iterable[str]) -> tuple[Channel, ...]:
    """The weekly channels that these sources feed."""
    there = set(sources)
    return tuple(channel for channel in CHANNELS if channel.source in there)


def weekly(h: History, chosen: tuple[Channel, ...]) -> dict[str, pa.Array]:
    """Weekly activity as two list columns, since most weeks are empty: ``week_cells`` (int32) and ``week_values`` (float32).

    A cell is week * channels + channel, week 0 the oldest, the last one ends at the snapshot; see `dense`.
    """
    width = WEEKS * len(chosen)
    cells, values = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    weeks: dict[str, Weeks] = {}
    for place, channel in enumerate(chosen):
        if not h.events[channel.kind].customer.size:
            continue
        if channel.kind not in weeks:
            weeks[channel.kind] = _weeks(h.events[channel.kind].within(WEEKS * 7))
        sums = _sums(weeks[channel.kind], channel.measure)
        some = sums > 0
        cells.append(weeks[channel.kind].cell[some] * len(chosen) + place)
        values.append(np.log1p(sums[some]))
    cell, value = np.concatenate(cells), np.concatenate(values)
    order = cell.argsort(kind="stable")  # sorted within each channel, which a stable sort makes use of
    offsets = _offsets(np.bincount(cell // width, minlength=h.n))
    lists = {"week_cells": (cell[order] % width).astype(np.int32), "week_values": value[order].astype(np.float32)}
    return {name: pa.ListArray.from_arrays(offsets, pa.array(flat)) for name, flat in lists.items()}


@dataclass(frozen=True)
class Weeks:
    """Events in the order of customer and week: where each week with events begins, and its number (customer * WEEKS + week)."""

    events: Events
    starts: Ints
    cell: Ints


def _weeks(events: Events) -> Weeks:
    """Most kinds come in the order of their weeks already."""
    cell = events.customer * WEEKS + (WEEKS - 1 - (events.age_days / 7).astype(np.int64))
    if not (cell[1:] >= cell[:-1]).all():
        order = cell.argsort(kind="stable")
        events, cell = events.where(order), cell[order]
    new = np.ones(cell.size, dtype=bool)
    new[1:] = cell[1:] != cell[:-1]
    starts = new.nonzero()[0]
    return Weeks(events, starts, cell[starts])


def _sums(weeks: Weeks, measure: str | None) -> Floats:
    """Sum of a measure (None: number of events) in each week with events."""
    size = weeks.events.customer.size
    if measure is None or not size:
        return lengths(weeks.starts, size).astype(np.float64)
    return np.add.reduceat(filled(weeks.events[measure]), weeks.starts)


def _offsets(size: Ints) -> pa.Array:
    """Where lists of these sizes begin, and the end of the last."""
    offsets = np.zeros(size.size + 1, dtype=np.int32)
    offsets[1:] = size.cumsum()
    return pa.array(offsets)


def dense(cells: pa.ListArray, values: pa.ListArray, channels: int) -> npt.NDArray[np.float32]:
    """The sequences x_NWC of shape (n, WEEKS, channels) of the two list columns of `weekly`."""
    width = WEEKS * channels
    row = np.repeat(np.arange(len(cells)), cells.value_lengths().fill_null(0).to_numpy())
    x = np.zeros(len(cells) * width, dtype=np.float32)
    x[row * width + cells.flatten().to_numpy()] = values.flatten().to_numpy()
    return x.reshape(len(cells), WEEKS, channels)


def padded(lists: pa.ListArray, length: int) -> tuple[npt.NDArray[np.float32], Ints]:
    """The last ``length`` values of each list at the left of a row, zeros after them (n, length), and how many there are (n,)."""
    size = lists.value_lengths().fill_null(0).to_numpy().astype(np.int64)
    kept = np.minimum(size, length)
    row = np.repeat(np.arange(len(lists)), kept)
    place = np.arange(row.size) - np.repeat(np.cumsum(kept) - kept, kept)
    first = np.cumsum(size) - kept  # of the kept ones, in the flat values
    x = np.zeros((len(lists), length), dtype=np.float32)
    x[row, place] = lists.flatten().to_numpy()[first[row] + place]
    return x, kept


def last_events(h: History) -> dict[str, pa.Array]:
    """The latest events of all kinds as list columns: ``event_types`` (int8) and ``event_gap_days`` (float32).

    The gap is the time since the event before, of the oldest event listed 0; lists are of at most LAST_EVENTS.
    """
    kinds = [(number, events) for number, events in enumerate((h.events[kind] for kind in EVENT_KINDS), 1) if events.customer.size]
    kinds = kinds or [(1, h.orders)]
    customer = np.concatenate([events.customer for _, events in kinds])
    age = np.concatenate([events.age_days for _, events in kinds])
    at = np.concatenate([events.at for _, events in kinds])
    kind = np.repeat([number for number, _ in kinds], [events.customer.size for _, events in kinds])
    order = sort_by([customer, at // 1_000_000, at, kind])
    customer, age, kind = customer[order], age[order], kind[order].astype(np.int8)
    size = np.bincount(customer, minlength=h.n)
    ends = size.cumsum()
    kept = ends[customer] - np.arange(customer.size) <= LAST_EVENTS
    customer, age, kind = customer[kept], age[kept], kind[kept]
    gap = np.zeros(age.size)
    gap[1:] = np.where(customer[1:] == customer[:-1], age[:-1] - age[1:], 0.0)
    offsets = _offsets(np.minimum(size, LAST_EVENTS))
    return {
        "event_types": pa.ListArray.from_arrays(offsets, pa.array(kind)),
        "event_gap_days": pa.ListArray.from_arrays(offsets, pa.array(gap.astype(np.float32))),
    }
