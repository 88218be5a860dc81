"""Time between orders, and the present silence measured by the customer's own rhythm."""

import numpy as np

from features.events import Floats, Ints, ratio
from features.family import Family, Feature
from features.history import History

_DAY_US = 86_400_000_000


def fold(h: History) -> dict[str, Floats]:
    """Statistics of the gaps (days between consecutive orders) and silence relative to them (a day at least)."""
    later: Ints = h.orders.follows().nonzero()[0]
    gaps, days = h.orders.where(later), (h.orders.at[later] - h.orders.at[later - 1]) / _DAY_US
    silence = h.orders.since_last()
    mean, std, longest = gaps.mean(days), gaps.std(days), gaps.max(days)
    median = gaps.median(days)
    newest = gaps.from_end() < 3
    return {
        "gap_mean_days": mean,
        "gap_median_days": median,
        "gap_std_days": std,
        "gap_min_days": gaps.min(days),
        "gap_max_days": longest,
        "gap_last_days": gaps.last(days),
        "gap_last_3_mean_days": gaps.where(newest).mean(days[newest]),
        "gap_variation": ratio(std, mean),
        "gap_log_mean": gaps.mean(np.log1p(days)),
        "silence_over_gap_mean": silence / np.maximum(mean, 1),
        "silence_over_gap_median": silence / np.maximum(median, 1),
        "silence_over_gap_max": silence / np.maximum(longest, 1),
        "silence_z": (silence - mean) / np.maximum(std, 1),
    }


FAMILY = Family(
    "gaps",
    (
        Feature("gap_mean_days", "days", "mean days between orders", "usually orders every {value} days"),
        Feature("gap_median_days", "days", "median days between orders", "half of the orders came within {value} days of the one before"),
        Feature("gap_std_days", "days", "spread of the days between orders", "has a spread of {value} days between orders"),
        Feature("gap_min_days", "days", "shortest time between orders", "once ordered again after {value} days"),
        Feature("gap_max_days", "days", "longest time between orders", "has been silent for at most {value} days before"),
        Feature("gap_last_days", "days", "days between the last two orders", "waited {value} days before the last order"),
        Feature("gap_last_3_mean_days", "days", "mean of the last three gaps", "lately ordered every {value} days"),
        Feature("gap_variation", "ratio", "spread of the gaps over their mean", "has a rhythm that varies by a factor of {value}", 1),
        Feature("gap_log_mean", "ratio", "mean logarithm of the gaps", "has a typical gap of e^{value} days", 1),
        Feature(
            "silence_over_gap_mean", "ratio", "present silence over the mean gap", "has been silent for {value} times the usual gap", 1
        ),
        Feature(
            "silence_over_gap_median",
            "ratio",
            "present silence over the median gap",
            "has been silent for {value} times the typical gap",
            1,
        ),
        Feature(
            "silence_over_gap_max",
            "ratio",
            "present silence over the longest gap",
            "has been silent for {value} times the longest pause",
            1,
        ),
        Feature("silence_z", "z", "present silence in spreads above the mean gap", "is {value} spreads past the usual gap", 1),
    ),
    fold,
)
