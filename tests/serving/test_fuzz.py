"""Hostile bytes against a real service: refused in good order, little memory, and the next caller is served as ever."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from features.settings import Settings
from serving import keys, server
from serving.package import SERVICE
from tests.conftest import Shop
from tests.serving.test_guard import bearer, packed, patient

MEGABYTE = 1_000_000
MOST_GROWTH, MOST_PEAK = 50 * MEGABYTE, 250 * MEGABYTE
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
ORDER = b'{"order_id": "o", "ordered_at": "2024-01-01T00:00:00", "amount": %s}'
GOOD = b'{"snapshot": "2024-02-01T00:00:00", "customers": [{"customer_id": "c", "orders": [' + ORDER + b"]}]}"
FINE = GOOD % b"5"


def workers(home: Path) -> list[psutil.Process]:
    """The processes that answer for a home."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        mine = "_bentoml_impl.worker.service" in (process.info["cmdline"] or [])
        if mine and process.environ().get("HOLDFAST_HOME") == str(home.resolve()):
            found.append(process)
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@pytest.fixture(scope="module")
def address(sample_features: Shop, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.URL]:
    package = packed(sample_features, tmp_path_factory.getbasetemp() / "package-1")
    env = server.environment(Settings(home=home), sample_features.places.features, package, auth="off")
    with server.running(SERVICE, env, home / "service.log") as found:
        yield httpx.URL(found)


@pytest.fixture(scope="module")
def memory(address: httpx.URL, home: Path) -> int:
    """Resident bytes of the worker, warmed up by ordinary requests, before anything hostile."""
    for _ in range(20):
        assert status(address, posted(FINE)) == 200
    return int(workers(home)[0].memory_info().rss)


def posted(body: bytes, more: bytes = b"") -> bytes:
    """The bytes of a request with a JSON body."""
    return HEAD + more + b"Content-Length: %d\r\n\r\n" % len(body) + body


def status(address: httpx.URL, *parts: bytes, seconds: float = 30) -> int:
    """Send bytes as they are, and read the status code of the answer."""
    with socket.create_connection((address.host, address.port or 80), seconds) as one:
        try:
            for part in parts:
                one.sendall(part)
        except OSError:  # answered and closed before all was sent
            pass
        told = one.recv(65536).split(b" ")
    return int(told[1])


def nested(rows: int) -> bytes:
    """Customers with nothing but empty orders: each breaks two rules for three bytes."""
    orders = b",".join([b"{}"] * 5000)
    return b'{"customers": [' + b",".join(b'{"customer_id": "%d", "orders": [%s]}' % (n, orders) for n in range(rows)) + b"]}"


BODIES = {
    "brackets": b"[" * 100_000,
    "objects in objects": b'{"customers":' * 100_000,
    "a value of brackets": GOOD % (b"[" * 100_000 + b"]" * 100_000),
    "1e999": GOOD % b"1e999",
    "400 digits": GOOD % (b"9" * 400),
    "5000 digits": GOOD % (b"9" * 5000),
    "NaN": GOOD % b"NaN",
    "-Infinity": GOOD % b"-Infinity",
    "true for a number": GOOD % b"true",
    "a lone surrogate": FINE.replace(b'"c"', b'"\\ud800"'),
    "a lone surrogate in a time": FINE.replace(b"2024-01-01", b"\\udfff"),
    "invalid UTF-8": FINE.replace(b'"c"', b'"\xff\xfe"'),
    "an overlong slash": FINE.replace(b'"c"', b'"\xc0\xaf"'),
    "UTF-16": FINE.decode().encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + FINE,
    "a field twice": FINE.replace(b'"customers"', b'"customers": [], "customers"'),
    "an amount twice": FINE.replace(b'"amount": 5', b'"amount": 5, "amount" : 7'),
    "an amount twice, once in other letters": FINE.replace(b'"amount": 5', b'"amount": 5, "\\u0061mount": 7'),
    "the last of two values breaks the rule": FINE.replace(b'"amount": 5', b'"amount": 5, "amount": -7'),
    "one order twice": GOOD % (b"5}, " + ORDER[:-1] % b"5"),
    "a year far off": FINE.replace(b"2024-01-01T00:00:00", b"9999-12-31T23:59:59-14:00"),
    "the first year": FINE.replace(b"2024-01-01T00:00:00", b"0001-01-01T00:00:00+14:00"),
    "seconds for a time": FINE.replace(b'"2024-01-01T00:00:00"', b"1e18"),
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "150,000 empty orders": nested(30),
    "90,000 unknown fields": b"{" + b",".join(b'"k%d":0' % n for n in range(90_000)) + b"}",
    "300,000 customers of nothing": b'{"customers": [' + b",".join([b"{}"] * 300_000) + b"]}",
}
CHUNKS = [b"f4240\r\n" + b" " * MEGABYTE + b"\r\n"] * 40
WIRES = {
    "a length of 17 MB": (HEAD + b"Content-Length: 17000000\r\n\r\n",),
    "40 MB": (HEAD + b"Content-Length: 40000000\r\n\r\n", *([b" " * MEGABYTE] * 40)),
    "40 MB in chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *CHUNKS),
    "a broken chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",),
    "a length of 5000 digits": (HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",),
    "a length below nothing": (HEAD + b"Content-Length: -1\r\n\r\n",),
    "two lengths": (HEAD + b"Content-Length: 5\r\nContent-Length: 3\r\n\r\n[1,2]",),
    "a length and chunks": (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",),
    "an id of 100,000 letters": (b"GET /v1/customers/" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",),
    "an id that is not UTF-8": (b"GET /v1/customers/%FF%FE%ED%A0%80 HTTP/1.1\r\nHost: x\r\n\r\n",),
    "an id with a zero byte": (b"GET /v1/customers/a%00b HTTP/1.1\r\nHost: x\r\n\r\n",),
    "raw bytes in the path": (b"GET /v1/customers/\xe9 HTTP/1.1\r\nHost: x\r\n\r\n",),
    "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",),
    "a web socket": (
        b"GET /v1/score HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    ),
    "superscript two": (b"GET /v1/decisions?after=%C2%B2 HTTP/1.1\r\nHost: x\r\n\r\n",),
    "a number of 400 digits": (b"GET /v1/decisions?after=" + b"9" * 400 + b" HTTP/1.1\r\nHost: x\r\n\r\n",),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_refused(address: httpx.URL, memory: int, name: str) -> None:
    start = time.perf_counter()
    assert status(address, posted(BODIES[name])) in (400, 413, 422)
    assert time.perf_counter() - start < 5
    assert status(address, posted(FINE)) == 200


@pytest.mark.parametrize("name", WIRES)
def test_a_hostile_request_is_refused(address: httpx.URL, memory: int, name: str) -> None:
    assert 400 <= status(address, *WIRES[name]) < 500
    assert status(address, posted(FINE)) == 200


@pytest.mark.parametrize(
    "zone", ["Europe", ".", "..", "../../etc/passwd", "/etc/passwd", "a\\u0000b", "", "posixrules/x", "tzdata.zi", "Europe/"]
)
def test_a_time_zone_that_is_none_is_refused(address: httpx.URL, memory: int, zone: str) -> None:
    body = b'{"timezone": "%s"}' % zone.encode()
    wire = posted(body).replace(b"POST /v1/score", b"PUT /v1/customers/c/consents")
    assert status(address, wire) == 422


def test_10000_bytes_of_headers_are_an_ordinary_request(address: httpx.URL, memory: int) -> None:
    assert status(address, posted(FINE, b"X-Long: " + b"a" * 10_000 + b"\r\n")) in (200, 431)
    assert status(address, posted(FINE, b"".join(b"X-%d: a\r\n" % n for n in range(1000)))) in (200, 431)


def test_slow_bodies_keep_nobody_else_waiting(address: httpx.URL, memory: int) -> None:
    slow = [socket.create_connection((address.host, address.port or 80)) for _ in range(30)]
    try:
        for place, one in enumerate(slow):
            length = b"Content-Length: 100\r\n\r\n{" if place % 3 else b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
            one.sendall(HEAD + length)
        time.sleep(1)
        assert status(address, posted(FINE), seconds=20) == 200
        assert status(address, b"GET /v1/customers/c HTTP/1.1\r\nHost: x\r\n\r\n", seconds=20) == 404
    finally:
        for one in slow:
            one.close()


def test_a_body_that_never_ends_is_given_up(address: httpx.URL, memory: int) -> None:
    assert status(address, HEAD + b"Content-Length: 100\r\n\r\n{", seconds=30) == 408


def test_a_caller_who_hangs_up_is_no_fault_of_the_service(address: httpx.URL, memory: int, home: Path) -> None:
    with socket.create_connection((address.host, address.port or 80)) as one:
        one.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        time.sleep(0.5)
    time.sleep(1)
    assert "Traceback" not in (home / "service.log").read_text()
    assert 'code="500"' not in httpx.get(address.join("/metrics")).text


def test_the_battery_leaves_the_worker_as_it_was(address: httpx.URL, memory: int, home: Path) -> None:
    (worker,) = workers(home)
    for name in BODIES:
        status(address, posted(BODIES[name]))
    time.sleep(1)
    assert worker.memory_info().rss - memory <= MOST_GROWTH
    peak = next(line for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) * 1024 - memory <= MOST_PEAK
    before = time.perf_counter()
    assert {status(address, posted(FINE)) for _ in range(50)} == {200}
    assert time.perf_counter() - before < 10


def schemathesis(address: httpx.URL, folder: Path, *words: str, timeout: float = 280) -> str:
    """Run Schemathesis over the whole document; returns what it printed, and fails unless it found nothing.

    ``positive_data_acceptance`` is left out: a body that follows the schema may still break what no JSON schema tells (order ids unique
    within a customer, years from 1970 to 2200, the names of the model's features, a time zone that exists, the size of a single item).
    """
    line = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{address}/openapi.json", "--checks", "all"]
    line += ["--exclude-checks", "positive_data_acceptance", "--continue-on-failure", "--request-timeout", "30", *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=timeout, cwd=folder)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def keyed(sample_features: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.URL, str]]:
    """A service that asks for keys, and a key for everything."""
    home, package = tmp_path_factory.mktemp("keyed"), packed(sample_features, tmp_path_factory.getbasetemp() / "package-1")
    token = keys.add(home / keys.FILE, "tester", ["admin"], 100_000)
    with server.running(
        SERVICE, server.environment(Settings(home=home), sample_features.places.features, package), home / "service.log"
    ) as found:
        yield httpx.URL(found), token


FAST = ("--phases", "examples,fuzzing,stateful", "--seed", "7")


def test_generated_requests_with_a_key_find_nothing(keyed: tuple[httpx.URL, str], tmp_path: Path) -> None:
    address, token = keyed
    told = schemathesis(address, tmp_path, *FAST, "--max-examples", "8", "-H", f"Authorization: Bearer {token}")
    assert "18/18" in told
    assert httpx.get(address.join("/v1/model"), headers=bearer(token)).status_code == 200


def test_generated_requests_without_a_key_find_nothing(keyed: tuple[httpx.URL, str], tmp_path: Path) -> None:
    address, token = keyed
    schemathesis(address, tmp_path, "--phases", "examples,fuzzing", "--seed", "7", "--max-examples", "3")
    assert patient(lambda: httpx.get(address.join("/v1/model"))).status_code == 401
    page = httpx.get(address.join("/metrics"), headers=bearer(token)).text
    assert 'holdfast_requests_total{code="500"' not in page


@pytest.mark.slow
@pytest.mark.parametrize("with_key", [True, False])
def test_500_generated_requests_a_place_find_nothing(keyed: tuple[httpx.URL, str], tmp_path: Path, with_key: bool) -> None:
    address, token = keyed
    header = ("-H", f"Authorization: Bearer {token}") if with_key else ()
    schemathesis(address, tmp_path, "--seed", "3", "--max-examples", "500", *header, timeout=3000)
