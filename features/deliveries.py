"""Deliveries against their promise."""

import numpy as np

from features.events import Floats, filled, ratio
from features.family import Family, Feature
from features.history import History

DELIVERED = ("deliveries.delivered_at",)


def fold(h: History) -> dict[str, Floats]:
    """Delay is delivery time less promised time (below 0: early); an overdue one still on its way is late too."""
    sent = h.events["delivery"]
    done, due = sent["done_age_days"], sent["due_age_days"]
    there = ~np.isnan(done)
    arrived = sent.where(there)
    delay = due[there] - done[there]
    late = np.where(there, due > filled(done), due > 0)
    overdue, lates = sent.where(~there & (due > 0)), sent.where(late)
    return {
        "deliveries_total": sent.count(),
        "deliveries_late": lates.count(),
        "deliveries_late_90d": lates.within(90).count(),
        "deliveries_late_365d": lates.within(365).count(),
        "delivery_late_share": ratio(lates.count(), sent.count()),
        "delivery_delay_mean_days": arrived.mean(delay),
        "delivery_delay_last_days": arrived.last(delay),
        "delivery_delay_max_days": arrived.max(delay),
        "delivery_days_mean": arrived.mean(np.maximum(arrived.age_days - done[there], 0.0)),
        "delivery_last_late": filled(sent.last(late.astype(np.float64))),
        "deliveries_overdue": overdue.count(),
        "delivery_late_recency_days": lates.since_last(),
    }


FAMILY = Family(
    "deliveries",
    (
        Feature("deliveries_total", "count", "deliveries so far", "has received {value} deliveries"),
        Feature("deliveries_late", "count", "deliveries later than promised", "got {value} deliveries late"),
        Feature("deliveries_late_90d", "count", "late deliveries in the last 90 days", "got {value} deliveries late in 90 days"),
        Feature("deliveries_late_365d", "count", "late deliveries in the last 365 days", "got {value} deliveries late in 365 days"),
        Feature("delivery_late_share", "share", "share of late deliveries", "gets {value}% of deliveries late"),
        Feature(
            "delivery_delay_mean_days", "difference", "mean days past the promise", "waits {value} days past the promise", 1, DELIVERED
        ),
        Feature("delivery_delay_last_days", "difference", "last delivery's days past it", "last waited {value} days past it", 1, DELIVERED),
        Feature("delivery_delay_max_days", "difference", "most days past the promise", "once waited {value} days past it", 1, DELIVERED),
        Feature("delivery_days_mean", "days", "mean days from dispatch to delivery", "gets goods after {value} days", 1, DELIVERED),
        Feature("delivery_last_late", "flag", "whether the last delivery was late", "got the last delivery late"),
        Feature("deliveries_overdue", "count", "deliveries overdue now", "waits for {value} overdue deliveries", 0, DELIVERED),
        Feature("delivery_late_recency_days", "days", "days since a delivery that came late", "got one late {value} days ago"),
    ),
    fold,
    needs=("deliveries",),
)
