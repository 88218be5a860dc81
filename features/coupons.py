"""Coupons claimed, used and left to expire; price sensitivity."""

import numpy as np

from features.domain import PRICE_SENSITIVE_COUPONS_30D
from features.events import Floats, filled, ratio
from features.family import Family, Feature, by_window, in_windows
from features.history import History

DAYS = (30, 90, 365)
REDEEMED, EXPIRES, VALUE = ("coupons.redeemed_at",), ("coupons.expires_at",), ("coupons.value",)


def fold(h: History) -> dict[str, Floats]:
    """Claims over windows, redemption, expiry, and who claims five or more a month [P 3.2]."""
    coupons = h.events["coupon"]
    done, due = coupons["done_age_days"], coupons["due_age_days"]
    used, lapsed = ~np.isnan(done), filled(due, -1.0) > 0
    redeemed = coupons.where(used)
    days_ago = done[used]
    claimed = coupons.windowed()
    return {
        **in_windows("coupons_claimed", claimed),
        **{f"coupons_redeemed_{days}d": redeemed.where(days_ago < days).count() for days in DAYS},
        "coupons_total": coupons.count(),
        "coupon_redemption_share": ratio(redeemed.count(), coupons.count()),
        "coupons_expired": coupons.where(~used & lapsed).count(),
        "coupons_open": coupons.where(~used & ~lapsed).count(),
        "coupon_value_redeemed": redeemed.sum(filled(redeemed["value"])),
        "coupon_value_mean": coupons.mean(filled(coupons["value"])),
        "coupon_recency_days": coupons.since_last(),
        "redemption_recency_days": redeemed.min(days_ago),
        "coupon_days_to_redeem": redeemed.mean(np.maximum(redeemed.age_days - days_ago, 0.0)),
        "redemptions_per_order_365d": ratio(redeemed.where(days_ago < 365).count(), h.orders.within(365).count()),
        "price_sensitive": (claimed[:, 2] >= PRICE_SENSITIVE_COUPONS_30D).astype(np.float64),
    }


FAMILY = Family(
    "coupons",
    (
        *by_window("coupons_claimed", "count", "coupons claimed", "claimed {value} coupons"),
        *(
            Feature(f"coupons_redeemed_{d}d", "count", f"coupons redeemed in the last {d} days", "redeemed {value} coupons", 0, REDEEMED)
            for d in DAYS
        ),
        Feature("coupons_total", "count", "coupons claimed so far", "has claimed {value} coupons"),
        Feature("coupon_redemption_share", "share", "share of coupons redeemed", "redeems {value}% of coupons", 0, REDEEMED),
        Feature("coupons_expired", "count", "coupons left to expire", "let {value} coupons expire", 0, EXPIRES),
        Feature("coupons_open", "count", "coupons neither used nor expired", "holds {value} open coupons"),
        Feature("coupon_value_redeemed", "currency", "value of coupons redeemed", "has used coupons for {value}", 0, (*REDEEMED, *VALUE)),
        Feature("coupon_value_mean", "currency", "mean value of a coupon claimed", "claims coupons of {value}", 2, VALUE),
        Feature("coupon_recency_days", "days", "days since the last coupon was claimed", "last claimed a coupon {value} days ago"),
        Feature("redemption_recency_days", "days", "days since the last redemption", "last used a coupon {value} days ago", 0, REDEEMED),
        Feature("coupon_days_to_redeem", "days", "mean days from claim to redemption", "uses coupons after {value} days", 1, REDEEMED),
        Feature("redemptions_per_order_365d", "ratio", "redemptions an order, last 365 days", "uses {value} coupons an order", 2, REDEEMED),
        Feature("price_sensitive", "flag", "five or more coupons claimed in 30 days", "claims five or more coupons a month"),
    ),
    fold,
    needs=("coupons",),
)
