"""Logistic regression: on recency, frequency and monetary value as a baseline, and ridge-regularised on every feature as a candidate."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from training.models.base import Floats, Member, Model, Report, Rows, sigmoid, weights
from training.models.scaling import Scaler

RFM = ("recency_days", "frequency_orders", "monetary_net")
ROUND = 1


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
    def fit_on(cls, train: Rows, features: tuple[str, ...], C: float = 1.0, weight: Floats | None = None) -> "Logistic":
        """Fit on the named features."""
        from sklearn.linear_model import LogisticRegression

        x_NF = train.x_NF[:, [train.names.index(name) for name in features]]
        scaler = Scaler.fit(x_NF)
        model = LogisticRegression(C=C, max_iter=200).fit(scaler.apply(x_NF), train.y, weight)
        return cls(features, scaler, model.coef_[0], float(model.intercept_[0]))

    def scaled(self, rows: Rows) -> Floats:
        """Inputs as the weights expect them, shape (n, features)."""
        if rows.names == self.features:
            return self.scaler.apply(rows.x_NF)
        return self.scaler.apply(rows.x_NF[:, [rows.names.index(name) for name in self.features]])

    def predict(self, rows: Rows) -> Floats:
        """Churn probability, shape (n,)."""
        return sigmoid(self.scaled(rows) @ self.weights + self.intercept)


class Ridge(Member):
    """Ridge-regularised logistic regression on every feature."""

    name = "logistic"
    requirements = ("scikit-learn",)
    file = "logistic.json"
    strong: ClassVar[Mapping[str, Any]] = {"C": 3e-3, "half_life_days": 0}

    def __init__(self, inner: Logistic) -> None:
        self.inner = inner

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """Strength of the ridge, and how fast old snapshots fade."""
        return {
            "C": trial.suggest_float("C", 1e-4, 1e-1, log=True),
            "half_life_days": trial.suggest_categorical("half_life_days", [0, 360]),
        }

    @classmethod
    def fit(cls, params: Mapping[str, Any], train: Rows, seed: int, valid: Rows | None = None, report: Report | None = None) -> "Ridge":
        """Fit; see `Member.fit`. There are no rounds to choose."""
        return cls(Logistic.fit_on(train, train.names, params["C"], weights(train, params.get("half_life_days", 0))))

    @property
    def rounds(self) -> int:
        """One fit."""
        return ROUND

    def predict(self, rows: Rows) -> Floats:
        """Uncalibrated churn probability, shape (n,)."""
        return self.inner.predict(rows)

    def contributions(self, rows: Rows) -> Floats:
        """Weight times scaled value: what each feature adds to the log odds of an average customer, shape (n, f)."""
        return self.inner.scaled(rows) * self.inner.weights

    def save(self, folder: Path) -> None:
        """Write weights and scaler as JSON."""
        inner = self.inner
        found = {
            "features": inner.features,
            "scaler": inner.scaler.to_json(),
            "weights": inner.weights.tolist(),
            "intercept": inner.intercept,
        }
        (folder / self.file).write_text(json.dumps(found), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Ridge":
        """Read what `save` wrote."""
        found = json.loads((folder / cls.file).read_text(encoding="utf-8"))
        return cls(Logistic(tuple(found["features"]), Scaler.from_json(found["scaler"]), np.array(found["weights"]), found["intercept"]))
