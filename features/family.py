"""How a feature is declared: name, unit, meaning, and how it reads in a sentence."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from features.history import Floats, History

LOWEST = {"days": 0.0, "count": 0.0, "share": 0.0, "ratio": 0.0, "score": 0.0, "flag": 0.0, "code": 0.0}
"""Smallest possible value by unit; currency and z-scores have none."""
HIGHEST = {"share": 1.0, "flag": 1.0, "score": 100.0}
"""Largest possible value by unit."""


@dataclass(frozen=True)
class Feature:
    """One column of the feature table.

    ``words`` is a sentence about a customer with ``{value}`` in it (formatted by ``decimals``).
    """

    name: str
    unit: str
    meaning: str
    words: str
    decimals: int = 0

    def render(self, value: float) -> str:
        """The value as a sentence about the customer: ``has been silent for 64 days``."""
        if math.isnan(value):
            return f"{self.meaning}: not known"
        shown = 100 * value if "{value}%" in self.words else value
        return self.words.replace("{value}", f"{shown:,.{self.decimals}f}")


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
