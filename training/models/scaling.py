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
        z_NF = _squash(x_NF)
        z_NF -= self.mean
        z_NF /= self.scale
        np.minimum(z_NF, CLIP, out=z_NF)
        np.maximum(z_NF, -CLIP, out=z_NF)
        z_NF[np.isnan(z_NF)] = 0.0
        return z_NF

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(np.array(value["mean"]), np.array(value["scale"]))


def _squash(x_NF: Floats) -> Floats:
    z_NF = np.abs(x_NF)
    np.log1p(z_NF, out=z_NF)
    return np.asarray(np.copysign(z_NF, x_NF, out=z_NF))
