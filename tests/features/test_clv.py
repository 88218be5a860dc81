"""Expected orders and values are right on average in the worlds that the two models describe."""

import numpy as np
import pyarrow as pa
import pytest

from features.clv import BgNbd, Clv, GammaGamma

TRUE = BgNbd(r=1.2, alpha=60.0, a=0.9, b=3.0)
Arrays = tuple[np.ndarray, ...]


def world(n: int, horizon: float, seed: int = 3) -> Arrays:
    """x, t_x, T of n customers of `TRUE`, drawn event by event, and their orders in the horizon after T."""
    rng = np.random.default_rng(seed)
    T = rng.uniform(100, 700, n)
    rate, leaves = rng.gamma(TRUE.r, 1 / TRUE.alpha, n), rng.beta(TRUE.a, TRUE.b, n)
    x, t_x, later = np.zeros(n), np.zeros(n), np.zeros(n)
    for customer in range(n):
        at = 0.0
        while (at := at + rng.exponential(1 / rate[customer])) <= T[customer] + horizon:
            if at <= T[customer]:
                x[customer], t_x[customer] = x[customer] + 1, at
            else:
                later[customer] += 1
            if rng.random() < leaves[customer]:
                break
    return x, t_x, T, later


@pytest.mark.parametrize("days", [90.0, 365.0])
def test_expected_orders_are_those_that_follow(days: float) -> None:
    x, t_x, T, later = world(20_000, days)
    expected = BgNbd.fit(x[:8000], t_x[:8000], T[:8000]).orders(x, t_x, T, days)
    assert expected.sum() == pytest.approx(later.sum(), rel=0.05)
    busy = x >= 5
    assert expected[busy].sum() == pytest.approx(later[busy].sum(), rel=0.06)
    assert (expected >= 0).all()


def test_expected_orders_are_finite_for_any_history() -> None:
    x = np.array([0.0, 0.0, 3000.0, 3000.0])
    T, t_x = np.array([0.0, 4000.0, 3000.0, 4000.0]), np.array([0.0, 0.0, 3000.0, 10.0])
    for model in (TRUE, BgNbd(0.01, 0.01, 1.0, 0.01), BgNbd(50.0, 1e5, 1e-5, 1e5)):
        assert np.isfinite(model.orders(x, t_x, T, 365.0)).all()


def test_expected_value_lies_between_the_customers_own_and_everybodys_and_is_right_on_average() -> None:
    rng = np.random.default_rng(4)
    n = rng.integers(1, 8, 20_000).astype(float)
    scale = rng.gamma(4.0, 1 / 150.0, n.size)  # p = 3, q = 4, v = 150
    mean, following = rng.gamma(3 * n, 1 / scale) / n, rng.gamma(3.0, 1 / scale)
    model = GammaGamma.fit(n[:8000], mean[:8000])
    expected = model.value(n, mean)
    assert expected.mean() == pytest.approx(following.mean(), rel=0.03)
    high = mean > np.quantile(mean, 0.9)
    assert expected[high].mean() == pytest.approx(following[high].mean(), rel=0.06)
    assert (expected[high] < mean[high]).all()


def test_the_fit_hangs_on_the_latest_snapshot_and_not_on_the_order_of_rows() -> None:
    x, t_x, T, _ = world(500, 1.0)
    names = {"recency_days": T - t_x, "tenure_days": T, "active_days": x + 1, "frequency_orders": x + 1, "order_value_mean": 20 + x}
    ids = pa.array([f"{number:04d}" for number in range(500)])
    old, new = (pa.array([day] * 500, pa.timestamp("s")) for day in (1, 2))
    latest = pa.table({"customer_id": ids, "snapshot": new, **names})
    earlier = pa.table({"customer_id": ids, "snapshot": old, **{name: values * 2 for name, values in names.items()}})
    shuffled = pa.concat_tables([earlier, latest]).take(pa.array(np.random.default_rng(5).permutation(1000)))
    assert Clv.fit(shuffled) == Clv.fit(latest)
    assert Clv.from_json(Clv.fit(latest).to_json()) == Clv.fit(latest)
