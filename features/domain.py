"""Open first: the words of the domain and the figures that the founding documents give them.

A *snapshot* is the moment of a prediction. What is known at snapshot ``t`` are the events whose event
time AND arrival time lie at or before ``t``; the label window is ``(t, t + horizon]``. A customer is
*churned* at ``t`` when no order falls into that window. Every figure here is a default: a data set's
mapping file (`features/mapping.py`) or the policy file (`serving/policy.toml`) overrides it.

Sources of the figures: [P] the 2026 churn intervention plan, [L] the lifecycle strategy analysis.
"""

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

RFM_WEIGHTS = {"r_score": 0.35, "f_score": 0.30, "m_score": 0.20}
"""Weights of recency, frequency and monetary score [P 2.3.1]; B (15 %) joins with behaviour events."""


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
