"""Service tickets and complaints: how many, how long, what is open."""

import numpy as np

from features.events import Floats, filled, ratio
from features.family import Family, Feature, by_window, in_windows, needing
from features.history import History

DAYS = (30, 90, 365)
RESOLVED, COMPLAINT = ("tickets.resolved_at",), ("tickets.complaint",)


def fold(h: History) -> dict[str, Floats]:
    """Tickets over windows, complaints, time to resolution and what is still open."""
    tickets = h.events["ticket"]
    done = tickets["done_age_days"]
    solved = ~np.isnan(done)
    finished = tickets.where(solved)
    took = np.maximum(finished.age_days - done[solved], 0.0)
    angry = tickets["complaint"] > 0
    complaints, unsolved = tickets.where(angry), tickets.where(angry & ~solved)
    return {
        **in_windows("tickets", tickets.windowed(), DAYS),
        **in_windows("complaints", complaints.windowed(), (90, 365)),
        "tickets_total": tickets.count(),
        "complaints_total": complaints.count(),
        "complaint_share": ratio(complaints.count(), tickets.count()),
        "tickets_open": tickets.where(~solved).count(),
        "complaints_open": unsolved.count(),
        "complaint_open_days": filled(unsolved.since_first()),
        "resolve_days_mean": finished.mean(took),
        "resolve_days_last": finished.last(took),
        "resolve_days_max": finished.max(took),
        "ticket_recency_days": tickets.since_last(),
        "complaint_recency_days": complaints.since_last(),
        "tickets_per_order": ratio(tickets.count(), h.orders.count()),
    }


FAMILY = Family(
    "service",
    (
        *by_window("tickets", "count", "service tickets", "asked for help {value} times", DAYS),
        *needing(COMPLAINT, by_window("complaints", "count", "complaints", "complained {value} times", (90, 365))),
        Feature("tickets_total", "count", "service tickets so far", "has asked for help {value} times"),
        Feature("complaints_total", "count", "complaints so far", "has complained {value} times", 0, COMPLAINT),
        Feature("complaint_share", "share", "share of tickets that are complaints", "complains in {value}% of tickets", 0, COMPLAINT),
        Feature("tickets_open", "count", "tickets not resolved", "waits for {value} answers", 0, RESOLVED),
        Feature("complaints_open", "count", "complaints not resolved", "has {value} open complaints", 0, (*RESOLVED, *COMPLAINT)),
        Feature(
            "complaint_open_days",
            "days",
            "age of the oldest open complaint (0: none)",
            "has waited {value} days on a complaint",
            0,
            (*RESOLVED, *COMPLAINT),
        ),
        Feature("resolve_days_mean", "days", "mean days until a ticket was resolved", "waits {value} days for help", 1, RESOLVED),
        Feature("resolve_days_last", "days", "days until the last ticket was resolved", "last waited {value} days for help", 1, RESOLVED),
        Feature("resolve_days_max", "days", "longest time until a ticket was resolved", "once waited {value} days for help", 1, RESOLVED),
        Feature("ticket_recency_days", "days", "days since the last ticket", "last asked for help {value} days ago"),
        Feature("complaint_recency_days", "days", "days since the last complaint", "last complained {value} days ago", 0, COMPLAINT),
        Feature("tickets_per_order", "ratio", "tickets over orders", "asks for help {value} times an order", 2),
    ),
    fold,
    needs=("tickets",),
)
