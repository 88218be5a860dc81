"""Lets ``mlflow.pyfunc.load_model("models:/holdfast-churn@champion")`` predict from a feature-table frame."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.table import EVENTS, KEYS, WEEKLY
from training.models.base import Floats, Rows
from training.models.scorer import Scorer


class Predictor:
    """Calibrated churn probabilities for a pandas frame with the columns of the feature table."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def predict(self, frame: Any, params: dict[str, Any] | None = None) -> Floats:
        """Churn probability of each row, shape (n,); features may be of any numeric type, with nulls."""
        import pandas as pd

        manifest = self.scorer.manifest
        columns = {name: pa.array(frame[name].to_numpy(dtype=np.float64, na_value=np.nan)) for name in manifest.names}
        kinds = (pa.int32(), pa.float32(), pa.int8(), pa.float32())
        for name, kind in zip((*WEEKLY, *EVENTS), kinds, strict=True) if manifest.channels else ():
            lists = [list(row) for row in frame[name]] if name in frame else [[] for _ in range(len(frame))]
            columns[name] = pa.array(lists, pa.list_(kind))
        if KEYS[1] in frame:
            moments = pd.to_datetime(frame[KEYS[1]], utc=True, format="ISO8601")  # as `validation.reading`
            columns[KEYS[1]] = pa.array(moments.dt.tz_localize(None).to_numpy(dtype="datetime64[us]"))
        return self.scorer.predict(Rows.of(pa.table(columns), manifest.names, manifest.channels))


def _load_pyfunc(path: str) -> Predictor:
    return Predictor(Scorer.load(Path(path)))
