"""Reviews, ratings and the Net Promoter Score."""

import numpy as np

from features.events import Floats, filled, ratio
from features.family import Family, Feature
from features.history import History

LOW_RATING, DETRACTOR_NPS = 2, 6
"""At most this many stars is a low rating; at most this NPS answer is a detractor's (Reichheld 2003)."""
RATING, NPS = ("reviews.rating",), ("reviews.nps",)


def fold(h: History) -> dict[str, Floats]:
    """How often, how well, and how lately a customer has judged the shop."""
    reviews = h.events["review"]
    stars, nps = reviews["rating"], reviews["nps"]
    rated, asked = reviews.where(~np.isnan(stars)), reviews.where(~np.isnan(nps))
    star, answer = rated["rating"], asked["nps"]
    last = asked.last(answer)
    return {
        "reviews_total": reviews.count(),
        "reviews_365d": reviews.within(365).count(),
        "review_recency_days": reviews.since_last(),
        "reviews_per_order": ratio(reviews.count(), h.orders.count()),
        "rating_mean": rated.mean("rating"),
        "rating_last": rated.last(star),
        "rating_min": rated.min(star),
        "rating_last_change": rated.last(star) - rated.mean("rating"),
        "low_ratings_365d": rated.where(star <= LOW_RATING).within(365).count(),
        "nps_last": last,
        "nps_mean": asked.mean("nps"),
        "nps_detractor": (filled(last, 10.0) <= DETRACTOR_NPS).astype(np.float64),
    }


FAMILY = Family(
    "reviews",
    (
        Feature("reviews_total", "count", "reviews so far", "has written {value} reviews"),
        Feature("reviews_365d", "count", "reviews in the last 365 days", "wrote {value} reviews in the last year"),
        Feature("review_recency_days", "days", "days since the last review", "last reviewed {value} days ago"),
        Feature("reviews_per_order", "ratio", "reviews over orders", "writes {value} reviews an order", 2),
        Feature("rating_mean", "stars", "mean rating given", "gives {value} stars", 1, RATING),
        Feature("rating_last", "stars", "last rating given", "last gave {value} stars", 0, RATING),
        Feature("rating_min", "stars", "lowest rating given", "once gave {value} stars", 0, RATING),
        Feature("rating_last_change", "difference", "last rating less the mean", "last changed the rating by {value} stars", 1, RATING),
        Feature("low_ratings_365d", "count", "ratings of 1 or 2 stars, last 365 days", "gave {value} low ratings", 0, RATING),
        Feature("nps_last", "points", "last NPS answer", "last answered {value} of 10 to recommend", 0, NPS),
        Feature("nps_mean", "points", "mean NPS answer", "answers {value} of 10 to recommend", 1, NPS),
        Feature("nps_detractor", "flag", "last NPS answer of at most 6", "would not recommend the shop", 0, NPS),
    ),
    fold,
    needs=("reviews",),
)
