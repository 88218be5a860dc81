"""Work that never ends, is too slow, or meets a locked store: it is cut off and told, others go on, and the process can always be ended."""

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import server, sqlite_store, writer
from serving.online import Charge, StoreBusy
from serving.sqlite_store import SqliteStore
from serving.writer import TooSlow, Writer
from tests.conftest import ROOT, clean_environment
from tests.serving.test_decisions import Light, at_risk, light_shop, logged

ENDLESS_SQL = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore(tmp_path / "online.db")


@pytest.fixture
def write(store: SqliteStore) -> Writer:
    return Writer(lambda: store)


def spending(store: SqliteStore, write: Writer, rest: Callable[[], Any]) -> Callable[[], None]:
    """Work that spends in a transaction, and has something else to do before it commits."""

    def work() -> None:
        with store.transaction():
            store.charge([Charge(None, "d", "budget", 1)])
            rest()
            write.last_moment()

    return work


def endless() -> None:
    while True:
        pass


def deaf() -> None:
    """Goes on for ever, whatever is thrown, the first three times."""
    for _ in range(3):
        try:
            endless()
        except BaseException:
            continue
    endless()


@pytest.mark.parametrize("kind", ["a loop", "SQL", "a loop that swallows errors", "an end after the limit"])
def test_work_over_its_limit_is_undone_and_what_waits_goes_on(
    store: SqliteStore, write: Writer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "AGAIN_SECONDS", 0.1)
    rest = {"a loop": endless, "SQL": lambda: store._db.execute(ENDLESS_SQL).fetchall(), "a loop that swallows errors": deaf}

    async def asked() -> None:
        slow = asyncio.create_task(write(spending(store, write, rest.get(kind, lambda: time.sleep(0.5))), limit=0.2))
        await asyncio.sleep(0.05)
        start = time.monotonic()
        urgent = asyncio.create_task(write(lambda: store.set_meta("opted", "out"), urgent=True))
        with pytest.raises(TooSlow):
            await slow
        assert time.monotonic() - start < 1
        await urgent
        await write(spending(store, write, lambda: None), limit=5)

    asyncio.run(asyncio.wait_for(asked(), 10))
    assert (store.meta("opted"), store.spent("d"), write.stuck) == ("out", {"budget": 1}, False)


def test_what_was_answered_as_too_slow_was_never_written_at_whatever_moment_it_was_cut(
    store: SqliteStore, write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four hundred pieces of work that end about when their limit does; each that is not too slow is written, each other is not.

    The limit follows the speed of the machine: longer after each that was too slow, shorter after each that was not.
    """
    monkeypatch.setattr(writer, "TICK_SECONDS", 0.0002)
    draw = random.Random(1)

    def busy(seconds: float) -> Callable[[], None]:
        def work() -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                store.spent("d")

        return work

    async def asked() -> int:
        limit, answered = 0.005, 0
        for _ in range(400):
            try:
                await write(spending(store, write, busy(limit * draw.uniform(0.4, 1.1))), limit=limit)
            except TooSlow:
                limit *= 1.1
            else:
                limit, answered = max(limit / 1.1, 0.002), answered + 1
        return answered

    answered = asyncio.run(asyncio.wait_for(asked(), 60))
    assert 100 < answered < 380
    assert store.spent("d") == {"budget": answered}
    assert write.stuck is False


def test_what_has_no_limit_is_not_cut(store: SqliteStore, write: Writer) -> None:
    asyncio.run(write(spending(store, write, lambda: time.sleep(1.5))))
    assert store.spent("d") == {"budget": 1}


def test_a_list_has_more_time_than_one_customer() -> None:
    assert (writer.limit(1), writer.limit(101), writer.limit(0)) == (1.0, 2.0, 1.0)


def test_a_writer_at_one_piece_for_too_long_or_dead_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "STUCK_SECONDS", 0.2)
    end, write = threading.Event(), Writer()

    async def asked() -> list[bool]:
        task = asyncio.create_task(write(lambda: end.wait(10)))
        await asyncio.sleep(0.05)
        before = write.stuck
        await asyncio.sleep(0.4)
        after = write.stuck
        end.set()
        await task
        await write(lambda: None)
        return [before, after, write.stuck]

    assert asyncio.run(asked()) == [False, True, False]


# A real service


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Light:
    return light_shop(tmp_path_factory)


CHILD = """
import sys, time
from pathlib import Path
import uvicorn
from serving import app, decide, writer
from serving.sqlite_store import SqliteStore
home, package, features, port, probability, hang = sys.argv[1:]
options, writer.STUCK_SECONDS, app.GRACE_SECONDS = decide.options, 3.0, 3.0

def stuck(policy, s):
    while float(probability) in s.p.tolist():
        time.sleep(1000) if hang == "in C" else None
    return options(policy, s)

decide.options = stuck
made = app.create(app.Setup(Path(home), Path(package), Path(features), None, "0"), lambda: SqliteStore(Path(home) / "online.db"))
uvicorn.run(made, host="127.0.0.1", port=int(port), log_level="error")
"""


@contextmanager
def served(shop: Light, home: Path, probability: float, hang: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The application in a process of its own, which never ends a decision about a customer of one probability."""
    port = server.free_port()
    line = [sys.executable, "-c", CHILD, str(home), str(shop.package), str(shop.places.features), str(port), repr(probability), hang]
    with (home / "service.log").open("wb") as log:
        process = subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                if httpx.get(f"{address}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield address, process
    finally:
        process.kill()
        process.wait()


def victims(shop: Light) -> tuple[str, float, str]:
    """A customer with the probability that no other has, and another customer."""
    first, second = at_risk(shop.engine, 2)
    assert shop.engine.lookup is not None
    scored = shop.engine.lookup.scored
    place = shop.engine.lookup.index[first]
    assert list(scored.p).count(scored.p[place]) == 1
    return first, float(scored.p[place]), second


def decision(address: str, customer: str) -> httpx.Response:
    return httpx.post(f"{address}/v1/decisions", json={"customers": [{"customer_id": customer}]}, timeout=10)


def opt_out(address: str, customer: str) -> httpx.Response:
    return httpx.post(f"{address}/v1/customers/consents", json={"customer_id": customer, "consents": [{"granted": False}]}, timeout=10)


def test_an_endless_decision_is_answered_503_and_another_customers_opt_out_goes_through(shop: Light, tmp_path: Path) -> None:
    poison, probability, other = victims(shop)
    with served(shop, tmp_path, probability, "in Python") as (address, process), ThreadPoolExecutor() as pool:
        start = time.monotonic()
        slow = pool.submit(decision, address, poison)
        time.sleep(0.3)
        out = opt_out(address, other)
        assert (out.status_code, slow.result().status_code, slow.result().json()["title"]) == (200, 503, "Too slow")
        assert time.monotonic() - start < 3
        assert int(slow.result().headers["retry-after"]) >= 1
        assert [httpx.get(f"{address}/{name}").status_code for name in ("livez", "readyz")] == [200, 200]
        assert decision(address, other).json()["results"][0]["binding"] == "no_consent"
        assert "holdfast_decisions_cancelled_total 1.0" in httpx.get(f"{address}/metrics").text
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    told = (tmp_path / "service.log").read_text()
    assert "a decision was cancelled: it took longer than 1.00 s, at <string>" in told
    assert poison not in told
    assert len(logged(tmp_path / "online.db")) == 1


def test_a_writer_that_hangs_in_c_fails_the_probes_and_still_ends_when_told(shop: Light, tmp_path: Path) -> None:
    poison, probability, _ = victims(shop)
    with served(shop, tmp_path, probability, "in C") as (address, process), ThreadPoolExecutor() as pool:
        start = time.monotonic()
        slow = pool.submit(decision, address, poison)
        assert httpx.get(f"{address}/livez").status_code == 200
        assert slow.result().status_code == 503
        assert time.monotonic() - start < 3
        time.sleep(2.5)
        assert [httpx.get(f"{address}/{name}").status_code for name in ("livez", "healthz", "readyz")] == [503] * 3
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        process.wait(10)
        assert time.monotonic() - told < 1.5 + 3 + 2


# A locked store


@contextmanager
def holding(file: Path) -> Iterator[None]:
    """Another process is in the middle of writing."""
    code = f"import sqlite3, sys; db = sqlite3.connect({str(file)!r}, isolation_level=None); db.execute('BEGIN IMMEDIATE'); print('in', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    yield
    process.kill()
    process.communicate()


WRITES: dict[str, Callable[[SqliteStore], Any]] = {
    "set_meta": lambda store: store.set_meta("x", 1),
    "set_timezone": lambda store: store.set_timezone("a", "Asia/Tokyo"),
    "add_outcome": lambda store: store.add_outcome("d", "opened", 1.0, None),
    "set_consents": lambda store: store.set_consents([("a", "marketing", "", True, 1.0)]),
    "add_events": lambda store: store.add_events("a", [("e", "orders", {})], 1.0),
    "cancel_occasion": lambda store: store.cancel_occasion("a", "cart_left"),
    "erase": lambda store: store.erase("a"),
}


@pytest.mark.parametrize("name", WRITES)
def test_every_write_says_that_another_holds_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sqlite_store, "BUSY_SECONDS", 0.2)
    store = SqliteStore(tmp_path / "online.db")
    with holding(store.file), pytest.raises(StoreBusy, match=r"writing to the online store for more than 0\.2 s\n  fix: wait"):
        WRITES[name](store)
    WRITES[name](store)


def test_a_command_says_that_another_holds_the_store_and_ends_with_2(shop: Light, tmp_path: Path) -> None:
    """`holdfast decide`, with a wait of half a second."""
    file = tmp_path / "online.db"
    SqliteStore(file)
    code = (
        "import sys; from serving import cli, package, sqlite_store; sqlite_store.BUSY_SECONDS = 0.5;"
        f"package.fetch = lambda settings, name, alias, folder, policy: __import__('shutil').copytree({str(shop.package)!r}, folder, dirs_exist_ok=True);"
        "from features.cli import main; sys.argv[0] = 'holdfast'; main()"
    )
    env = clean_environment(shop.home) | {"HOLDFAST_ONLINE": str(file)}
    line = [sys.executable, "-c", code, "decide", "--dataset", str(shop.mapping), "--out", str(tmp_path / "out.parquet")]
    with holding(file):
        done = subprocess.run(line, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert f"error: {file}: another process has been writing" in done.stderr
    assert "fix: wait" in done.stderr


def test_a_decision_while_a_batch_writes_is_answered_503_and_made_afterwards(shop: Light, tmp_path: Path) -> None:
    _, _, other = victims(shop)
    with served(shop, tmp_path, -1.0, "never") as (address, _):
        with holding(tmp_path / "online.db"):
            start = time.monotonic()
            told = decision(address, other)
            assert (told.status_code, told.headers["content-type"]) == (503, "application/problem+json")
            assert time.monotonic() - start < 3
            assert httpx.get(f"{address}/livez").status_code == 200
        end = time.monotonic() + 15  # SQLite waits for a lock in C: the cut comes with the lock
        while (answer := decision(address, other)).status_code == 503 and time.monotonic() < end:
            time.sleep(0.5)
        assert answer.status_code == 200
    with closing(sqlite3.connect(tmp_path / "online.db")) as db:
        bodies = [json.loads(body) for (body,) in db.execute("SELECT body FROM decision")]
    assert len(bodies) == 1
