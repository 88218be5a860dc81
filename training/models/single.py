"""One row through a LightGBM booster without what a batch needs: the C interface's fast path for single rows."""

import ctypes
import threading
import weakref
from typing import Any

import lightgbm as lgb
import numpy as np

from training.models.base import Floats

DOUBLE, NORMAL, RAW = 1, 0, 1
"""LightGBM's C_API_DTYPE_FLOAT64, C_API_PREDICT_NORMAL and C_API_PREDICT_RAW_SCORE."""
CALLS = ("BoosterPredictForMatSingleRowFastInit", "BoosterPredictForMatSingleRowFast", "FastConfigFree")
PARAMETERS = b"num_threads=1"


class SingleRow:
    """A prediction prepared once for a booster; threads may share it, since a lock guards the buffers behind it.

    Python knows of these symbols only privately: where one is missing, or refuses, `Booster.predict` answers instead.
    """

    def __init__(self, booster: lgb.Booster, rounds: int, raw: bool = True) -> None:
        self._booster, self._rounds, self._raw = booster, rounds, raw
        self._lock = threading.Lock()
        self._width, self._classes = booster.num_feature(), booster.num_model_per_iteration()
        self._found, self._length = np.empty(self._classes), ctypes.c_int64()
        self._out = self._found.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
        self._call, self._config = self._prepared()

    @property
    def is_fast(self) -> bool:
        """Whether the C interface answers."""
        return self._config is not None

    def __call__(self, x_F: Floats) -> Floats:
        """The prediction of one row of features (f,): a number for each class, (classes,)."""
        if self._config is None or x_F.size != self._width:
            return self._plain(x_F)
        row = np.ascontiguousarray(x_F, dtype=np.float64)
        with self._lock:
            failed = self._call(self._config, ctypes.c_void_p(row.ctypes.data), ctypes.byref(self._length), self._out)
            found = self._found.copy()
        return self._plain(x_F) if failed else found

    def _plain(self, x_F: Floats) -> Floats:
        found = self._booster.predict(x_F.reshape(1, -1), num_iteration=self._rounds, raw_score=self._raw, num_threads=1)
        return np.asarray(found).reshape(-1)

    def _prepared(self) -> tuple[Any, Any]:
        try:
            library, handle = lgb.basic._LIB, self._booster._handle
            start, call, free = (getattr(library, f"LGBM_{name}") for name in CALLS)
        except AttributeError:
            return None, None
        kind, config = RAW if self._raw else NORMAL, ctypes.c_void_p()
        if start(handle, kind, 0, self._rounds, DOUBLE, ctypes.c_int32(self._width), PARAMETERS, ctypes.byref(config)):
            return None, None
        weakref.finalize(self, free, config)
        return call, config
