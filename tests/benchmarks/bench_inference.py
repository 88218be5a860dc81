"""Predictions and explanations of a blend (three boosters, three networks, ridge) on the embedded sample: one row, lists, many rows.

The rivals are the figures wanted, and, for the networks, PyTorch's own modules in double precision on as many threads. The rows of the
sample are repeated, so that lists are as long as they say.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np

from features import mapping
from features.settings import Settings
from tests.benchmarks.result import Result
from training.dataset import TrainingData
from training.models.base import Rows, sigmoid
from training.models.blend import Blend
from training.models.calibration import Calibration
from training.models.level import Forecast, Level
from training.models.lightgbm import LightGBM
from training.models.logistic import Ridge
from training.models.lstm import LSTM
from training.models.scorer import Scorer
from validation.stages import Places, build_features, validate

ROUNDS = {LightGBM.name: 130, LSTM.name: 2, Ridge.name: 1}
LIST, MANY = 1_000, 50_000
REPEATS = 5
"""The quickest counts: other work on the machine only ever adds."""
WANTED_ONE_MS, WANTED_EXPLAINED_MS, WANTED_ROWS_US = 1.0, 12.0, 50.0
WANTED_LSTM, WANTED_BLEND, WANTED_EXPLAINED = 25_000.0, 20_000.0, 2_000.0


def run() -> Iterator[Result]:
    """Milliseconds of one row, rows a second of many."""
    with tempfile.TemporaryDirectory() as folder:
        scorer, rows = fitted(Path(folder))
    assert isinstance(scorer.model, Blend)
    network = next(member for member in scorer.model.members if isinstance(member, LSTM))
    one, some, many = (rows.at(np.resize(np.arange(len(rows)), size)) for size in (1, LIST, MANY))
    given = {name: one.flat(name)[0] for name in one.lists.column_names}
    alone = Rows.single(one.names, one.x_NF[0], given, one.channels, one.snapshot[0])
    single_us = 1e6 * seconds(lambda: Rows.single(one.names, one.x_NF[0], given, one.channels, one.snapshot[0]), 100)
    yield Result("inference.rows_of_one", single_us, "us", "wanted", WANTED_ROWS_US)
    yield Result("inference.predict_one", 1e3 * seconds(lambda: scorer.predict(alone), 50), "ms", "wanted", WANTED_ONE_MS)
    yield Result("inference.explain_one", 1e3 * seconds(lambda: scorer.contributions(alone), 10), "ms", "wanted", WANTED_EXPLAINED_MS)
    yield speed("inference.predict_list", lambda: scorer.predict(some), LIST, "wanted", WANTED_BLEND)
    yield speed("inference.explain_list", lambda: scorer.contributions(some), LIST, "wanted", WANTED_EXPLAINED)
    for size, part in ((LIST, some), (MANY, many)):
        rival = size / seconds(lambda part=part: by_pytorch(network, part))
        yield speed(f"inference.lstm_{size}", lambda part=part: network.predict(part), size, "wanted", WANTED_LSTM)
        yield speed(f"inference.lstm_{size}", lambda part=part: network.predict(part), size, "PyTorch's modules", rival)


def fitted(folder: Path) -> tuple[Scorer, Rows]:
    """A blend of the sample, and the rows of its test snapshot."""
    dataset = mapping.read()
    places = Places.of(Settings(home=folder), dataset)
    validate(dataset, places)
    build_features(dataset, places)
    data = TrainingData.read(places.features)
    train = data.before(data.split.test)
    members = [kind.fit({**kind.strong, "rounds": ROUNDS[kind.name]}, train, 1) for kind in (LightGBM, LSTM, Ridge)]
    level = Level({datetime(2011, 9, 1): Forecast(0.5, 0.4, 0.6, 0.5, None, 0, 0.0)})
    return Scorer(Blend(members, np.full(3, 1 / 3)), Calibration("platt", [1.0]), level, data.manifest), data.at([data.split.test])


def by_pytorch(model: LSTM, rows: Rows) -> object:
    """What the packed networks are measured against: each module on its own, rows in as many parts as there are cores."""
    parts = np.array_split(np.arange(len(rows)), max(os.cpu_count() or 1, len(rows) // 1024))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        logits = [list(pool.map(lambda part, one=one: model._some_logits(one, rows.at(part)), parts)) for one in model.networks]
    return sigmoid(np.mean([np.concatenate(found) for found in logits], axis=0))


def seconds(work: Callable[[], object], calls: int = 1) -> float:
    """The least of a few repeats, each the mean of some calls."""
    work()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        found.append((time.perf_counter() - start) / calls)
    return min(found)


def speed(name: str, work: Callable[[], object], rows: int, rival: str, rival_value: float) -> Result:
    """Rows a second."""
    return Result(name, rows / seconds(work), "rows/s", rival, rival_value, True)
