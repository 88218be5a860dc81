"""The label; the only file that reads after the snapshot. Its population is that of `history.as_of`."""

from datetime import datetime, timedelta

import numpy as np

from features.events import Floats
from features.history import History, microseconds
from features.profile import Profile

_DAY_US = 86_400_000_000


def window(snapshot: datetime, horizon_days: int) -> tuple[datetime, datetime]:
    """The label window as the half-open interval ``(start, end]``."""
    return snapshot, snapshot + timedelta(days=horizon_days)


def next_order_days(profile: Profile, h: History) -> Floats:
    """Days from ``t`` to the first order in ``(t, t + horizon]``, NaN without one; shape (n,) in the order of ``h.customer_id``.

    An order cancelled by the end of the window does not count. A person is who was known to be one at the snapshot.
    """
    start, end = (microseconds(moment) for moment in window(h.snapshot, h.horizon_days))
    first = np.full(len(profile.customer_id), np.inf)
    if h.n:
        orders = profile.logs["order"]
        counts = (orders.at > start) & (orders.at <= end) & (orders.void_at > end)  # type: ignore[operator]
        np.minimum.at(first, h.person_of[orders.customer[counts]], (orders.at[counts] - start) / _DAY_US)
    return np.where(np.isinf(first), np.nan, first)[h.rows]


def churned(next_days: Floats) -> Floats:
    """1.0 for no order in ``(t, t + horizon]``, else 0.0, from `next_order_days`."""
    return np.isnan(next_days).astype(np.float64)
