"""The rivals of the service: the same LightGBM model behind a bare Starlette app and behind a stock BentoML API.

Both take a ready feature row and return the probability, no more: no look-up, reasons, decision or log.
"""

import os
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(os.environ.get("HOLDFAST_BENCH_MODEL", "."))


def _booster() -> lgb.Booster:
    return lgb.Booster(model_str=(FOLDER / "model.lgb").read_text())


def starlette() -> Starlette:
    """`uvicorn --factory tests.benchmarks.rivals:starlette`."""
    booster = _booster()

    async def score(request: Request) -> Response:
        rows = np.array(orjson.loads(await request.body())["rows"], dtype=np.float64)
        return Response(orjson.dumps(booster.predict(rows, num_threads=1).tolist()), media_type="application/json")

    return Starlette(routes=[Route("/score", score, methods=["POST"])])


def stock_bentoml() -> Any:
    """A plain `@bentoml.api` method, as the documentation shows it."""
    import bentoml

    @bentoml.service(name="stock", workers=1)
    class Stock:
        def __init__(self) -> None:
            self.booster = _booster()

        @bentoml.api
        def score(self, rows: list[list[float]]) -> list[float]:
            return list(self.booster.predict(np.array(rows), num_threads=1))

    return Stock


if "HOLDFAST_BENCH_BENTOML" in os.environ:
    Stock = stock_bentoml()
