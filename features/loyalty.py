"""Membership level, loyalty points, consents and registration."""

import numpy as np

from features.events import Floats, filled, ratio, sort_by
from features.family import Family, Feature, in_windows
from features.history import History

DAYS = (90, 365)


def fold_membership(h: History) -> dict[str, Floats]:
    """The level in force, since when, and whether it rose or fell."""
    changes = h.events["membership"]
    level = changes["level"]
    before = np.where(changes.follows(), level - np.roll(level, 1), 0.0)
    return {
        "member_level": filled(changes.last(level)),
        "member_level_days": changes.since_last(),
        "member_level_change": filled(changes.last(before)),
    }


def fold_points(h: History) -> dict[str, Floats]:
    """Points earned and spent."""
    bookings = h.events["points"]
    earned, spent = bookings.sum("earned"), bookings.sum("spent")
    spending = bookings.where(bookings["spent"] > 0)
    return {
        "points_balance": earned - spent,
        "points_spent_share": ratio(spent, earned),
        "points_recency_days": bookings.since_last(),
        "points_spent_recency_days": spending.since_last(),
        **in_windows("points_earned", bookings.windowed("earned"), DAYS),
        **in_windows("points_spent", bookings.windowed("spent"), DAYS),
    }


def fold_consents(h: History) -> dict[str, Floats]:
    """Consents in force by purpose and channel, and withdrawals; of two words at one moment the withdrawal is in force."""
    consents = h.events["consent"]
    pair = consents["purpose"] * (consents["channel"].max(initial=-1) + 2) + consents["channel"]
    withdrawal = (consents["granted"] == 0).astype(np.int64)
    order = sort_by([consents.customer, pair, consents.at // 1_000_000, consents.at, withdrawal, np.arange(pair.size)])
    ordered = consents.where(order)
    latest = ordered.where(ordered.last_of(pair[order]))
    withdrawn = consents.where(consents["granted"] == 0)
    return {
        "consents_granted": latest.sum("granted"),
        "consents_withdrawn": latest.count() - latest.sum("granted"),
        "withdrawal_recency_days": withdrawn.since_last(),
    }


def fold_registration(h: History) -> dict[str, Floats]:
    """Time since registration, and from there to the first order (0: ordered before)."""
    known = h.events["customer"]
    registered = known.since_first()
    return {
        "registered_days": registered,
        "days_to_first_order": np.maximum(registered - h.orders.since_first(), 0.0),
    }


MEMBERSHIP = Family(
    "membership",
    (
        Feature("member_level", "code", "membership level in force (0: none)", "is a member of level {value}"),
        Feature("member_level_days", "days", "days at the present level", "has been at this level for {value} days"),
        Feature("member_level_change", "difference", "last change of level", "last changed by {value} levels"),
    ),
    fold_membership,
    needs=("memberships",),
)
POINTS = Family(
    "points",
    (
        Feature("points_balance", "points", "points held", "holds {value} points"),
        Feature("points_spent_share", "ratio", "points spent over earned", "spends {value} of 1 points", 2),
        Feature("points_recency_days", "days", "days since points were booked", "last earned or spent points {value} days ago"),
        Feature("points_spent_recency_days", "days", "days since points were spent", "last spent points {value} days ago"),
        Feature("points_earned_90d", "count", "points earned in the last 90 days", "earned {value} points in 90 days"),
        Feature("points_earned_365d", "count", "points earned in the last 365 days", "earned {value} points in 365 days"),
        Feature("points_spent_90d", "count", "points spent in the last 90 days", "spent {value} points in 90 days"),
        Feature("points_spent_365d", "count", "points spent in the last 365 days", "spent {value} points in 365 days"),
    ),
    fold_points,
    needs=("points",),
)
CONSENTS = Family(
    "consents",
    (
        Feature("consents_granted", "count", "consents in force", "has given {value} consents"),
        Feature("consents_withdrawn", "count", "consents withdrawn", "has withdrawn {value} consents"),
        Feature("withdrawal_recency_days", "days", "days since a consent was withdrawn", "withdrew a consent {value} days ago"),
    ),
    fold_consents,
    needs=("consents",),
)
REGISTRATION = Family(
    "registration",
    (
        Feature("registered_days", "days", "days since registration", "registered {value} days ago"),
        Feature("days_to_first_order", "days", "days from registration to the first order", "first ordered {value} days after registering"),
    ),
    fold_registration,
    needs=("customers",),
)
