"""Gradient-boosted trees on the feature row."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from training.models.base import Candidate, Floats, Report, Rows, level_free_log_loss

MAX_ROUNDS = 1500
PATIENCE_ROUNDS = 40
REPORT_EVERY = 20
FIXED = {
    "objective": "binary",
    "metric": "None",
    "verbosity": -1,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "bagging_freq": 1,
    "max_bin": 127,
}
"""`deterministic` with a fixed histogram layout and thread count gives the same bytes from the same seed. One thread:
on a machine that does anything else beside, two that wait for each other took several times as long."""

RISING = ("recency_days",)
"""Longer silence never lowers the risk: monotone by the definition of churn."""


class LightGBM(Candidate):
    """A booster in LightGBM's own text format."""

    name = "lightgbm"
    requirements = ("lightgbm",)
    file = "model.lgb"

    def __init__(self, booster: lgb.Booster) -> None:
        self.booster = booster

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """Small, strongly regularised trees: pooled snapshots repeat each customer many times."""
        return {
            "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.08, log=True),
            "num_leaves": trial.suggest_int("num_leaves", 7, 63, log=True),
            "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 50, 600, log=True),
            "feature_fraction": trial.suggest_float("feature_fraction", 0.1, 0.7),
            "bagging_fraction": trial.suggest_float("bagging_fraction", 0.4, 0.9),
            "lambda_l2": trial.suggest_float("lambda_l2", 1.0, 100.0, log=True),
            "extra_trees": trial.suggest_categorical("extra_trees", [False, True]),
            "path_smooth": trial.suggest_float("path_smooth", 0.1, 50.0, log=True),
        }

    @classmethod
    def fit(cls, params: Mapping[str, Any], train: Rows, seed: int, valid: Rows | None = None, report: Report | None = None) -> "LightGBM":
        """Fit; see `Candidate.fit`."""
        given = {key: value for key, value in params.items() if key != "rounds"}
        data = lgb.Dataset(train.x_NF, train.y, feature_name=list(train.names), free_raw_data=True)
        rising = [int(name in RISING) for name in train.names]
        settings = {**FIXED, **given, "seed": seed, "monotone_constraints": rising}
        if valid is None:
            return cls(lgb.train(settings, data, num_boost_round=params["rounds"]))
        held_out = lgb.Dataset(valid.x_NF, valid.y, reference=data)
        callbacks: list[Any] = [lgb.early_stopping(PATIENCE_ROUNDS, verbose=False)]
        if report is not None:
            callbacks.append(_reporting(report))

        def loss(p: Floats, _: lgb.Dataset) -> tuple[str, float, bool]:
            return "level_free_log_loss", level_free_log_loss(valid, p), False

        return cls(lgb.train(settings, data, MAX_ROUNDS, valid_sets=[held_out], valid_names=["valid"], feval=loss, callbacks=callbacks))

    @property
    def rounds(self) -> int:
        """Trees in force."""
        return int(self.booster.best_iteration if self.booster.best_iteration > 0 else self.booster.current_iteration())

    def predict(self, rows: Rows) -> Floats:
        """Uncalibrated churn probability, shape (n,)."""
        if not len(rows):
            return np.empty(0)
        return np.asarray(self.booster.predict(rows.x_NF, num_iteration=self.rounds, num_threads=1))

    def contributions(self, rows: Rows) -> Floats:
        """SHAP values in log odds, shape (n, f) (Lundberg et al. 2018, as built into LightGBM)."""
        found = self.booster.predict(rows.x_NF, num_iteration=self.rounds, pred_contrib=True, num_threads=1)
        return np.asarray(found)[:, :-1]

    def save(self, folder: Path) -> None:
        """Write the booster as text."""
        (folder / self.file).write_text(self.booster.model_to_string(num_iteration=self.rounds), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "LightGBM":
        """Read the text; callers verify its digest first, since a corrupt text kills the process."""
        return cls(lgb.Booster(model_str=(folder / cls.file).read_text(encoding="utf-8")))


def _reporting(report: Report) -> Any:
    def callback(env: Any) -> None:
        if env.iteration % REPORT_EVERY == 0 and env.evaluation_result_list:
            report(env.iteration, float(env.evaluation_result_list[0][2]))

    return callback
