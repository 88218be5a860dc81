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
_WINDOWS = np.array(WINDOWS_DAYS)
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

    What several families ask for (windows, counts, sums of a measure by name) is computed once: results are shared, never change them.
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
        if not self.customer.size:
            return self
        places: Ints = rows.nonzero()[0] if rows.dtype == np.bool_ else rows  # type: ignore[assignment]
        if rows.dtype == np.bool_ and places.size == rows.size:
            return self
        return Events(self.n, self.customer[places], self.age_days[places], Taken(self.columns, places))

    def between(self, low_days: float, high_days: float) -> "Events":
        """The events of the interval ``(snapshot - high, snapshot - low]``: ages in [low, high)."""
        if not self.customer.size:
            return self
        found = self._between
        if (low_days, high_days) not in found:
            events = self.where((self.age_days >= low_days) & (self.age_days < high_days))
            found[low_days, high_days] = None if events is self else events  # None: a cycle would keep a batch's arrays in memory
        return found[low_days, high_days] or self

    @cached_property
    def _between(self) -> dict[tuple[float, float], "Events | None"]:
        return {}

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
        if values is not None and not isinstance(values, str):
            return self._windowed(values)
        if values not in self._window_sums:
            self._window_sums[values] = self._windowed(None if values is None else self.columns[values])
        return self._window_sums[values]

    def _windowed(self, weights: Floats | None) -> Floats:
        width = _WINDOWS.size + 1
        sums = np.bincount(self._window_cell, weights, self.n * width)
        return sums.reshape(width, self.n)[:-1].cumsum(axis=0, dtype=np.float64).T

    @cached_property
    def _window_sums(self) -> dict[str | None, Floats]:
        return {}

    @cached_property
    def _window_cell(self) -> Ints:
        """Number of (shortest window that holds the event, customer), shape (m,)."""
        return _WINDOWS.searchsorted(self.age_days, side="right") * self.n + self.customer

    def count(self) -> Floats:
        """Events per customer, shape (n,)."""
        return self._count

    @cached_property
    def _count(self) -> Floats:
        return np.bincount(self.customer, minlength=self.n).astype(np.float64)

    def sum(self, values: Floats | str) -> Floats:
        """Sum per customer of a measure or of given values (m,); 0 without events."""
        if not isinstance(values, str):
            return np.bincount(self.customer, values, self.n).astype(np.float64, copy=False)
        if values not in self._sums:
            self._sums[values] = self.sum(self.columns[values])
        return self._sums[values]

    @cached_property
    def _sums(self) -> dict[str, Floats]:
        return {}

    def mean(self, values: Floats | str) -> Floats:
        """Mean per customer; NaN without events."""
        return ratio(self.sum(values), self._count)

    def std(self, values: Floats | str) -> Floats:
        """Sample standard deviation per customer; NaN with fewer than two events."""
        weights = self.columns[values] if isinstance(values, str) else values
        deviations = weights - self.mean(values)[self.customer]
        count = self._count
        return np.sqrt(ratio(self.sum(deviations**2), np.where(count > 1, count - 1, 0)))

    def max(self, values: Floats) -> Floats:
        """Largest value per customer; NaN without events."""
        return self._spread(np.maximum.reduceat(values, self._starts) if values.size else values)

    def min(self, values: Floats) -> Floats:
        """Smallest value per customer; NaN without events."""
        return self._spread(np.minimum.reduceat(values, self._starts) if values.size else values)

    def since_last(self) -> Floats:
        """Days since the latest event per customer, shape (n,); NaN without events."""
        return self._since_last

    @cached_property
    def _since_last(self) -> Floats:
        return self.min(self.age_days)

    def since_first(self) -> Floats:
        """Days since the earliest event per customer, shape (n,); NaN without events."""
        return self._since_first

    @cached_property
    def _since_first(self) -> Floats:
        return self.max(self.age_days)

    def first(self, values: Floats) -> Floats:
        """Value of the earliest event per customer; NaN without events."""
        return self._spread(values[self._starts] if values.size else values)

    def last(self, values: Floats) -> Floats:
        """Value of the latest event per customer; NaN without events."""
        return self._spread(values[self._ends - 1] if values.size else values)

    def median(self, values: Floats) -> Floats:
        """Median value per customer; NaN without events."""
        order = values.argsort()
        number = self.customer.astype(np.uint16) if self.n <= 1 << 16 else self.customer  # 16 bits are sorted by radix
        ordered = values[order[number[order].argsort(kind="stable")]]
        size = self._ends - self._starts
        low, high = self._starts + (size - 1) // 2, self._starts + size // 2
        return self._spread((ordered[low] + ordered[high]) / 2)

    def from_end(self) -> Ints:
        """Position of each event counted from its customer's latest (0), shape (m,)."""
        return np.repeat(self._ends - 1, self._ends - self._starts) - np.arange(self.customer.size)

    def follows(self) -> Mask:
        """Whether the event before it belongs to the same customer, shape (m,)."""
        return self._follows

    @cached_property
    def _follows(self) -> Mask:
        same = np.zeros(self.customer.size, dtype=bool)
        same[1:] = self.customer[1:] == self.customer[:-1]
        return same

    @cached_property
    def _starts(self) -> Ints:
        """Position of the first event of each customer who has one."""
        starts: Ints = (~self._follows).nonzero()[0]
        return starts

    @cached_property
    def _ends(self) -> Ints:
        """Position after the last event of each customer who has one."""
        return np.concatenate([self._starts[1:], [self.customer.size]]) if self.customer.size else self._starts

    def _spread(self, values: Floats) -> Floats:
        """Values of the customers who have an event, in their order, as values of all."""
        if values.size == self.n:
            return values
        wide = np.full(self.n, np.nan)
        if values.size:
            wide[self.customer[self._starts]] = values
        return wide


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise quotient; NaN where the denominator is 0 or not a number."""
    return numerator / np.where(denominator != 0, denominator, np.nan)


def filled(values: Floats, value: float = 0.0) -> Floats:
    """The values with NaN replaced (several times as fast as `np.nan_to_num`, which counts for one customer)."""
    return np.where(np.isnan(values), value, values)


def sort_by(keys: list[Ints]) -> Ints:
    """Positions that sort rows by integer keys, the first the most significant."""
    return _sorted(keys)[0]


def runs(keys: list[Ints]) -> tuple[Ints, Ints]:
    """Positions that sort rows by integer keys, and where in that order a run of rows alike in all of them begins."""
    order, leading, used = _sorted(keys)
    new = np.ones(order.size, dtype=bool)
    new[1:] = leading[1:] != leading[:-1]
    for key in keys[used:]:
        found = key[order]
        new[1:] |= found[1:] != found[:-1]
    return order, new.nonzero()[0]


def lengths(starts: Ints, total: int) -> Ints:
    """Sizes of consecutive runs of ``total`` rows from where they start."""
    ends = np.empty_like(starts)
    ends[:-1], ends[-1:] = starts[1:], total
    return ends - starts


def _sorted(keys: list[Ints]) -> tuple[Ints, Ints, int]:
    """Positions that sort rows by keys; the leading keys packed, in that order; and how many these are.

    As many keys as fit are packed into one number, which NumPy sorts fast; only rows alike in that one are compared further.
    """
    packed, used = _packed(keys)
    order = packed.argsort()
    found = packed[order]
    if used == len(keys):
        return order, found, used
    same = found[1:] == found[:-1]
    if same.any():
        alike = np.zeros(order.size, dtype=bool)
        alike[1:] = same
        alike[:-1] |= same
        places = alike.nonzero()[0]
        rows = order[places]
        order[places] = rows[np.lexsort([key[rows] for key in reversed([packed, *keys[used:]])])]
    return order, found, used


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
