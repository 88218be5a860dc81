"""What an order looks like: value, size, price level, repetition and novelty of products."""

import numpy as np

from features.family import Family, Feature
from features.history import Floats, History, ratio

BULK_UNITS = 12
"""Units of one product in one order from which a line looks like wholesale."""


def fold(h: History) -> dict[str, Floats]:
    """Order values, basket sizes, price level and product repetition."""
    return _values(h) | _products(h)


def _values(h: History) -> dict[str, Floats]:
    orders = h.orders
    value, mean = orders.measures["spend"], orders.mean("spend")
    newest = orders.from_end() < 3
    units, discount = orders.sum("units"), orders.sum("discount")
    last_3 = orders.where(newest).mean("spend")
    return {
        "order_value_mean": mean,
        "order_value_std": orders.std("spend"),
        "order_value_max": orders.max(value),
        "order_value_first": orders.first(value),
        "order_value_last": orders.last(value),
        "order_value_last_3_over_mean": ratio(last_3, mean),
        "order_units_mean": orders.mean("units"),
        "order_lines_mean": orders.mean("lines"),
        "order_lines_last": orders.last(orders.measures["lines"]),
        "unit_price_mean": ratio(orders.sum("spend"), units),
        "discount_share": ratio(discount, discount + orders.sum("spend")),
    }


def _products(h: History) -> dict[str, Floats]:
    items = h.items
    last = items.last_of_key()
    latest = items.where(last)
    purchases = np.diff(np.flatnonzero(last), prepend=-1).astype(np.float64)
    rows, products = items.count(), latest.count()
    bulk = items.where(items.measures["units"] >= BULK_UNITS)
    return {
        "products_total": products,
        "product_repeat_share": ratio(rows - products, rows),
        "product_top_share": ratio(latest.max(purchases), rows),
        "products_90d_share": ratio(latest.within(90).count(), products),
        "units_per_item": items.mean("units"),
        "bulk_item_share": ratio(bulk.count(), rows),
    }


FAMILY = Family(
    "baskets",
    (
        Feature("order_value_mean", "currency", "mean order value", "spends {value} an order"),
        Feature("order_value_std", "currency", "spread of the order value", "has order values that vary by {value}"),
        Feature("order_value_max", "currency", "largest order value", "once spent {value} on one order"),
        Feature("order_value_first", "currency", "value of the first order", "spent {value} on the first order"),
        Feature("order_value_last", "currency", "value of the last order", "spent {value} on the last order"),
        Feature(
            "order_value_last_3_over_mean",
            "ratio",
            "last three orders' value over the mean",
            "lately spends {value} times the usual order value",
            1,
        ),
        Feature("order_units_mean", "count", "mean units an order", "buys {value} units an order"),
        Feature("order_lines_mean", "count", "mean lines an order", "buys {value} lines an order", 1),
        Feature("order_lines_last", "count", "lines of the last order", "bought {value} lines in the last order"),
        Feature("unit_price_mean", "currency", "mean price of a unit", "pays {value} a unit", 2),
        Feature("discount_share", "share", "share of the list value taken off by discounts", "gets {value}% off by discounts"),
        Feature("products_total", "count", "distinct products so far", "has bought {value} different products"),
        Feature("product_repeat_share", "share", "share of purchases that repeat a product", "repeats products in {value}% of purchases"),
        Feature("product_top_share", "share", "share of the most bought product", "buys one product in {value}% of purchases"),
        Feature(
            "products_90d_share",
            "share",
            "share of the products bought in the last 90 days",
            "bought {value}% of the products in the last 90 days",
        ),
        Feature("units_per_item", "count", "mean units of a product in an order", "takes {value} units of a product", 1),
        Feature("bulk_item_share", "share", "share of purchases of 12 units or more", "buys in bulk in {value}% of purchases"),
    ),
    fold,
)
