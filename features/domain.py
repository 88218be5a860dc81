"""Open first: the words of the domain and the figures that the founding documents give them.

A *snapshot* is the moment of a prediction. What is known at snapshot ``t`` are the events whose event
time AND arrival time lie at or before ``t``; the label window is ``(t, t + horizon]``. A customer is
*churned* at ``t`` when no order falls into that window. Every figure here is a default: a data set's
mapping file (`features/mapping.py`) or the policy file (`serving/policy.toml`) overrides it.

Sources of the figures: [P] the 2026 churn intervention plan, [L] the lifecycle strategy analysis.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum

HORIZON_DAYS = 90
"""No order for more than 90 days is churn [L 1, P 2.3.2]."""

LOOKBACK_DAYS = 365.0
"""A customer silent for longer than this is no longer worth predicting."""

WINDOWS_DAYS = (7, 14, 30, 60, 90, 180, 365)
"""Trailing windows ``(t - w, t]`` over which activity is summed."""

RISK_HIGH = 0.70
"""Churn probability at which the risk band is high [P 2.2.1]."""

RISK_MEDIUM = 0.40
"""Churn probability at which the risk band is medium."""

WARNING_ACCURACY_TARGET = 0.85
"""Accuracy asked of the early warning [P 2.2.1]; reported beside AUC and calibration, never alone."""

HIGH_VALUE_PER_YEAR = 5000.0
"""Spend a year, in the shop's currency, from which a customer is of high value [P 2.1.1]."""

RFMB_WEIGHTS = {"r_score": 0.35, "f_score": 0.30, "m_score": 0.20, "b_score": 0.15}
"""Weights of recency, frequency, monetary and behaviour score [P 2.3.1]; without behaviour sources the other three."""

HIGH_VALUE_HIGH_RISK = {"recency_days": 30.0, "frequency_orders": 5.0, "monetary_net": 2000.0, "b_score": 20.0}
"""Of high value and at high risk: R at most, F and M at least, B score at most this [P 2.3.1]."""

PRICE_SENSITIVE_COUPONS_30D = 5
"""Coupons claimed a month from which a customer is price-sensitive [P 3.2]."""

IDENTITY_MAX_CUSTOMERS = 4
"""Customers that one device, phone, e-mail, account or card may link; more and it is taken to be shared."""

IDENTITY_MAX_COMPONENT = 12
"""Customer ids that may belong to one person; a larger component is cut."""


class RiskBand(StrEnum):
    """How likely the customer is to leave within the horizon."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class Stage(StrEnum):
    """Lifecycle stage after [L]: by orders and silence."""

    NEW = "new"  # 1-2 orders
    ACTIVE = "active"  # fewer than 3 orders a month
    LOYAL = "loyal"  # 3 or more orders a month
    CHURNED = "churned"  # silent for over 3 months


class PlanStage(StrEnum):
    """Lifecycle stage after [P]: by orders and silence, on other anchors."""

    NEW = "new"  # at most 3 orders
    GROWING = "growing"
    MATURE = "mature"  # 10 orders or more
    SILENT = "silent"  # nothing for 30 days
    CHURNED = "churned"  # nothing for 90 days


@dataclass(frozen=True)
class Touchpoint:
    """A moment of the journey at which customers are lost, and the churn risk that [P] reports after it."""

    name: str
    meaning: str
    reported_risk: float | None
    needs: tuple[str, ...] = ()


FIRST_SECOND_ORDER_DAYS, CAMPAIGN_SILENCE_DAYS, COMPLAINT_OPEN_DAYS, CART_DAYS = 7, 15, 30, 30
"""Time allowed by the touchpoints: second order, campaign participation, complaint, cart [P 2.3.2]."""

TOUCHPOINTS = (
    Touchpoint("no_review", "no review after the first order", 0.25, ("reviews",)),
    Touchpoint("no_second_order", "no second order within 7 days of the first", 0.42),
    Touchpoint("no_campaign", "no campaign participation for 15 days", 0.58, ("contacts",)),
    Touchpoint("complaint_open", "complaint unresolved for 30 days", 0.73, ("tickets", "tickets.complaint")),
    Touchpoint("silent", "no order for 90 days", 0.89),
    Touchpoint("cart_left", "added to cart and did not pay within 30 days", 0.76, ("events",)),
    Touchpoint("refund_late", "refund not completed in the promised time", 0.18, ("returns", "returns.due_at")),
    Touchpoint("delivery_late", "delivery later than promised", None, ("deliveries",)),
)
"""The eight touchpoints [P 2.3.2, 1.3.1, 3.3]. Reported risks are shown beside measured ones, never used."""


class ChurnReason(StrEnum):
    """Why a customer is likely to leave, as far as the data tell [L 2.5]; it decides the strategy."""

    PRICE = "price"
    SERVICE = "service"
    NEED_CHANGED = "need_changed"
    UNKNOWN = "unknown"


REASON_FAMILIES = {
    ChurnReason.PRICE: ("discounts", "coupons", "prices"),
    ChurnReason.SERVICE: ("service", "deliveries", "returns", "reviews"),
    ChurnReason.NEED_CHANGED: ("products", "novelty", "categories", "brands", "browsing", "carts"),
}
"""Feature families whose rising contributions speak for a reason."""

REASON_TOUCHPOINTS = {
    "tp_complaint_open": ChurnReason.SERVICE,
    "tp_refund_late": ChurnReason.SERVICE,
    "tp_delivery_late": ChurnReason.SERVICE,
}
"""Touchpoints that speak for a reason by themselves."""

REASON_LEAST = 0.15
"""Log odds that a reason must add at least, else it is unknown; a touchpoint counts as much."""


class ValueSegment(StrEnum):
    """What the customer is worth a year."""

    HIGH = "high"
    STANDARD = "standard"


class Tier(IntEnum):
    """Strength of the contact: the intervention ladder [P 9.1]."""

    NONE = 0  # leave alone
    NUDGE = 1  # personal recommendation by push or e-mail, almost free
    OFFER = 2  # time-limited coupon
    CONCIERGE = 3  # an advisor in person


def risk_band(churn_probability: float) -> RiskBand:
    """Band of a churn probability in [0, 1]."""
    if churn_probability >= RISK_HIGH:
        return RiskBand.HIGH
    return RiskBand.MEDIUM if churn_probability >= RISK_MEDIUM else RiskBand.LOW
