"""The same history as a fixed-length sequence of weeks, for the LSTM."""

import numpy as np

from features.history import Events, Floats, History

WEEKS = 52
CHANNELS = ("orders", "spend", "units", "products", "returns")
"""Counts and sums of the week as log(1 + x). No season: see `seasons.py`."""


def weekly(h: History) -> Floats:
    """Sequences x_NWC of shape (n, WEEKS, CHANNELS), oldest week first; the last week ends at the snapshot."""
    x_NWC = np.zeros((h.n, WEEKS, len(CHANNELS)))
    for channel, (events, measure) in enumerate(
        ((h.orders, None), (h.orders, "spend"), (h.orders, "units"), (h.items, None), (h.returns, None))
    ):
        x_NWC[:, :, channel] = np.log1p(np.maximum(_weekly_sum(events, measure), 0))
    return x_NWC


def _weekly_sum(events: Events, measure: str | None) -> Floats:
    recent = events.within(WEEKS * 7)
    cell = recent.customer * WEEKS + (WEEKS - 1 - (recent.age_days // 7).astype(np.int64))
    weights = None if measure is None else recent.measures[measure]
    sums = np.bincount(cell, weights=weights, minlength=recent.n * WEEKS)
    return sums.astype(np.float64, copy=False).reshape(recent.n, WEEKS)
