"""Customer value on the hold-out: BG/NBD x Gamma-Gamma against LightGBM regressions of the spend in the horizon ahead.

Learnt from snapshots whose label window ends before the test snapshot, judged by the mean absolute error (currency) and the root mean
square error of the spend in the 90 days after it. With HOLDFAST_TEST_DATA also on CDNOW.
"""

import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd

from features import mapping, table
from features.clv import ORDERS_DAYS
from features.mapping import Dataset
from features.settings import Settings
from features.store import opened
from tests.benchmarks.result import Result
from validation.stages import Places, build_features, split_of, validate

CDNOW = Path(__file__).parents[1] / "data" / "cdnow.toml"
PARAMS = {"learning_rate": 0.03, "num_leaves": 15, "min_data_in_leaf": 200, "feature_fraction": 0.2, "lambda_l2": 5, "extra_trees": True}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "LightGBM, Tweedie": {"objective": "tweedie", "tweedie_variance_power": 1.3},
    "LightGBM, squared error": {"objective": "regression"},
}
ROUNDS = 300


def run() -> Iterator[Result]:
    """Both data sets, both rivals, both errors."""
    shops = [mapping.read(), *([mapping.read(CDNOW)] if "HOLDFAST_TEST_DATA" in os.environ else [])]
    for dataset in shops:
        with tempfile.TemporaryDirectory() as folder:
            yield from _judged(dataset, Places.of(Settings(home=Path(folder)), dataset))


def _judged(dataset: Dataset, places: Places) -> Iterator[Result]:
    validate(dataset, places)
    manifest = build_features(dataset, places)
    split = split_of(dataset, places)
    rows = table.read(places.features, [*split.before(split.test), split.test]).to_pandas()
    spent = _spent(places, rows)
    test = (rows["snapshot"] == split.test).to_numpy()
    truth = spent[test]
    ours = (rows["expected_orders_90d"] * rows["expected_order_value"]).to_numpy()[test]
    for rival, objective in OBJECTIVES.items():
        data = lightgbm.Dataset(rows.loc[~test, manifest.names], spent[~test])
        booster = lightgbm.train({**PARAMS, **objective, "verbose": -1, "seed": 1, "num_threads": 1}, data, ROUNDS)
        theirs = booster.predict(rows.loc[test, manifest.names])
        for error, measure in (("mae", _mae), ("rmse", _rmse)):
            yield Result(f"clv.{dataset.name}.{error}", measure(ours, truth), dataset.currency, rival, measure(theirs, truth))


def _spent(places: Places, rows: pd.DataFrame) -> np.ndarray:
    """Spend of each row's customer in the horizon after its snapshot, orders cancelled by then left out."""
    query = """SELECT customer_id, ordered_at, cancelled_at, spend FROM orders
        JOIN (SELECT order_id, CAST(sum(amount) AS DOUBLE) AS spend FROM order_lines GROUP BY order_id) USING (order_id)"""
    with opened(places.sources) as connection:
        orders = connection.sql(query).df()
    found = np.zeros(len(rows))
    for moment in rows["snapshot"].unique():
        end = moment + timedelta(days=ORDERS_DAYS)
        inside = (orders["ordered_at"] > moment) & (orders["ordered_at"] <= end) & ~(orders["cancelled_at"] <= end)
        by_customer = orders[inside].groupby("customer_id")["spend"].sum()
        here = (rows["snapshot"] == moment).to_numpy()
        found[here] = rows.loc[here, "customer_id"].map(by_customer).fillna(0.0)
    return found


def _mae(expected: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean(np.abs(expected - truth)))


def _rmse(expected: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((expected - truth) ** 2)))
