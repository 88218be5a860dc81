"""A feature table that Holdfast did not build: trained on by the same command, refused with column, value and fix when it is wrong."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from features.settings import Settings
from tests.conftest import cli
from training import tracking

MOMENTS = [datetime(2024, 1, 1) + timedelta(days=30 * k) for k in range(14)]


def frame(n: int = 150, seed: int = 1) -> pd.DataFrame:
    """Rows of a team's own feature store; the last snapshot is not labelled yet."""
    rng = np.random.default_rng(seed)
    parts = []
    for moment in MOMENTS:
        silence, visits = rng.gamma(2, 30, n), rng.poisson(4, n)
        churned = (rng.random(n) < 1 / (1 + np.exp(-(silence - 60) / 25 + 0.3 * (visits - 4)))).astype(float)
        label = np.full(n, np.nan) if moment == MOMENTS[-1] else churned
        ids = [f"u{k}" for k in range(n)]
        parts.append(pd.DataFrame({"user": ids, "day": moment, "gone": label, "silence, days": silence, "visits": visits, "plan": "basic"}))
    return pd.concat(parts)


OPTIONS = ("--id-column", "user", "--snapshot-column", "day", "--label-column", "gone", "--horizon-days", "60")


def test_a_teams_own_table_is_tuned_blended_registered_and_served_by_pyfunc(tmp_path: Path) -> None:
    given = frame()
    given.to_parquet(tmp_path / "own.parquet")
    done = cli(tmp_path / "home", "train", "--dataset", str(tmp_path / "own.parquet"), *OPTIONS, "--trials", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 features at 13 labelled snapshots" in done.stdout
    facts = json.loads(next((tmp_path / "home").rglob("training.json")).read_text())
    assert set(facts["test"]["models"]) == {"lightgbm", "logistic", "blend"}
    assert facts["test"]["models"]["blend"]["auc"][0] > 0.8
    tracking.connect(Settings(home=tmp_path / "home"))
    p = mlflow.pyfunc.load_model("models:/holdfast-churn-own@challenger").predict(given[["silence, days", "visits"]].astype(float))
    assert np.corrcoef(p, given["silence, days"])[0, 1] > 0.7


def test_an_lstm_cannot_learn_from_a_table_without_sequences(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "own.parquet")
    done = cli(tmp_path / "home", "train", "--dataset", str(tmp_path / "own.parquet"), *OPTIONS, "--model", "lstm")
    assert done.returncode == 2
    assert "no sequences to learn from" in done.stderr


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: f.rename(columns={"gone": "lost"}), "column 'gone'"),
        (lambda f: f.assign(gone=f.gone * 2), "gone = 2.0 is no label"),
        (lambda f: pd.concat([f, f.head(3)]), "3 rows repeat a user"),
        (lambda f: f.assign(visits=np.inf), "column 'visits' holds 2,100 infinite values"),
        (lambda f: f.assign(visits=np.nan), "column 'visits' is null everywhere"),
        (lambda f: f[f.day < MOMENTS[4]], "too few for a horizon of 60 days"),
        (lambda f: f.drop(columns=["silence, days", "visits"]), "no numeric column"),
        (lambda f: f.assign(gone=np.nan), "holds no label"),
        (lambda f: f.assign(user=None), "lack user or day"),
    ],
)
def test_a_wrong_table_is_refused_before_anything_is_learnt(tmp_path: Path, spoil: object, told: str) -> None:
    from features.errors import InputError
    from validation.external import Columns, accept
    from validation.stages import Places

    spoil(frame()).to_parquet(tmp_path / "own.parquet")  # type: ignore[operator]
    places = Places(tmp_path / "state", tmp_path / "reports")
    with pytest.raises(InputError, match=told.replace("(", r"\(")):
        accept(tmp_path / "own.parquet", Columns("user", "day", "gone", 60), places)
    assert not places.features.exists()
