"""What the simulated shop of `simulate.py` is made of: the plan, the clock of its season, and columns before they are Arrow's."""

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from features.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

FORMAT = 1
"""Raise it when the same parameters make other data."""
SEED, DAYS, LINES_PER_CUSTOMER, EVENTS_PER_CUSTOMER = 20_260_101, 730, 8.0, 40.0
CHUNK_CUSTOMERS = 20_000
"""Customers made at once: bounds the memory, about 0.3 GB with the defaults."""
SHORTEST_DAYS, LONGEST_DAYS = 60, 3650

HOUR, DAY = 3600, 86_400
END = 1_767_225_600
"""2026-01-01 00:00 in seconds since 1970, the end of every span."""
NEVER = 1 << 33
CONVERSION_DAYS = 7
"""A contact's extra order falls into so many days."""
WEEKDAY = (0.95, 0.9, 0.9, 0.95, 1.05, 1.1, 1.15)
"""Monday to Sunday."""
HOURLY = (4, 2, 1, 1, 1, 2, 5, 9, 13, 16, 18, 18, 19, 18, 17, 17, 18, 20, 24, 28, 30, 26, 17, 9)
RAMPS = ((0.9, 345, 17), (-0.2, 28, 22))
"""Christmas and the lull after it: height, day of the year, width in days."""
ARRIVES_LATE, LATE_DAYS = 0.03, 0.8
"""Share of the events that arrive late, and by how many days on average."""


@cache
def _clock() -> "tuple[Floats, Floats]":
    """Hours from 14 years before the end to 3 after, in seconds, and the shop days passed by each."""
    import numpy as np

    hours = np.arange(END - 14 * 366 * DAY, END + 3 * 366 * DAY, HOUR)
    moments = hours.astype("M8[s]")
    day = (moments.astype("M8[D]") - moments.astype("M8[Y]").astype("M8[D]")).astype(np.int64)
    season = 1 + sum(height * np.exp(-(((day - middle) / width) ** 2)) for height, middle, width in RAMPS)
    week = np.outer(np.array(WEEKDAY) / np.mean(WEEKDAY), np.array(HOURLY) / np.mean(HOURLY))
    rate = season / season.mean() * week[(hours // DAY + 3) % 7, hours // HOUR % 24]
    return hours.astype(np.float64), np.concatenate([[0.0], np.cumsum(rate[:-1] / 24)])


def shop_days(at: "Ints | float") -> "Floats":
    """Integral of the season up to a time (seconds since 1970), in days: the clock by which orders are Poisson."""
    import numpy as np

    hours, passed = _clock()
    return np.interp(np.asarray(at), hours, passed)


def moment_at(days: "Floats") -> "Ints":
    """The time (seconds since 1970) at which so many shop days have passed: inverse of `shop_days`."""
    import numpy as np

    hours, passed = _clock()
    return np.interp(days, passed, hours).astype(np.int64)


@dataclass(frozen=True)
class Text:
    """Texts as numbers (n,) of ``words``; -1 is null."""

    codes: "npt.NDArray[Any]"
    words: tuple[str, ...]

    def __getitem__(self, rows: Any) -> "Text":
        return Text(self.codes[rows], self.words)


@dataclass(frozen=True)
class Ids:
    """Ids of one letter (its code, (n,)) and a number (n,) of ``digits`` digits."""

    letters: "npt.NDArray[np.uint8]"
    numbers: "Ints"
    digits: int

    def __getitem__(self, rows: Any) -> "Ids":
        return Ids(self.letters[rows], self.numbers[rows], self.digits)


class Rows(SimpleNamespace):
    """Arrays of one length by name."""

    def where(self, rows: Any) -> "Rows":
        """The rows for which a mask holds, or those at the given positions."""
        return Rows(**{name: values[rows] for name, values in vars(self).items()})


Table = dict[str, Any]
"""Columns of one length by name: NumPy arrays (times in seconds), `Text` or `Ids`."""


@dataclass(frozen=True)
class Plan:
    """Everything that decides the data."""

    customers: int
    seed: int
    days: int
    lines_per_customer: float
    events_per_customer: float
    chunk_customers: int
    format: int = FORMAT
    synthetic: bool = True

    def check(self) -> None:
        """Raises InputError for a parameter out of range."""
        rules = (
            ("customers", self.customers, 1, 10_000_000),
            ("seed", self.seed, 0, 2**63),
            ("days", self.days, SHORTEST_DAYS, LONGEST_DAYS),
            ("lines_per_customer", self.lines_per_customer, 4, 1000),
            ("events_per_customer", self.events_per_customer, 0, 10_000),
            ("chunk_customers", self.chunk_customers, 100, 1_000_000),
        )
        for name, value, low, high in rules:
            if not low <= value <= high:
                raise InputError(f"{name} = {value:,}", f"lies outside {low:,} to {high:,}", "choose a value in that range")


def arrived(rng: "np.random.Generator", at: "Ints") -> "Ints":
    """When the shop learnt of events: at once, or hours to days later but before the end."""
    import numpy as np

    late = np.flatnonzero((rng.random(at.size, dtype=np.float32) < ARRIVES_LATE) & (at < END))
    arrived = at.copy()
    arrived[late] = np.minimum(at[late] + HOUR + rng.exponential(LATE_DAYS * DAY, late.size).astype(np.int64), END - 1)
    return arrived
