"""A client of the API, blocking (`Client`) and asynchronous (`AsyncClient`): typed answers, safe retries, long lists in parts.

Each call is written once, in `_Calls`, as a generator: it yields a request to send or seconds to sleep and receives the reply. The two
clients only send and sleep.

**Retries**, with exponential back-off and jitter, and never before the moment that Retry-After names:

- any call, where the service did no work: no connection came about, or the service itself refused with 429 or 503;
- only calls that may be made twice (all but `erase`), where it may have worked: time-outs, lost connections, other answers from 500 on,
  and a 503 or 429 of somebody between, who may have passed the request on.

A decision counts: it reserves money and a contact. So each request of `decide` has an `Idempotency-Key` of its own, which its retries
repeat: the service then gives the answer that was lost, and nothing is reserved twice. A call of `decide` made anew is a new decision.

Nothing is logged, and no error holds a value of a request. Needs httpx; imports neither models nor databases.
"""

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeAlias, TypeVar
from urllib.parse import quote
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from serving import schemas
from serving.policy import Occasion, Policy

FIRST_WAIT, LONGEST_WAIT = 0.2, 10.0
"""Seconds of back-off: doubled from retry to retry, and drawn between half and all of it."""
PART_BYTES = 15 * 1024 * 1024
LIMITS = httpx.Limits(max_connections=100, keepalive_expiry=2.0)
"""An idle connection is given up before the service closes it (5 s): a request on a dying connection may be lost."""
ONCE = "Idempotency-Key"
UNSURE = "the service may have done the work all the same"
P = ParamSpec("P")
T = TypeVar("T")
Answer = TypeVar("Answer", bound=BaseModel)
Row: TypeAlias = Mapping[str, Any] | BaseModel
Customers: TypeAlias = Iterable[str | Row]


class Timeouts(NamedTuple):
    """Seconds: to connect; between two parts of an answer; for one request with all its retries (a long list is several requests)."""

    connect: float = 5.0
    read: float = 60.0
    total: float = 120.0


TIMEOUTS = Timeouts()


class ApiError(Exception):
    """A call failed. ``status`` is None where no answer came; ``errors`` names fields and rules, never values.

    ``partial``: of a list sent in several requests, the answer to those before the one that failed, else None; its customers are decided.
    """

    def __init__(self, status: int | None, title: str, detail: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(status, title, detail, errors)
        self.status, self.title, self.detail, self.errors = status, title, detail, errors or []
        self.partial: Any = None

    def __str__(self) -> str:
        told = "".join(f"; {one.get('field')}: {one.get('rule')}" for one in self.errors)
        return f"{'' if self.status is None else f'{self.status} '}{self.title}: {self.detail}{told}"


Got: TypeAlias = httpx.Response | httpx.RequestError
Steps: TypeAlias = Generator[httpx.Request | float, Got | None, T]


class _Calls:
    """Every call as a generator of requests and waits."""

    def __init__(self, base_url: str, key: str | None, timeout: Timeouts, retries: int) -> None:
        if httpx.URL(base_url).scheme not in ("http", "https"):
            raise ValueError("base_url must start with http:// or https://")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ValueError("the key holds characters that no key has")
        self.base, self.timeout, self.retries = base_url.rstrip("/"), timeout, retries
        self.headers = {"Accept": "application/json", "User-Agent": "holdfast-client"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def score(
        self, customers: Customers, *, snapshot: datetime | None = None, reasons: bool = True, model_version: str | None = None
    ) -> Steps[schemas.ScoreAnswer]:
        """Churn probability and the tier of the highest expected gain, before any constraint; changes nothing.

        ``customers``: ids, or `schemas.CustomerRequest` (or its dict) with a raw history or a feature row. ``snapshot``: moment of the
        prediction for those (default: now; without a zone: the shop's local time). Raises ApiError.
        """
        more = {"snapshot": snapshot, "reasons": reasons, "model_version": model_version}
        return self._listed("/v1/score", "customers", _customers(customers), schemas.ScoreAnswer, more)

    def decide(
        self,
        customers: Customers,
        *,
        snapshot: datetime | None = None,
        occasion: Occasion | None = None,
        reasons: bool = False,
        model_version: str | None = None,
    ) -> Steps[schemas.DecisionAnswer]:
        """Decide about contacts under consent, caps, capacities and budget; logged, and its cost reserved.

        ``customers``: ids, or `schemas.DecisionCustomer` (or its dict) with a raw history. Raises ApiError, whose ``partial`` tells what
        was decided before; of the request that failed, `decisions` tells if it was decided.
        """
        more = {"snapshot": snapshot, "occasion": occasion, "reasons": reasons, "model_version": model_version}
        return self._listed("/v1/decisions", "customers", _customers(customers), schemas.DecisionAnswer, more, once=True)

    def events(self, events: Iterable[Row]) -> Steps[schemas.EventsAnswer]:
        """Tell what happened to customers: dicts of ``event_id``, ``customer_id``, ``table``, ``row``. An id told again counts once."""
        return self._listed("/v1/events", "events", map(_plain, events), schemas.EventsAnswer)

    def outcomes(self, outcomes: Iterable[Row]) -> Steps[schemas.OutcomesAnswer]:
        """Tell what happened to decisions: `schemas.Outcome` or its dict. The same told again counts once."""
        return self._listed("/v1/outcomes", "outcomes", map(_plain, outcomes), schemas.OutcomesAnswer)

    def consents(
        self,
        customer_id: str | None = None,
        consents: Iterable[Row] = (),
        *,
        timezone: str | None = None,
        pseudonym: str | None = None,
    ) -> Steps[schemas.Consented]:
        """Give or withdraw consents from now on: `schemas.ConsentChange` or its dict; ``timezone``: IANA name, for quiet hours."""
        more = {"timezone": timezone} if timezone is not None else {}
        body = {**_whom(customer_id, pseudonym), "consents": [_plain(one) for one in consents], **more}
        return self._ask(schemas.Consented, "POST", "/v1/customers/consents", to_json(body))

    def profile(self, customer_id: str | None = None, *, pseudonym: str | None = None) -> Steps[schemas.Profile]:
        """What is known of a customer. Raises ApiError (404) where nothing is."""
        return self._ask(schemas.Profile, "POST", "/v1/customers/profile", to_json(_whom(customer_id, pseudonym)))

    def erase(self, customer_id: str | None = None, *, pseudonym: str | None = None) -> Steps[schemas.Erased]:
        """Erase a customer everywhere. Raises ApiError: 404 where that was done before; after a lost answer call again, and 404 is good."""
        return self._ask(schemas.Erased, "POST", "/v1/customers/erasure", to_json(_whom(customer_id, pseudonym)), twice=False)

    def model(self) -> Steps[schemas.ModelAnswer]:
        """What is served: model, versions, features, sources."""
        return self._ask(schemas.ModelAnswer, "GET", "/v1/model")

    def policy(self) -> Steps[Policy]:
        """The policy in force."""
        return self._ask(Policy, "GET", "/v1/policy")

    def decision(self, decision_id: str) -> Steps[schemas.LoggedDecision]:
        """A decision of the log, with its outcomes. Raises ApiError (404) for an id that the log does not have."""
        return self._ask(schemas.LoggedDecision, "GET", f"/v1/decisions/{_quoted(decision_id)}")

    def page(self, after: int, limit: int) -> Steps[schemas.DecisionFeed]:
        """Decisions after a position of the log, at most 1,000."""
        return self._ask(schemas.DecisionFeed, "GET", f"/v1/decisions?after={after:d}&limit={limit:d}")

    def ready(self) -> Steps[bool]:
        """Whether the service takes requests now; asked once, False also where nobody answers."""
        got = yield self._request("GET", "/readyz", None, time.monotonic() + self.timeout.total)
        return isinstance(got, httpx.Response) and got.status_code == 200

    def _listed(
        self, path: str, name: str, rows: Iterable[Any], model: type[Answer], more: Mapping[str, Any] | None = None, once: bool = False
    ) -> Steps[Answer]:
        """A list in as many requests as it needs, by the model version that answered the first; ``once``: each is known when repeated."""
        answers: list[Answer] = []
        options = {option: value for option, value in (more or {}).items() if value is not None}
        for part in _parts(rows):
            if answers and hasattr(answers[0], "model_version"):
                options["model_version"] = answers[0].model_version
            rest = to_json(options)[1:]
            body = b'{"%s":[%s]%s' % (name.encode(), b",".join(part), rest if rest == b"}" else b"," + rest)
            try:
                answers.append((yield from self._ask(model, "POST", path, body, headers={ONCE: f'"{uuid4()}"'} if once else {})))
            except ApiError as error:
                error.partial = _merged(answers) if answers else None
                raise
        return _merged(answers)

    def _ask(
        self,
        model: type[Answer],
        method: str,
        path: str,
        body: bytes | None = None,
        twice: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> Steps[Answer]:
        """A good answer, after as many tries as are allowed and safe. Raises ApiError.

        ``twice``: whether making the call twice does no more than making it once.
        """
        end, tried = time.monotonic() + self.timeout.total, 0
        while True:
            got = yield self._request(method, path, body, end, headers)
            assert got is not None
            if isinstance(got, httpx.Response) and got.status_code == 200:
                return _parsed(model, got.content)
            wait = _wait(got, tried)
            if tried >= self.retries or not _safe(got, twice) or time.monotonic() + wait >= end:
                raise _failed(got) from None
            yield wait
            tried += 1

    def _request(self, method: str, path: str, body: bytes | None, end: float, more: Mapping[str, str] | None = None) -> httpx.Request:
        left = max(end - time.monotonic(), 0.001)
        seconds = {"connect": min(self.timeout.connect, left), **dict.fromkeys(("read", "write", "pool"), min(self.timeout.read, left))}
        headers = self.headers | ({"Content-Type": "application/json"} if body is not None else {}) | dict(more or {})
        return httpx.Request(method, self.base + path, headers=headers, content=body, extensions={"timeout": seconds, "end": end})


def _safe(got: Got, twice: bool) -> bool:
    """Whether a failed call may be made again."""
    if isinstance(got, httpx.Response):
        return (got.status_code in (429, 503) and _problem(got) is not None) or (twice and (got.status_code == 429 or got.is_server_error))
    if isinstance(got, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return True
    return twice and not isinstance(got, httpx.LocalProtocolError | httpx.UnsupportedProtocol)


def _problem(got: httpx.Response) -> schemas.Problem | None:
    """What the service itself says about its refusal."""
    if got.headers.get("content-type", "").startswith("application/problem+json"):
        with contextlib.suppress(ValidationError):
            return schemas.Problem.model_validate_json(got.content)
    return None


def _wait(got: Got, tried: int) -> float:
    """Seconds before the next try: what the service asks for, and some more, lest all come back at once."""
    own = min(FIRST_WAIT * 2**tried, LONGEST_WAIT) * random.uniform(0.5, 1.0)
    return own + (_retry_after(got.headers.get("retry-after", "")) if isinstance(got, httpx.Response) else 0.0)


def _retry_after(text: str) -> float:
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max((moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)


def _failed(got: Got) -> ApiError:
    if isinstance(got, httpx.Response):
        if told := _problem(got):
            return ApiError(got.status_code, told.title, told.detail, told.errors)
        return ApiError(got.status_code, "No answer of the service", "somebody between answers, or base_url names another service")
    kind = type(got).__name__
    if isinstance(got, httpx.ConnectError | httpx.ConnectTimeout):
        return ApiError(None, "No connection", f"{kind}: {got}; is the service running at base_url?")
    return ApiError(None, "No answer in time" if isinstance(got, httpx.TimeoutException) else "Connection lost", f"{kind}; {UNSURE}")


def _parsed(model: type[Answer], body: bytes) -> Answer:
    try:
        return model.model_validate_json(body, extra="ignore")
    except ValidationError as error:
        where = ", ".join(sorted({".".join(str(part) for part in one["loc"] if isinstance(part, str)) for one in error.errors()}))
        raise ApiError(200, "Answer not understood", f"at {where or 'its start'}: client and service differ in version?") from None


def _merged(answers: list[Answer]) -> Answer:
    """Results one after the other; counts added up."""
    first = answers[0]
    if hasattr(first, "results"):
        return first.model_copy(update={"results": [one for answer in answers for one in answer.results]})  # type: ignore[attr-defined]
    return first.model_copy(update={name: sum(getattr(one, name) for one in answers) for name in type(first).model_fields})


def _plain(row: Row) -> dict[str, Any]:
    return row.model_dump(mode="json", exclude_unset=True) if isinstance(row, BaseModel) else dict(row)


def _whom(customer_id: str | None, pseudonym: str | None) -> dict[str, str]:
    """A customer by either name, in a body: no proxy on the way reads it in an address, and a slash in it needs no care."""
    given = {"customer_id": customer_id, "pseudonym": pseudonym}
    told = {name: text for name, text in given.items() if text is not None}
    if len(told) != 1:
        raise TypeError("exactly one of customer_id and pseudonym is needed")
    return told


def _customers(customers: Customers) -> list[dict[str, Any]]:
    if isinstance(customers, str):
        raise TypeError("customers must be a list: [customer_id]")
    rows = [{"customer_id": one} if isinstance(one, str) else _plain(one) for one in customers]
    if len({row.get("customer_id") for row in rows}) < len(rows):
        raise ValueError("customer_id must be there, and unique within a call")  # the service sees one request only
    return rows


def _parts(rows: Iterable[Any]) -> Iterator[list[bytes]]:
    """Rows as JSON, by at most 1,000 and as many bytes as a request may have; an empty list is one part: the service refuses it."""
    part: list[bytes] = []
    size = 0
    for row in map(to_json, rows):
        if part and (len(part) == schemas.MAX_CUSTOMERS or size + len(row) > PART_BYTES):
            yield part
            part, size = [], 0
        part.append(row)
        size += len(row) + 1
    yield part


def _quoted(id: str) -> str:
    return quote(id, safe="").replace(".", "%2E")  # a bare '..' would climb in the path


def _in_time(request: httpx.Request, part: bytes) -> bytes:
    if time.monotonic() > request.extensions["end"]:
        raise httpx.ReadTimeout("")
    return part


def _blocking(call: Callable[Concatenate[_Calls, P], Steps[T]]) -> Callable[Concatenate["Client", P], T]:
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(call(self._calls, *args, **kwargs))

    functools.update_wrapper(method, call)
    return method


def _awaited(call: Callable[Concatenate[_Calls, P], Steps[T]]) -> Callable[Concatenate["AsyncClient", P], Awaitable[T]]:
    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(call(self._calls, *args, **kwargs))

    functools.update_wrapper(method, call)
    return method


class Client:
    """The API, blocking; threads may share one. ``key``: of `holdfast keys add`; ``retries``: after the first try of a request."""

    def __init__(self, base_url: str, key: str | None = None, timeout: Timeouts = TIMEOUTS, retries: int = 3) -> None:
        self._calls, self._transport = _Calls(base_url, key, timeout, retries), httpx.HTTPTransport(limits=LIMITS)

    score, decide = _blocking(_Calls.score), _blocking(_Calls.decide)
    events, outcomes, consents = _blocking(_Calls.events), _blocking(_Calls.outcomes), _blocking(_Calls.consents)
    profile, erase = _blocking(_Calls.profile), _blocking(_Calls.erase)
    model, policy, decision, ready = _blocking(_Calls.model), _blocking(_Calls.policy), _blocking(_Calls.decision), _blocking(_Calls.ready)

    def decisions(self, after: int = 0, page: int = schemas.MAX_CUSTOMERS) -> Iterator[schemas.LoggedDecision]:
        """Decisions after position ``after`` in the order of the log, to its end; ask again after the last one's ``number``."""
        while (found := self._run(self._calls.page(after, page))).decisions:
            yield from found.decisions
            after = found.next

    def close(self) -> None:
        """Give up the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        got: Got | None = None
        while True:
            try:
                step = steps.send(got)
            except StopIteration as stop:
                return stop.value
            if isinstance(step, float):
                time.sleep(step)
            else:
                got = self._send(step)

    def _send(self, request: httpx.Request) -> Got:
        try:
            answer = self._transport.handle_request(request)
            with contextlib.closing(answer):
                content = b"".join([_in_time(request, part) for part in answer.iter_raw()])
            return httpx.Response(answer.status_code, headers=answer.headers, content=content)
        except httpx.RequestError as error:
            return error


class AsyncClient:
    """The API for asyncio: the calls of `Client`, awaited."""

    def __init__(self, base_url: str, key: str | None = None, timeout: Timeouts = TIMEOUTS, retries: int = 3) -> None:
        self._calls, self._transport = _Calls(base_url, key, timeout, retries), httpx.AsyncHTTPTransport(limits=LIMITS)

    score, decide = _awaited(_Calls.score), _awaited(_Calls.decide)
    events, outcomes, consents = _awaited(_Calls.events), _awaited(_Calls.outcomes), _awaited(_Calls.consents)
    profile, erase = _awaited(_Calls.profile), _awaited(_Calls.erase)
    model, policy, decision, ready = _awaited(_Calls.model), _awaited(_Calls.policy), _awaited(_Calls.decision), _awaited(_Calls.ready)

    async def decisions(self, after: int = 0, page: int = schemas.MAX_CUSTOMERS) -> AsyncIterator[schemas.LoggedDecision]:
        """Decisions after position ``after`` in the order of the log, to its end; ask again after the last one's ``number``."""
        while (found := await self._run(self._calls.page(after, page))).decisions:
            for one in found.decisions:
                yield one
            after = found.next

    async def close(self) -> None:
        """Give up the connections."""
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _run(self, steps: Steps[T]) -> T:
        got: Got | None = None
        while True:
            try:
                step = steps.send(got)
            except StopIteration as stop:
                return stop.value
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                got = await self._send(step)

    async def _send(self, request: httpx.Request) -> Got:
        try:
            answer = await self._transport.handle_async_request(request)
            async with contextlib.aclosing(answer):
                content = b"".join([_in_time(request, part) async for part in answer.aiter_raw()])
            return httpx.Response(answer.status_code, headers=answer.headers, content=content)
        except httpx.RequestError as error:
            return error
