"""What people look at: visits, views, searches, time on site."""

from features.domain import WINDOWS_DAYS
from features.events import Floats, ratio
from features.family import Family, Feature, by_window, in_windows, needing
from features.history import History

FEW_DAYS = (30, 90)
SESSIONS = ("events.session_id",)
SECONDS = ("events.seconds",)


def fold(h: History) -> dict[str, Floats]:
    """Behaviour by day, summed over windows; rates and recency."""
    days = h.browse
    sums = {measure: days.windowed(measure) for measure in ("views", "searches", "favourites", "checkouts", "pays", "sessions", "seconds")}
    last_90, last_180 = (WINDOWS_DAYS.index(d) for d in (90, 180))
    visits = sums["sessions"]
    found = in_windows("browse_days", days.windowed()) | in_windows("browse_minutes", sums["seconds"] / 60)
    for measure in ("views", "sessions"):
        found |= in_windows(measure, sums[measure])
    for measure in ("searches", "favourites", "checkouts", "pays"):
        found |= in_windows(measure, sums[measure], FEW_DAYS)
    return found | {
        "browse_recency_days": days.since_last(),
        "browse_days_total": days.count(),
        "views_per_session_90d": ratio(sums["views"][:, last_90], visits[:, last_90]),
        "minutes_per_session_90d": ratio(sums["seconds"][:, last_90] / 60, visits[:, last_90]),
        "sessions_30d_share_of_90d": ratio(visits[:, WINDOWS_DAYS.index(30)], visits[:, last_90]),
        "sessions_90d_change": 2 * visits[:, last_90] - visits[:, last_180],
        "sessions_per_order_365d": ratio(visits[:, WINDOWS_DAYS.index(365)], h.orders.within(365).count()),
    }


FAMILY = Family(
    "browsing",
    (
        *by_window("browse_days", "count", "days with a visit", "came on {value} days"),
        *by_window("views", "count", "products viewed", "viewed {value} products"),
        *needing(SECONDS, by_window("browse_minutes", "minutes", "minutes on site", "spent {value} minutes on site")),
        *needing(SESSIONS, by_window("sessions", "count", "visits", "visited {value} times")),
        *by_window("searches", "count", "searches", "searched {value} times", FEW_DAYS),
        *by_window("favourites", "count", "products marked as favourite", "marked {value} favourites", FEW_DAYS),
        *by_window("checkouts", "count", "checkouts begun", "began {value} checkouts", FEW_DAYS),
        *by_window("pays", "count", "payments", "paid {value} times", FEW_DAYS),
        Feature("browse_recency_days", "days", "days since the last visit", "last visited {value} days ago"),
        Feature("browse_days_total", "count", "days with a visit so far", "has visited on {value} days"),
        Feature("views_per_session_90d", "ratio", "products viewed a visit, last 90 days", "views {value} products a visit", 1, SESSIONS),
        Feature("minutes_per_session_90d", "ratio", "minutes a visit, last 90 days", "stays {value} minutes", 1, (*SECONDS, *SESSIONS)),
        Feature(
            "sessions_30d_share_of_90d",
            "share",
            "share of the visits of the last 90 days that fell into the last 30",
            "made {value}% of the visits of 90 days in the last 30",
            0,
            SESSIONS,
        ),
        Feature(
            "sessions_90d_change",
            "difference",
            "visits of the last 90 days less those of the 90 days before",
            "changed by {value} visits from one 90-day period to the next",
            0,
            SESSIONS,
        ),
        Feature("sessions_per_order_365d", "ratio", "visits an order, last 365 days", "visits {value} times for an order", 1, SESSIONS),
    ),
    fold,
    needs=("events",),
)
