"""Recency, frequency, monetary value and tenure."""

import numpy as np

from features.events import Floats, ratio
from features.family import Family, Feature
from features.history import History


def fold(h: History) -> dict[str, Floats]:
    """The classic three, and what BG/NBD needs (Fader, Hardie and Lee 2005: x, t_x, T in days)."""
    orders = h.orders
    day = orders.at // 86_400_000_000
    new_day = ~orders.follows()
    new_day[1:] |= day[1:] != day[:-1]
    recency, tenure = orders.since_last(), orders.since_first()
    spend = orders.sum("spend")
    return {
        "recency_days": recency,
        "frequency_orders": orders.count(),
        "monetary_net": spend - h.returns.sum("spend"),
        "tenure_days": tenure,
        "active_days": orders.where(new_day).count(),
        "recency_over_tenure": ratio(recency, tenure),
        "orders_per_30d_of_tenure": orders.count() / np.maximum(tenure, 30) * 30,
        "spend_per_30d_of_tenure": spend / np.maximum(tenure, 30) * 30,
    }


FAMILY = Family(
    "rfm",
    (
        Feature(
            "recency_days",
            "days",
            "days since the last order",
            "has been silent for {value} days",
            beside=("gap_mean_days", "; usually orders every {beside}"),
        ),
        Feature("frequency_orders", "count", "orders so far", "has placed {value} orders"),
        Feature("monetary_net", "currency", "spend so far, net of returns", "has spent {value} net of returns"),
        Feature("tenure_days", "days", "days since the first order", "first ordered {value} days ago"),
        Feature("active_days", "count", "days with an order", "has ordered on {value} different days"),
        Feature("recency_over_tenure", "share", "silence as a share of tenure", "has been silent for {value}% of the time as a customer"),
        Feature("orders_per_30d_of_tenure", "count", "orders a month over the whole tenure", "orders {value} times a month", 2),
        Feature("spend_per_30d_of_tenure", "currency", "spend a month over the whole tenure", "spends {value} a month", 2),
    ),
    fold,
)
