"""New or established products: how long what a customer buys had been on sale when it was bought."""

from features.events import Floats, ratio
from features.family import Family, Feature
from features.history import History


def fold(h: History) -> dict[str, Floats]:
    """Time on sale of the products bought, then and now: means over all order lines."""
    lines, on_sale = h.orders.sum("lines"), h.orders.sum("product_age")
    return {
        "product_age_days": ratio(on_sale, lines),
        "product_since_days": ratio(on_sale + h.orders.sum(h.orders.age_days * h.orders["lines"]), lines),
    }


FAMILY = Family(
    "novelty",
    (
        Feature("product_age_days", "days", "mean time products had been on sale when bought", "buys products on sale for {value} days"),
        Feature(
            "product_since_days", "days", "mean time since the products bought came out", "bought products that came out {value} days ago"
        ),
    ),
    fold,
    needs=("order_lines.product_age_days",),
)
