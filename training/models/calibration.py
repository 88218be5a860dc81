"""Probabilities that mean what they say: a monotone map of the log odds, fitted on out-of-time predictions of several snapshots.

The churn level of a past snapshot is one draw from a drifting level, so each snapshot's level is met before the map is fitted and left out
of it: the level ahead is the business of `level.py`. Of three maps the one with the least loss on snapshots it was not fitted on
is kept, as far as the rows allow: Platt (1999), beta (Kull et al. 2017) from 2,000 rows, isotonic from 20,000.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from training.models.base import Floats, level_shift, logit, sigmoid

SMALLEST = {"platt": 0, "beta": 2_000, "isotonic": 20_000}
"""Rows from which a map is a choice."""
KNOTS = 40
LEAST_SLOPE = 0.05
"""An isotonic map still rises by this, so that no ranking is lost."""
PRIOR = 1e-3
"""Ridge towards no change, a row: keeps a handful of rows from bending the map."""
Sample = tuple[Floats, Floats]
"""Out-of-time probabilities and labels of one snapshot."""


@dataclass(frozen=True)
class Calibration:
    """A monotone, piecewise linear or smooth map of log odds: ``platt`` (slope), ``beta`` (two slopes) or ``isotonic`` (knots)."""

    method: str
    params: list[float]

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> Self:
        """Fit on samples of different snapshots and choose the map by leaving one snapshot out (with one: Platt)."""
        rows = sum(p.size for p, _ in samples)
        allowed = [method for method, least in SMALLEST.items() if rows >= least] if len(samples) > 1 else ["platt"]
        loss = {method: cls._left_out(method, samples) for method in allowed} if len(allowed) > 1 else {"platt": 0.0}
        return cls._fit(min(loss, key=lambda method: loss[method]), samples)

    @classmethod
    def _left_out(cls, method: str, samples: Sequence[Sample]) -> float:
        total = 0.0
        for out, (p, y) in enumerate(samples):
            fitted = cls._fit(method, [sample for place, sample in enumerate(samples) if place != out])
            z = fitted.map(logit(p) + level_shift(logit(p), y))
            z = z + level_shift(z, y)
            total += float(np.sum(np.logaddexp(0, z) - y * z))
        return total

    @classmethod
    def _fit(cls, method: str, samples: Sequence[Sample]) -> Self:
        z = np.concatenate([logit(p) + level_shift(logit(p), y) for p, y in samples])
        y = np.concatenate([y for _, y in samples])
        place = np.repeat(np.arange(len(samples)), [p.size for p, _ in samples])
        return cls(method, _FITS[method](z, y, place))

    def map(self, z: Floats) -> Floats:
        """Calibrated log odds of raw log odds whose level is met; the map itself may move the level, which is met again after it."""
        if self.method == "platt":
            return self.params[0] * z
        if self.method == "beta":
            return self.params[0] * -np.logaddexp(0, -z) + self.params[1] * np.logaddexp(0, z)
        x, y = np.split(np.array(self.params), 2)
        inside = np.interp(z, x, y)
        return inside + np.minimum(z - x[0], 0.0) + np.maximum(z - x[-1], 0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**value)


def ridge_slopes(z_NK: Floats, y: Floats, place: Any, towards: float, ridge: float, least: float) -> list[float]:
    """Slopes, none under ``least``, of a logistic regression of ``y`` on log odds (n, k), drawn ``towards`` a value.

    ``place`` (n,) numbers the snapshots, each of which has an intercept of its own; the ridge is a row's.
    """
    from scipy.optimize import minimize

    hot = np.eye(place.max() + 1)[place]
    joint, slopes = np.hstack([z_NK, hot]), z_NK.shape[1]
    start = np.concatenate([np.full(slopes, towards), np.zeros(hot.shape[1])])

    def loss(w: Floats) -> tuple[float, Floats]:
        z, off = joint @ w, w[:slopes] - towards
        gradient = joint.T @ (sigmoid(z) - y) / y.size
        gradient[:slopes] += ridge * off
        return float(np.mean(np.logaddexp(0, z) - y * z) + ridge / 2 * off @ off), gradient

    bounds = [(least, None)] * slopes + [(None, None)] * hot.shape[1]
    return [float(value) for value in minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x[:slopes]]


def _platt(z: Floats, y: Floats, place: Any) -> list[float]:
    return ridge_slopes(z[:, None], y, place, 1.0, PRIOR, LEAST_SLOPE)


def _beta(z: Floats, y: Floats, place: Any) -> list[float]:
    return ridge_slopes(np.stack([-np.logaddexp(0, -z), np.logaddexp(0, z)], axis=1), y, place, 1.0, PRIOR, LEAST_SLOPE)


def _isotonic(z: Floats, y: Floats, place: Any) -> list[float]:
    """Knots of the isotonic regression of the labels, at quantiles of the log odds."""
    from sklearn.isotonic import IsotonicRegression

    rate = IsotonicRegression(y_min=0.005, y_max=0.995, out_of_bounds="clip").fit(z, y)
    edges = np.unique(np.quantile(z, np.linspace(0, 1, KNOTS + 1)))
    centre = np.array([z[(z >= low) & (z <= high)].mean() for low, high in itertools.pairwise(edges)])
    mean = np.array([rate.predict(z[(z >= low) & (z <= high)]).mean() for low, high in itertools.pairwise(edges)])
    mapped = logit(mean)
    rise = np.maximum(np.diff(mapped), LEAST_SLOPE * np.diff(centre))
    return [*centre.tolist(), *(mapped[0] + np.concatenate([[0.0], np.cumsum(rise)])).tolist()]


_FITS: dict[str, Callable[[Floats, Floats, Any], list[float]]] = {"platt": _platt, "beta": _beta, "isotonic": _isotonic}
