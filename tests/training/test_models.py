"""One shared class of promises that every candidate keeps; baselines checked against their formulas."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from features.errors import InputError
from features.sequences import CHANNELS, EVENT_KINDS, WEEKS
from features.table import EVENTS, WEEKLY
from training.models import packed, single
from training.models.base import Member, Rows, level_free_log_loss, logit, sigmoid
from training.models.bgnbd import BgNbd
from training.models.blend import Blend, mixed, stack
from training.models.calibration import Calibration
from training.models.level import Forecast, Level
from training.models.lightgbm import LightGBM
from training.models.logistic import Logistic, Ridge
from training.models.lstm import LSTM, Network
from training.models.reader import EVENT_LENGTH, GAUSS
from training.models.recency import Recency
from training.models.scaling import Scaler
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


SHAPES = [("lstm", "last"), ("lstm", "attention"), ("gru", "last"), ("gru", "attention")]
ENDS = [[], [1], [8] * 3, [1, 2, 3] * 8, [5] * 60]
"""Kinds of the last events: none, one, a few, as many as are read, and more."""


def network(cell: str, pooling: str) -> LSTM:
    """Two networks with random weights, large enough to bend."""
    torch.manual_seed(7)
    shape = {"channels": len(ORDERS), "static": len(NAMES), "hidden": 5, "dropout": 0.1, "cell": cell, "pooling": pooling}
    networks = [Network(**shape).double().eval() for _ in range(2)]
    for weight in (weight for one in networks for name, weight in one.named_parameters() if name != "types.weight"):
        torch.nn.init.normal_(weight, std=0.5)
    return LSTM(networks, Scaler.fit(TRAIN.x_NF), shape, 1, NAMES, ["tenure_days"] * len(ORDERS))


def ragged(n: int) -> Rows:
    """Rows whose activity begins in any week, or never, and whose events are none, few or many."""
    rng, some = np.random.default_rng(n), rows(n, seed=n)
    weeks = rng.gamma(1.0, size=(n, WEEKS, len(ORDERS))) * (rng.random((n, WEEKS, len(ORDERS))) < 0.2)
    begins = np.append(rng.integers(0, WEEKS + 1, n - 1), WEEKS)
    weeks[np.arange(WEEKS) < begins[:, None]] = 0.0
    return replace(some, lists=lists(weeks.astype(np.float32), [ENDS[place % len(ENDS)] for place in range(n)]))


def by_pytorch(model: LSTM, some: Rows, scale: float = 1.0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The networks' mean log odds by their own ``forward``, and the inputs it is a function of, times ``scale``."""
    types, gaps, number = some.events(EVENT_LENGTH)
    weeks, x, gap = (torch.from_numpy(array).double() for array in (some.weeks(), model.scaler.apply(some.x_NF), np.log1p(gaps)))
    kinds = torch.from_numpy(types.astype(np.int64))
    logits, inputs = torch.zeros(len(some), dtype=torch.float64), []
    for one in model.networks:
        given = [(part * scale).detach().requires_grad_() for part in (weeks, x, one.embed(kinds, gap))]
        inputs.append(given)
        logits = logits + one(*given, torch.from_numpy(number)) / len(model.networks)
    return logits, [part for given in inputs for part in given]


def integrated_by_pytorch(model: LSTM, some: Rows) -> np.ndarray:
    """Integrated gradients by automatic differentiation, told by feature as the model tells them."""
    found, types = np.zeros(some.x_NF.shape), some.events(EVENT_LENGTH)[0]
    for place, weight in GAUSS:
        logits, inputs = by_pytorch(model, some, place)
        told = [part * slope / place * weight for part, slope in zip(inputs, torch.autograd.grad(logits.sum(), inputs), strict=True)]
        for weeks, static, events in zip(*(iter(part.detach().numpy() for part in told),) * 3, strict=True):
            found += static
            found[:, NAMES.index("tenure_days")] += weeks.sum(axis=(1, 2))
            for kind, feature in enumerate(EVENT_KINDS.values(), start=1):
                if feature in model.names:
                    found[:, model.names.index(feature)] += (events.sum(axis=2) * (types == kind)).sum(axis=1)
    return found


@pytest.mark.parametrize(("cell", "pooling"), SHAPES)
@pytest.mark.parametrize("n", [1, 2, 33, 1000])
def test_packed_networks_predict_what_pytorch_predicts(cell: str, pooling: str, n: int) -> None:
    model, some = network(cell, pooling), ragged(n)
    logits, _ = by_pytorch(model, some)
    assert np.allclose(logit(model.predict(some)), np.clip(logits.detach().numpy(), *logit(np.array([0.0, 1.0]))), rtol=0, atol=1e-9)
    assert np.ptp(model.predict(ragged(1000))) > 0.3


@pytest.mark.parametrize(("cell", "pooling"), SHAPES)
def test_a_row_alone_is_predicted_and_explained_as_in_any_batch(cell: str, pooling: str) -> None:
    model, some = network(cell, pooling), ragged(60)
    p, told = model.predict(some), model.contributions(some)
    for place in range(len(some)):
        alone = some.at(slice(place, place + 1))
        assert abs(model.predict(alone) - p[place]).max() <= 1e-12
        assert abs(model.contributions(alone) - told[place]).max() <= 1e-12


@pytest.mark.parametrize(("cell", "pooling"), SHAPES)
@pytest.mark.parametrize("n", [1, 40, 300])
def test_hand_made_gradients_equal_automatic_ones(cell: str, pooling: str, n: int) -> None:
    model, some = network(cell, pooling), ragged(n)
    with_kinds = dict(zip(NAMES, ("orders_half_life_90d", "returns_90d", "browse_days_90d", "reviews_total"), strict=False))
    model.names = tuple(with_kinds.get(name, name) for name in NAMES)  # kinds of event are told too
    expected = integrated_by_pytorch(model, some)
    assert np.allclose(model.contributions(some), expected, rtol=0, atol=1e-10)
    assert n == 1 or abs(expected).max() > 0.1


def test_rows_without_any_activity_are_predicted_by_their_features_alone() -> None:
    model, quiet = network("lstm", "last"), lists(np.zeros((40, WEEKS, len(ORDERS)), np.float32), [[]] * 40)
    some = replace(rows(40), lists=quiet)
    logits, _ = by_pytorch(model, some)
    assert np.allclose(logit(model.predict(some)), logits.detach().numpy(), rtol=0, atol=1e-9)
    assert np.allclose(model.contributions(some), integrated_by_pytorch(model, some), rtol=0, atol=1e-10)


def test_more_rows_than_a_block_holds_are_predicted_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model, some = network("lstm", "last"), ragged(300)
    whole = model.predict(some), model.contributions(some)
    monkeypatch.setattr(packed, "BLOCK", 77)
    assert np.allclose(model.predict(some), whole[0], rtol=0, atol=1e-12)
    assert np.allclose(model.contributions(some), whole[1], rtol=0, atol=1e-12)


def test_a_single_row_needs_no_table_and_is_predicted_the_same() -> None:
    members = [kind.fit(PARAMS[kind.name], TRAIN, 1) for kind in (LightGBM, LSTM, Ridge)]
    blend, table = Blend(members, np.array([0.5, 0.3, 0.2])), HELD_OUT.at(slice(9, 10))
    given = {name: table.lists[name][0].as_py() for name in table.lists.column_names}
    one = Rows.single(NAMES, table.x_NF[0].tolist(), given, ORDERS, datetime(2024, 2, 1))
    assert one.snapshot == HELD_OUT.snapshot[9]
    assert np.array_equal(blend.predict(one), blend.predict(table))
    assert np.array_equal(blend.contributions(one), blend.contributions(table))
    assert np.array_equal(one.weeks(), table.weeks())
    assert one.at(slice(0)).lists.num_rows == 0
    with pytest.raises(InputError, match="x_F"):
        Rows.single(NAMES, [1.0], given, ORDERS)


@pytest.mark.parametrize("n", [1, 3, 5000])
def test_rows_of_a_table_of_mixed_types_are_its_columns(n: int) -> None:
    x = np.random.default_rng(n).normal(size=n)
    table = pa.table({"a": x, "b": pa.array([None, *range(n - 1)], pa.int64()), "c": x.astype(np.float32), "d": x > 0})
    found = Rows.of(table, ("d", "a", "b", "c"), ()).x_NF
    assert np.array_equal(found, np.column_stack([table[name].to_numpy() for name in "dabc"]), equal_nan=True)
    assert np.array_equal(found[:, 1:], Rows.of(table, ("a", "b", "c"), ()).x_NF, equal_nan=True)


def test_a_packed_row_comes_back_to_the_last_bit_and_no_other_fits() -> None:
    some, model = ragged(20), network("lstm", "last")
    for place in range(20):
        data = some.packed(place)
        found = Rows.unpacked(some.names, data, some.channels, some.snapshot[place])
        np.testing.assert_array_equal(found.x_NF[0], some.x_NF[place])
        for name in (*WEEKLY, *EVENTS):
            np.testing.assert_array_equal(found.flat(name)[0], some.at(slice(place, place + 1)).flat(name)[0])
        assert found.packed(0) == data
        np.testing.assert_allclose(model.predict(found), model.predict(some.at(slice(place, place + 1))), atol=1e-12)
    with pytest.raises(ValueError, match="packed row"):
        Rows.unpacked(some.names, data + b"x", some.channels, some.snapshot[0])
    with pytest.raises(ValueError, match="packed row"):
        Rows.unpacked(some.names, data, (), some.snapshot[0])


def test_the_scaler_gives_the_logarithm_centred_scaled_and_clipped() -> None:
    x = np.array([[0.0, -3.0, np.nan], [7.0, 2.0, np.nan], [np.inf, -np.inf, 1.0], [1e9, np.nan, -4.0]])
    scaler = Scaler(np.array([0.5, -0.1, 0.0]), np.array([0.7, 2.0, 1.0]))
    plain = (np.sign(x) * np.log1p(np.abs(x)) - scaler.mean) / scaler.scale
    assert np.array_equal(scaler.apply(x), np.clip(np.nan_to_num(plain, nan=0.0), -5, 5))


def test_one_row_through_lightgbm_is_the_batch_with_and_without_its_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LightGBM.fit(PARAMS["lightgbm"], TRAIN, 1)
    p, alone = model.predict(HELD_OUT), [HELD_OUT.at(slice(place, place + 1)) for place in range(100)]
    assert all(one.is_fast for one in model._single_rows())
    assert np.array_equal(np.concatenate([model.predict(one) for one in alone]), p[:100])
    monkeypatch.setattr(single, "CALLS", ("NoSuchInit", "NoSuchCall", "NoSuchFree"))
    plain = LightGBM(model.boosters)
    assert not any(one.is_fast for one in plain._single_rows())
    assert np.array_equal(np.concatenate([plain.predict(one) for one in alone]), p[:100])


def test_threads_share_a_model_without_mixing_up_their_rows() -> None:
    members = [kind.fit(PARAMS[kind.name], TRAIN, 1) for kind in (LightGBM, LSTM, Ridge)]
    blend = Blend(members, np.array([0.5, 0.3, 0.2]))
    p = blend.predict(HELD_OUT)
    places = [*range(400), *range(400)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda place: blend.predict(HELD_OUT.at(slice(place, place + 1)))[0], places))
    assert np.allclose(found, p[places], rtol=0, atol=1e-12)


def test_an_explanation_does_not_predict_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.features.histories import MANIFEST
    from training.models.scorer import Scorer

    model = LightGBM.fit(PARAMS["lightgbm"], TRAIN, 1)
    scorer, raw = Scorer(model, Calibration("beta", [0.4, 1.6]), LEVEL, MANIFEST), model.predict(HELD_OUT)
    expected = scorer.contributions(HELD_OUT)
    monkeypatch.setattr(LightGBM, "predict", lambda self, rows: pytest.fail("predicted twice"))
    assert np.array_equal(scorer.explain(HELD_OUT, raw), expected)


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
