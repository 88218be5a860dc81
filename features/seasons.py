"""Calendar: the label window one year earlier, habits of hour and weekday.

The season itself (an angle) is no feature: with under two years of snapshots it names the snapshot, and the
model learns that snapshot's level (notebooks/LOG.md, 2026-11-21).
"""

import numpy as np

from features.events import Floats, ratio
from features.family import Family, Feature
from features.history import History
from features.reduce import NIGHT_HOURS

YEAR_DAYS = 365
EVENING_FROM_HOUR = 18


def fold(h: History) -> dict[str, Floats]:
    """Purchases in the label window one year earlier, and when the customer tends to order."""
    year_ago = h.orders.between(YEAR_DAYS - h.horizon_days, YEAR_DAYS)
    before = h.orders.between(YEAR_DAYS, YEAR_DAYS + h.horizon_days)
    month_ago = h.orders.between(YEAR_DAYS - 30, YEAR_DAYS)
    return {
        "orders_next_window_year_ago": year_ago.count(),
        "spend_next_window_year_ago": year_ago.sum("spend"),
        "orders_next_30d_year_ago": month_ago.count(),
        "orders_past_window_year_ago": before.count(),
        "known_year_ago": (h.orders.since_first() >= YEAR_DAYS).astype(np.float64),
        **_habits(h),
    }


def _habits(h: History) -> dict[str, Floats]:
    hours = h.orders.at // 3_600_000_000
    hour = (hours % 24).astype(np.float64)
    weekday = (hours // 24 + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    placed = np.bincount(h.orders.customer * 7 + weekday, minlength=h.n * 7).reshape(h.n, 7).astype(np.float64)
    share = ratio(placed, h.orders.count()[:, np.newaxis])
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(share > 0, share * np.log2(share), 0).sum(axis=1)
    return {
        "order_hour_mean": h.orders.mean(hour),
        "evening_share": h.orders.mean((hour >= EVENING_FROM_HOUR).astype(np.float64)),
        "weekend_share": h.orders.mean((weekday >= 5).astype(np.float64)),
        "weekday_entropy": entropy,
        "weekday_top_share": share.max(axis=1),
        "order_hour_std": h.orders.std(hour),
        "night_share": h.orders.mean((hour < NIGHT_HOURS).astype(np.float64)),
    }


FAMILY = Family(
    "seasons",
    (
        Feature(
            "orders_next_window_year_ago",
            "count",
            "orders a year ago in the season now ahead",
            "placed {value} orders last year in the season now ahead",
        ),
        Feature(
            "spend_next_window_year_ago",
            "currency",
            "spend a year ago in the season now ahead",
            "spent {value} last year in the season now ahead",
        ),
        Feature(
            "orders_next_30d_year_ago",
            "count",
            "orders a year ago in the 30 days now ahead",
            "placed {value} orders last year in the 30 days now ahead",
        ),
        Feature(
            "orders_past_window_year_ago",
            "count",
            "orders a year ago in the season just past",
            "placed {value} orders last year in the season just past",
        ),
        Feature("known_year_ago", "flag", "whether already a customer a year ago", "was a customer a year ago: {value}"),
        Feature("order_hour_mean", "hour", "mean hour of the day of the orders", "usually orders around {value} h", 1),
        Feature("evening_share", "share", "share of orders from 18 h on", "orders in the evening in {value}% of cases"),
        Feature("weekend_share", "share", "share of orders at the weekend", "orders at the weekend in {value}% of cases"),
        Feature("weekday_top_share", "share", "share of the favourite weekday", "places {value}% of orders on one weekday"),
        Feature("order_hour_std", "hours", "spread of the hour of the orders", "varies the hour of ordering by {value} h", 1),
        Feature("night_share", "share", "share of orders before 5 h", "orders deep in the night in {value}% of cases"),
        Feature("weekday_entropy", "bits", "how evenly orders spread over weekdays", "spreads orders over weekdays by {value} bits", 1),
    ),
    fold,
)
