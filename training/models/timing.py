"""When the next order comes: days with an interval for each customer, so that one knows when to act.

A softmax over bins of the horizon says when the buyers among customers like this one order; the calibrated churn probability says
how many do not order within it. Together they are the distribution of the time to the next order, cut off at the horizon.
"""

import json
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from training.models.base import Floats, Rows
from training.models.lightgbm import FIXED, PART_ROWS
from training.models.parallel import each, slices
from training.models.single import SingleRow

EDGES = (0.0, 0.04, 0.1, 0.2, 0.35, 0.55, 0.75, 1.0)
"""Bins as shares of the horizon: finer at first, when most act."""
QUANTILES = (0.1, 0.5, 0.9)
ROUNDS = 60
ALL_ROUNDS = -1
"""As LightGBM calls them."""
SETTINGS = {
    **FIXED,
    "objective": "multiclass",
    "num_class": len(EDGES) - 1,
    "learning_rate": 0.06,
    "num_leaves": 7,
    "min_data_in_leaf": 200,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.6,
    "lambda_l2": 20.0,
    "path_smooth": 50.0,
}
FILE, SHAPE_FILE = "timing.lgb", "timing.json"


@dataclass(frozen=True)
class Timing:
    """Time to the next order of those who order within the horizon."""

    booster: lgb.Booster
    horizon_days: int

    @classmethod
    def fit(cls, train: Rows, horizon_days: int, seed: int) -> "Timing":
        """Fit on the rows with an order within the horizon."""
        bought = train.at(~np.isnan(train.days))
        bins = np.clip(np.searchsorted(np.array(EDGES[1:]) * horizon_days, bought.days), 0, len(EDGES) - 2)
        data = lgb.Dataset(bought.x_NF, bins.astype(np.float64))
        return cls(lgb.train({**SETTINGS, "seed": seed}, data, ROUNDS), horizon_days)

    def quantiles(self, rows: Rows, p: Floats, at: tuple[float, ...] = QUANTILES) -> Floats:
        """Days to the next order at some quantiles, shape (n, quantiles); the horizon where it is as long or longer.

        ``p`` (n,) are calibrated churn probabilities. Linear within a bin.
        """
        if not len(rows):
            return np.empty((0, len(at)))
        if len(rows) == 1:
            return np.array([self._of_one(self._single(rows.x_NF[0]).tolist(), float(p[0]), at)])
        share = np.empty((len(rows), len(EDGES) - 1))

        def fill(part: slice) -> None:
            share[part] = self.booster.predict(rows.x_NF[part], num_threads=1)

        each(fill, list(slices(len(rows), PART_ROWS)), len(rows), PART_ROWS)
        reached = np.concatenate([np.zeros((len(rows), 1)), np.cumsum(share, axis=1)], axis=1) * (1 - p)[:, None]
        days = np.array(EDGES) * self.horizon_days
        found = np.full((len(rows), len(at)), float(self.horizon_days))
        for column, quantile in enumerate(at):
            place = (reached < quantile).sum(axis=1) - 1
            inside = place < len(EDGES) - 1
            row, low = np.flatnonzero(inside), place[inside]
            part = (quantile - reached[row, low]) / np.maximum(reached[row, low + 1] - reached[row, low], 1e-12)
            found[row, column] = days[low] + part * (days[low + 1] - days[low])
        return found

    def _of_one(self, share: list[float], p: float, at: tuple[float, ...]) -> list[float]:
        """The same for one row, without arrays."""
        reached, days = [sum_ * (1 - p) for sum_ in accumulate(share, initial=0.0)], [edge * self.horizon_days for edge in EDGES]
        found = []
        for quantile in at:
            low = bisect_left(reached, quantile) - 1
            if low >= len(EDGES) - 1:
                found.append(float(self.horizon_days))
                continue
            part = (quantile - reached[low]) / max(reached[low + 1] - reached[low], 1e-12)
            found.append(days[low] + part * (days[low + 1] - days[low]))
        return found

    @cached_property
    def _single(self) -> SingleRow:
        """The booster prepared for rows that come alone."""
        return SingleRow(self.booster, ALL_ROUNDS, raw=False)

    def save(self, folder: Path) -> None:
        """Write the booster as text and the horizon as JSON."""
        (folder / FILE).write_text(self.booster.model_to_string(), encoding="utf-8")
        (folder / SHAPE_FILE).write_text(json.dumps({"horizon_days": self.horizon_days}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Timing | None":
        """Read what `save` wrote, if it did."""
        if not (folder / FILE).is_file():
            return None
        shape: dict[str, Any] = json.loads((folder / SHAPE_FILE).read_text(encoding="utf-8"))
        return cls(lgb.Booster(model_str=(folder / FILE).read_text(encoding="utf-8")), shape["horizon_days"])


def pinball(days: Floats, predicted: Floats, quantile: float) -> float:
    """Mean pinball loss in days of one quantile (Koenker and Bassett 1978); ``days`` (n,) cut off at the horizon."""
    off = days - predicted
    return float(np.mean(np.maximum(quantile * off, (quantile - 1) * off)))
