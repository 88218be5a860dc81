"""The HTTP application: thin, strict and mounted into one BentoML service (`service.py`)."""

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import orjson
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving import decisions, openapi
from serving.schemas import ScoreRequest
from serving.score import Engine

MAX_BODY_BYTES = 16 * 1024 * 1024
WORK_THREADS = 2
MAX_WAITING = 256
"""Requests that may wait for a thread; beyond that the answer is 503."""


class Api:
    """Holds the engine and answers requests; scoring runs in worker threads, never in the event loop."""

    def __init__(self, load: Callable[[], Engine], log: Path | None, version: str) -> None:
        self._load, self.log, self.version = load, log, version
        self.limiter: anyio.CapacityLimiter | None = None
        self.waiting = 0

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Load once, then freeze the heap: a full collection over it costs a request 100 ms and more."""
        self.engine = self._load()
        self.limiter = anyio.CapacityLimiter(WORK_THREADS)
        gc.collect()
        gc.freeze()
        yield

    async def score(self, request: Request) -> Response:
        """``POST /v1/score``."""
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return problem(415, "Unsupported media type", "send application/json")
        if self.waiting >= MAX_WAITING:
            return problem(503, "Busy", "all workers are busy", headers={"Retry-After": "1"})
        self.waiting += 1
        try:
            body = await _body(request)
            return await anyio.to_thread.run_sync(self._score, body, limiter=self.limiter)
        finally:
            self.waiting -= 1

    def _score(self, body: bytes) -> Response:
        try:
            asked = ScoreRequest.model_validate_json(body)
        except ValidationError as error:
            return _invalid(error)
        results = self.engine.score(asked.customers, asked.snapshot)
        if self.log is not None:
            decisions.append(self.log, self._identity(), results)
        answer = {**self._identity(), "currency": self.engine.manifest.currency, "results": results}
        return json_response(answer)

    def _identity(self) -> dict[str, str]:
        return {"model_version": self.engine.identity["model_version"], "policy_version": self.engine.policy.version}

    async def model(self, request: Request) -> Response:
        """``GET /v1/model``."""
        engine, lookup = self.engine, self.engine.lookup
        return json_response(
            {
                **engine.identity,
                "dataset": engine.manifest.dataset,
                "horizon_days": engine.manifest.horizon_days,
                "features": len(engine.manifest.names),
                "sources": engine.manifest.sources,
                "policy_version": engine.policy.version,
                "effects_source": engine.policy.effects_source,
                "table_snapshot": lookup.rows["snapshot"][0].as_py().replace(tzinfo=engine.zone)
                if lookup and lookup.rows.num_rows
                else None,
                "table_customers": len(lookup.index) if lookup else 0,
            }
        )

    async def document(self, request: Request) -> Response:
        """``GET /openapi.json``."""
        return json_response(openapi.document(self.version))

    async def index(self, request: Request) -> Response:
        """``GET /``: where to look, without a third party's script."""
        return json_response({"service": "holdfast", "openapi": "/openapi.json", "score": "POST /v1/score", "model": "/v1/model"})


def create(load: Callable[[], Engine], log: Path | None, version: str) -> Starlette:
    """The application; ``load`` runs at start-up, ``log`` is the folder of the decision log."""
    api = Api(load, log, version)
    routes = [
        Route("/v1/score", api.score, methods=["POST"]),
        Route("/v1/model", api.model, methods=["GET"]),
        Route("/openapi.json", api.document, methods=["GET"]),
        Route("/docs.json", api.document, methods=["GET"]),
        Route("/", api.index, methods=["GET"]),
    ]
    handlers = {HTTPException: _http_problem, Exception: _unexpected}
    return Starlette(routes=routes, lifespan=api.lifespan, exception_handlers=handlers)


def json_response(value: Any, status: int = 200, media: str = "application/json", headers: dict[str, str] | None = None) -> Response:
    """JSON by orjson; times as ISO 8601."""
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status, headers, media)


def problem(
    status: int, title: str, detail: str, errors: list[dict[str, str]] | None = None, headers: dict[str, str] | None = None
) -> Response:
    """An RFC 9457 problem."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "errors": errors or []}
    return json_response(body, status, "application/problem+json", headers)


def _invalid(error: ValidationError) -> Response:
    found = error.errors(include_input=False, include_context=False, include_url=False)
    if found[0]["type"] == "json_invalid":
        return problem(400, "Not JSON", "the body is not valid JSON")
    told = [{"field": ".".join(str(part) for part in one["loc"]), "rule": one["msg"]} for one in found[:20]]
    return problem(422, "Invalid request", f"{len(found)} field(s) break the schema", told)


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, "Request refused", error.detail)


async def _unexpected(request: Request, error: Exception) -> Response:
    """A fault of ours: the log gets its type and place, never the request's values."""
    return problem(500, "Internal error", f"{type(error).__name__}; the service's log tells where")
