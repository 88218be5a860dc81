"""Gradient-boosted trees on the feature row: the mean log odds of a few seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightgbm as lgb
import numpy as np

from training.models.base import Floats, Member, Report, Rows, level_free_log_loss, sigmoid, weights
from training.models.parallel import each, slices
from training.models.single import SingleRow

MAX_ROUNDS = 600
PATIENCE_ROUNDS = 30
EVALUATE_EVERY = 5
PART_ROWS = 256
"""Rows a thread predicts at a time. LightGBM's own threads wait for each other in every call, badly where a core is busy."""
SEEDS = 3
"""Boosters whose log odds are averaged in a final model; a trial of a study fits one."""
FIXED = {
    "objective": "binary",
    "metric": "None",
    "verbosity": -1,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "bagging_freq": 1,
    "max_bin": 127,
    "feature_pre_filter": False,
}
"""`deterministic` with a fixed histogram layout and thread count gives the same bytes from the same seed. One thread:
on a machine that does anything else beside, two that wait for each other took several times as long."""

RISING = ("recency_days", "recency_over_tenure", "silence_over_gap_mean", "silence_over_gap_median", "silence_over_gap_max", "silence_z")
FALLING = ("r_score",)
"""Longer silence never lowers the risk: monotone by the definition of churn."""
OURS = ("rounds", "half_life_days", "equal_snapshots", "seeds")
"""Parameters that are not LightGBM's."""


class LightGBM(Member):
    """Boosters in LightGBM's own text format."""

    name = "lightgbm"
    requirements = ("lightgbm",)
    file = "model.lgb"
    strong: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 0.06,
        "num_leaves": 15,
        "min_data_in_leaf": 200,
        "feature_fraction": 0.3,
        "bagging_fraction": 0.6,
        "lambda_l2": 20.0,
        "extra_trees": True,
        "path_smooth": 50.0,
        "half_life_days": 0,
        "equal_snapshots": False,
    }

    def __init__(self, boosters: Sequence[lgb.Booster]) -> None:
        self.boosters = list(boosters)
        self._singles: list[SingleRow] | None = None

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """Small, strongly regularised trees: pooled snapshots repeat each customer many times. Old snapshots may fade."""
        return {
            "learning_rate": trial.suggest_float("learning_rate", 0.03, 0.1, log=True),
            "num_leaves": trial.suggest_int("num_leaves", 7, 31, log=True),
            "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 50, 600, log=True),
            "feature_fraction": trial.suggest_float("feature_fraction", 0.1, 0.6),
            "bagging_fraction": trial.suggest_float("bagging_fraction", 0.4, 0.9),
            "lambda_l2": trial.suggest_float("lambda_l2", 1.0, 200.0, log=True),
            "extra_trees": trial.suggest_categorical("extra_trees", [False, True]),
            "path_smooth": trial.suggest_float("path_smooth", 1.0, 200.0, log=True),
            "half_life_days": trial.suggest_categorical("half_life_days", [0, 180, 360]),
            "equal_snapshots": trial.suggest_categorical("equal_snapshots", [False, True]),
        }

    @classmethod
    def fit(cls, params: Mapping[str, Any], train: Rows, seed: int, valid: Rows | None = None, report: Report | None = None) -> "LightGBM":
        """Fit; see `Member.fit`."""
        given = {key: value for key, value in params.items() if key not in OURS}
        weight = weights(train, params.get("half_life_days", 0), params.get("equal_snapshots", False))
        data = lgb.Dataset(train.x_NF, train.y, weight=weight, feature_name=_plain_names(train.names), free_raw_data=False)
        settings = {**FIXED, **given, "seed": seed, "monotone_constraints": [(n in RISING) - (n in FALLING) for n in train.names]}
        if valid is None:
            seeds = [seed + 1000 * k for k in range(params.get("seeds", SEEDS))]
            return cls([lgb.train(settings | {"seed": one}, data, params["rounds"]) for one in seeds])
        return cls([_stopped_early(lgb.Booster(settings, data), valid, report)])

    @property
    def rounds(self) -> int:
        """Trees in force, of each booster."""
        first = self.boosters[0]
        return int(first.best_iteration if first.best_iteration > 0 else first.current_iteration())

    def predict(self, rows: Rows) -> Floats:
        """Uncalibrated churn probability, shape (n,)."""
        if len(rows) == 1:
            return sigmoid(np.mean([one(rows.x_NF[0]) for one in self._single_rows()], axis=0))
        return sigmoid(self._mean(rows, (), raw_score=True))

    def contributions(self, rows: Rows) -> Floats:
        """SHAP values in log odds, shape (n, f) (Lundberg et al. 2018, as built into LightGBM)."""
        return self._mean(rows, (rows.x_NF.shape[1] + 1,), pred_contrib=True)[:, :-1]

    def _mean(self, rows: Rows, shape: tuple[int, ...], **options: bool) -> Floats:
        """The boosters' mean, (n, *shape), in threads of our own where there are many rows."""
        found = np.empty((len(rows), *shape))

        def fill(part: slice) -> None:
            some = rows.x_NF[part]
            each_booster = [booster.predict(some, num_iteration=self.rounds, num_threads=1, **options) for booster in self.boosters]
            found[part] = np.mean(each_booster, axis=0)

        each(fill, list(slices(len(rows), PART_ROWS)), len(rows), PART_ROWS)
        return found

    def _single_rows(self) -> list[SingleRow]:
        """The boosters prepared for rows that come alone."""
        if self._singles is None or len(self._singles) != len(self.boosters):
            self._singles = [SingleRow(booster, self.rounds) for booster in self.boosters]
        return self._singles

    def save(self, folder: Path) -> None:
        """Write the boosters as text."""
        for number, booster in enumerate(self.boosters):
            text = booster.model_to_string(num_iteration=self.rounds)
            (folder / f"{self.file}.{number}").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "LightGBM":
        """Read the texts; callers verify their digests first, since a corrupt text kills the process."""
        files = sorted(folder.glob(f"{cls.file}.*"))
        return cls([lgb.Booster(model_str=file.read_text(encoding="utf-8")) for file in files])


def _stopped_early(booster: lgb.Booster, valid: Rows, report: Report | None) -> lgb.Booster:
    """Boost until the level-free log loss on ``valid`` has not fallen for a while; only what new trees add is predicted anew."""
    score, best, best_round = np.zeros(len(valid)), np.inf, 0
    for done in range(EVALUATE_EVERY, MAX_ROUNDS + 1, EVALUATE_EVERY):
        for _ in range(EVALUATE_EVERY):
            booster.update()
        score += booster.predict(
            valid.x_NF, start_iteration=done - EVALUATE_EVERY, num_iteration=EVALUATE_EVERY, raw_score=True, num_threads=1
        )
        loss = level_free_log_loss(valid, sigmoid(score))
        if loss < best:
            best, best_round = loss, done
        if report is not None:
            report(done, loss)
        if done - best_round >= PATIENCE_ROUNDS:
            break
    booster.best_iteration = best_round
    return booster


def _plain_names(names: Sequence[str]) -> list[str]:
    """Names that LightGBM takes: it refuses JSON's special characters."""
    return [name if name.replace("_", "").isalnum() else f"column_{place}" for place, name in enumerate(names)]
