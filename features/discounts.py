"""How much of the list value discounts and coupons take off."""

from features.events import Events, Floats, ratio
from features.family import Family, Feature
from features.history import History


def fold(h: History) -> dict[str, Floats]:
    """Share of the list value taken off, in all and lately, and share of orders with a discount."""
    recent = h.orders.within(90)
    discounted = h.orders.where(h.orders["discount"] > 0)
    return {
        "discount_share": _share(h.orders),
        "discount_90d_share": _share(recent),
        "discounted_order_share": ratio(discounted.count(), h.orders.count()),
    }


def _share(orders: Events) -> Floats:
    off = orders.sum("discount")
    return ratio(off, off + orders.sum("spend"))


FAMILY = Family(
    "discounts",
    (
        Feature("discount_share", "share", "share of the list value taken off", "gets {value}% off by discounts"),
        Feature("discount_90d_share", "share", "discount share of the last 90 days", "got {value}% off in the last 90 days"),
        Feature("discounted_order_share", "share", "share of orders with a discount", "uses a discount in {value}% of orders"),
    ),
    fold,
    needs=("order_lines.discount",),
)
