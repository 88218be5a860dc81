"""Which products: how many different ones, how often again, in what quantity."""

from collections.abc import Iterator

import numpy as np

from features.domain import WINDOWS_DAYS
from features.events import Floats, Ints, ratio
from features.family import Family, Feature, by_window, in_windows
from features.history import History

BULK_UNITS = 12
"""Units of one product in one order from which a line looks like wholesale."""


def fold(h: History) -> dict[str, Floats]:
    """Distinct products by window, repetition, concentration and bulk."""
    items = h.items
    last = items.last_of(items["product_id"])
    latest = items.where(last)
    ends: Ints = last.nonzero()[0] + 1
    purchases = ends.astype(np.float64)
    purchases[1:] -= ends[:-1]
    rows, products = items.count(), latest.count()
    bulk = items.where(items["units"] >= BULK_UNITS)
    in_window = latest.windowed()
    return {
        **in_windows("products", in_window),
        "products_total": products,
        "product_repeat_share": ratio(rows - products, rows),
        "product_top_share": ratio(latest.max(purchases), rows),
        "products_90d_share": ratio(in_window[:, WINDOWS_DAYS.index(90)], products),
        "units_per_item": items.mean("units"),
        "bulk_item_share": ratio(bulk.count(), rows),
    }


def _features() -> Iterator[Feature]:
    yield from by_window("products", "count", "distinct products", "bought {value} different products")
    yield Feature("products_total", "count", "distinct products so far", "has bought {value} different products")
    meaning = "share of purchases that repeat a product"
    yield Feature("product_repeat_share", "share", meaning, "repeats products in {value}% of purchases")
    yield Feature("product_top_share", "share", "share of the most bought product", "buys one product in {value}% of purchases")
    meaning = "share of the products bought in the last 90 days"
    yield Feature("products_90d_share", "share", meaning, "bought {value}% of all products so far in the last 90 days")
    yield Feature("units_per_item", "count", "mean units of a product in an order", "takes {value} units of a product", 1)
    meaning = f"share of purchases of {BULK_UNITS} units or more"
    yield Feature("bulk_item_share", "share", meaning, "buys in bulk in {value}% of purchases")


FAMILY = Family("products", tuple(_features()), fold, needs=("order_lines.product_id",))
