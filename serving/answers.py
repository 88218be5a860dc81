"""JSON answers and RFC 9457 problems; none repeats a value of the request."""

from functools import cache
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError
from starlette.responses import Response
from typing_extensions import is_typeddict

MOST_ERRORS = 1000
"""Broken rules beyond which only their number is told."""


class Refusal(Exception):
    """A request that gets a problem for an answer."""

    def __init__(
        self, status: int, title: str, detail: str, errors: list[dict[str, str]] | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.response = problem(status, title, detail, errors, headers)


def json_response(value: Any, status: int = 200, media: str = "application/json", headers: dict[str, str] | None = None) -> Response:
    """JSON by orjson; times as ISO 8601."""
    return Response(orjson.dumps(value), status, headers, media)


def problem(
    status: int, title: str, detail: str, errors: list[dict[str, str]] | None = None, headers: dict[str, str] | None = None
) -> Response:
    """An RFC 9457 problem."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "errors": errors or []}
    return json_response(body, status, "application/problem+json", headers)


def invalid(error: ValidationError) -> Refusal:
    """Which fields break which rules."""
    if error.error_count() > MOST_ERRORS:  # to list them would take hundreds of megabytes
        return Refusal(422, "Invalid request", f"{error.error_count()} field(s) break the schema")
    found = error.errors(include_input=False, include_context=False, include_url=False)
    if found[0]["type"] == "json_invalid":
        return Refusal(400, "Not JSON", "the body is not valid JSON")
    told = [{"field": ".".join(_named(part) for part in one["loc"])[:200], "rule": _rule(one)} for one in found[:20]]
    return Refusal(422, "Invalid request", f"{len(found)} field(s) break the schema", told)


def _named(part: int | str) -> str:
    """A field of ours by its name; what a caller made up may be anybody's data."""
    return str(part) if isinstance(part, int) or part in _known_names() else "(unknown)"


def _rule(error: Any) -> str:
    return "names no table that takes rows" if error["type"] == "union_tag_invalid" else str(error["msg"])[:200]


@cache
def _known_names() -> set[str]:
    from serving import schemas

    kinds = [one for one in vars(schemas).values() if isinstance(one, type)]
    names = {name for one in kinds if issubclass(one, BaseModel) for name in one.model_fields}
    names |= {name for one in kinds if is_typeddict(one) for name in one.__annotations__}
    return names | set(schemas.ROWS)
