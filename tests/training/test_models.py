"""One shared class of promises that every candidate keeps; baselines checked against their formulas."""

import multiprocessing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features.sequences import CHANNELS, WEEKS
from features.table import EVENTS, WEEKLY
from training.models.base import Member, Rows, level_free_log_loss, logit, sigmoid
from training.models.bgnbd import BgNbd
from training.models.blend import Blend, mixed, stack
from training.models.calibration import Calibration
from training.models.level import Forecast, Level
from training.models.lightgbm import LightGBM
from training.models.logistic import Logistic, Ridge
from training.models.lstm import LSTM
from training.models.recency import Recency
from validation.metrics import auc

ORDERS = tuple(channel for channel in CHANNELS if channel.source == "orders")
NAMES = ("recency_days", "frequency_orders", "monetary_net", "active_days", "tenure_days")
PARAMS = {
    "lightgbm": {"learning_rate": 0.1, "num_leaves": 7, "min_data_in_leaf": 20, "rounds": 30},
    "lstm": {"hidden": 16, "dropout": 0.1, "learning_rate": 1e-2, "weight_decay": 1e-3, "rounds": 5, "seeds": 2},
    "logistic": {"C": 0.1},
}


def lists(weeks: np.ndarray, events: list[list[int]]) -> pa.Table:
    """Sequences as the feature table holds them, of dense weeks and of the kinds of the last events."""
    flat = weeks.reshape(len(weeks), -1)
    columns = {
        WEEKLY[0]: pa.array([np.flatnonzero(row).astype(np.int32) for row in flat], pa.list_(pa.int32())),
        WEEKLY[1]: pa.array([row[row != 0] for row in flat], pa.list_(pa.float32())),
        EVENTS[0]: pa.array(events, pa.list_(pa.int8())),
        EVENTS[1]: pa.array([[float(3 * place) for place in range(len(row))] for row in events], pa.list_(pa.float32())),
    }
    return pa.table(columns)


def rows(n: int = 1500, seed: int = 3) -> Rows:
    """Customers whose churn hangs on silence and on recent weeks."""
    rng = np.random.default_rng(seed)
    tenure = rng.uniform(100, 700, n)
    recency = rng.uniform(0, 1, n) * tenure
    frequency = 1 + rng.poisson(3, n).astype(float)
    weeks = (rng.random((n, WEEKS, len(ORDERS))) < 0.1).astype(np.float32)
    z = (recency - 150) / 80 - 0.3 * frequency - 0.8 * weeks[:, -8:, 0].sum(axis=1)
    y = (rng.random(n) < sigmoid(z)).astype(float)
    x = np.column_stack([recency, frequency, frequency * 20, frequency, tenure])
    x[rng.random(n) < 0.05, 2] = np.nan
    moments = np.array([datetime(2024, 1, 1), datetime(2024, 2, 1)], dtype="datetime64[us]")
    events = [[1] * int(count) for count in rng.integers(0, 30, n)]
    return Rows(NAMES, x, lists(weeks, events), ORDERS, y, moments[np.arange(n) % 2], np.where(y == 1, np.nan, rng.uniform(0, 90, n)))


CALIBRATION, LEVEL = Calibration("platt", [1.0]), Level({datetime(2024, 1, 1): Forecast(0.5, 0.4, 0.6, 0.5, None, 0, 0.0)})
TRAIN, HELD_OUT = rows(seed=3), rows(seed=4)


@pytest.mark.parametrize("kind", [LightGBM, LSTM, Ridge], ids=lambda kind: kind.name)
class TestCandidate:
    def fit(self, kind: type[Member]) -> Member:
        return kind.fit(PARAMS[kind.name], TRAIN, seed=1)

    def test_it_learns_what_there_is_to_learn(self, kind: type[Member]) -> None:
        p = self.fit(kind).predict(HELD_OUT)
        assert p.shape == (len(HELD_OUT),)
        assert ((p > 0) & (p < 1)).all()
        assert auc(HELD_OUT.y, p) > 0.75

    def test_the_same_seed_gives_the_same_bytes(self, kind: type[Member], tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            self.fit(kind).save(tmp_path / name)
        for file in (tmp_path / "a").iterdir():
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()

    def test_a_saved_model_predicts_the_same(self, kind: type[Member], tmp_path: Path) -> None:
        model = self.fit(kind)
        model.save(tmp_path)
        assert np.array_equal(kind.load(tmp_path).predict(HELD_OUT), model.predict(HELD_OUT))

    def test_no_file_is_pickle(self, kind: type[Member], tmp_path: Path) -> None:
        self.fit(kind).save(tmp_path)
        assert {file.suffix for file in tmp_path.iterdir()} <= {".0", ".1", ".2", ".safetensors", ".json"}

    def test_early_stopping_reports_and_keeps_the_best_round(self, kind: type[Member]) -> None:
        told: list[float] = []
        model = kind.fit(PARAMS[kind.name], TRAIN, 1, HELD_OUT, lambda step, loss: told.append(loss))
        assert model.rounds >= 1
        best = min(told, default=level_free_log_loss(HELD_OUT, model.predict(HELD_OUT)))  # a logistic regression has no rounds
        assert level_free_log_loss(HELD_OUT, model.predict(HELD_OUT)) == pytest.approx(best, abs=1e-6)

    def test_contributions_follow_the_cause(self, kind: type[Member]) -> None:
        found = self.fit(kind).contributions(HELD_OUT)
        assert found.shape == HELD_OUT.x_NF.shape
        assert np.corrcoef(found[:, 0], HELD_OUT.column("recency_days"))[0, 1] > 0.5

    def test_no_rows_give_no_predictions(self, kind: type[Member]) -> None:
        assert self.fit(kind).predict(HELD_OUT.at(slice(0))).shape == (0,)


def test_lightgbm_contributions_add_up_to_its_log_odds() -> None:
    model = LightGBM.fit(PARAMS["lightgbm"], TRAIN, 1)
    with_bias = np.mean([booster.predict(HELD_OUT.x_NF, pred_contrib=True) for booster in model.boosters], axis=0)
    assert np.allclose(with_bias.sum(axis=1), logit(model.predict(HELD_OUT)), atol=1e-6)
    assert np.allclose(with_bias[:, :-1], model.contributions(HELD_OUT))


def test_integrated_gradients_of_the_lstm_add_up_to_its_log_odds() -> None:
    """From the average customer without activity; of customers without events, which no feature of this table would tell."""
    model = LSTM.fit(PARAMS["lstm"], TRAIN, 1)
    model.told = ("recency_days",) * len(ORDERS)
    held_out = replace(HELD_OUT, lists=lists(HELD_OUT.weeks(), [[]] * len(HELD_OUT)))
    quiet = lists(np.zeros((1, WEEKS, len(ORDERS)), np.float32), [[]])
    base = replace(HELD_OUT.at(slice(1)), x_NF=np.full((1, len(NAMES)), np.nan), lists=quiet)
    moved = logit(model.predict(held_out)) - logit(model.predict(base))
    assert np.allclose(model.contributions(held_out).sum(axis=1), moved, atol=0.1)


def test_longer_silence_never_lowers_the_risk_of_lightgbm() -> None:
    model = LightGBM.fit(PARAMS["lightgbm"], TRAIN, 1)
    x = np.repeat(HELD_OUT.x_NF[:1], 50, axis=0)
    x[:, 0] = np.linspace(0, 700, 50)
    p = model.predict(replace(HELD_OUT.at(slice(50)), x_NF=x))
    assert (np.diff(p) >= 0).all()


@pytest.mark.parametrize("kind", [Recency, Logistic])
def test_a_linear_baseline_beats_chance_and_meets_the_rate(kind: type[Logistic]) -> None:
    p = kind.fit(TRAIN, 90).predict(TRAIN)
    assert auc(TRAIN.y, p) > 0.7
    assert p.mean() == pytest.approx(TRAIN.y.mean(), abs=0.01)


def bgnbd_world(n: int, horizon: float, seed: int = 8) -> tuple[Rows, np.ndarray]:
    """Customers who live exactly as BG/NBD says, and whether they order in the horizon."""
    rng = np.random.default_rng(seed)
    rate, leaves = rng.gamma(0.8, 1 / 40, n), rng.beta(1.0, 3.0, n)
    T = rng.uniform(200, 600, n)
    x, t_x, silent = np.zeros(n), np.zeros(n), np.ones(n)
    for i in range(n):
        at = 0.0
        while (at := at + rng.exponential(1 / rate[i])) < T[i] + horizon:
            if at > T[i]:
                silent[i] = 0
                break
            x[i], t_x[i] = x[i] + 1, at
            if rng.random() < leaves[i]:
                break
    columns = np.column_stack([T - t_x, x + 1, x, x + 1, T])
    return Rows(NAMES, columns, pa.table({}), (), silent, np.full(n, np.datetime64("2024-01-01")), np.full(n, np.nan)), silent


def test_bgnbd_is_calibrated_in_its_own_world() -> None:
    world, silent = bgnbd_world(4000, 90)
    p = BgNbd.fit(world, 90).predict(world)
    for low, high in ((0.0, 0.5), (0.5, 0.8), (0.8, 1.01)):
        inside = (p >= low) & (p < high)
        assert silent[inside].mean() == pytest.approx(p[inside].mean(), abs=0.04)


def test_a_blend_predicts_the_weighted_mean_of_log_odds_after_saving_too(tmp_path: Path) -> None:
    members = [kind.fit(PARAMS[kind.name], TRAIN, 1) for kind in (LightGBM, LSTM, Ridge)]
    blend = Blend(members, np.array([0.5, 0.3, 0.2]))
    expected = (
        0.5 * logit(members[0].predict(HELD_OUT)) + 0.3 * logit(members[1].predict(HELD_OUT)) + 0.2 * logit(members[2].predict(HELD_OUT))
    )
    blend.save(tmp_path)
    assert np.allclose(logit(blend.predict(HELD_OUT)), expected)
    assert np.array_equal(Blend.load(tmp_path).predict(HELD_OUT), blend.predict(HELD_OUT))
    assert blend.contributions(HELD_OUT).shape == HELD_OUT.x_NF.shape


def test_stacking_trusts_the_member_that_knows_and_none_below_zero() -> None:
    rng = np.random.default_rng(5)
    samples = []
    for level in (-1.0, 0.5):
        z = rng.normal(0, 1.5, 5000)
        y = (rng.random(5000) < sigmoid(z + level)).astype(float)
        samples.append(([sigmoid(z), sigmoid(rng.normal(0, 1.5, 5000)), sigmoid(-z + rng.normal(0, 1, 5000))], y))
    found = stack(samples)
    assert found[0] > 0.8
    assert (found >= 0).all()
    assert found[1] < 0.1
    assert auc(samples[0][1], mixed(samples[0][0], found)) > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_platt_recovers_the_slope_whatever_the_levels_of_the_snapshots(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = []
    for level in (-0.8, 0.0, 1.0):
        z = rng.normal(0, 1.5, 600)
        samples.append((sigmoid(z / 2), (rng.random(600) < sigmoid(z + level)).astype(float)))
    found = Calibration.fit(samples)
    assert found.method == "platt"  # 1,800 rows
    assert found.params[0] == pytest.approx(2.0, abs=0.35)


def test_every_calibration_map_rises_and_a_bent_world_takes_a_bent_map() -> None:
    rng = np.random.default_rng(1)
    samples = []
    for _ in range(3):
        z = rng.normal(0, 2, 8000)
        samples.append((sigmoid(z), (rng.random(8000) < sigmoid(np.where(z > 0, 0.3 * z, 1.5 * z))).astype(float)))
    found = Calibration.fit(samples)
    grid = np.linspace(-8, 8, 400)
    for method in ("platt", "beta", "isotonic"):
        assert (np.diff(Calibration._fit(method, samples).map(grid)) > 0).all()
    assert found.method in ("beta", "isotonic")
    assert Calibration.from_json(found.to_json()) == found


@pytest.mark.parametrize("calibration", [Calibration("platt", [1.4]), Calibration("beta", [0.4, 1.6])])
def test_contributions_are_on_the_scale_of_the_calibrated_log_odds_at_the_level_in_force(calibration: Calibration) -> None:
    """Where the map bends, its slope is that at the shifted log odds, not at the model's own."""
    from tests.features.histories import MANIFEST
    from training.models.scorer import Scorer

    model, level = (
        LightGBM.fit(PARAMS["lightgbm"], TRAIN, 1),
        Level({datetime(2024, 1, 1): Forecast(0.5, 0.4, 0.6, 0.5, None, 0, -0.9, 0.2)}),
    )
    found = Scorer(model, calibration, level, MANIFEST).contributions(HELD_OUT)
    q = sigmoid(logit(model.predict(HELD_OUT)) - 0.9)
    slope = 1.4 if calibration.method == "platt" else 0.4 * (1 - q) + 1.6 * q
    assert np.allclose(found, np.reshape(slope, (-1, 1)) * model.contributions(HELD_OUT), atol=1e-5)


def test_the_level_free_loss_ignores_the_level_of_each_snapshot() -> None:
    p = sigmoid((HELD_OUT.column("recency_days") - 200) / 100)
    shift = np.where(HELD_OUT.snapshot == HELD_OUT.snapshot[0], 0.7, -0.4)
    assert level_free_log_loss(HELD_OUT, sigmoid(logit(p) + shift)) == pytest.approx(level_free_log_loss(HELD_OUT, p), abs=1e-6)


def _load(folder: str) -> None:
    from training.models.scorer import Scorer

    Scorer.load(Path(folder))


def test_a_corrupt_model_text_is_refused_before_lightgbm_sees_it(tmp_path: Path) -> None:
    """In a child process: a corrupt text that reached LightGBM would kill it (exit code below 0)."""
    from features.errors import InputError
    from tests.features.histories import MANIFEST
    from training.models.scorer import Scorer

    Scorer(LightGBM.fit(PARAMS["lightgbm"], TRAIN, 1), CALIBRATION, LEVEL, MANIFEST).save(tmp_path / "m")
    Scorer.load(tmp_path / "m")
    text = (tmp_path / "m" / "model.lgb.0").read_text()
    (tmp_path / "m" / "model.lgb.0").write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="SHA-256"):
        Scorer.load(tmp_path / "m")
    child = multiprocessing.get_context("spawn").Process(target=_load, args=(str(tmp_path / "m"),))
    child.start()
    child.join()
    assert child.exitcode == 1
