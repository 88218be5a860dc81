"""The label; the only file that reads after the snapshot. Its population is that of `history.as_of`."""

from datetime import datetime, timedelta

import numpy as np

from features.events import Floats
from features.history import History, microseconds
from features.profile import Profile


def window(snapshot: datetime, horizon_days: int) -> tuple[datetime, datetime]:
    """The label window as the half-open interval ``(start, end]``."""
    return snapshot, snapshot + timedelta(days=horizon_days)


def churned(profile: Profile, h: History) -> Floats:
    """1.0 for no order in ``(t, t + horizon]``, else 0.0; shape (n,) in the order of ``h.customer_id``.

    An order cancelled by the end of the window does not count. A person is who was known to be one at the snapshot.
    """
    start, end = (microseconds(moment) for moment in window(h.snapshot, h.horizon_days))
    buys = np.zeros(len(profile.customer_id), dtype=bool)
    if h.n:
        orders = profile.logs["order"]
        counts = (orders.at > start) & (orders.at <= end) & (orders.void_at > end)  # type: ignore[operator]
        buys[h.person_of[orders.customer[counts]]] = True
    return 1.0 - buys[h.rows]
