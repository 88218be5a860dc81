"""Baseline: logistic regression on recency, frequency and monetary value."""

from dataclasses import dataclass

from training.models.base import Floats, Model, Rows, sigmoid
from training.models.scaling import Scaler

RFM = ("recency_days", "frequency_orders", "monetary_net")


@dataclass(frozen=True)
class Logistic(Model):
    """Logistic regression on a few scaled log features, L2-regularised."""

    features: tuple[str, ...]
    scaler: Scaler
    weights: Floats
    intercept: float
    name = "logistic_rfm"

    @classmethod
    def fit(cls, train: Rows, horizon_days: int) -> "Logistic":
        """Fit on labelled rows."""
        return cls.fit_on(train, RFM)

    @classmethod
    def fit_on(cls, train: Rows, features: tuple[str, ...]) -> "Logistic":
        """Fit on the named features."""
        from sklearn.linear_model import LogisticRegression

        x_NF = train.x_NF[:, [train.names.index(name) for name in features]]
        scaler = Scaler.fit(x_NF)
        model = LogisticRegression(C=1.0).fit(scaler.apply(x_NF), train.y)
        return cls(features, scaler, model.coef_[0], float(model.intercept_[0]))

    def predict(self, rows: Rows) -> Floats:
        """Churn probability, shape (n,)."""
        x_NF = rows.x_NF[:, [rows.names.index(name) for name in self.features]]
        return sigmoid(self.scaler.apply(x_NF) @ self.weights + self.intercept)
