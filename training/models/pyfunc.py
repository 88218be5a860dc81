"""Lets ``mlflow.pyfunc.load_model("models:/holdfast-churn@champion")`` predict from a feature-table frame."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.sequences import CHANNELS, WEEKS
from features.table import SEQUENCE
from training.models.base import Floats, Rows
from training.models.scorer import Scorer


class Predictor:
    """Calibrated churn probabilities for a pandas frame with the columns of the feature table."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def predict(self, frame: Any, params: dict[str, Any] | None = None) -> Floats:
        """Churn probability of each row, shape (n,)."""
        names = self.scorer.manifest.names
        table = pa.table({name: pa.array(frame[name].to_numpy(dtype=np.float64)) for name in names})
        weeks = np.zeros((len(frame), WEEKS * len(CHANNELS)), np.float32)
        if SEQUENCE in frame:
            weeks = np.stack([np.asarray(row, np.float32) for row in frame[SEQUENCE]])
        flat = pa.FixedSizeListArray.from_arrays(pa.array(weeks.ravel()), weeks.shape[1])
        return self.scorer.predict(Rows.of(table.append_column(SEQUENCE, flat), names))


def _load_pyfunc(path: str) -> Predictor:
    return Predictor(Scorer.load(Path(path)))
