"""The level forecast: a season seen before is expected again, as far as counts and cycles allow; a cohort's first quarter is no season."""

from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from training.models.base import Rows, logit, sigmoid
from training.models.calibration import Calibration
from training.models.level import YEAR, Demand, Forecast, Level, forecast

HORIZON = 90
NONE = Calibration("platt", [1.0])
START = datetime(2020, 1, 1)
T = datetime(2023, 9, 1)


def demand(active: dict[datetime, int], first: datetime = START) -> Demand:
    return Demand(HORIZON, active, {t: int(0.8 * n) for t, n in active.items()}, first)


def seasonal(peak: float, years: int, base: int = 4000) -> dict[datetime, int]:
    """Customers active up to each fifth day: `peak` times as many in the horizon up to 30 November as else."""
    days = (T - timedelta(days=365 * years + HORIZON) + timedelta(days=5 * k) for k in range(400))
    return {t: int(base * (peak if t.month in (11, 12) else 1)) for t in days if t <= T} | {T: base}


def test_a_peak_a_year_ago_is_expected_again() -> None:
    p = np.full(10_000, 0.7)
    found = forecast(demand(seasonal(1.5, 1)), T, p, NONE)
    assert found.season_rate == pytest.approx(1 - 1.5 * 3200 / 10_000, abs=1e-3)
    assert found.season_rate < found.churn_rate < 0.60 < found.model_rate
    assert found.low < found.churn_rate < found.high


def test_more_cycles_are_trusted_more() -> None:
    p = np.full(10_000, 0.7)
    one, three = (forecast(demand(seasonal(1.5, years)), T, p, NONE) for years in (1, 3))
    assert (one.cycles, three.cycles) == (1, 3)
    assert abs(three.churn_rate - 0.52) < abs(one.churn_rate - 0.52)
    assert three.high - three.low < one.high - one.low


def test_few_customers_are_trusted_less() -> None:
    many = forecast(demand(seasonal(1.5, 1)), T, np.full(10_000, 0.7), NONE)
    few = forecast(demand(seasonal(1.5, 1, base=40)), T, np.full(100, 0.7), NONE)
    assert few.churn_rate > many.churn_rate + 0.01


@pytest.mark.parametrize("first", [T - YEAR, T - YEAR - timedelta(days=HORIZON), T - YEAR - timedelta(days=2 * HORIZON - 5)])
def test_without_a_full_earlier_cycle_the_level_stays_the_models(first: datetime) -> None:
    """The first horizon of the data is acquisition, not a season: a cohort must not look like a crash."""
    p = sigmoid(np.random.default_rng(0).normal(1, 1, 5000))
    found = forecast(demand(seasonal(0.2, 1), first), T, p, NONE)
    assert (found.cycles, found.season_rate) == (0, None)
    assert found.churn_rate == pytest.approx(p.mean(), abs=1e-6)


def test_nothing_after_the_snapshot_is_read() -> None:
    later = {T + timedelta(days=k): 9_999 for k in (1, 30, 90)}
    p = np.full(1000, 0.7)
    assert forecast(demand(seasonal(1.5, 1) | later), T, p, NONE) == forecast(demand(seasonal(1.5, 1)), T, p, NONE)


def test_the_calibrated_population_has_the_forecast_level() -> None:
    p = sigmoid(np.random.default_rng(0).normal(1, 1.5, 5000))
    for calibration in (NONE, Calibration("platt", [1.7]), Calibration("beta", [0.4, 1.6])):
        found = forecast(demand(seasonal(1.3, 1)), T, p, calibration, drift=0.1)
        z = Level({T: found}).calibrate(logit(p), np.full(p.size, np.datetime64(T, "us")), calibration)
        assert sigmoid(z).mean() == pytest.approx(found.churn_rate, abs=1e-6)


def test_rows_take_the_latest_forecast_before_them() -> None:
    level = Level({T: Forecast(0.5, 0.4, 0.6, 0.5, None, 0, 1.0), T + YEAR: Forecast(0.5, 0.4, 0.6, 0.5, None, 0, 3.0)})
    at = [T - YEAR, T, T + timedelta(days=9), T + YEAR, T + 2 * YEAR, None]
    moments = np.array([np.datetime64("NaT") if t is None else np.datetime64(t, "us") for t in at])
    assert level.calibrate(np.zeros(6), moments, NONE).tolist() == [1, 1, 1, 3, 3, 3]
    assert Level.from_json(level.to_json()) == level


def test_demand_counts_active_and_returning_customers_of_every_snapshot() -> None:
    x = np.array([[10.0, 500.0], [80.0, 85.0], [200.0, 600.0], [5.0, 5.0]])
    moments = np.array([np.datetime64(T, "us")] * 3 + [np.datetime64(T + YEAR, "us")])
    rows = Rows(("recency_days", "tenure_days"), x, pa.table({}), (), np.zeros(4), moments, np.zeros(4))
    found = Demand.of([rows], HORIZON)
    assert (found.active[T], found.returning[T], found.active[T + YEAR]) == (2, 1, 1)
    assert found.first == T - timedelta(days=600)
