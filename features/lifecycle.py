"""Lifecycle stage in both schemes of the founding documents, and the value segment."""

import numpy as np
import numpy.typing as npt

from features.domain import PlanStage, Stage, ValueSegment
from features.events import Floats, ratio
from features.history import History

NEW_MAX_ORDERS, LOYAL_ORDERS_A_MONTH, CHURNED_DAYS = 2, 3.0, 90.0
"""Anchors of [L]: new = 1-2 orders, loyal = 3 or more a month, churned = silent for over 3 months."""
PLAN_NEW_MAX_ORDERS, PLAN_MATURE_ORDERS, PLAN_SILENT_DAYS = 3, 10, 30.0
"""Anchors of [P]: new = at most 3 orders, mature = 10 or more, silent = 30 days."""

Names = npt.NDArray[np.str_]
STAGE_COLUMNS = ("lifecycle_stage", "plan_stage", "value_segment")


def describe(h: History, high_value_per_year: float) -> dict[str, Names]:
    """Stage after [L], stage after [P] and value segment of each customer, shape (n,) each.

    The orders a month of [L] are those of the last 90 days over 3; a customer between the anchors is active.
    """
    orders, silence = h.orders.count(), h.orders.min(h.orders.age_days)
    a_month = h.orders.within(90).count() / 3
    stage = np.select(
        [silence > CHURNED_DAYS, orders <= NEW_MAX_ORDERS, a_month >= LOYAL_ORDERS_A_MONTH],
        [Stage.CHURNED, Stage.NEW, Stage.LOYAL],
        Stage.ACTIVE,
    )
    plan = np.select(
        [silence > CHURNED_DAYS, silence > PLAN_SILENT_DAYS, orders <= PLAN_NEW_MAX_ORDERS, orders >= PLAN_MATURE_ORDERS],
        [PlanStage.CHURNED, PlanStage.SILENT, PlanStage.NEW, PlanStage.MATURE],
        PlanStage.GROWING,
    )
    value = np.where(spend_per_year(h) >= high_value_per_year, ValueSegment.HIGH, ValueSegment.STANDARD)
    return dict(zip(STAGE_COLUMNS, (stage, plan, value), strict=True))


def spend_per_year(h: History) -> Floats:
    """Spend of the last 365 days, or of the best year's pace for those silent longer: total spend over years of activity."""
    active_years = np.maximum(h.orders.max(h.orders.age_days) - h.orders.min(h.orders.age_days), 365) / 365
    return np.fmax(h.orders.within(365).sum("spend"), ratio(h.orders.sum("spend"), active_years))
