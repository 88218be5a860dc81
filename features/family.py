"""How a feature is declared: name, unit, meaning, and how it reads in a sentence."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from features.domain import WINDOWS_DAYS
from features.events import Floats
from features.history import History

_PLACE = {window: place for place, window in enumerate(WINDOWS_DAYS)}
LOWEST = {"days": 0.0, "count": 0.0, "share": 0.0, "ratio": 0.0, "score": 0.0, "flag": 0.0, "code": 0.0}
"""Smallest possible value by unit; currency and z-scores have none."""
HIGHEST = {"share": 1.0, "flag": 1.0, "score": 100.0}
"""Largest possible value by unit."""


@dataclass(frozen=True)
class Feature:
    """One column of the feature table.

    ``words`` is a sentence about a customer with ``{value}`` in it (formatted by ``decimals``), and with the
    value of ``beside``, another feature, as ``{beside}``: "has been silent for 64 days; usually orders every 21".
    ``needs`` are further sources, beyond its family's.
    """

    name: str
    unit: str
    meaning: str
    words: str
    decimals: int = 0
    needs: tuple[str, ...] = ()
    beside: tuple[str, str] = ("", "")
    """(name of another feature, words added when its value is known)."""

    def render(self, value: float, beside: float = math.nan) -> str:
        """The value as a sentence about the customer: ``has been silent for 64 days; usually orders every 21``."""
        if math.isnan(value):
            return f"{self.meaning}: not known"
        if self.unit == "flag" and value in (0.0, 1.0) and "{value}" not in self.words:
            return self.words if value else f"not so: {self.words}"
        shown = 100 * value if "{value}%" in self.words else value
        text = self.words.replace("{value}", f"{shown:,.{self.decimals}f}")
        return text if math.isnan(beside) else text + self.beside[1].replace("{beside}", f"{beside:,.0f}")


@dataclass(frozen=True)
class Family:
    """Features computed together from one history.

    ``fold`` returns each declared feature as an array (n,). A family whose ``needs`` (canonical tables, or
    optional columns as ``table.column``) are missing from the data set is left out, and the manifest says so.
    """

    name: str
    features: tuple[Feature, ...]
    fold: Callable[[History], Mapping[str, Floats]]
    needs: tuple[str, ...] = ()

    def fed_by(self, sources: Sequence[str]) -> tuple[Feature, ...]:
        """The features whose sources are all there."""
        there = set(sources)
        return tuple(f for f in self.features if {*self.needs, *f.needs} <= there)


def by_window(stem: str, unit: str, what: str, words: str, days: Sequence[int] = WINDOWS_DAYS) -> Iterator[Feature]:
    """One feature for each trailing window: ``stem_30d``; ``words`` says what the customer did, e.g. "placed {value} orders"."""
    for window in days:
        span = f"the last {window} days"
        yield Feature(f"{stem}_{window}d", unit, f"{what} in {span}", f"{words} in {span}")


def needing(needs: tuple[str, ...], features: Iterable[Feature]) -> Iterator[Feature]:
    """The features with further sources that they need."""
    return (replace(feature, needs=needs) for feature in features)


def in_windows(stem: str, sums: Floats, days: Sequence[int] = WINDOWS_DAYS) -> dict[str, Floats]:
    """The columns of `Events.windowed` by the names of `by_window`."""
    return {f"{stem}_{window}d": sums[:, _PLACE[window]] for window in days}
