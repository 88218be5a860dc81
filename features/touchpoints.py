"""The eight touchpoints of the journey as flags with days since, and signals of why a customer may leave.

A touchpoint holds from the moment its time is over (no second order within 7 days: from the 7th day) until what was
missing happens. The days are those since it began to hold; 0 where it does not.
"""

import numpy as np

from features.carts import cart_age_days
from features.domain import (
    CAMPAIGN_SILENCE_DAYS,
    CART_DAYS,
    COMPLAINT_OPEN_DAYS,
    FIRST_SECOND_ORDER_DAYS,
    HORIZON_DAYS,
    PRICE_SENSITIVE_COUPONS_30D,
    TOUCHPOINTS,
)
from features.events import Events, Floats, filled, ratio
from features.family import Family, Feature
from features.history import History

REVIEW_DAYS = 7
"""A review is missed from this many days after the first order on."""
PERIODS_BEFORE = 3.05
"""The 275 days before the last 90 are about so many times 90."""


def fold(h: History) -> dict[str, Floats]:
    """Each touchpoint as ``tp_<name>`` (flag) and ``tp_<name>_days``."""
    found: dict[str, Floats] = {}
    since = {
        "no_review": _no_review(h),
        "no_second_order": _no_second_order(h),
        "no_campaign": _no_campaign(h),
        "complaint_open": _complaint_open(h),
        "silent": h.orders.since_last() - HORIZON_DAYS,
        "cart_left": cart_age_days(h) - CART_DAYS,
        "refund_late": _open_past(h.returns),
        "delivery_late": _late(h.events["delivery"]),
    }
    days = np.concatenate(list(since.values())).reshape(len(since), h.n)
    holds = days > 0  # NaN: no
    for name, flag, number in zip(since, holds.astype(np.float64), np.where(holds, days, 0.0), strict=True):
        found[f"tp_{name}"], found[f"tp_{name}_days"] = flag, number
    return found | _reasons(h, found)


def _no_review(h: History) -> Floats:
    since = h.orders.since_first() - REVIEW_DAYS
    return np.where(h.events["review"].count() > 0, np.nan, since)


def _no_second_order(h: History) -> Floats:
    """Days past the time allowed, for customers of one order; or whose second order came late: no longer."""
    return np.where(h.orders.count() == 1, h.orders.since_first() - FIRST_SECOND_ORDER_DAYS, np.nan)


def _no_campaign(h: History) -> Floats:
    """Since the last open, click or conversion, for those contacted at all."""
    answers = [h.events[state] for state in ("opened", "clicked", "converted")]
    last = np.fmin.reduce([answer.since_last() for answer in answers])
    return np.where(np.isnan(last), h.contacts.since_first(), last) - CAMPAIGN_SILENCE_DAYS


def _complaint_open(h: History) -> Floats:
    tickets = h.events["ticket"]
    unsolved = tickets.where((tickets["complaint"] > 0) & np.isnan(tickets["done_age_days"]))
    return unsolved.since_first() - COMPLAINT_OPEN_DAYS


def _open_past(events: Events) -> Floats:
    """Days past the promise of the longest overdue open one."""
    waiting = events.where(np.isnan(events["done_age_days"]))
    due = filled(waiting["due_age_days"], -1.0)
    return waiting.max(due)


def _late(deliveries: Events) -> Floats:
    """Days since the promise of the last delivery was broken; it holds until a delivery comes in time."""
    done, due = deliveries["done_age_days"], deliveries["due_age_days"]
    past = np.where(np.isnan(done), due > 0, due > filled(done))
    return deliveries.last(np.where(past, due, np.nan))


def _reasons(h: History, found: dict[str, Floats]) -> dict[str, Floats]:
    """Signals, 0 to 1, for the churn reasons price, service and need changed [L 2.5]."""
    coupons = h.events["coupon"].within(30).count()
    discounted = ratio(h.orders.where(h.orders["discount"] > 0).count(), h.orders.count())
    low = h.events["review"].where(filled(h.events["review"]["rating"], 5.0) <= 2).within(180).count()
    hurt = [found["tp_complaint_open"], found["tp_refund_late"], found["tp_delivery_late"], np.minimum(low, 1)]
    recent, before = h.orders.within(90).sum("units"), h.orders.between(90, 365).sum("units") / PERIODS_BEFORE
    fading = np.clip(1 - filled(ratio(recent, before), 1.0), 0, 1)
    price = np.maximum(np.minimum(coupons / PRICE_SENSITIVE_COUPONS_30D, 1), filled(discounted))
    service = np.minimum(sum(hurt, np.zeros(h.n)) / 2, 1)
    return {"reason_price": price, "reason_service": service, "reason_need": fading * (1 - np.maximum(price, service))}


def _features() -> tuple[Feature, ...]:
    found = []
    for point in TOUCHPOINTS:
        found.append(Feature(f"tp_{point.name}", "flag", point.meaning, point.meaning, 0, point.needs))
        words = f"{point.meaning}, for {{value}} days now"
        found.append(Feature(f"tp_{point.name}_days", "days", f"days since: {point.meaning} (0: not so)", words, 0, point.needs))
    return tuple(found)


FAMILY = Family(
    "touchpoints",
    (
        *_features(),
        Feature("reason_price", "share", "signal that price drives the customer away", "shows {value}% of the signs of a price hunter"),
        Feature("reason_service", "share", "signal that service drives the customer away", "shows {value}% of the signs of bad service"),
        Feature("reason_need", "share", "signal that the need has changed", "shows {value}% of the signs of a changed need"),
    ),
    fold,
)
