"""Activity summed over trailing windows."""

from features.events import Floats
from features.family import Family, by_window, in_windows
from features.history import History


def fold(h: History) -> dict[str, Floats]:
    """Orders, spend, units and lines in each window ``(t - w, t]``."""
    measures = {"orders": None, "spend": "spend", "units": "units", "lines": "lines"}
    found: dict[str, Floats] = {}
    for stem, measure in measures.items():
        found |= in_windows(stem, h.orders.windowed(measure))
    return found


FAMILY = Family(
    "windows",
    (
        *by_window("orders", "count", "orders", "placed {value} orders"),
        *by_window("spend", "currency", "spend", "spent {value}"),
        *by_window("units", "count", "units bought", "bought {value} units"),
        *by_window("lines", "count", "order lines", "bought {value} order lines"),
    ),
    fold,
)
