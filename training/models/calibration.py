"""Platt scaling that trusts the level of one snapshot only as far as levels hold from one to the next."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from training.models.base import Floats, level_shift, logit, sigmoid

LEVEL_SD = 0.25
"""How far, in log odds, a model trained on pooled snapshots is expected to be off in level (prior)."""
DRIFT_SD = 0.5
"""How far the level moves from snapshot to snapshot; measured on Online Retail II: see notebooks/LOG.md."""


@dataclass(frozen=True)
class Calibration:
    """``p' = sigmoid(slope * logit(p) + intercept)`` (Platt 1999), fitted on a later validation snapshot.

    The slope is fitted freely. The churn level of that snapshot is one draw from a drifting level, not the
    level of the next: of the shift b from the model's own mean to the observed one, only
    ``b * LEVEL_SD^2 / (LEVEL_SD^2 + DRIFT_SD^2)`` is kept, its posterior mean when the lasting part of the
    shift has the first standard deviation and the passing part the second.
    """

    slope: float
    intercept: float
    level_shift: float
    """The shift b from the model's mean to the observed churn rate of the calibration snapshot, in log odds."""

    @classmethod
    def fit(cls, p: Floats, y: Floats) -> Self:
        """Fit on out-of-time probabilities and labels of one snapshot."""
        from sklearn.linear_model import LogisticRegression

        z = logit(p)
        slope = float(LogisticRegression(C=1e6).fit(z[:, None], y).coef_[0, 0])
        keeps_mean, meets_labels = level_shift(slope * z, p), level_shift(slope * z, y)
        shift = meets_labels - keeps_mean
        return cls(slope, keeps_mean + shift * LEVEL_SD**2 / (LEVEL_SD**2 + DRIFT_SD**2), shift)

    def apply(self, p: Floats) -> Floats:
        """Calibrated probabilities, shape (n,)."""
        return sigmoid(self.slope * logit(p) + self.intercept)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**value)
