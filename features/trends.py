"""Is activity rising or falling: windows against windows, fading memory, months with an order."""

from collections.abc import Iterator

import numpy as np

from features.domain import WINDOWS_DAYS
from features.events import Floats, ratio
from features.family import Family, Feature
from features.history import History

PAIRS_DAYS = ((30, 90), (90, 180), (90, 365), (180, 365))
"""(recent, longer) windows whose share is a feature."""
HALF_LIVES_DAYS = (30, 90, 180)
MONTH_DAYS = 30.4375
MONTHS = 12


def fold(h: History) -> dict[str, Floats]:
    """Shares of recent in longer windows, exponentially weighted activity, active months."""
    found: dict[str, Floats] = {}
    for what, sums in (("orders", h.orders.windowed()), ("spend", h.orders.windowed("spend"))):
        for recent, longer in PAIRS_DAYS:
            new, old = (sums[:, WINDOWS_DAYS.index(days)] for days in (recent, longer))
            found[f"{what}_{recent}d_share_of_{longer}d"] = ratio(new, old)
    for days in HALF_LIVES_DAYS:
        weight = np.exp2(-h.orders.age_days / days)
        found[f"orders_half_life_{days}d"] = h.orders.sum(weight)
        found[f"spend_half_life_{days}d"] = h.orders.sum(weight * np.log1p(np.maximum(h.orders["spend"], 0)))
    found |= _months(h)
    last_90, before = h.orders.within(90).count(), h.orders.between(90, 180).count()
    found["orders_90d_change"] = last_90 - before
    return found


def _months(h: History) -> dict[str, Floats]:
    orders = h.orders.within(MONTHS * MONTH_DAYS)
    month = np.minimum((orders.age_days // MONTH_DAYS).astype(np.int64), MONTHS - 1)
    grid = np.bincount(orders.customer * MONTHS + month, minlength=h.n * MONTHS).reshape(h.n, MONTHS).astype(np.float64)
    active = grid > 0
    found = {f"orders_month_{m + 1}": grid[:, m] for m in range(MONTHS)}
    found["active_months"] = active.sum(axis=1).astype(np.float64)
    found["active_months_6"] = active[:, :6].sum(axis=1).astype(np.float64)
    return found


def _features() -> Iterator[Feature]:
    for recent, longer in PAIRS_DAYS:
        for what in ("orders", "spend"):
            name = f"{what}_{recent}d_share_of_{longer}d"
            meaning = f"share of the {what} of the last {longer} days that fell into the last {recent}"
            yield Feature(name, "share", meaning, f"placed {{value}}% of the {what} of {longer} days in the last {recent}")
    for days in HALF_LIVES_DAYS:
        meaning = f"orders, each halved in weight every {days} days"
        yield Feature(f"orders_half_life_{days}d", "count", meaning, f"has {{value}} recent orders (weight halves every {days} days)", 2)
        meaning = f"log spend of orders, each halved in weight every {days} days"
        yield Feature(f"spend_half_life_{days}d", "ratio", meaning, f"has a recent spend index of {{value}} (halves every {days} days)", 1)
    for month in range(1, MONTHS + 1):
        when = "in the last month" if month == 1 else f"{month} months ago"
        yield Feature(f"orders_month_{month}", "count", f"orders {when}", f"placed {{value}} orders {when}")
    yield Feature("active_months", "count", "months of the last 12 with an order", "ordered in {value} of the last 12 months")
    yield Feature("active_months_6", "count", "months of the last 6 with an order", "ordered in {value} of the last 6 months")
    meaning = "orders of the last 90 days less those of the 90 days before"
    yield Feature("orders_90d_change", "difference", meaning, "changed by {value} orders from one 90-day period to the next")


FAMILY = Family("trends", tuple(_features()), fold)
