"""Optuna studies that can be killed at any trial and continue as if nothing had happened, alone or with several workers."""

import logging
import math
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from features.errors import InputError
from training.config import TrainConfig
from training.dataset import TrainingData
from training.models.base import Member, Rows, level_free_log_loss
from training.models.scorer import members

STARTUP_TRIALS = 5
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
FOLD_ROWS = 60_000
"""Training rows of a fold, at most: neighbouring snapshots of a customer tell nearly the same."""
HEARTBEAT_SECONDS, STALE_SECONDS = 20, 90
MOST_FAILURES = 3
"""Trials in a row that may fail before the study is given up."""
Told = Callable[[int, FrozenTrial], None]


def tune(
    kind: type[Member], data: TrainingData, config: TrainConfig, storage: str, told: Told = lambda number, trial: None
) -> optuna.Study:
    """Run a model's study to its number of trials; returns the study with every finished trial.

    Each trial fits on the snapshots before each validation origin and is judged by its `level_free_log_loss` there, the mean over
    origins; after each one the pruner may end it. The first trial is the model's ``strong`` one. Alone, a study resumed after a kill
    suggests what an undisturbed one would: the sampler's seed comes from the study's seed and the number of finished trials, and the
    killed trial is run again. With ``config.workers``, or others on the same storage, a trial whose heartbeat stops is queued again,
    and suggestions are not reproducible.

    Raises InputError when trials keep failing.
    """
    study = open_study(kind, data, config, storage)
    asked = config.trials_of(kind.name)
    for number, trial in enumerate(finished_trials(study)):
        told(number, trial)
    with _helpers(kind, data, config, storage, asked - len(finished_trials(study))):
        _work(study, kind, data, config, asked, _shared(config, storage), told)
    return study


def open_study(kind: type[Member], data: TrainingData, config: TrainConfig, storage: str) -> optuna.Study:
    """Create or reopen a model's study; alone, with the trials failed that a kill left running."""
    optuna.logging.set_verbosity(logging.WARNING)
    shared = _shared(config, storage)
    heartbeat = {"heartbeat_interval": HEARTBEAT_SECONDS, "grace_period": STALE_SECONDS} if shared else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        again = RetryHeartbeatStaleTrialCallback() if shared else None
        database = _opened(storage, failed_trial_callback=again, **heartbeat)
    name = f"{kind.name}-{config.study_fingerprint(data.fingerprint)}"
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS)
    study = optuna.create_study(study_name=name, storage=database, direction="minimize", load_if_exists=True, pruner=pruner)
    if not shared:
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            database.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    if not finished_trials(study):
        study.enqueue_trial(dict(kind.strong), skip_if_exists=shared)
    return study


def _opened(storage: str, **options: Any) -> RDBStorage:
    """The storage; its URL may hold a password and is never told."""
    try:
        return RDBStorage(storage, **options)
    except (SQLAlchemyError, ImportError, optuna.exceptions.StorageInternalError) as error:
        fix = "give the URL of a server that answers: postgresql+psycopg://user:password@host/database (pip install 'holdfast[postgres]')"
        raise InputError("HOLDFAST_STUDY_STORAGE", f"cannot be opened ({type(error).__name__})", fix) from None


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Complete and pruned trials in order."""
    return study.get_trials(deepcopy=False, states=FINISHED)


def best_params(study: optuna.Study, trials: int) -> dict[str, Any]:
    """Hyper-parameters and rounds of the best of the first ``trials`` finished trials."""
    complete = [t for t in finished_trials(study)[:trials] if t.state == TrialState.COMPLETE]
    best = min(complete, key=lambda trial: (trial.value, trial.number))
    return {**best.params, "rounds": max(1, int(best.user_attrs["rounds"]))}


def _shared(config: TrainConfig, storage: str) -> bool:
    """Whether others may work on the study at the same time."""
    return config.workers > 1 or not storage.startswith("sqlite")


def _work(study: optuna.Study, kind: type[Member], data: TrainingData, config: TrainConfig, asked: int, shared: bool, told: Told) -> None:
    """Trials one by one until the study has as many as asked or the time is over."""
    objective, start, failures = _objective(kind, data, config), time.monotonic(), 0
    while (done := len(finished_trials(study))) < asked:
        if config.timeout is not None and time.monotonic() - start > config.timeout and done:
            return
        seed = None if shared else config.seed + done  # workers with one seed would suggest the same
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=shared)
        study.optimize(objective, n_trials=1, catch=(FloatingPointError,))
        now = finished_trials(study)
        failures = 0 if len(now) > done else failures + 1
        if failures >= MOST_FAILURES:
            last = study.get_trials(deepcopy=False)[-1]
            raise InputError(
                f"study {study.study_name}", f"{failures} trials in a row failed ({last.params})", "look for columns beyond 1e300"
            )
        for place in range(done, len(now)):
            told(place, now[place])


def _objective(kind: type[Member], data: TrainingData, config: TrainConfig) -> Callable[[optuna.Trial], float]:
    folds = [(_capped(data.before(origin), config.seed), data.at([origin])) for origin in data.split.validation]

    def objective(trial: optuna.Trial) -> float:
        params, losses, rounds = kind.suggest(trial), [], 1
        for step, (train, valid) in enumerate(folds):
            model = kind.fit(params, train, config.seed, valid)
            rounds = model.rounds
            losses.append(level_free_log_loss(valid, model.predict(valid)))
            if not math.isfinite(losses[-1]):  # Optuna would take -inf for the best value ever
                raise FloatingPointError(f"{kind.name}: validation loss is {losses[-1]}")
            trial.report(float(np.mean(losses)), step)
            if step + 1 < len(folds) and trial.should_prune():
                raise optuna.TrialPruned
        trial.set_user_attr("rounds", rounds)
        return float(np.mean(losses))

    return objective


def _capped(rows: Rows, seed: int) -> Rows:
    if len(rows) <= FOLD_ROWS:
        return rows
    return rows.at(np.sort(np.random.default_rng(seed).choice(len(rows), FOLD_ROWS, replace=False)))


def end_with_parent() -> None:
    """Let this process end when the one that started it is gone, killed or not: nobody would collect what it does."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _helpers(kind: type[Member], data: TrainingData, config: TrainConfig, storage: str, trials: int) -> Iterator[None]:
    """Further processes that work on the same study while the body runs; an end of the body by error ends them."""
    spawn = multiprocessing.get_context("spawn")
    helpers = [
        spawn.Process(target=_help, args=(kind.name, data.path, config, storage), daemon=True)
        for _ in range(min(config.workers, trials) - 1)
    ]
    for helper in helpers:
        helper.start()
    try:
        yield
        for helper in helpers:
            helper.join()
    finally:
        for helper in helpers:
            helper.terminate()


def _help(name: str, path: Path, config: TrainConfig, storage: str) -> None:
    end_with_parent()
    kind, data = members()[name], TrainingData.read(path)
    _work(open_study(kind, data, config, storage), kind, data, config, config.trials_of(name), True, lambda number, trial: None)
