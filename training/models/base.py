"""The small interface of every model, and the rows it learns from and predicts.

A model maps rows to churn probabilities (n,). A *candidate* (LightGBM, LSTM) can also be saved, loaded
without pickle, and explain a prediction.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features import sequences
from features.table import KEYS, LABEL, WEEKLY

Floats = npt.NDArray[np.float64]
Report = Callable[[int, float], None]
"""Called with (step, level-free validation log loss); may raise to prune the trial."""


@dataclass(frozen=True)
class Rows:
    """n rows of a feature table as arrays.

    ``x_NF``: features (n, f), NaN where unknown; ``weeks_NWC``: weekly sequences (n, weeks, channels) float32;
    ``y``: 1.0 churned, 0.0 not, NaN unlabelled; ``snapshot``: datetime64.
    """

    names: tuple[str, ...]
    x_NF: Floats
    weeks_NWC: npt.NDArray[np.float32]
    y: Floats
    snapshot: npt.NDArray[np.datetime64]

    @classmethod
    def of(cls, table: pa.Table, names: list[str], channels: int) -> "Rows":
        """Arrays of a feature table whose weekly sequences have so many channels."""
        n = table.num_rows
        x_NF = np.column_stack([table[name].to_numpy() for name in names]) if n else np.empty((0, len(names)))
        weeks_NWC = sequences.dense(table[WEEKLY[0]].combine_chunks(), table[WEEKLY[1]].combine_chunks(), channels)
        y = table[LABEL].to_numpy() if LABEL in table.column_names else np.full(n, np.nan)
        snapshot = table[KEYS[1]].to_numpy() if KEYS[1] in table.column_names else np.full(n, np.datetime64("NaT"))
        return cls(tuple(names), x_NF, weeks_NWC, y, snapshot)

    def __len__(self) -> int:
        return len(self.y)

    def column(self, name: str) -> Floats:
        """One feature, shape (n,)."""
        return self.x_NF[:, self.names.index(name)]

    def at(self, mask: npt.NDArray[Any]) -> "Rows":
        """The rows for which ``mask`` (n,) holds, or those at the given positions."""
        return Rows(self.names, self.x_NF[mask], self.weeks_NWC[mask], self.y[mask], self.snapshot[mask])


class Model(ABC):
    """A fitted churn model."""

    name: ClassVar[str]

    @abstractmethod
    def predict(self, rows: Rows) -> Floats:
        """Uncalibrated churn probability of each row, shape (n,)."""


class Candidate(Model):
    """A model that may be registered, promoted and served."""

    requirements: ClassVar[tuple[str, ...]]
    """Packages that loading it needs."""

    @classmethod
    @abstractmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """Hyper-parameters of an Optuna trial."""

    @classmethod
    @abstractmethod
    def fit(cls, params: Mapping[str, Any], train: Rows, seed: int, valid: Rows | None = None, report: Report | None = None) -> Self:
        """Fit on ``train``; with ``valid`` stop early on its `level_free_log_loss`, without it use ``params["rounds"]``."""

    @property
    @abstractmethod
    def rounds(self) -> int:
        """Boosting rounds or epochs in force: what a refit on more snapshots repeats."""

    @abstractmethod
    def contributions(self, rows: Rows) -> Floats:
        """What each feature adds to the log odds of churn, shape (n, f)."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model's files, none of them pickle."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""


def logit(p: Floats) -> Floats:
    """Log odds, clipped so that they stay finite."""
    q = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(q) - np.log1p(-q)


def sigmoid(z: Floats) -> Floats:
    """Inverse of `logit`."""
    return 0.5 * (1 + np.tanh(0.5 * z))


def level_shift(z: Floats, y: Floats) -> float:
    """The shift b for which ``sigmoid(z + b)`` has the mean of ``y``: Newton's method on the log loss."""
    shift = 0.0
    for _ in range(25):
        p = sigmoid(z + shift)
        step = float((y - p).sum() / max(float((p * (1 - p)).sum()), 1e-9))
        shift += max(-2.0, min(2.0, step))
        if abs(step) < 1e-9:
            break
    return shift


def level_free_log_loss(rows: Rows, p: Floats) -> float:
    """Mean negative log likelihood after each snapshot's level has been met: tuning and early stopping.

    Between training and validation the overall churn level drifts with the season; which customers are
    likelier to leave is what a study can learn. The level is the business of `calibration.py`.
    """
    z, total = logit(p), 0.0
    for moment in np.unique(rows.snapshot):
        here = rows.snapshot == moment
        shifted = z[here] + level_shift(z[here], rows.y[here])
        total += float(np.sum(np.logaddexp(0, shifted) - rows.y[here] * shifted))
    return total / len(rows)
