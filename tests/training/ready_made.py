"""A feature table of somebody else's store, and a home in which Holdfast was trained on one: copies of it are cheap."""

import shutil
import sqlite3
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from features.settings import Settings
from training.config import TrainConfig
from training.train import train
from validation.external import Columns, accept
from validation.stages import Places

MOMENTS = [datetime(2024, 1, 1) + timedelta(days=30 * k) for k in range(14)]
COLUMNS = Columns("user", "day", "gone", 60)
MODEL = "holdfast-churn-own"


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
    return pd.concat(parts, ignore_index=True)


def places(home: Path) -> Places:
    """Where the table `own` lies in a home."""
    settings = Settings(home=home)
    return Places(settings.of("table_own"), settings.reports)


def learn(home: Path, given: pd.DataFrame, horizon_days: int = COLUMNS.horizon_days) -> dict[str, object]:
    """Put a table in force and train the quickest model on it."""
    given.to_parquet(home.parent / "own.parquet")
    accept(home.parent / "own.parquet", replace(COLUMNS, horizon_days=horizon_days), places(home))
    return train(MODEL, places(home), Settings(home=home), TrainConfig(trials=2, model="logistic"))


def copy(home: Path, to: Path) -> Path:
    """A home of its own with the same state: MLflow keeps whole paths."""
    shutil.copytree(home.parent, to, dirs_exist_ok=True)
    moved = to / home.name
    with sqlite3.connect(moved / "mlflow.db") as db:
        for table, column in (
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
            ("experiments", "artifact_location"),
            ("model_versions", "storage_location"),
        ):
            db.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(home), str(moved)))
    db.close()
    return moved
