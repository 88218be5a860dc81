"""Returns, refunds and cancelled lines."""

from features.family import Family, Feature
from features.history import Floats, History, ratio


def fold(h: History) -> dict[str, Floats]:
    """Counts, value and recency of returns."""
    returns = h.returns
    value = returns.sum("spend")
    return {
        "returns_total": returns.count(),
        "returns_value": value,
        "returns_per_order": ratio(returns.count(), h.orders.count()),
        "returns_value_ratio": ratio(value, h.orders.sum("spend")),
        "return_recency_days": returns.min(returns.age_days),
        "returns_90d": returns.within(90).count(),
        "returns_365d": returns.within(365).count(),
        "returns_value_90d": returns.within(90).sum("spend"),
    }


FAMILY = Family(
    "returns",
    (
        Feature("returns_total", "count", "returns so far", "has sent back {value} times"),
        Feature("returns_value", "currency", "value returned so far", "has sent back goods for {value}"),
        Feature("returns_per_order", "ratio", "returns over orders", "sends back {value} times per order", 2),
        Feature("returns_value_ratio", "ratio", "value returned over value ordered", "sends back {value}% of the value"),
        Feature("return_recency_days", "days", "days since the last return", "last sent something back {value} days ago"),
        Feature("returns_90d", "count", "returns in the last 90 days", "sent back {value} times in the last 90 days"),
        Feature("returns_365d", "count", "returns in the last 365 days", "sent back {value} times in the last 365 days"),
        Feature("returns_value_90d", "currency", "value returned in the last 90 days", "sent back goods for {value} in the last 90 days"),
    ),
    fold,
    needs=("returns",),
)
