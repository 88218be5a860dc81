"""Events of one kind as flat arrays: what the families count, sum and compare."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from features.domain import WINDOWS_DAYS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_LARGEST = np.iinfo(np.int64).max


class Taken:
    """Chosen rows of some columns, each taken when it is first asked for; ``taken`` are columns that are there already."""

    def __init__(self, columns: "Columns", rows: Ints, taken: Mapping[str, Any] | None = None) -> None:
        """Columns (m,) by name, and positions among their rows."""
        self._columns, self._rows = columns, rows
        self._taken = dict(taken or {})

    def __getitem__(self, name: str) -> Any:
        """The column's chosen rows."""
        if name not in self._taken:
            self._taken[name] = self._columns[name][self._rows]
        return self._taken[name]


Columns = Mapping[str, Any] | Taken


@dataclass(frozen=True)
class Events:
    """m events of one kind, sorted by customer and time (items: by customer, product and time); arrays are (m,).

    ``age_days`` is the time from the event to the snapshot; ``customer`` is a row number in 0..n-1. Further columns by
    name, ``events["spend"]``: the measures of the kind, its texts as numbers (-1: none), ``at``; where the kind has them,
    ``done_age_days`` and ``due_age_days``: days since the later state and since the promised time (below 0: still ahead; NaN: not known).
    """

    n: int
    customer: Ints
    age_days: Floats
    columns: Columns

    def __getitem__(self, name: str) -> Any:
        """A column, (m,)."""
        return self.columns[name]

    @property
    def at(self) -> Ints:
        """Time of each event in microseconds of local time, (m,)."""
        at: Ints = self.columns["at"]
        return at

    def where(self, rows: Mask | Ints) -> "Events":
        """The events for which a mask (m,) holds, or those at the given positions."""
        places: Ints = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows  # type: ignore[assignment]
        if rows.dtype == np.bool_ and places.size == rows.size:
            return self
        return Events(self.n, self.customer[places], self.age_days[places], Taken(self.columns, places))

    def between(self, low_days: float, high_days: float) -> "Events":
        """The events of the interval ``(snapshot - high, snapshot - low]``: ages in [low, high)."""
        return self.where((self.age_days >= low_days) & (self.age_days < high_days))

    def within(self, days: float) -> "Events":
        """The events of the trailing window ``(snapshot - days, snapshot]``."""
        return self.between(0, days)

    def last_of(self, value: Ints) -> Mask:
        """Whether an event is the last of its customer and value (m,), shape (m,); only for events sorted by these."""
        last = np.ones(self.customer.size, dtype=bool)
        last[:-1] = (self.customer[1:] != self.customer[:-1]) | (value[1:] != value[:-1])
        return last

    def windowed(self, values: Floats | str | None = None) -> Floats:
        """Sum of a measure (None: number of events) in each trailing window of the domain, shape (n, windows)."""
        weights = self.columns[values] if isinstance(values, str) else values
        width = len(WINDOWS_DAYS) + 1
        sums = np.bincount(self._window_cell, weights=weights, minlength=self.n * width)
        return np.cumsum(sums.reshape(width, self.n)[:-1], axis=0, dtype=np.float64).T

    @cached_property
    def _window_cell(self) -> Ints:
        """Number of (shortest window that holds the event, customer), shape (m,)."""
        return np.searchsorted(WINDOWS_DAYS, self.age_days, side="right") * self.n + self.customer

    def count(self) -> Floats:
        """Events per customer, shape (n,)."""
        return self._count

    @cached_property
    def _count(self) -> Floats:
        return np.bincount(self.customer, minlength=self.n).astype(np.float64)

    def sum(self, values: Floats | str) -> Floats:
        """Sum per customer of a measure or of given values (m,); 0 without events."""
        weights = self.columns[values] if isinstance(values, str) else values
        return np.bincount(self.customer, weights=weights, minlength=self.n).astype(np.float64, copy=False)

    def mean(self, values: Floats | str) -> Floats:
        """Mean per customer; NaN without events."""
        return ratio(self.sum(values), self.count())

    def std(self, values: Floats | str) -> Floats:
        """Sample standard deviation per customer; NaN with fewer than two events."""
        weights = self.columns[values] if isinstance(values, str) else values
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
        order = np.argsort(values)
        number = self.customer.astype(np.uint16) if self.n <= 1 << 16 else self.customer  # 16 bits are sorted by radix
        ordered = values[order[np.argsort(number[order], kind="stable")]]
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


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise quotient; NaN where the denominator is 0 or not a number."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator != 0, numerator / denominator, np.nan)


def filled(values: Floats, value: float = 0.0) -> Floats:
    """The values with NaN replaced (several times as fast as `np.nan_to_num`, which counts for one customer)."""
    return np.where(np.isnan(values), value, values)


def sort_by(keys: list[Ints]) -> Ints:
    """Positions that sort rows by integer keys, the first the most significant.

    As many keys as fit are packed into one number, which NumPy sorts fast; only rows alike in that one are compared further.
    """
    packed, used = _packed(keys)
    order = np.argsort(packed)
    if used == len(keys):
        return order
    found = packed[order]
    alike = np.zeros(order.size, dtype=bool)
    alike[1:] = found[1:] == found[:-1]
    alike[:-1] |= alike[1:]
    places = np.flatnonzero(alike)
    rows = order[places]
    order[places] = rows[np.lexsort([key[rows] for key in reversed([packed, *keys[used:]])])]
    return order


def _packed(keys: list[Ints]) -> tuple[Ints, int]:
    """The leading keys as one number that sorts as they do, and how many they are."""
    packed, width, used = np.zeros(keys[0].size, dtype=np.int64), 1, 0
    for key in keys:
        low, high = (int(key.min()), int(key.max())) if key.size else (0, 0)
        width *= high - low + 1
        if width > _LARGEST:
            break
        if high > low:
            packed = packed * (high - low + 1) + (key - low)
        used += 1
    return packed, used
