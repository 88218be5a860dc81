"""What a test says of calibrated models, beyond the metrics: bands, calibration by group, the level, the time to the next order."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from features import table
from features.domain import RISK_HIGH, WARNING_ACCURACY_TARGET
from training.config import TrainConfig
from training.dataset import TrainingData
from training.models.base import Floats, Rows
from training.models.timing import QUANTILES, Timing, pinball
from validation import metrics
from validation.metrics import with_intervals

GROUPS = ("lifecycle_stage", "value_segment")
GROUP_ROWS = 50
"""Smaller groups are not told: too few to say anything, and too few persons to show."""
VALUE = "clv_365d"


def tested(data: TrainingData, test: Rows, probabilities: Mapping[str, Floats], config: TrainConfig) -> dict[str, Any]:
    """Metrics with intervals of every model on the same test rows, and the details of the chosen ones."""
    return {
        "snapshot": str(data.split.test.date()),
        "rows": len(test),
        "churn_rate": float(test.y.mean()),
        "models": {name: with_intervals(test.y, p, config.bootstrap_draws, config.seed) for name, p in probabilities.items()},
    }


def details(data: TrainingData, test: Rows, p: Floats, config: TrainConfig) -> dict[str, Any]:
    """Of one model: the high band, the warning target, thresholds, Brier's parts, calibration by group, and what was to be expected."""
    found: dict[str, Any] = {
        "high_band": metrics.band(test.y, p, RISK_HIGH),
        "accuracy_target": WARNING_ACCURACY_TARGET,
        "accuracy": metrics.accuracy(test.y, p),
        "brier_parts": metrics.brier_parts(test.y, p),
        "estimated": metrics.estimated(p),
        "groups": _groups(data, test, p, config),
    }
    if VALUE in test.names:
        value = np.nan_to_num(test.column(VALUE)) * data.manifest.horizon_days / 365
        found["gain_threshold"] = metrics.best_threshold(test.y, p, value, config.contact_effect, config.contact_cost)
    return found


def _groups(data: TrainingData, test: Rows, p: Floats, config: TrainConfig) -> dict[str, Any]:
    """Calibration of each lifecycle stage and value segment: predicted and observed rate, calibration error with its interval."""
    rows = table.read(data.path, [data.split.test])
    found: dict[str, Any] = {}
    for column in (name for name in GROUPS if name in rows.column_names):
        values = np.array(rows[column].to_pylist())
        for value in sorted(set(values.tolist())):
            inside = values == value
            if inside.sum() >= GROUP_ROWS:
                y, q = test.y[inside], p[inside]
                error = with_intervals(y, q, config.bootstrap_draws, config.seed, {"ece": metrics.ece})["ece"]
                found[f"{column}: {value}"] = {
                    "rows": int(inside.sum()),
                    "predicted": float(q.mean()),
                    "observed": float(y.mean()),
                    "ece": error,
                }
    return found


def timing(model: Timing, train: Rows, test: Rows, p: Floats) -> dict[str, Any]:
    """Pinball loss in days of the next order's quantiles, against the same quantiles of the training rows for everybody."""
    horizon = float(model.horizon_days)
    days, past = (np.where(np.isnan(rows.days), horizon, rows.days) for rows in (test, train))
    found = model.quantiles(test, p)
    plain = np.quantile(past, QUANTILES)
    losses = {
        str(quantile): [pinball(days, found[:, place], quantile), pinball(days, np.full(days.size, plain[place]), quantile)]
        for place, quantile in enumerate(QUANTILES)
    }
    inside = (days >= found[:, 0]) & (days <= found[:, -1])
    return {"pinball_days": losses, "covered": float(inside.mean()), "wanted": QUANTILES[-1] - QUANTILES[0]}
