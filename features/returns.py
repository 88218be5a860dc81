"""Returns, refunds and cancelled lines."""

import numpy as np

from features.events import Events, Floats, filled, ratio
from features.family import Family, Feature, by_window, in_windows
from features.history import History

DAYS = (90, 365)
DONE, DUE = ("returns.completed_at",), ("returns.due_at",)


def fold(h: History) -> dict[str, Floats]:
    """Counts, value and recency of returns."""
    returns = h.returns
    value = returns.sum("spend")
    return {
        "returns_total": returns.count(),
        "returns_value": value,
        "returns_per_order": ratio(returns.count(), h.orders.count()),
        "returns_value_ratio": ratio(value, h.orders.sum("spend")),
        "return_recency_days": returns.since_last(),
        **in_windows("returns", returns.windowed(), DAYS),
        **in_windows("returns_value", returns.windowed("spend"), (90,)),
        **_refunds(returns),
    }


def _refunds(returns: Events) -> dict[str, Floats]:
    done, due = returns["done_age_days"], returns["due_age_days"]
    completed = ~np.isnan(done)
    finished, open_ = returns.where(completed), returns.where(~completed)
    late = np.where(completed, due > np.where(completed, done, 0), due > 0)
    return {
        "refund_days_mean": finished.mean(finished.age_days - done[completed]),
        "refunds_open": open_.count(),
        "refund_open_days": filled(open_.since_first()),
        "refunds_late": returns.where(late).count(),
        "refund_late_share": ratio(returns.where(late).count(), returns.count()),
    }


FAMILY = Family(
    "returns",
    (
        Feature("returns_total", "count", "returns so far", "has sent back {value} times"),
        Feature("returns_value", "currency", "value returned so far", "has sent back goods for {value}"),
        Feature("returns_per_order", "ratio", "returns over orders", "sends back {value} times per order", 2),
        Feature("returns_value_ratio", "ratio", "value returned over value ordered", "sends back {value}% of the value"),
        Feature("return_recency_days", "days", "days since the last return", "last sent something back {value} days ago"),
        *by_window("returns", "count", "returns", "sent back {value} times", DAYS),
        *by_window("returns_value", "currency", "value returned", "sent back goods for {value}", (90,)),
        Feature("refund_days_mean", "days", "mean days until the money was back", "waits {value} days for refunds", 1, DONE),
        Feature("refunds_open", "count", "refunds not completed yet", "waits for {value} refunds", 0, DONE),
        Feature("refund_open_days", "days", "age of the oldest open refund (0: none)", "has waited {value} days for a refund", 0, DONE),
        Feature("refunds_late", "count", "refunds later than promised", "got {value} refunds later than promised", 0, (*DONE, *DUE)),
        Feature("refund_late_share", "share", "share of refunds later than promised", "got {value}% of refunds late", 0, (*DONE, *DUE)),
    ),
    fold,
    needs=("returns",),
)
