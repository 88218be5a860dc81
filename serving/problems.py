"""What each kind of error is answered with: an RFC 9457 problem (`answers.py`) that repeats no value of the request."""

import logging
import traceback
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serving.answers import Refusal, problem
from serving.ledger import Breach
from serving.online import StoreBusy
from serving.writer import TooSlow

log = logging.getLogger("holdfast.app")


async def _refused(request: Request, error: Exception) -> Response:
    return error.response if isinstance(error, Refusal) else await _unexpected(request, error)


async def _busy(request: Request, error: Exception) -> Response:
    return problem(503, "Busy", "the online store is being written to by a batch", headers={"Retry-After": "2"})


async def _too_slow(request: Request, error: Exception) -> Response:
    detail = "the decision took longer than its limit and was cancelled; nothing was decided"
    return problem(503, "Too slow", detail, headers={"Retry-After": "1"})


async def _breach(request: Request, error: Exception) -> Response:
    """A decision of ours that must not be: undone and told."""
    log.error("%s", error)
    return problem(500, "Decision refused", str(error))


async def _http_problem(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return await _unexpected(request, error)
    return problem(error.status_code, "Request refused", error.detail, headers=dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    """A fault of ours: the log gets its type and place, never its message, which may hold values of the request."""
    where = " < ".join(f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in reversed(traceback.extract_tb(error.__traceback__)))
    log.error("internal error %s at %s", type(error).__name__, where)
    return problem(500, "Internal error", f"{type(error).__name__}; the service's log tells where")


HANDLERS: Any = {
    Refusal: _refused,
    StoreBusy: _busy,
    TooSlow: _too_slow,
    Breach: _breach,
    HTTPException: _http_problem,
    Exception: _unexpected,
}
"""By kind of error, for Starlette."""
