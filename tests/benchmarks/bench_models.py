"""Models on the pooled table of Online Retail II (a snapshot every 15 days): a study, an epoch, batch predictions.

The rivals are the figures wanted, and, for predictions, LightGBM's own scikit-learn interface on a pandas frame.
"""

import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import lightgbm
import pandas as pd

from features import mapping
from features.mapping import Snapshots
from features.settings import Settings
from tests.benchmarks.result import Result
from training import tune
from training.config import TrainConfig
from training.dataset import TrainingData
from training.models import lstm
from training.models.lightgbm import LightGBM
from training.models.lstm import LSTM
from validation.stages import Places, build_features, validate

TRIALS, STUDY_SECONDS, EPOCH_SECONDS = 50, 480.0, 60.0
TREE_ROWS_A_SECOND, LSTM_ROWS_A_SECOND = 50_000.0, 10_000.0


def run() -> Iterator[Result]:
    """Seconds of a study and of an epoch, rows a second of predictions."""
    dataset = mapping.read().model_copy(update={"snapshots": Snapshots(first=date(2010, 2, 1), test=date(2011, 9, 1), every=15)})
    with tempfile.TemporaryDirectory() as folder:
        places = Places.of(Settings(home=Path(folder)), dataset)
        validate(dataset, places)
        build_features(dataset, places)
        data = TrainingData.read(places.features)
        rows = data.before(data.split.test)
        size = f"{len(rows):,} rows x {len(rows.names)} features"
        start = time.perf_counter()
        study = tune.tune(LightGBM, data, TrainConfig(TRIALS), f"sqlite:///{places.folder / 'optuna.db'}")
        assert len(tune.finished_trials(study)) == TRIALS
        yield Result(f"models.study_{TRIALS}_trials", time.perf_counter() - start, "s", f"wanted, {size}", STUDY_SECONDS)
        start = time.perf_counter()
        lstm.CPU_ROWS = len(rows)  # all of them, no sample
        LSTM.fit({**LSTM.strong, "rounds": 1, "seeds": 1}, rows, 1)
        yield Result("models.lstm_epoch", time.perf_counter() - start, "s", f"wanted, {size}", EPOCH_SECONDS)
        params = {**LightGBM.strong, "rounds": 150}
        trees, network = LightGBM.fit(params, rows, 1), LSTM.fit({**LSTM.strong, "rounds": 1}, rows.at(slice(20_000)), 1)
        start = time.perf_counter()
        trees.predict(rows)
        speed = len(rows) / (time.perf_counter() - start)
        yield Result("models.predict_trees", speed, "customers/s", "wanted", TREE_ROWS_A_SECOND, True)
        frame = pd.DataFrame(rows.x_NF, columns=list(rows.names))
        plain = lightgbm.LGBMClassifier(n_estimators=3 * 150, num_leaves=15, verbose=-1).fit(frame, rows.y)
        start = time.perf_counter()
        plain.predict_proba(frame)
        rival = len(rows) / (time.perf_counter() - start)
        yield Result("models.predict_trees", speed, "customers/s", "LGBMClassifier on pandas, as many trees", rival, True)
        start = time.perf_counter()
        network.predict(rows)
        yield Result("models.predict_lstm", len(rows) / (time.perf_counter() - start), "customers/s", "wanted", LSTM_ROWS_A_SECOND, True)
