"""What people put into the cart, and leave there."""

import numpy as np

from features.domain import WINDOWS_DAYS
from features.events import Floats, ratio
from features.family import Family, Feature, by_window, in_windows
from features.history import History

FEW_DAYS = (30, 90)
_DAY_S = 86_400


def fold(h: History) -> dict[str, Floats]:
    """Cart activity over windows, rates along the way to payment, and the cart left behind."""
    days = h.browse
    adds, removes, night = (days.windowed(measure) for measure in ("adds", "removes", "night_adds"))
    last_90 = WINDOWS_DAYS.index(90)
    added = adds[:, last_90]
    left = cart_age_days(h)
    return {
        **in_windows("cart_adds", adds),
        **in_windows("cart_removes", removes, FEW_DAYS),
        "cart_add_rate_90d": ratio(added, days.windowed("views")[:, last_90]),
        "checkout_rate_90d": ratio(days.windowed("checkouts")[:, last_90], added),
        "pay_rate_90d": ratio(days.windowed("pays")[:, last_90], added),
        "cart_remove_rate_90d": ratio(removes[:, last_90], added),
        "night_adds_90d": night[:, last_90],
        "night_add_share": ratio(days.sum("night_adds"), days.sum("adds")),
        "cart_age_days": left,
        "cart_open": (~np.isnan(left)).astype(np.float64),
        "night_cart_open": ((~np.isnan(left)) & (night[:, WINDOWS_DAYS.index(30)] > 0)).astype(np.float64),
    }


def cart_age_days(h: History) -> Floats:
    """Days since the last addition to the cart after which nothing was ordered; NaN without one."""
    adding = h.browse.where(~np.isnan(h.browse["last_add"]))
    last_add = adding.max(adding["last_add"])
    last_order = h.orders.max(h.orders.at / 1e6)
    now = np.datetime64(h.snapshot, "us").astype(np.int64) / 1e6
    with np.errstate(invalid="ignore"):
        return np.where(last_add > last_order, (now - last_add) / _DAY_S, np.nan)


FAMILY = Family(
    "carts",
    (
        *by_window("cart_adds", "count", "additions to the cart", "added {value} times to the cart"),
        *by_window("cart_removes", "count", "removals from the cart", "removed {value} times from the cart", FEW_DAYS),
        Feature("cart_add_rate_90d", "ratio", "cart additions a product viewed, last 90 days", "adds {value} a product viewed", 2),
        Feature("checkout_rate_90d", "ratio", "checkouts a cart addition, last 90 days", "begins {value} checkouts an addition", 2),
        Feature("pay_rate_90d", "ratio", "payments a cart addition, last 90 days", "pays {value} times an addition", 2),
        Feature("cart_remove_rate_90d", "ratio", "removals a cart addition, last 90 days", "removes {value} times an addition", 2),
        Feature("night_adds_90d", "count", "cart additions before 5 h, last 90 days", "added {value} times deep in the night"),
        Feature("night_add_share", "share", "share of cart additions before 5 h", "makes {value}% of additions deep in the night"),
        Feature("cart_age_days", "days", "days since a cart was left without an order", "left a cart {value} days ago"),
        Feature("cart_open", "flag", "a cart left without an order since", "has a cart left without an order"),
        Feature("night_cart_open", "flag", "a cart left, and additions deep in the night", "left a cart filled deep in the night"),
    ),
    fold,
    needs=("events",),
)
