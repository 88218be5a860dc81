"""Baseline of a table whose columns mean nothing to us: the one column that tells most."""

from dataclasses import dataclass

import numpy as np

from training.models.base import Floats, Model, Rows
from training.models.logistic import Logistic
from training.models.scaling import Scaler


@dataclass(frozen=True)
class BestColumn(Model):
    """Logistic regression on the column that goes with the label most closely in the training rows."""

    inner: Logistic
    name = "best_column"

    @classmethod
    def fit(cls, train: Rows, horizon_days: int) -> "BestColumn":
        """Fit on labelled rows."""
        z_NF = Scaler.fit(train.x_NF).apply(train.x_NF)
        z_NF -= z_NF.mean(axis=0)
        spread = np.maximum(z_NF.std(axis=0), 1e-12)
        together = np.abs(z_NF.T @ (train.y - train.y.mean())) / spread
        return cls(Logistic.fit_on(train, (train.names[int(together.argmax())],)))

    def predict(self, rows: Rows) -> Floats:
        """Churn probability, shape (n,)."""
        return self.inner.predict(rows)
