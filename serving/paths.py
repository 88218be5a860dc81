"""The path of a request as it was sent: an encoded slash is part of an id, and no boundary.

Servers decode the whole path, after which ``EU%2F123`` cannot be told from two parts. The guard, which asks for scopes, and the
application, which finds the endpoint, both go by `as_sent`, so that they never disagree on what a request is about.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.requests import Request

from serving.answers import Refusal

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


def as_sent(scope: Scope) -> str:
    """The path with what is encoded in it still encoded."""
    raw: bytes | None = scope.get("raw_path")
    return str(scope["path"]) if raw is None else raw.partition(b"?")[0].decode("latin-1")


def part(request: Request, name: str) -> str:
    """A part of the path, decoded. Raises Refusal where that is not UTF-8."""
    try:
        return unquote_to_bytes(request.path_params[name].encode("latin-1")).decode("utf-8")
    except UnicodeError:
        raise Refusal(422, "Invalid request", f"{name} is not percent-encoded UTF-8", [{"field": name, "rule": "UTF-8"}]) from None


class AsSent:
    """ASGI: the application finds its endpoint by the path as it was sent."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """One request."""
        await self.app({**scope, "path": as_sent(scope)} if scope["type"] == "http" else scope, receive, send)


def number(request: Request, name: str, default: int, largest: int) -> int:
    """A whole number of the query. Raises Refusal (422)."""
    told = request.query_params.getlist(name)
    text = told[0] if told else str(default)
    if not (len(told) < 2 and text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= largest):
        raise Refusal(
            422, "Invalid request", f"{name} must be a whole number up to {largest}", [{"field": name, "rule": f"0 to {largest}"}]
        )
    return int(text)
