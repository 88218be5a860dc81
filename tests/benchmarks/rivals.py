"""The rivals of the service: the same model behind a bare Starlette app and behind a stock BentoML API.

Both take a ready feature row, with its sequences where the model reads them, and return the probability, no more: no key, schema, tier or
metrics. The champion is scored by Holdfast's own `Scorer`, the reference model by LightGBM alone.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(os.environ.get("HOLDFAST_BENCH_MODEL", "."))
Predict = Callable[[list[list[float]], dict[str, list[list[float]]]], list[float]]


def _predict() -> Predict:
    files = sorted(FOLDER.glob("model.lgb.*"))
    if (FOLDER / "blend.json").exists():
        return _champion()
    import lightgbm as lgb

    booster = lgb.Booster(model_str=files[0].read_text())
    return lambda rows, lists: list(booster.predict(np.array(rows, dtype=np.float64), num_threads=1).tolist())


def _champion() -> Predict:
    import pyarrow as pa

    from training.models.base import Rows
    from training.models.scorer import Scorer

    scorer = Scorer.load(FOLDER)
    kinds = {"week_cells": pa.int32(), "week_values": pa.float32(), "event_types": pa.int8(), "event_gap_days": pa.float32()}
    names, channels = tuple(scorer.manifest.names), scorer.manifest.channels

    def predict(rows: list[list[float]], lists: dict[str, list[list[float]]]) -> list[float]:
        unknown = np.full(len(rows), np.nan)
        sequences = pa.table({name: pa.array(lists[name], pa.list_(kind)) for name, kind in kinds.items()})
        moment = np.full(len(rows), np.datetime64("NaT", "us"))
        arrays = Rows(names, np.array(rows, dtype=np.float64), sequences, channels, unknown, moment, unknown)
        return list(scorer.predict(arrays).tolist())

    return predict


def starlette() -> Starlette:
    """`uvicorn --factory tests.benchmarks.rivals:starlette`."""
    predict = _predict()

    async def score(request: Request) -> Response:
        asked = orjson.loads(await request.body())
        return Response(orjson.dumps(predict(asked["rows"], asked["lists"])), media_type="application/json")

    return Starlette(routes=[Route("/score", score, methods=["POST"])])


def stock_bentoml() -> Any:
    """A plain `@bentoml.api` method, as the documentation shows it."""
    import bentoml

    @bentoml.service(name="stock", workers=1)
    class Stock:
        def __init__(self) -> None:
            self.predict = _predict()

        @bentoml.api
        def score(self, rows: list[list[float]], lists: dict[str, list[list[float]]]) -> list[float]:
            return self.predict(rows, lists)

    return Stock


if "HOLDFAST_BENCH_BENTOML" in os.environ:
    Stock = stock_bentoml()
