"""Which campaigns reach a customer, and which are ignored."""

from collections.abc import Iterator

import numpy as np

from features.domain import WINDOWS_DAYS
from features.events import Floats, filled, ratio
from features.family import Family, Feature, by_window, in_windows, needing
from features.history import History
from features.schema import CONTACT_CHANNELS

DAYS = (30, 90, 365)
STATES = {"delivered": "delivered_at", "opened": "opened_at", "clicked": "clicked_at", "converted": "converted_at"}
CHANNELS = tuple(channel.replace("-", "_") for channel in CONTACT_CHANNELS)
CHANNEL = ("contacts.channel",)


def fold(h: History) -> dict[str, Floats]:
    """Contacts and responses over windows, rates, recency and contacts ignored since the last response."""
    sent = h.contacts
    events = {"sent": sent} | {state: h.events[state] for state in STATES}
    sums = {measure: found.windowed() for measure, found in events.items()}
    last_90, last_year = WINDOWS_DAYS.index(90), WINDOWS_DAYS.index(365)
    found: dict[str, Floats] = {}
    for measure in sums:
        found |= in_windows(f"contacts_{measure}", sums[measure], DAYS)
    recency = {measure: found.since_last() for measure, found in events.items()}
    response = np.fmin(recency["opened"], recency["clicked"])
    since = np.where(np.isnan(response), np.inf, response)[sent.customer]
    recent, year = sent.within(90), sent.within(365)
    return found | {
        "open_rate_90d": ratio(sums["opened"][:, last_90], sums["sent"][:, last_90]),
        "click_rate_90d": ratio(sums["clicked"][:, last_90], sums["sent"][:, last_90]),
        "conversion_rate_365d": ratio(sums["converted"][:, last_year], sums["sent"][:, last_year]),
        "contact_recency_days": recency["sent"],
        "open_recency_days": recency["opened"],
        "click_recency_days": recency["clicked"],
        "conversion_recency_days": recency["converted"],
        "contacts_ignored": sent.where(sent.age_days < since).count(),
        "contact_cost_365d": year.sum(filled(year["cost"])),
        "contact_tier_max_90d": filled(recent.max(filled(recent["tier"]))),
        **{f"{name}_sent_90d": recent.where(recent["channel"] == code).count() for code, name in enumerate(CHANNELS)},
    }


def _features() -> Iterator[Feature]:
    words = {
        "sent": ("contacts sent", "was contacted {value} times"),
        "delivered": ("contacts delivered", "was reached {value} times"),
        "opened": ("contacts opened", "opened {value} contacts"),
        "clicked": ("contacts clicked", "clicked {value} contacts"),
        "converted": ("contacts that led to an order", "ordered after {value} contacts"),
    }
    for measure, (what, did) in words.items():
        needs = (f"contacts.{STATES[measure]}",) if measure in STATES else ()
        yield from needing(needs, by_window(f"contacts_{measure}", "count", what, did, DAYS))


FAMILY = Family(
    "campaigns",
    (
        *_features(),
        Feature("open_rate_90d", "ratio", "opened over sent, last 90 days", "opens {value} of 1 contacts", 2, ("contacts.opened_at",)),
        Feature("click_rate_90d", "ratio", "clicked over sent, last 90 days", "clicks {value} of 1 contacts", 2, ("contacts.clicked_at",)),
        Feature(
            "conversion_rate_365d",
            "ratio",
            "converted over sent, last 365 days",
            "orders after {value} of 1 contacts",
            2,
            ("contacts.converted_at",),
        ),
        Feature("contact_recency_days", "days", "days since the last contact", "was last contacted {value} days ago"),
        Feature("open_recency_days", "days", "days since one was opened", "last opened one {value} days ago", 0, ("contacts.opened_at",)),
        Feature("click_recency_days", "days", "days since one was clicked", "last clicked {value} days ago", 0, ("contacts.clicked_at",)),
        Feature(
            "conversion_recency_days",
            "days",
            "days since a contact led to an order",
            "last ordered after a contact {value} days ago",
            0,
            ("contacts.converted_at",),
        ),
        Feature("contacts_ignored", "count", "contacts sent since the last response", "has ignored the last {value} contacts"),
        Feature("contact_cost_365d", "currency", "cost of contacts, last 365 days", "has cost {value} in contacts", 2, ("contacts.cost",)),
        Feature("contact_tier_max_90d", "code", "strongest contact, last 90 days", "got a tier-{value} contact", 0, ("contacts.tier",)),
        *(
            Feature(f"{c}_sent_90d", "count", f"contacts by {c}, last 90 days", f"got {{value}} by {c} in 90 days", 0, CHANNEL)
            for c in CHANNELS
        ),
    ),
    fold,
    needs=("contacts",),
)
