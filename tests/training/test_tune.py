"""Studies: killed at any moment they lose no finished trial, leave none running and suggest what an undisturbed one would."""

import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path

import numpy as np
import optuna
import pytest

from features.errors import InputError
from tests.conftest import Shop
from tests.features.test_places import SERVERS, postgres
from training import tune
from training.config import TrainConfig
from training.dataset import TrainingData
from training.models.lightgbm import LightGBM

CONFIG = TrainConfig(trials=40, seed=7)


@pytest.fixture(scope="module")
def table(fake_run: Shop) -> Path:
    return fake_run.places.features


def _study(path: str, storage: str) -> None:
    tune.tune(LightGBM, TrainingData.read(Path(path)), CONFIG, storage)


def finished(storage: str) -> list[tuple[dict, float | None, str]]:
    """Parameters, value and state of every finished trial."""
    study = optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage)
    return [(trial.params, trial.value, trial.state.name) for trial in tune.finished_trials(study)]


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_study_killed_at_random_moments_loses_no_trial_and_ends_as_if_undisturbed(table: Path, tmp_path: Path, times: int) -> None:
    quiet, killed = (f"sqlite:///{tmp_path / name}.db" for name in ("quiet", "killed"))
    _study(str(table), quiet)
    rng, kills, seen = np.random.default_rng(3), 0, 0
    spawn = multiprocessing.get_context("spawn")
    while kills < times:
        process = spawn.Process(target=_study, args=(str(table), killed))
        process.start()
        deadline = time.monotonic() + 60
        while not _running(tmp_path / "killed.db") and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.4))
        assert process.is_alive(), "the study ended before the last kill: give it more trials"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        now = len(finished(killed))
        assert now >= seen
        seen = now
    _study(str(table), killed)
    assert finished(killed) == finished(quiet)
    with sqlite3.connect(tmp_path / "killed.db") as db:
        assert db.execute("SELECT count(*) FROM trials WHERE state IN ('RUNNING', 'WAITING')").fetchone() == (0,)


def _running(database: Path) -> bool:
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
            return bool(db.execute("SELECT count(*) FROM trials WHERE state = 'RUNNING'").fetchone()[0])
    except sqlite3.OperationalError:
        return False


def test_workers_share_a_study_and_more_trials_continue_it(table: Path, tmp_path: Path) -> None:
    data, storage = TrainingData.read(table), f"sqlite:///{tmp_path / 'optuna.db'}"
    tune.tune(LightGBM, data, TrainConfig(trials=3, seed=7, workers=2), storage)
    first = finished(storage)
    tune.tune(LightGBM, data, TrainConfig(trials=6, seed=7, workers=2), storage)
    assert 3 <= len(first) <= 4  # both may end a trial at once
    assert finished(storage)[: len(first)] == first
    params = [str(sorted(trial[0].items())) for trial in finished(storage)]
    assert len(set(params)) == len(params) >= 6


def test_the_first_trial_is_the_strong_one_and_folds_roll_over_time(table: Path, tmp_path: Path) -> None:
    data = TrainingData.read(table)
    study = tune.tune(LightGBM, data, TrainConfig(trials=1, seed=7), f"sqlite:///{tmp_path / 'optuna.db'}")
    best = tune.best_params(study, 1)
    assert {name: best[name] for name in LightGBM.strong} == dict(LightGBM.strong)
    assert len(tune.finished_trials(study)[0].intermediate_values) == len(data.split.validation)
    for origin in data.split.validation:
        assert max(data.split.before(origin)) + data.split.horizon <= origin <= data.split.before(data.split.calibration[-1])[-1]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_losses_that_are_not_finite_fail_the_trial_and_then_the_study(
    table: Path, tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "level_free_log_loss", lambda rows, p: value)
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    with pytest.raises(InputError, match="3 trials in a row failed"):
        tune.tune(LightGBM, TrainingData.read(table), TrainConfig(trials=2, seed=7), storage)
    assert finished(storage) == []


@pytest.mark.skipif(not SERVERS, reason="PostgreSQL is not installed (Debian: postgresql)")
def test_on_postgresql_the_trial_of_a_killed_worker_is_queued_again(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its heartbeat stops; the next worker on the same storage takes its parameters up."""
    data, config = TrainingData.read(table), TrainConfig(trials=4, seed=7)
    with postgres() as storage:
        left = tune.open_study(LightGBM, data, config, storage)
        lost = left.ask()
        params = LightGBM.suggest(lost)
        left._storage.record_heartbeat(lost._trial_id)  # type: ignore[attr-defined]
        monkeypatch.setattr(tune, "STALE_SECONDS", 1)
        time.sleep(3)
        study = tune.tune(LightGBM, data, config, storage)
        states = [trial.state.name for trial in study.get_trials()]
        assert states[lost.number] == "FAIL"
        assert not {"RUNNING", "WAITING"} & set(states)
        assert len(tune.finished_trials(study)) == 4
        assert params in [trial.params for trial in tune.finished_trials(study)]


@pytest.mark.parametrize("url", ["postgresql+psycopg://u:secret@127.0.0.1:1/none", "nonsense", "postgresql+nodriver://u:secret@h/d"])
def test_a_storage_that_cannot_be_opened_is_told_without_its_password(table: Path, url: str) -> None:
    with pytest.raises(InputError, match="HOLDFAST_STUDY_STORAGE") as told:
        tune.open_study(LightGBM, TrainingData.read(table), CONFIG, url)
    assert "secret" not in str(told.value)
