"""What an order looks like: value, size, price level."""

from features.events import Floats, ratio
from features.family import Family, Feature
from features.history import History


def fold(h: History) -> dict[str, Floats]:
    """Order values, basket sizes and price level."""
    orders = h.orders
    value, mean = orders["spend"], orders.mean("spend")
    newest = orders.from_end() < 3
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
        "order_lines_last": orders.last(orders["lines"]),
        "unit_price_mean": ratio(orders.sum("spend"), orders.sum("units")),
        "order_value_median": orders.median(value),
        "order_value_min": orders.min(value),
        "order_value_90d_over_mean": ratio(orders.within(90).mean("spend"), mean),
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
        Feature("order_value_median", "currency", "median order value", "typically spends {value} on an order"),
        Feature("order_value_min", "currency", "smallest order value", "once spent only {value} on an order"),
        Feature(
            "order_value_90d_over_mean",
            "ratio",
            "order value of the last 90 days over the mean",
            "spent {value} times the usual order value in the last 90 days",
            1,
        ),
    ),
    fold,
)
