"""Optuna studies that can be killed at any trial and continue as if nothing had happened."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from training.config import TrainConfig
from training.dataset import TrainingData
from training.models.base import Candidate, level_free_log_loss

STARTUP_TRIALS = 5
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def tune(
    kind: type[Candidate],
    data: TrainingData,
    config: TrainConfig,
    database: Path,
    finished: Callable[[int, FrozenTrial], None] = lambda number, trial: None,
) -> optuna.Study:
    """Run a model's study to its number of trials; returns the study with every finished trial.

    Each trial fits on the base snapshots and is judged by its `level_free_log_loss` on the validation snapshots. The
    sampler's seed comes from the study's seed and the number of finished trials, and a trial that a kill
    left running is failed first, so that a resumed study suggests what an undisturbed one would.
    """
    optuna.logging.set_verbosity(logging.WARNING)
    base, valid = data.at(data.split.base), data.at(data.split.validation)
    study = open_study(kind, data, config, database)

    def objective(trial: optuna.Trial) -> float:
        def report(step: int, loss: float) -> None:
            trial.report(loss, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        model = kind.fit(kind.suggest(trial), base, config.seed, valid, report)
        trial.set_user_attr("rounds", model.rounds)
        loss = level_free_log_loss(valid, model.predict(valid))
        if not math.isfinite(loss):  # Optuna would take -inf for the best value ever
            raise FloatingPointError(f"{kind.name}: validation loss is {loss}")
        return loss

    for number, trial in enumerate(done := finished_trials(study)):
        finished(number, trial)
    start = _now()
    for number in range(len(done), config.trials_of(kind.name)):
        if config.timeout is not None and _now() - start > config.timeout and finished_trials(study):
            break
        study.sampler = _sampler(config.seed + number)
        study.optimize(objective, n_trials=1)
        finished(number, finished_trials(study)[-1])
    return study


def open_study(kind: type[Candidate], data: TrainingData, config: TrainConfig, database: Path) -> optuna.Study:
    """Create or reopen a model's study and fail trials that a kill left running."""
    storage = RDBStorage(f"sqlite:///{database}")
    study = optuna.create_study(
        study_name=f"{kind.name}-{config.study_fingerprint(data.fingerprint)}",
        storage=storage,
        direction="minimize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1),
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    return study


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Complete and pruned trials in order."""
    return study.get_trials(deepcopy=False, states=FINISHED)


def best_params(study: optuna.Study, trials: int) -> dict[str, Any]:
    """Hyper-parameters and rounds of the best of the first ``trials`` finished trials."""
    complete = [t for t in finished_trials(study)[:trials] if t.state == TrialState.COMPLETE]
    best = min(complete, key=lambda trial: (trial.value, trial.number))
    return {**best.params, "rounds": max(1, int(best.user_attrs["rounds"]))}


def _sampler(seed: int) -> optuna.samplers.TPESampler:
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True)


def _now() -> float:
    import time

    return time.monotonic()
