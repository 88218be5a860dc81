"""Categories and brands: how many, how concentrated, what is new; and the price level of single products."""

import numpy as np

from features.domain import WINDOWS_DAYS
from features.events import Events, Floats, lengths, ratio, runs
from features.family import Family, Feature, by_window, in_windows
from features.history import History

DAYS = (30, 90, 365)


def fold_categories(h: History) -> dict[str, Floats]:
    """Distinct categories, concentration and novelty."""
    return _tastes(h, "category", "categories")


def fold_brands(h: History) -> dict[str, Floats]:
    """Distinct brands, concentration and novelty."""
    return _tastes(h, "brand", "brands")


def _tastes(h: History, text: str, many: str) -> dict[str, Floats]:
    items = h.items.where(h.items[text] >= 0)
    pair = items.customer * (items[text].max(initial=0) + 1) + items[text]
    order, starts = runs([pair])
    bought = lengths(starts, pair.size).astype(np.float64)
    age = items.age_days[order]
    newest, oldest = (low_or_high.reduceat(age, starts) if starts.size else age for low_or_high in (np.minimum, np.maximum))
    distinct = Events(h.n, items.customer[order[starts]], newest, {})
    total = distinct.sum(bought)
    share = bought / total[distinct.customer]
    in_window = distinct.windowed()
    return {
        **in_windows(many, in_window, DAYS),
        f"{many}_total": distinct.count(),
        f"{text}_top_share": distinct.max(share),
        f"{text}_entropy": -distinct.sum(share * np.log2(share)),
        f"{many}_new_90d": distinct.where(oldest < 90).count(),
        f"{many}_90d_share": ratio(in_window[:, WINDOWS_DAYS.index(90)], distinct.count()),
    }


def fold_prices(h: History) -> dict[str, Floats]:
    """Unit prices of the products bought."""
    items = h.items.where(h.items["units"] > 0)
    price = items["spend"] / items["units"]
    recent = items.age_days < 90
    mean = items.mean(price)
    return {
        "item_price_mean": mean,
        "item_price_std": items.std(price),
        "item_price_min": items.min(price),
        "item_price_max": items.max(price),
        "item_price_90d_over_mean": ratio(items.where(recent).mean(price[recent]), mean),
    }


def _features(text: str, many: str) -> tuple[Feature, ...]:
    return (
        *by_window(many, "count", f"distinct {many}", f"bought from {{value}} {many}", DAYS),
        Feature(f"{many}_total", "count", f"distinct {many} so far", f"has bought from {{value}} {many}"),
        Feature(f"{text}_top_share", "share", f"share of the most bought {text}", f"buys one {text} in {{value}}% of purchases"),
        Feature(
            f"{text}_entropy", "bits", f"how evenly purchases spread over {many}", f"spreads purchases over {many} by {{value}} bits", 1
        ),
        Feature(f"{many}_new_90d", "count", f"{many} bought first in the last 90 days", f"bought {{value}} {many} for the first time"),
        Feature(f"{many}_90d_share", "share", f"share of the {many} bought in the last 90 days", f"bought {{value}}% of all {many} lately"),
    )


CATEGORIES = Family("categories", _features("category", "categories"), fold_categories, needs=("order_lines.category",))
BRANDS = Family("brands", _features("brand", "brands"), fold_brands, needs=("order_lines.brand",))
PRICES = Family(
    "prices",
    (
        Feature("item_price_mean", "currency", "mean price of a product bought", "buys products of {value}", 2),
        Feature("item_price_std", "currency", "spread of the prices", "buys at prices that vary by {value}", 2),
        Feature("item_price_min", "currency", "lowest price of a product bought", "once bought for {value}", 2),
        Feature("item_price_max", "currency", "highest price of a product bought", "once bought for {value}", 2),
        Feature(
            "item_price_90d_over_mean", "ratio", "price of the last 90 days over the mean", "lately buys at {value} times the price", 1
        ),
    ),
    fold_prices,
    needs=("order_lines.product_id",),
)
