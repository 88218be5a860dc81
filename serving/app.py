"""The HTTP application: thin, strict, mounted into one BentoML service (`service.py`), behind the guard (`guard.py`)."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import subprocess
import sys
import time
from _thread import start_new_thread
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from serving import bodies, erase, idempotency, metrics, openapi, paths, schemas
from serving.answers import Refusal, invalid, json_response
from serving.audit import Audit
from serving.champions import Champions, trial
from serving.desk import Desk
from serving.guard import LIST_BYTES, SINGLE_BYTES
from serving.online import UNITS, OnlineStore, StoreBusy
from serving.problems import HANDLERS
from serving.score import warm_file
from serving.work import Every, Gate

SMALL_BYTES, TRIMMED_BYTES = 64 * 1024, 256 * 1024
AT_ONCE, MOST_WAITING = 8, 160
"""Small requests at work together (most in turn, in the event loop; raw histories in a thread), and those that may wait."""
LARGE_AT_ONCE, LARGE_WAITING = 2, 32
POLL_SECONDS, DUE_SECONDS, GAUGE_SECONDS, FOLLOWER_SECONDS, ADOPT_SECONDS, FORGET_SECONDS = 0.25, 0.2, 5.0, 5.0, 1.0, 60.0
ERASERS_SECONDS, RETRY_SECONDS = 2.0, 60.0
SWITCH_SECONDS = 0.001
"""A thread at work gives way after so long: an opt-out goes through three, each of which would wait for those that read events."""
DRAIN_SECONDS = 1.5
"""From SIGTERM on readiness is down while requests are still taken, so that a balancer can turn away first."""
GRACE_SECONDS = 10.0
"""Then the process ends, whatever its threads are at, once so long nothing was answered of what is at work; nothing new comes any more."""
LARGE_READ = 8
FEED_MOST = 1000
Model = TypeVar("Model", bound=BaseModel)
_LIBC = ctypes.CDLL(None)
Endpoint = Callable[[Request], Awaitable[Response]]
log = logging.getLogger("holdfast.app")


@dataclass(frozen=True)
class Setup:
    """Where a service finds and keeps things; ``follow``: registered model and alias to follow, if any."""

    home: Path
    package: Path
    features: Path | None
    follow: tuple[str, str] | None
    version: str

    @property
    def following(self) -> Path | None:
        """Folder in which the follower leaves new champions."""
        return self.home / "serving" / "-".join(self.follow) if self.follow else None


class Api:
    """Answers requests; what it does is in `desk.py`."""

    def __init__(self, setup: Setup, store: Callable[[], OnlineStore]) -> None:
        self.setup, self._store = setup, store
        self.audit = Audit(setup.home / "audit")
        self.draining = self.ready = False
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self._erasing_at, self._more = float("-inf"), False
        self._kept_policy, self._answered_at = "", 0.0

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Load once, then freeze the heap: a full collection over it costs a request 100 ms and more."""
        self.champions = Champions(self.setup.package, self.setup.home, self.setup.features, self.setup.following)
        self.desk = Desk(self.champions, self._store())
        self.small, self.large = Gate(AT_ONCE, MOST_WAITING), Gate(LARGE_AT_ONCE, LARGE_WAITING)
        self.reading, self.first = Gate(LARGE_READ, LARGE_WAITING), Gate(AT_ONCE, MOST_WAITING)
        self._gauges()
        self._finish_erasures()
        self._warm_up()
        rounds = [
            (POLL_SECONDS, self._follow),
            (DUE_SECONDS, self.desk.decide_due),
            (GAUGE_SECONDS, self._gauges),
            (ADOPT_SECONDS, self._adopt),
            (FORGET_SECONDS, self.desk.forget_answers),
        ]
        rounds += [(FOLLOWER_SECONDS, self._keep_follower)] if self.setup.follow else []
        tasks = [asyncio.create_task(Every(seconds, work, _told).run()) for seconds, work in rounds]
        self._on_signal()
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(SWITCH_SECONDS)
        with contextlib.suppress(StoreBusy):  # then the round goes on trying
            await self._keep_policy()
        self.ready = True
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            if self._more:
                self._erasing_at = float("-inf")
                self._erase_files()
            for name, child in self.children.items():
                if not name.startswith("erase"):
                    child.kill()

    def _on_signal(self) -> None:
        """Readiness goes down at SIGTERM, some moments later the server's own handler shuts down, and then the process ends for sure."""
        with contextlib.suppress(ValueError):  # not in the main thread: a test's server
            before, loop = signal.getsignal(signal.SIGTERM), asyncio.get_running_loop()

            def drain(number: int, frame: Any) -> None:
                if not self.draining and callable(before):
                    self.draining = True
                    start_new_thread(self._end, ())  # no `Thread`: its locks may be taken where the signal came
                    loop.call_soon_threadsafe(loop.call_later, DRAIN_SECONDS, before, number, None)

            signal.signal(signal.SIGTERM, drain)

    def _end(self) -> None:
        """End this process, though threads of it are at work that never ends; what was answered is on the disk."""
        self._answered_at = time.monotonic() + DRAIN_SECONDS
        while (left := self._answered_at + GRACE_SECONDS - time.monotonic()) > 0:
            time.sleep(left)
        os._exit(1)

    def timed(self, endpoint: Endpoint) -> Endpoint:
        """An endpoint of which is known when it has answered last."""

        async def answering(request: Request) -> Response:
            try:
                return await endpoint(request)
            finally:
                self._answered_at = max(self._answered_at, time.monotonic())

        return answering

    async def _follow(self) -> None:
        if self.champions.changed():
            await asyncio.to_thread(self.champions.switch)
            self._gauges()
        await self._keep_policy()

    async def _keep_policy(self) -> None:
        """Keep the policy in force, by which its decisions can be made again (`replay.py`)."""
        policy = self.champions.current.policy
        if policy.digest != self._kept_policy:  # by the writer: to wait for another's lock here would stop the event loop
            told = policy.model_dump(mode="json", by_alias=True)
            await self.desk.write(lambda: self.desk.store.set_meta(f"policy:{policy.digest}", told))
            self._kept_policy = policy.digest

    def _warm_up(self) -> None:
        """Have the latest table's reasons computed beside the service, unless they are there."""
        engine = self.champions.current
        if engine.lookup is not None and not engine.lookup.scored.why and not self.setup.follow:
            line = trial(self.setup.package, self.setup.home, self.setup.features)
            self.children["warm"] = subprocess.Popen(line, stderr=subprocess.DEVNULL, preexec_fn=_tied)

    def _adopt(self) -> None:
        """Take over what the warm-up has found, wait for children that have ended, start an eraser that was put off."""
        if self._more or self._left_over():
            self._erase_files()
        for name, child in list(self.children.items()):
            if name != "follower" and child.poll() is not None:
                del self.children[name]
                if name == "warm":
                    self.champions.current.adopt(warm_file(self.setup.home, self.champions.current.identity["digest"]))

    def _keep_follower(self) -> None:
        child = self.children.get("follower")
        if child is None or child.poll() is not None:
            line = [sys.executable, "-m", "serving.follow", *(self.setup.follow or ()), str(self.setup.following)]
            line += [str(self.setup.features)] if self.setup.features else []
            self.children["follower"] = subprocess.Popen(line, preexec_fn=_tied)

    def _gauges(self) -> None:
        engine, decider = self.champions.current, self.desk.decider
        metrics.model.set(float(engine.version))
        metrics.waiting.set(self.small.waiting + self.large.waiting)
        metrics.reloads.set(self.champions.reloads)
        metrics.reload_failures.set(self.champions.failed())
        if engine.lookup is not None and len(engine.lookup.scored):
            age = decider.clock() - engine.lookup.scored.snapshot[0].replace(tzinfo=engine.zone).timestamp()
            metrics.feature_age.set(age)
        spent = self.desk.store.spent(decider.moment(engine).today.isoformat())
        for name, limit in zip(engine.policy.resources, engine.policy.limits_K.tolist(), strict=True):
            metrics.used.labels(name).set(spent.get(name, 0) / UNITS)
            metrics.limit.labels(name).set(limit)

    def _audited(self, request: Request, action: str, status: int, customers: int, pseudonym: str | None = None) -> None:
        self.audit.write(request.scope.get("holdfast.key", "anybody"), action, status, customers, pseudonym)

    @asynccontextmanager
    async def _asked(
        self, request: Request, model: type[Model], largest: int = LIST_BYTES, first: bool = False
    ) -> AsyncIterator[tuple[Model, int]]:
        """The request's body as a model, and its size in bytes, once it is the request's turn.

        Bodies are read before the queue, so that a slow caller keeps nobody waiting; few large ones at once, so that few lie in memory.
        What comes ``first`` is small by its limit and has a queue of its own: however it is sent, it waits for no list.
        """
        packed, length = bodies.compressed(request), request.headers.get("content-length", "")
        small = first or (length.isdigit() and int(length) <= SMALL_BYTES)
        async with contextlib.nullcontext() if small else self.reading:
            body = await bodies.received(request, largest)
        async with contextlib.AsyncExitStack() as turns:
            if first:
                await turns.enter_async_context(self.first)
                body = bodies.inflated(body, largest) if packed else body
                yield bodies.parsed(model, body), len(body)
                return
            if packed:
                await turns.enter_async_context(self.large)
                body = await asyncio.to_thread(bodies.inflated, body, largest)
            if len(body) <= SMALL_BYTES:
                await turns.aclose()  # small after all
                await turns.enter_async_context(self.small)
                yield bodies.parsed(model, body), len(body)
                return
            if not packed:
                await turns.enter_async_context(self.large)
            try:
                yield await asyncio.to_thread(bodies.parsed, model, body), len(body)
            finally:
                if len(body) > TRIMMED_BYTES:
                    await asyncio.to_thread(_LIBC.malloc_trim, 0)  # what large bodies took goes back to the system

    async def score(self, request: Request) -> Response:
        """``POST /v1/score``."""
        async with self._asked(request, schemas.ScoreRequest) as (asked, size):
            bodies.single(asked.customers, size)
            found = json_response(await self.desk.score(asked))
            if any(one.features is None and one.orders is None for one in asked.customers):
                self._audited(request, "score", 200, len(asked.customers))
            return found

    async def decide(self, request: Request) -> Response:
        """``POST /v1/decisions``."""
        key = idempotency.told(request.headers.getlist(idempotency.HEADER))
        async with self._asked(request, schemas.DecisionRequest) as (asked, size):
            bodies.single(asked.customers, size)
            caller = request.scope.get("holdfast.key", "anybody")
            once = await self.desk.once(caller, key, asked) if key is not None else None
            answer = await self.desk.decide(asked, once)
            found = json_response(answer, headers={idempotency.REPLAYED: "true"} if once and once.replayed else None)
            self._audited(request, "decide", 200, len(asked.customers))
            return found

    async def feed(self, request: Request) -> Response:
        """``GET /v1/decisions``."""
        after, limit = paths.number(request, "after", 0, 2**62), paths.number(request, "limit", 100, FEED_MOST)
        found = self.desk.feed(after, max(limit, 1))
        self._audited(request, "feed", 200, len(found["decisions"]))
        return json_response(found)

    async def decision(self, request: Request) -> Response:
        """``GET /v1/decisions/{id}``."""
        found = self.desk.logged(paths.part(request, "id"))
        self._audited(request, "decision", 200 if found else 404, 1, found["pseudonym"] if found else None)
        if found is None:
            raise Refusal(404, "Unknown decision", "the log has no decision of this id")
        return json_response(found)

    async def events(self, request: Request) -> Response:
        """``POST /v1/events``."""
        async with self._asked(request, schemas.EventsRequest) as (asked, size):
            bodies.single(asked.events, size)
            found = await self.desk.add_events(asked.events)
            self._audited(request, "events", 200, len(asked.events))
            return json_response(found)

    async def outcomes(self, request: Request) -> Response:
        """``POST /v1/outcomes``."""
        async with self._asked(request, schemas.OutcomesRequest) as (asked, _):
            withdrawn = any(one.kind == "unsubscribed" for one in asked.outcomes)
            found = await self.desk.write(lambda: self.desk.add_outcomes(asked.outcomes), urgent=withdrawn)
            self._audited(request, "outcomes", 200, len(asked.outcomes))
            return json_response(found)

    async def profile(self, request: Request) -> Response:
        """``GET /v1/customers/{id}``."""
        async with self.small:
            return await self._profile(request, _customer(request))

    async def profile_told(self, request: Request) -> Response:
        """``POST /v1/customers/profile``."""
        async with self._asked(request, schemas.ProfileRequest, SINGLE_BYTES) as (asked, _):
            return await self._profile(request, asked)

    async def _profile(self, request: Request, whom: schemas.OneCustomer) -> Response:
        found = await self.desk.profile(whom)
        self._audited(request, "profile", 200, 1, found["pseudonym"])
        return json_response(found)

    async def consents(self, request: Request) -> Response:
        """``PUT /v1/customers/{id}/consents``."""
        async with self._asked(request, schemas.ConsentRequest, SINGLE_BYTES, first=True) as (asked, _):
            return await self._consents(request, _customer(request), asked)

    async def consents_told(self, request: Request) -> Response:
        """``POST /v1/customers/consents``."""
        async with self._asked(request, schemas.CustomerConsents, SINGLE_BYTES, first=True) as (asked, _):
            return await self._consents(request, asked, asked)

    async def _consents(self, request: Request, whom: schemas.OneCustomer, asked: schemas.ConsentRequest) -> Response:
        found = await self.desk.write(lambda: self.desk.set_consents(whom, asked), urgent=True)
        self._audited(request, "consents", 200, 1, found["pseudonym"])
        return json_response(found)

    async def erase(self, request: Request) -> Response:
        """``DELETE /v1/customers/{id}``; the files of the batch follow in a process of their own."""
        async with self.first:
            return await self._erase(request, _customer(request))

    async def erase_told(self, request: Request) -> Response:
        """``POST /v1/customers/erasure``."""
        async with self._asked(request, schemas.ErasureRequest, SINGLE_BYTES, first=True) as (asked, _):
            return await self._erase(request, asked)

    async def _erase(self, request: Request, whom: schemas.OneCustomer) -> Response:
        home = self.setup.home
        pseudonyms = await self.desk.erase(whom, partial(erase.ask, home), partial(erase.holds, home))
        self._audited(request, "erase", 200, 1, pseudonyms[0])
        self._erase_files()
        return json_response({"status": "erased", "pseudonym": pseudonyms[0]})

    def _erase_files(self) -> None:
        """Start the process that erases, unless one was started a moment ago: then once more later, for what that one may not see."""
        self._more = time.monotonic() - self._erasing_at < ERASERS_SECONDS
        if self._more:
            return
        self._erasing_at = time.monotonic()
        child = subprocess.Popen([sys.executable, "-m", "serving.erase", str(self.setup.home)], start_new_session=True, preexec_fn=_deaf)
        self.children[f"erase {child.pid}"] = child

    def _left_over(self) -> bool:
        """Whether somebody is still in the files though the eraser has had its time."""
        return time.monotonic() - self._erasing_at > RETRY_SECONDS and erase.overdue(self.setup.home, RETRY_SECONDS)

    def _finish_erasures(self) -> None:
        """What was asked for and not done before a kill."""
        if found := erase.asked(self.setup.home):
            with contextlib.suppress(StoreBusy):  # then the eraser does this too
                for pseudonym in (one for pseudonyms in found.values() for one in pseudonyms):
                    self.desk.store.erase(pseudonym)
            self._erase_files()

    async def model(self, request: Request) -> Response:
        """``GET /v1/model``."""
        engine = self.champions.current
        lookup, manifest = engine.lookup, engine.manifest
        return json_response(
            {
                **engine.identity,
                "loaded_versions": self.champions.versions,
                "dataset": manifest.dataset,
                "horizon_days": manifest.horizon_days,
                "features": len(manifest.names),
                "feature_names": manifest.names,
                "reads_sequences": engine.scorer.model.reads_sequences,
                "sources": manifest.sources,
                "policy_version": engine.policy.version,
                "effects_source": engine.policy.effects_source,
                "table_snapshot": lookup.scored.snapshot[0].replace(tzinfo=engine.zone) if lookup and len(lookup.scored) else None,
                "table_customers": len(lookup.index) if lookup else 0,
            }
        )

    async def policy(self, request: Request) -> Response:
        """``GET /v1/policy``."""
        found = self.champions.current.policy
        return json_response({"digest": found.digest, **found.model_dump(mode="json", by_alias=True)})

    async def document(self, request: Request) -> Response:
        """``GET /openapi.json``."""
        return json_response(openapi.document(self.setup.version))

    async def metrics_page(self, request: Request) -> Response:
        """``GET /metrics``."""
        self._gauges()
        return Response(metrics.page(), media_type=metrics.TYPE)

    async def alive(self, request: Request) -> Response:
        """``GET /livez`` and ``/healthz``: not for a process that has to be started anew, because it writes nothing any more."""
        if self.ready and self.desk.write.stuck:
            raise Refusal(503, "Stuck", "the writer is stuck: this process has to be started anew")
        return PlainTextResponse("ok\n")

    async def readiness(self, request: Request) -> Response:
        """``GET /readyz``."""
        if self.draining or not self.ready:
            raise Refusal(
                503,
                "Not ready",
                "the service is shutting down" if self.draining else "the service is starting",
                headers={"Retry-After": "1"},
            )
        return await self.alive(request)

    async def index(self, request: Request) -> Response:
        """``GET /``: where to look, relative to here: there may be a path prefix."""
        return json_response({"service": "holdfast", "try": "try", "openapi": "openapi.json", "model": "v1/model"})

    async def try_out(self, request: Request) -> Response:
        """``GET /try``: a page to try the API in a browser; no script of a third party."""
        page = resources.files("serving").joinpath("templates/try.html").read_text(encoding="utf-8")
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'"
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def create(setup: Setup, store: Callable[[], OnlineStore]) -> Starlette:
    """The application; model and store are opened at start-up."""
    api = Api(setup, store)
    places: list[tuple[str, str, Endpoint]] = [
        ("POST", "/v1/score", api.score),
        ("POST", "/v1/decisions", api.decide),
        ("GET", "/v1/decisions", api.feed),
        ("GET", "/v1/decisions/{id}", api.decision),
        ("POST", "/v1/events", api.events),
        ("POST", "/v1/outcomes", api.outcomes),
        ("GET", "/v1/customers/{id}", api.profile),
        ("DELETE", "/v1/customers/{id}", api.erase),
        ("PUT", "/v1/customers/{id}/consents", api.consents),
        ("POST", "/v1/customers/profile", api.profile_told),
        ("POST", "/v1/customers/consents", api.consents_told),
        ("POST", "/v1/customers/erasure", api.erase_told),
        ("GET", "/v1/model", api.model),
        ("GET", "/v1/policy", api.policy),
        ("GET", "/metrics", api.metrics_page),
        ("GET", "/livez", api.alive),
        ("GET", "/healthz", api.alive),
        ("GET", "/readyz", api.readiness),
        ("GET", "/openapi.json", api.document),
        ("GET", "/try", api.try_out),
        ("GET", "/", api.index),
    ]
    by_path: dict[str, dict[str, Endpoint]] = {}
    for method, path, endpoint in places:
        by_path.setdefault(path, {})[method] = api.timed(endpoint)
    routes = [Route(path, _by_method(found), methods=list(found)) for path, found in by_path.items()]
    made = Starlette(routes=routes, lifespan=api.lifespan, exception_handlers=HANDLERS, middleware=[Middleware(paths.AsSent)])
    made.state.full = lambda: api.ready and api.small.full
    return made


def _tied() -> None:
    """In a child: end with the process that started it, however that ends (PR_SET_PDEATHSIG)."""
    _LIBC.prctl(1, signal.SIGKILL)


def _deaf() -> None:
    """In a child: SIGTERM, which the supervisor sends to whatever a worker has started, does not end it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _by_method(endpoints: dict[str, Endpoint]) -> Endpoint:
    """One endpoint for a path, so that a 405 tells every method of it."""

    async def endpoint(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return next(iter(endpoints.values())) if list(endpoints) == ["POST"] else endpoint


def _customer(request: Request) -> schemas.OneCustomer:
    """Whom the path names."""
    try:
        return schemas.OneCustomer(customer_id=paths.part(request, "id"))
    except ValidationError as error:
        raise invalid(error) from None


def _told(error: Exception) -> None:
    log.error("a round of background work failed: %s", type(error).__name__)
