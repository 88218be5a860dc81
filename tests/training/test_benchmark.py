"""The benchmark: published counts are met, results have their form, a finished protocol is not run again."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from features import table
from features.mapping import Snapshots
from tests.conftest import Shop, cli
from training.benchmark import markdown, rolling_level
from training.dataset import TrainingData
from training.models.base import Rows
from training.protocols import ELIGIBLE_45, PROTOCOLS
from validation.stages import Places, build_features, validate

KEYS = {
    "protocol",
    "population",
    "model",
    "seed",
    "rows",
    "auc",
    "pr_auc",
    "log_loss",
    "brier",
    "ece",
    "accuracy",
    "lift_10",
    "fit_seconds",
}
MODELS = {"recency", "logistic_rfm", "bgnbd", "logistic", "lightgbm", "lightgbm_defaults", "lstm", "blend"}


@pytest.mark.parametrize(
    ("day", "eligible", "churned"),
    [("2011-06-01", 1182, 543), ("2011-07-17", 1284, 612), ("2011-09-01", 1255, 536), ("2011-10-17", 1433, 517)],
)
def test_the_published_counts_of_uci_45_are_met(day: str, eligible: int, churned: int, tmp_path: Path) -> None:
    protocol = next(one for one in PROTOCOLS if one.name == "UCI-45-year")
    dataset = protocol.dataset(None, tmp_path)
    moments = Snapshots(first=date(2011, 1, 1), test=date.fromisoformat(day), every=15)
    places = Places(tmp_path / "state", tmp_path / "reports")
    validate(dataset, places)
    manifest = build_features(dataset.model_copy(update={"snapshots": moments}), places)
    rows = Rows.of(table.read(places.features, [manifest.test]), manifest.names, manifest.channels)  # type: ignore[list-item]
    kept = ELIGIBLE_45.keep(rows)
    assert (int(kept.sum()), int(rows.y[kept].sum())) == (eligible, churned)


@pytest.mark.slow
def test_the_short_form_judges_every_model_on_a_shops_own_mapping_file(fake_files: Path, tmp_path: Path) -> None:
    words = ("benchmark", "--dataset", str(fake_files), "--short", "--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md"))
    done = cli(tmp_path / "home", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "r.json").read_text())
    assert all(set(one) >= KEYS for one in results)
    assert {one["model"] for one in results} == MODELS
    assert {one["population"] for one in results} == {"all", "active-180"}
    for one in results:
        assert one["auc"][1] <= one["auc"][0] <= one["auc"][2]
        assert one["log_loss_difference"][0] == 0 or one["model"] != "lightgbm"
    assert markdown(results) == (tmp_path / "r.md").read_text()
    again = cli(tmp_path / "home", *words)
    assert "trial" not in again.stdout
    assert json.loads((tmp_path / "r.json").read_text()) == results


def test_cdnow_without_its_data_is_left_out_and_told_and_an_unknown_protocol_refused(tmp_path: Path) -> None:
    done = cli(tmp_path, "benchmark", "--protocol", "ORII")
    assert done.returncode == 2
    assert "choose among ORII-Sep, ORII-Jun" in done.stderr


def test_the_level_forecast_never_hurts_by_rolling_origin(sample_features: Shop) -> None:
    """On the origins with an earlier cycle, and on average; nothing before it is changed."""
    from datetime import datetime

    data = TrainingData.read(sample_features.places.features)
    labelled = tuple(t for t in data.split.labelled if t >= datetime(2010, 7, 1))
    found = rolling_level(replace(data, split=replace(data.split, labelled=labelled)), datetime(2011, 6, 1))
    gains = np.array([one["log_loss_forecast"] - one["log_loss_model"] for one in found])
    assert [one["cycles"] for one in found] == [1, 1, 1, 1]
    assert gains.mean() < -0.005
    assert gains.max() <= 0.01
    assert all(one["interval"][0] <= one["observed"] <= one["interval"][1] for one in found)
