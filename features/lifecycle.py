"""Lifecycle stage in both schemes of the founding documents, and the value segment."""

import numpy as np
import numpy.typing as npt

from features.domain import PlanStage, Stage, ValueSegment
from features.events import Floats, Mask, ratio
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
    orders, silence = h.orders.count(), h.orders.since_last()
    a_month = h.orders.within(90).count() / 3
    churned = silence > CHURNED_DAYS
    stage = _first_true(
        (Stage.CHURNED, churned),
        (Stage.NEW, orders <= NEW_MAX_ORDERS),
        (Stage.LOYAL, a_month >= LOYAL_ORDERS_A_MONTH),
        otherwise=Stage.ACTIVE,
    )
    plan = _first_true(
        (PlanStage.CHURNED, churned),
        (PlanStage.SILENT, silence > PLAN_SILENT_DAYS),
        (PlanStage.NEW, orders <= PLAN_NEW_MAX_ORDERS),
        (PlanStage.MATURE, orders >= PLAN_MATURE_ORDERS),
        otherwise=PlanStage.GROWING,
    )
    value = _first_true((ValueSegment.HIGH, spend_per_year(h) >= high_value_per_year), otherwise=ValueSegment.STANDARD)
    return dict(zip(STAGE_COLUMNS, (stage, plan, value), strict=True))


def _first_true(*choices: tuple[str, Mask], otherwise: str) -> Names:
    """The name of the first mask that holds (several times as fast as `np.select` on texts)."""
    names = np.array([name for name, _ in choices] + [str(otherwise)])
    place = np.full(choices[0][1].shape, len(choices))
    for number in reversed(range(len(choices))):
        place[choices[number][1]] = number
    return names[place]


def spend_per_year(h: History) -> Floats:
    """Spend of the last 365 days, or of the best year's pace for those silent longer: total spend over years of activity."""
    active_years = np.maximum(h.orders.since_first() - h.orders.since_last(), 365) / 365
    return np.fmax(h.orders.within(365).sum("spend"), ratio(h.orders.sum("spend"), active_years))
