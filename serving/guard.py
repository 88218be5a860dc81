"""The outermost layer of the service: key, scope, rate and size are checked before any work, and before BentoML sees a request.

Answers get security headers, and the count and time of every request goes into the metrics.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from serving import metrics
from serving.answers import problem
from serving.keys import ANYBODY, Key, Keys
from serving.paths import as_sent
from serving.work import hold

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC = frozenset({"/", "/try", "/openapi.json", "/livez", "/readyz", "/healthz"})
SINGLE_BYTES, LIST_BYTES = 1024 * 1024, 16 * 1024 * 1024
LISTS = frozenset({"/v1/score", "/v1/decisions", "/v1/events", "/v1/outcomes"})
OF_A_CUSTOMER = {"/v1/customers/profile": "score", "/v1/customers/consents": "events", "/v1/customers/erasure": "admin"}
"""Places whose body names the customer, with the scope that each needs."""
STRANGERS_PER_SECOND = 20.0
"""Requests without a good key that are answered in a second, all together."""
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
NO_CONTENT = [(b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")]
"""For everything but the try-out page, which brings its own."""


class Bucket:
    """So many requests a second, and as many at once."""

    def __init__(self, per_second: float) -> None:
        self.per_second, self.left, self.at = per_second, max(per_second, 1.0), time.monotonic()

    def wait(self) -> float:
        """Take one; seconds until there is one, 0 when it was there."""
        now = time.monotonic()
        self.left = min(max(self.per_second, 1.0), self.left + (now - self.at) * self.per_second)
        self.at = now
        if self.left >= 1:
            self.left -= 1
            return 0.0
        return (1 - self.left) / self.per_second


@dataclass(frozen=True)
class Route:
    """A place of the API: its name in metrics, and the scope that a key needs."""

    name: str
    scope: str | None


def route(method: str, path: str) -> Route:
    """Which place a request asks for."""
    if path in PUBLIC:
        return Route(path, None)
    if path == "/metrics":
        return Route(path, "admin")
    if path in ("/v1/events", "/v1/outcomes"):
        return Route(path, "events")
    if method == "POST" and path in OF_A_CUSTOMER:
        return Route(path, OF_A_CUSTOMER[path])
    if path.startswith("/v1/customers/"):
        if path.count("/") == 4 and path.endswith("/consents"):
            return Route("/v1/customers/{id}/consents", "events")
        return Route("/v1/customers/{id}", "admin" if method == "DELETE" else "score")
    if path.startswith("/v1/decisions/"):
        return Route("/v1/decisions/{id}", "score")
    return Route(path if path in ("/v1/score", "/v1/decisions", "/v1/model", "/v1/policy") else "other", "score")


class Guard:
    """ASGI: ``inner`` gets what is allowed; ``host`` (BentoML's application) gets the start and the end of the process.

    ``full`` tells whether more requests wait than can be answered in time: then lists of the API are refused here, at the least cost.
    """

    def __init__(self, inner: App, host: App, keys: Keys | None, full: Callable[[], bool] = lambda: False) -> None:
        self.inner, self.host, self.keys, self.full = inner, host, keys, full
        self.buckets: dict[str, Bucket] = {}
        self.strangers = Bucket(STRANGERS_PER_SECOND)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.host(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        start, where = time.perf_counter(), route(scope["method"], as_sent(scope))
        status = 500

        async def answering(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = any(name == b"content-security-policy" for name, _ in message["headers"])
                message["headers"] = [*message["headers"], *HEADERS, *([] if own else NO_CONTENT)]
            await send(message)

        refusal = self._refusal(scope, where)
        try:
            await (self.inner if refusal is None else refusal)(scope, receive, answering)
        except Exception:
            if status < 500:  # else it was answered and told: raised further, its message would get into the server's log
                raise
        finally:
            metrics.requests.labels(where.name, str(status)).inc()
            metrics.seconds.labels(where.name).observe(time.perf_counter() - start)

    def _refusal(self, scope: Scope, where: Route) -> App | None:
        """Why a request is not for the inner application."""
        headers = dict(scope["headers"])
        if where.scope is not None:
            key = self._key(headers)
            if key is None:
                return self._stranger()
            if not key.allows(where.scope):
                return _refused("scope", 403, "Forbidden", f"the key lacks the scope {where.scope!r}")
            if wait := self.buckets.setdefault(key.digest, Bucket(key.per_second)).wait():
                return _refused("rate", 429, "Too many requests", "the key's rate is used up", {"Retry-After": str(int(wait) + 1)})
            scope["holdfast.key"] = key.id
        listed = as_sent(scope) in LISTS
        limit = LIST_BYTES if listed else SINGLE_BYTES
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > limit:
            return _refused("size", 413, "Too large", f"the body is larger than {limit} bytes", {"Connection": "close"})
        return _busy if listed and self.full() else None

    def _key(self, headers: dict[bytes, bytes]) -> Key | None:
        if self.keys is None:
            return ANYBODY
        kind, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        shown = token.strip() if kind.lower() == "bearer" else headers.get(b"x-api-key", b"").decode("latin-1")
        return self.keys.find(shown) if shown else None

    def _stranger(self) -> Response:
        if self.strangers.wait():
            return _refused("rate", 429, "Too many requests", "too many requests without a good key", {"Retry-After": "1"})
        fix = "send `Authorization: Bearer KEY`; `holdfast keys add` makes one"
        return _refused("key", 401, "Unauthorized", fix, {"WWW-Authenticate": "Bearer"})


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    """503, held back; under overload most requests end here."""
    metrics.refused.labels("busy").inc()
    await hold()
    await _BUSY(scope, receive, send)  # type: ignore[arg-type]


_BUSY = problem(503, "Busy", "more requests wait than can be answered in time", headers={"Retry-After": "1"})


def _refused(why: str, status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    metrics.refused.labels(why).inc()
    return problem(status, title, detail, headers=headers)
