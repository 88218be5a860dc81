"""Fold, step one: a long profile -> what was known of n customers at one snapshot, as flat arrays.

`as_of` is the only time filter of the features: nothing that happened or arrived after the snapshot
passes it. The families (`windows.py`, `gaps.py`, ...) see nothing but its result.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

KINDS = ("order", "item", "return", "customer")
MEASURES = ("spend", "units", "lines", "discount")
_DAY_US = 86_400_000_000
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Events:
    """m events of one kind, sorted by customer and time (items: by customer, key and time); arrays are (m,).

    ``age_days`` is the time from the event to the snapshot; ``customer`` is a row number in 0..n-1.
    """

    n: int
    customer: Ints
    at: Ints
    age_days: Floats
    key: Ints
    measures: dict[str, Floats]

    def where(self, mask: Mask | Ints) -> "Events":
        """The events for which ``mask`` (m,) holds, or those at the given positions."""
        measures = {name: values[mask] for name, values in self.measures.items()}
        return Events(self.n, self.customer[mask], self.at[mask], self.age_days[mask], self.key[mask], measures)

    def between(self, low_days: float, high_days: float) -> "Events":
        """The events of the interval ``(snapshot - high, snapshot - low]``: ages in [low, high)."""
        return self.where((self.age_days >= low_days) & (self.age_days < high_days))

    def within(self, days: float) -> "Events":
        """The events of the trailing window ``(snapshot - days, snapshot]``."""
        return self.between(0, days)

    def last_of_key(self) -> Mask:
        """Whether an event is the latest of its customer and key, shape (m,); only for events sorted by key."""
        last = np.ones(self.customer.size, dtype=bool)
        last[:-1] = (np.diff(self.customer) != 0) | (np.diff(self.key) != 0)
        return last

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
    void_at: dict[str, Ints]
    keys: pa.StringArray


@dataclass(frozen=True)
class History:
    """What was known of n customers with at least one order at ``snapshot``."""

    snapshot: datetime
    horizon_days: int
    customer_id: pa.StringArray
    rows: Ints
    """Row of each customer in the profile that this is a view of, shape (n,)."""
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


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise quotient; NaN where the denominator is 0 or not a number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator != 0, numerator / denominator, np.nan)


def microseconds(moment: datetime) -> int:
    """A naive local time on the profile's clock."""
    return int(np.datetime64(moment, "us").astype(np.int64))


def from_arrow(table: pa.Table) -> Profile:
    """Arrays of a long profile table that is sorted by customer, kind and time.

    Keys are numbered in the order of their text, so that the order of events, and with it every last bit of
    a sum, is the same whichever other customers share the batch.
    """
    customers = table["customer_id"].combine_chunks().dictionary_encode()
    keys = table["key"].combine_chunks().dictionary_encode()
    codes = _ints(customers.indices)
    kinds = _ints(pc.index_in(table["kind"], pa.array(KINDS)).combine_chunks())
    at, known, void = (_ints(pc.cast(table[c], pa.int64()).combine_chunks(), _NEVER) for c in ("at", "known_at", "void_at"))
    key = np.append(_ranks(keys.dictionary), -1)[_ints(keys.indices, -1)]
    measures = {name: table[name].to_numpy() for name in MEASURES}
    every = Events(len(customers.dictionary), codes, at, np.zeros(codes.size), key, measures)
    chosen = {kind: np.flatnonzero(kinds == number) for number, kind in enumerate(KINDS)}
    items = chosen["item"]
    chosen["item"] = items[np.lexsort((key[items], codes[items]))]
    return Profile(
        customers.dictionary,
        {kind: every.where(rows) for kind, rows in chosen.items()},
        {kind: known[rows] for kind, rows in chosen.items()},
        {kind: void[rows] for kind, rows in chosen.items()},
        keys.dictionary.sort(),
    )


def as_of(profile: Profile, snapshot: datetime, horizon_days: int) -> History:
    """What was known at ``snapshot``: events known by then and not void by then.

    Customers without a counting order are left out.
    """
    now = microseconds(snapshot)
    known = {kind: events.where((profile.known_at[kind] <= now) & (profile.void_at[kind] > now)) for kind, events in profile.events.items()}
    present = np.zeros(len(profile.customer_id), dtype=bool)
    present[known["order"].customer] = True
    rows = np.cumsum(present) - 1
    count = int(present.sum())
    events = {}
    for kind, found in known.items():
        kept = found.where(present[found.customer])
        events[kind] = replace(kept, n=count, customer=rows[kept.customer], age_days=(now - kept.at) / _DAY_US)
    ids = profile.customer_id.filter(pa.array(present))
    return History(snapshot, horizon_days, ids, np.flatnonzero(present), events, profile.keys)


def _ranks(texts: pa.StringArray) -> Ints:
    ranks = np.empty(len(texts), dtype=np.int64)
    ranks[pc.array_sort_indices(texts).to_numpy()] = np.arange(len(texts))
    return ranks


def _ints(array: pa.Array, null: int = 0) -> Ints:
    return np.asarray(pc.fill_null(array, null).to_numpy(zero_copy_only=False), dtype=np.int64)
