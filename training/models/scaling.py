"""Skewed features with gaps -> bounded, centred inputs for linear models and networks."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from training.models.base import Floats

CLIP = 5.0


@dataclass(frozen=True)
class Scaler:
    """sign(x) log(1 + |x|), centred and scaled by the training rows, clipped at 5; NaN becomes 0 (the mean)."""

    mean: Floats
    scale: Floats

    @classmethod
    def fit(cls, x_NF: Floats) -> Self:
        """Learn mean and scale of each column; a column that never varies or is never known gets scale 1."""
        with np.errstate(invalid="ignore"):
            z_NF = _squash(x_NF)
            known = np.isfinite(z_NF)
            count = np.maximum(known.sum(axis=0), 1)
            mean = np.where(known, z_NF, 0).sum(axis=0) / count
            scale = np.sqrt(np.where(known, (z_NF - mean) ** 2, 0).sum(axis=0) / count)
        return cls(mean, np.where(scale > 1e-12, scale, 1.0))

    def apply(self, x_NF: Floats) -> Floats:
        """Scaled inputs, same shape, all finite."""
        z_NF = (_squash(x_NF) - self.mean) / self.scale
        return np.clip(np.nan_to_num(z_NF, nan=0.0), -CLIP, CLIP)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(np.array(value["mean"]), np.array(value["scale"]))


def _squash(x_NF: Floats) -> Floats:
    return np.sign(x_NF) * np.log1p(np.abs(x_NF))
