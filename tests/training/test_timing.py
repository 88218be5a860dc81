"""Days to the next order: in a world with known rates the quantiles hold what they promise."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from training.models.base import Rows
from training.models.timing import QUANTILES, Timing, pinball

HORIZON = 90


def world(n: int, seed: int) -> tuple[Rows, np.ndarray]:
    """Customers who order at a rate that a feature tells."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(10, 200, n)
    days = rng.exponential(mean)
    beyond = days > HORIZON
    moments = np.full(n, np.datetime64("2024-01-01"))
    rows = Rows(("mean",), mean[:, None], pa.table({}), (), beyond.astype(float), moments, np.where(beyond, np.nan, days))
    return rows, np.exp(-HORIZON / mean)


def test_quantiles_cover_what_they_promise_and_beat_the_same_for_everybody() -> None:
    train, _ = world(20_000, 1)
    test, p = world(5_000, 2)
    days = np.where(np.isnan(test.days), HORIZON, test.days)
    found = Timing.fit(train, HORIZON, 1).quantiles(test, p)
    assert found.shape == (5_000, len(QUANTILES))
    assert (np.diff(found, axis=1) >= 0).all()
    for place, quantile in enumerate(QUANTILES):
        below = np.mean((days < found[:, place]) | (found[:, place] >= HORIZON) & (days < HORIZON))
        assert below == pytest.approx(quantile, abs=0.1) or quantile == 0.9
        plain = np.full(days.size, np.quantile(days, quantile))
        assert pinball(days, found[:, place], quantile) <= pinball(days, plain, quantile) + 1e-9
    assert pinball(days, found[:, 1], 0.5) < 0.95 * pinball(days, np.full(days.size, np.median(days)), 0.5)


def test_a_row_alone_is_told_as_in_a_batch_to_the_last_bit() -> None:
    train, _ = world(3_000, 1)
    model, p = Timing.fit(train, HORIZON, 1), np.random.default_rng(3).random(300)
    together = model.quantiles(train.at(np.arange(300)), p)
    alone = [model.quantiles(train.at(slice(row, row + 1)), p[row : row + 1])[0] for row in range(300)]
    assert np.array_equal(np.array(alone), together)
    assert (together == HORIZON).any()
    assert (together < HORIZON).any()


def test_a_saved_model_says_the_same_and_certain_churn_is_beyond_the_horizon(tmp_path: Path) -> None:
    train, _ = world(3_000, 1)
    model = Timing.fit(train, HORIZON, 1)
    model.save(tmp_path)
    loaded = Timing.load(tmp_path)
    assert loaded is not None
    p = np.full(len(train), 0.3)
    assert np.array_equal(loaded.quantiles(train, p), model.quantiles(train, p))
    assert (model.quantiles(train, np.ones(len(train))) == HORIZON).all()
    assert Timing.load(tmp_path / "elsewhere") is None
