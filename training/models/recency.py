"""Baseline: the longer the silence, the likelier the churn; nothing else is looked at."""

from dataclasses import dataclass

from training.models.base import Floats, Model, Rows
from training.models.logistic import Logistic


@dataclass(frozen=True)
class Recency(Model):
    """Logistic regression on the logarithm of recency."""

    inner: Logistic
    name = "recency"

    @classmethod
    def fit(cls, train: Rows, horizon_days: int) -> "Recency":
        """Fit on labelled rows."""
        return cls(Logistic.fit_on(train, ("recency_days",)))

    def predict(self, rows: Rows) -> Floats:
        """Churn probability, shape (n,)."""
        return self.inner.predict(rows)
