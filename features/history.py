"""Fold, step one: a long profile -> what was known of n customers at one snapshot, as flat arrays.

`as_of` is the only time filter of the features: nothing that happened or arrived after the snapshot
passes it. The families (`windows.py`, `gaps.py`, ...) see nothing but its result.
"""

import math
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.domain import WINDOWS_DAYS
from features.reduce import KINDS, MEASURES

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

STATES = ("return", "coupon", "ticket", "delivery")
"""Kinds whose later state (``done``) or promise (``due``) is a fact of its own; a done order is a cancelled one."""
VOID = ("order", "item")
_DAY_US = 86_400_000_000
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Events:
    """m events of one kind, sorted by customer and time (items: by customer, key and time); arrays are (m,).

    ``age_days`` is the time from the event to the snapshot; ``customer`` is a row number in 0..n-1; ``texts`` number
    other texts (category, brand; -1: none). Kinds with states have the measures ``done_age_days`` and ``due_age_days``:
    days since the later state and since the promised time (below 0: still ahead; NaN: not known).
    """

    n: int
    customer: Ints
    at: Ints
    age_days: Floats
    key: Ints
    measures: dict[str, Floats]
    texts: dict[str, Ints]

    def where(self, mask: Mask | Ints) -> "Events":
        """The events for which ``mask`` (m,) holds, or those at the given positions."""
        measures = {name: values[mask] for name, values in self.measures.items()}
        texts = {name: values[mask] for name, values in self.texts.items()}
        return Events(self.n, self.customer[mask], self.at[mask], self.age_days[mask], self.key[mask], measures, texts)

    def between(self, low_days: float, high_days: float) -> "Events":
        """The events of the interval ``(snapshot - high, snapshot - low]``: ages in [low, high)."""
        return self.where((self.age_days >= low_days) & (self.age_days < high_days))

    def within(self, days: float) -> "Events":
        """The events of the trailing window ``(snapshot - days, snapshot]``."""
        return self.between(0, days)

    def last_of_key(self) -> Mask:
        """Whether an event is the latest of its customer and key, shape (m,); only for events sorted by key."""
        last = np.ones(self.customer.size, dtype=bool)
        last[:-1] = (self.customer[1:] != self.customer[:-1]) | (self.key[1:] != self.key[:-1])
        return last

    def windowed(self, values: Floats | str | None = None) -> Floats:
        """Sum of a measure (None: number of events) in each trailing window of the domain, shape (n, windows)."""
        weights = self.measures[values] if isinstance(values, str) else values
        width = len(WINDOWS_DAYS) + 1
        sums = np.bincount(self._window_cell, weights=weights, minlength=self.n * width)
        return np.cumsum(sums.reshape(self.n, width)[:, :-1], axis=1, dtype=np.float64)

    @cached_property
    def _window_cell(self) -> Ints:
        """Number of (customer, shortest window that holds the event), shape (m,)."""
        return self.customer * (len(WINDOWS_DAYS) + 1) + np.searchsorted(WINDOWS_DAYS, self.age_days, side="right")

    def count(self) -> Floats:
        """Events per customer, shape (n,)."""
        return np.bincount(self.customer, minlength=self.n).astype(np.float64)

    def sum(self, values: Floats | str) -> Floats:
        """Sum per customer of a measure or of given values (m,); 0 without events."""
        weights = self.measures[values] if isinstance(values, str) else values
        return np.bincount(self.customer, weights=weights, minlength=self.n).astype(np.float64, copy=False)

    def mean(self, values: Floats | str) -> Floats:
        """Mean per customer; NaN without events."""
        return ratio(self.sum(values), self.count())

    def std(self, values: Floats | str) -> Floats:
        """Sample standard deviation per customer; NaN with fewer than two events."""
        weights = self.measures[values] if isinstance(values, str) else values
        deviations = weights - self.mean(weights)[self.customer]
        count = self.count()
        return np.sqrt(ratio(self.sum(deviations**2), np.where(count > 1, count - 1, 0)))

    def max(self, values: Floats) -> Floats:
        """Largest value per customer; NaN without events."""
        return self._spread(np.maximum.reduceat(values, self._starts) if values.size else values)

    def min(self, values: Floats) -> Floats:
        """Smallest value per customer; NaN without events."""
        return self._spread(np.minimum.reduceat(values, self._starts) if values.size else values)

    def first(self, values: Floats) -> Floats:
        """Value of the earliest event per customer; NaN without events."""
        return self._spread(values[self._starts])

    def last(self, values: Floats) -> Floats:
        """Value of the latest event per customer; NaN without events."""
        ends = np.append(self._starts[1:], values.size) - 1
        return self._spread(values[ends[ends >= 0]])

    def median(self, values: Floats) -> Floats:
        """Median value per customer; NaN without events."""
        ordered = values[np.lexsort((values, self.customer))]
        size = np.diff(np.append(self._starts, values.size))
        low, high = self._starts + (size - 1) // 2, self._starts + size // 2
        return self._spread((ordered[low] + ordered[high]) / 2)

    def from_end(self) -> Ints:
        """Position of each event counted from its customer's latest (0), shape (m,)."""
        size = np.diff(np.append(self._starts, self.customer.size))
        ends = np.repeat(self._starts + size - 1, size)
        return ends - np.arange(self.customer.size)

    def follows(self) -> Mask:
        """Whether the event before it belongs to the same customer, shape (m,)."""
        same = np.zeros(self.customer.size, dtype=bool)
        same[1:] = self.customer[1:] == self.customer[:-1]
        return same

    @cached_property
    def _starts(self) -> Ints:
        return np.flatnonzero(~self.follows())

    def _spread(self, values: Floats) -> Floats:
        wide = np.full(self.n, np.nan)
        wide[self.customer[self._starts]] = values
        return wide


@dataclass(frozen=True)
class Profile:
    """A long profile (`reduce.py`) of whole customers as arrays; times in microseconds of local time."""

    customer_id: pa.StringArray
    events: dict[str, Events]
    known_at: dict[str, Ints]
    done_at: dict[str, Ints]
    done_known_at: dict[str, Ints]
    due_at: dict[str, Ints]
    keys: pa.StringArray


@dataclass(frozen=True)
class History:
    """What was known of n customers with at least one order at ``snapshot``."""

    snapshot: datetime
    horizon_days: int
    customer_id: pa.StringArray
    rows: Ints
    """Row of each customer in the profile that this is a view of, shape (n,)."""
    person_of: Ints
    """Row in the profile of the person that each of the profile's customers was known to be."""
    events: dict[str, Events]
    keys: pa.StringArray

    @property
    def n(self) -> int:
        """Number of customers."""
        return len(self.customer_id)

    @property
    def orders(self) -> Events:
        """Orders that count at the snapshot."""
        return self.events["order"]

    @property
    def items(self) -> Events:
        """Products of these orders, one event per order and product."""
        return self.events["item"]

    @property
    def returns(self) -> Events:
        """Returns, refunds and cancelled lines."""
        return self.events["return"]

    @property
    def browse(self) -> Events:
        """Days with behaviour events."""
        return self.events["browse"]

    @property
    def contacts(self) -> Events:
        """Days with marketing contacts or responses to them."""
        return self.events["contact"]


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise quotient; NaN where the denominator is 0 or not a number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator != 0, numerator / denominator, np.nan)


def microseconds(moment: datetime) -> int:
    """A naive local time on the profile's clock."""
    return int(np.datetime64(moment, "us").astype(np.int64))


def from_arrow(table: pa.Table) -> Profile:
    """Arrays of a long profile table that is sorted as `reduce.SORTED_BY` says.

    Keys are numbered in the order of their text, so that the order of events, and with it every last bit of
    a sum, is the same whichever other customers share the batch.
    """
    customers = table["customer_id"].combine_chunks().dictionary_encode()
    codes = _ints(customers.indices)
    kinds = np.asarray(table["kind"].to_numpy())
    parts: dict[str, dict[str, Any]] = {name: {} for name in ("events", "known_at", "done_at", "done_known_at", "due_at")}
    ids = customers.dictionary
    keys = pa.array([], pa.string())
    for number, kind in enumerate(KINDS):
        rows = np.flatnonzero(kinds == number)
        chosen = _slice(table, rows)
        texts = {name: _coded(chosen[name])[0] for name in ("category", "brand")} if kind == "item" else {}
        key, found_keys = _coded(chosen["key"], ids if kind == "person" else None)
        keys = found_keys if kind == "customer" else keys
        measures = {name: chosen[f"m{place}"].to_numpy() for place, name in enumerate(MEASURES[kind], start=1)}
        at = _ints(chosen["at"].cast(pa.int64()), _NEVER)
        events = Events(len(ids), codes[rows], at, np.zeros(rows.size), key, measures, texts)
        order = _item_order(events) if kind == "item" else None
        parts["events"][kind] = events if order is None else events.where(order)
        for name in ("known_at", "done_at", "done_known_at", "due_at"):
            times = _ints(chosen[name].cast(pa.int64()), _NEVER)
            parts[name][kind] = times if order is None else times[order]
    return Profile(ids, keys=keys, **parts)


def as_of(profile: Profile, snapshot: datetime, horizon_days: int, lookback_days: float = math.inf) -> History:
    """What was known at ``snapshot``: events known by then, not void by then, of persons as linked by then.

    Only persons still worth predicting: whose last counting order lies within the look-back.
    """
    now = microseconds(snapshot)
    person_of = _persons(profile, now)
    known = {kind: _known(profile, kind, now, person_of) for kind in profile.events if kind != "person"}
    present = np.zeros(len(profile.customer_id), dtype=bool)
    present[known["order"].customer[known["order"].age_days <= lookback_days]] = True
    rows = np.cumsum(present) - 1
    count = int(present.sum())
    everybody = bool(present.all())
    events = {}
    for kind, found in known.items():
        kept = found if everybody else found.where(present[found.customer])
        events[kind] = replace(kept, n=count, customer=rows[kept.customer])
    ids = profile.customer_id.filter(pa.array(present))
    return History(snapshot, horizon_days, ids, np.flatnonzero(present), person_of, events, profile.keys)


def _known(profile: Profile, kind: str, now: int, person_of: Ints) -> Events:
    """The events of one kind known by now, by person and time; states not known by now are hidden."""
    events, mask = profile.events[kind], profile.known_at[kind] <= now
    if kind in VOID:
        mask &= profile.done_known_at[kind] > now
    found = events.where(mask)
    age = np.maximum((now - found.at) / _DAY_US, 0.0)
    if kind in STATES:
        done, due = profile.done_at[kind][mask], profile.due_at[kind][mask]
        hidden = profile.done_known_at[kind][mask] > now
        states = {"done_age_days": np.where(hidden, np.nan, (now - done) / _DAY_US)}
        states["due_age_days"] = np.where(due == _NEVER, np.nan, (now - due) / _DAY_US)
        found = replace(found, measures=found.measures | states)
    found = replace(found, age_days=age)
    person = person_of[found.customer]
    merged, found = not np.array_equal(person, found.customer), replace(found, customer=person)
    if kind == "item":
        return found.where(_item_order(found)) if merged else found
    in_order = (person[1:] >= person[:-1]).all()
    return found if in_order else found.where(np.argsort(person, kind="stable"))


def _persons(profile: Profile, now: int) -> Ints:
    """Row of the person that each customer of the profile was known to be, shape (customers,)."""
    person_of = np.arange(len(profile.customer_id))
    links = profile.events["person"]
    here = links.at == now
    person_of[links.customer[here]] = links.key[here]
    return person_of


def _item_order(items: Events) -> Ints:
    """Positions that sort items by customer, key and time."""
    return np.lexsort((items.at, items.key, items.customer))


def _slice(table: pa.Table, rows: Ints) -> pa.Table:
    if rows.size == table.num_rows:
        return table
    mask = np.zeros(table.num_rows, dtype=bool)
    mask[rows] = True
    return table.filter(pa.array(mask))


def _coded(texts: pa.ChunkedArray, known: pa.StringArray | None = None) -> tuple[Ints, pa.StringArray]:
    """Texts as numbers in the order of their text (-1: null), or as positions in ``known``; and the texts by number."""
    if known is not None:
        return _ints(pc.index_in(texts, known).combine_chunks(), -1), known
    encoded = texts.combine_chunks().dictionary_encode()
    if not len(encoded.dictionary):
        return np.full(len(texts), -1, dtype=np.int64), encoded.dictionary
    ranks = _ranks(encoded.dictionary)
    return np.append(ranks, -1)[_ints(encoded.indices, -1)], encoded.dictionary.sort()


def _ranks(texts: pa.StringArray) -> Ints:
    ranks = np.empty(len(texts), dtype=np.int64)
    ranks[pc.array_sort_indices(texts).to_numpy()] = np.arange(len(texts))
    return ranks


def _ints(array: pa.Array | pa.ChunkedArray, null: int = 0) -> Ints:
    return np.asarray(pc.fill_null(array, null).to_numpy(zero_copy_only=False), dtype=np.int64)
