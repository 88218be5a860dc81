"""Activity summed over trailing windows."""

from collections.abc import Iterator

from features.domain import WINDOWS_DAYS
from features.family import Family, Feature
from features.history import Floats, History


def fold(h: History) -> dict[str, Floats]:
    """Orders, spend, units and lines in each window ``(t - w, t]``."""
    found = {}
    for days in WINDOWS_DAYS:
        orders = h.orders.within(days)
        found[f"orders_{days}d"] = orders.count()
        found[f"spend_{days}d"] = orders.sum("spend")
        found[f"units_{days}d"] = orders.sum("units")
        found[f"lines_{days}d"] = orders.sum("lines")
    return found


def _features() -> Iterator[Feature]:
    for days in WINDOWS_DAYS:
        span = f"the last {days} days"
        yield Feature(f"orders_{days}d", "count", f"orders in {span}", f"placed {{value}} orders in {span}")
        yield Feature(f"spend_{days}d", "currency", f"spend in {span}", f"spent {{value}} in {span}")
        yield Feature(f"units_{days}d", "count", f"units bought in {span}", f"bought {{value}} units in {span}")
        yield Feature(f"lines_{days}d", "count", f"order lines in {span}", f"bought {{value}} order lines in {span}")


FAMILY = Family("windows", tuple(_features()), fold)
