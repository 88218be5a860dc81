"""The client against a real service, and its retries against a server that fails on purpose."""

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from features import table
from serving import keys, policy, schemas, server
from serving.client import ApiError, AsyncClient, Client, Timeouts
from tests.conftest import Shop

BOTH = pytest.mark.parametrize("kind", [Client, AsyncClient])
SECRET = "jane.doe@example.org"
ORDER = {"order_id": "o-1", "ordered_at": "2011-10-02T10:15:00", "lines": [{"product_id": "22423", "quantity": 2, "amount": 25.5}]}


def ask(kind: type[Client] | type[AsyncClient], address: str, name: str, *args: Any, client: Any = None, **options: Any) -> Any:
    """The answer of one call, by either client; ``client``: arguments of its making."""
    if kind is Client:
        with Client(address, **(client or {})) as blocking:
            found = getattr(blocking, name)(*args, **options)
            return list(found) if name == "decisions" else found

    async def asked() -> Any:
        async with AsyncClient(address, **(client or {})) as awaited:
            found = getattr(awaited, name)(*args, **options)
            return [one async for one in found] if name == "decisions" else await found

    return asyncio.run(asked())


# A real service


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """Keys by name, filled when the service starts."""
    return {}


@pytest.fixture(scope="module")
def address(package: Path, sample_features: Shop, tmp_path_factory: pytest.TempPathFactory, made: dict[str, str]) -> Iterator[str]:
    from features.settings import Settings
    from serving.package import SERVICE

    settings = Settings(home=tmp_path_factory.mktemp("served"))
    made["all"] = keys.add(settings.home / keys.FILE, "all", ["admin"], 5000)
    made["slow"] = keys.add(settings.home / keys.FILE, "slow", ["score"], 1)
    env = server.environment(settings, sample_features.places.features, package, auth="on")
    with server.running(SERVICE, env, settings.home / "service.log") as found:
        yield found


@pytest.fixture(scope="module")
def people(sample_features: Shop) -> list[str]:
    """Customers of the latest snapshot, by pseudonym."""
    folder = sample_features.places.features
    return table.read(folder, [table.read_manifest(folder).latest]).column("customer_id").to_pylist()


@pytest.fixture
def to(address: str, made: dict[str, str]) -> Callable[..., Any]:
    """Ask the real service, with the key that may do everything."""
    return lambda kind, name, *args, **options: ask(kind, address, name, *args, client={"key": made["all"]}, **options)


@BOTH
def test_what_is_served_comes_back_typed(to: Callable[..., Any], kind: Any) -> None:
    assert to(kind, "ready") is True
    assert to(kind, "model").horizon_days == 90
    assert to(kind, "policy").digest == policy.read().digest


@BOTH
def test_an_id_a_dict_and_a_model_are_customers_alike(to: Callable[..., Any], people: list[str], kind: Any) -> None:
    given = schemas.CustomerRequest(customer_id="c-2", orders=[ORDER | {"ordered_at": datetime.fromisoformat(str(ORDER["ordered_at"]))}])
    answer = to(kind, "score", [people[0], {"customer_id": "c-1", "orders": [ORDER]}, given], snapshot=datetime(2011, 12, 1))
    assert [one.customer_id for one in answer.results] == [people[0], "c-1", "c-2"]
    assert answer.results[1].churn_probability == answer.results[2].churn_probability
    assert answer.results[0].reasons


@BOTH
def test_more_customers_than_a_request_takes_come_back_in_order(to: Callable[..., Any], people: list[str], kind: Any) -> None:
    many = [*people[:1500], "nobody knows me"]
    answer = to(kind, "score", many, reasons=False)
    assert len(many) > schemas.MAX_CUSTOMERS
    assert [one.customer_id for one in answer.results] == many
    assert answer.results[-1].status == "unknown"


@BOTH
def test_every_decision_of_a_long_list_is_in_the_log_once_and_in_order(to: Callable[..., Any], people: list[str], kind: Any) -> None:
    last = max((one.number for one in to(kind, "decisions")), default=0)
    answer = to(kind, "decide", people[:1200])
    logged = to(kind, "decisions", after=last, page=500)
    assert [one.decision_id for one in logged] == [one.decision_id for one in answer.results]
    assert to(kind, "decision", logged[7].decision_id).pseudonym == people[7]


@BOTH
def test_an_outcome_and_an_event_told_twice_count_once(to: Callable[..., Any], people: list[str], kind: Any) -> None:
    decided = to(kind, "decide", [people[-1]]).results[0]
    outcome = schemas.Outcome(decision_id=decided.decision_id, kind="opened", at=datetime.now(UTC))
    assert [to(kind, "outcomes", [outcome]).accepted for _ in range(2)] == [1, 0]
    event = {"event_id": f"e-{kind.__name__}", "customer_id": "newcomer", "table": "orders", "row": ORDER}
    answers = [to(kind, "events", [event, {**event, "event_id": f"{number}-{kind.__name__}"}]) for number in (1, 2)]
    assert [(one.accepted, one.known) for one in answers] == [(2, 0), (1, 1)]


@BOTH
def test_a_customer_withdraws_consent_asks_what_is_known_and_is_forgotten(to: Callable[..., Any], kind: Any) -> None:
    who = f"{kind.__name__} ü?#% .."
    asked = [schemas.ConsentChange(channel="sms", granted=False)]
    assert to(kind, "consents", who, asked, timezone="Europe/Berlin").consents == {"sms": False}
    assert to(kind, "profile", who).timezone == "Europe/Berlin"
    assert to(kind, "erase", who).status == "erased"
    with pytest.raises(ApiError, match="404 Unknown customer"):
        to(kind, "profile", who)


def test_a_key_of_too_few_requests_a_second_waits_and_is_answered(address: str, made: dict[str, str]) -> None:
    with Client(address, made["slow"]) as client:
        start = time.monotonic()
        assert [client.model().horizon_days for _ in range(3)] == [90] * 3
    assert time.monotonic() - start >= 1.0


def test_a_refusal_names_fields_and_neither_error_nor_log_holds_values(
    address: str, made: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bad = {"customer_id": SECRET, "orders": [{**ORDER, "ordered_at": SECRET}]}
    with Client(address, made["all"]) as client, pytest.raises(ApiError) as caught:
        client.score([bad])
    assert (caught.value.status, caught.value.errors[0]["field"]) == (422, "customers.0.orders.0.ordered_at")
    with Client(address, made["all"]) as client, pytest.raises(ApiError, match="404 Unknown customer") as unknown:
        client.profile(SECRET)
    told = "".join([str(caught.value), repr(caught.value), str(unknown.value), caplog.text])
    assert SECRET not in told
    assert "jane" not in told
    assert made["all"] not in told


def test_without_a_key_the_service_says_how_to_get_one(address: str) -> None:
    with Client(address) as client, pytest.raises(ApiError, match=r"401 Unauthorized: .*holdfast keys add"):
        client.model()


def test_the_client_imports_no_model_and_no_database() -> None:
    heavy = ("duckdb", "torch", "lightgbm", "mlflow", "bentoml", "pandas", "pyarrow", "scipy", "starlette", "ibis", "features.table")
    code = f"import sys, serving.client; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@contextmanager
def losing(address: str) -> Iterator[str]:
    """A proxy before a service that passes everything on, and loses the first answer."""

    class Proxy(BaseHTTPRequestHandler):
        lost = False

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            told = httpx.post(address + self.path, content=body, headers=dict(self.headers), timeout=60)
            if not Proxy.lost:
                Proxy.lost = self.close_connection = True
                return
            self.send_response(told.status_code)
            for name in ("content-type", "content-length"):
                self.send_header(name, told.headers[name])
            self.end_headers()
            self.wfile.write(told.content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()


@BOTH
def test_a_decision_whose_answer_is_lost_is_made_once(
    to: Callable[..., Any], address: str, made: dict[str, str], people: list[str], kind: Any
) -> None:
    customer, last = people[-20 if kind is Client else -21], max((one.number for one in to(kind, "decisions")), default=0)
    with losing(address) as proxy:
        (decided,) = ask(kind, proxy, "decide", [customer], client={"key": made["all"]}).results
    (logged,) = to(kind, "decisions", after=last)
    assert logged.decision_id == decided.decision_id
    assert decided.binding != "minimum_gap"


# A server that fails on purpose

PROBLEM = "application/problem+json"
BUSY = json.dumps({"title": "Busy", "status": 503, "detail": "later"})
GOOD = (200, {}, json.dumps({"model_version": "7", "policy_version": "p", "currency": "GBP", "results": []}))
Reply = tuple[int, dict[str, str], str] | str


class Failing(ThreadingHTTPServer):
    """Gives one scripted reply after the other, the last one for ever; keeps what it was asked."""

    daemon_threads = True

    def __init__(self, replies: list[Reply], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Answering)
        self.replies, self.asked = replies, list[tuple[float, str, bytes]]()
        self.keys = list[str | None]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answering(BaseHTTPRequestHandler):
    server: Failing

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((time.monotonic(), f"{self.command} {self.path}", body))
        self.server.keys.append(self.headers.get("Idempotency-Key"))
        reply = self.server.replies[min(len(self.server.asked), len(self.server.replies)) - 1]
        if reply == "hang":
            time.sleep(2)
        if isinstance(reply, str) and reply != "drip":
            self.close_connection = True
            return
        status, headers, text = (200, {}, " " * 50) if isinstance(reply, str) else reply
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(text)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        for part in text if reply == "drip" else [text]:
            self.wfile.write(part.encode())
            time.sleep(0.1 if reply == "drip" else 0)

    do_GET = do_PUT = do_DELETE = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def failing(*replies: Reply) -> Iterator[Failing]:
    with Failing(list(replies)) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


QUICK = {"timeout": Timeouts(connect=1, read=0.5, total=20)}
LOST = [
    (500, {"Content-Type": PROBLEM}, BUSY),
    (502, {}, "bad gateway"),
    (503, {}, "no word of the service's own"),
    (504, {}, ""),
    "hang",
    "drop",
]


@BOTH
@pytest.mark.parametrize("reply", LOST, ids=str)
def test_a_decision_that_may_have_been_made_is_asked_for_again_with_the_same_key(kind: Any, reply: Reply) -> None:
    with failing(reply, GOOD) as there:
        for _ in range(2):
            assert ask(kind, there.url, "decide", ["c-1"], client=QUICK).model_version == "7"
        first, again, another = there.keys
        assert len({body for *_, body in there.asked}) == 1
    assert first
    assert first == again != another


def test_each_request_of_a_long_list_has_its_own_key_and_a_score_has_none() -> None:
    results = [{"status": "unknown", "customer_id": str(n), "pseudonym": "p", "detail": "d"} for n in range(1000)]
    with failing((200, {}, json.dumps({**json.loads(GOOD[2]), "results": results}))) as there, Client(there.url) as client:
        client.decide([str(n) for n in range(1001)])
        client.score(["c-1"])
        first, second, none = there.keys
    assert first != second
    assert none is None


@BOTH
@pytest.mark.parametrize("reply", LOST, ids=str)
def test_a_score_is_asked_for_again_whatever_happened(kind: Any, reply: Reply) -> None:
    with failing(reply, GOOD) as there:
        assert ask(kind, there.url, "score", ["c-1"], client=QUICK).model_version == "7"
        assert len(there.asked) == 2


@BOTH
@pytest.mark.parametrize("status", [429, 503])
def test_a_refused_decision_is_asked_for_again_when_the_service_said(kind: Any, status: int) -> None:
    with failing((status, {"Content-Type": PROBLEM, "Retry-After": "1"}, BUSY), GOOD) as there:
        assert ask(kind, there.url, "decide", ["c-1"], client=QUICK).model_version == "7"
        (first, *_), (second, *_) = there.asked
    assert second - first >= 1.0


@BOTH
def test_a_decision_waits_for_a_service_that_is_starting(kind: Any) -> None:
    port = server.free_port()
    started: list[Failing] = []

    def start() -> None:
        started.append(Failing([GOOD], port))
        started[0].serve_forever()

    threading.Timer(0.4, start).start()
    try:
        assert ask(kind, f"http://127.0.0.1:{port}", "decide", ["c-1"], client={"retries": 5}).model_version == "7"
        assert len(started[0].asked) == 1
    finally:
        started[0].shutdown()
        started[0].server_close()


@BOTH
def test_erasure_is_not_repeated_and_other_calls_are(kind: Any) -> None:
    for name, args, times in [
        ("erase", ["c"], 1),
        ("profile", ["c"], 3),
        ("consents", ["c", []], 3),
        ("outcomes", [[]], 3),
        ("events", [[]], 3),
    ]:
        with failing((500, {}, "")) as there:
            with pytest.raises(ApiError, match="500 No answer of the service"):
                ask(kind, there.url, name, *args, client={"retries": 2})
            assert len(there.asked) == times, name


def test_each_wait_is_longer_than_the_one_before_it_may_be() -> None:
    with failing((500, {}, "")) as there, Client(there.url, retries=3) as client:
        with pytest.raises(ApiError):
            client.model()
        gaps = [after - before for (before, *_), (after, *_) in pairwise(there.asked)]
    assert [gap >= least for gap, least in zip(gaps, [0.1, 0.2, 0.4], strict=True)] == [True] * 3
    assert sum(gaps) < 5


@pytest.mark.parametrize("when", ["3600", "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_a_wait_beyond_the_total_time_is_not_begun(when: str) -> None:
    with failing((503, {"Content-Type": PROBLEM, "Retry-After": when}, BUSY)) as there, Client(there.url) as client:
        start = time.monotonic()
        with pytest.raises(ApiError, match="503 Busy: later"):
            client.decide(["c-1"])
    assert time.monotonic() - start < 2


@BOTH
def test_an_answer_that_drips_ends_with_the_total_time(kind: Any) -> None:
    with failing("drip") as there:
        start = time.monotonic()
        with pytest.raises(ApiError, match="No answer in time: ReadTimeout"):
            ask(kind, there.url, "model", client={"timeout": Timeouts(read=1, total=1)})
    assert 1 <= time.monotonic() - start < 3


def test_nobody_there_is_an_error_and_not_ready() -> None:
    with Client(f"http://127.0.0.1:{server.free_port()}", retries=1) as client:
        assert client.ready() is False
        with pytest.raises(ApiError, match="No connection: ConnectError"):
            client.model()


@BOTH
def test_what_was_decided_before_a_failure_is_told_and_one_version_decides_all(kind: Any) -> None:
    results = [{"status": "unknown", "customer_id": str(n), "pseudonym": "p", "detail": "d"} for n in range(1000)]
    first = (200, {}, json.dumps({**json.loads(GOOD[2]), "results": results}))
    with failing(first, (500, {}, "")) as there:
        with pytest.raises(ApiError) as caught:
            ask(kind, there.url, "decide", [str(n) for n in range(1001)], client=QUICK | {"retries": 0})
        bodies = [json.loads(body) for *_, body in there.asked]
    assert [one.customer_id for one in caught.value.partial.results] == [str(n) for n in range(1000)]
    assert bodies[0].keys() == {"customers", "reasons"}
    assert bodies[1] == {"customers": [{"customer_id": "1000"}], "reasons": False, "model_version": "7"}


def test_large_histories_are_spread_over_requests_that_the_service_takes() -> None:
    big = [{"customer_id": str(n), "orders": [{**ORDER, "order_id": "x" * 900_000}]} for n in range(40)]
    with failing(GOOD) as there, Client(there.url) as client:
        client.score(big)
        sizes = [len(body) for *_, body in there.asked]
    assert len(sizes) == 3
    assert max(sizes) <= 16 * 1024 * 1024


def test_no_id_is_in_an_address() -> None:
    with failing((404, {"Content-Type": PROBLEM}, BUSY)) as there, Client(there.url + "/shop/") as client:
        for id in ("..", "a/b?c#d", "é%2F"):
            for call, more in ((client.erase, {}), (client.profile, {}), (client.consents, {"consents": []})):
                with pytest.raises(ApiError):
                    call(id)  # type: ignore[operator]
                (_, path, body) = there.asked[-1]
                place = "erasure" if call.__name__ == "erase" else call.__name__
                assert path == f"POST /shop/v1/customers/{place}"
                assert json.loads(body) == {"customer_id": id, **more}
        with pytest.raises(ApiError):
            client.profile(pseudonym="0" * 32)
        assert json.loads(there.asked[-1][2]) == {"pseudonym": "0" * 32}
        with pytest.raises(TypeError, match="exactly one"):
            client.profile("a", pseudonym="0" * 32)


def test_a_page_of_somebody_else_is_no_answer_and_a_redirect_is_not_followed() -> None:
    with failing((200, {}, f"<p>{SECRET}</p>"), (302, {"Location": "/v1/policy"}, "")) as there, Client(there.url, "key") as client:
        with pytest.raises(ApiError, match="Answer not understood") as caught:
            client.model()
        with pytest.raises(ApiError, match="302 No answer of the service"):
            client.model()
        assert len(there.asked) == 2
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("customers", ["12347", ["a", "a"], [{"orders": []}, {"orders": []}]])
def test_a_list_that_cannot_be_right_is_not_sent(customers: Any) -> None:
    with failing(GOOD) as there, Client(there.url) as client:
        with pytest.raises((TypeError, ValueError), match="customer"):
            client.decide(customers)
        assert there.asked == []


def test_a_key_with_a_line_break_and_an_address_without_scheme_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="holds characters that no key has"):
        Client("http://127.0.0.1:3000", "hf_abc\n")
    with pytest.raises(ValueError, match="http://"):
        Client("127.0.0.1:3000")
