"""A real service that is told to stop, loses a worker, or ends: what is promised is answered, and nothing is left behind."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from features.settings import Settings
from serving import server
from serving.package import SERVICE
from tests.conftest import Shop
from tests.serving.test_fuzz import workers
from tests.serving.test_guard import NAME, packed

IN_FLIGHT = 20
STOP_SECONDS, BACK_SECONDS = 30, 5


@pytest.fixture(scope="module")
def package(sample_features: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(sample_features, tmp_path_factory.getbasetemp() / "package-1")


@pytest.fixture
def address(sample_features: Shop, package: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A service with its own home, `tmp_path`; the settings are the test's ``param``."""
    env = server.environment(Settings(home=tmp_path), sample_features.places.features, package, auth="off", **getattr(request, "param", {}))
    with server.running(SERVICE, env, tmp_path / "service.log") as found:
        yield found


def heavy(customers: int = 40, orders: int = 250) -> dict[str, Any]:
    """A request of raw histories that takes a while."""
    days = [
        {"order_id": str(n), "ordered_at": f"2011-{1 + n % 11:02d}-{1 + n % 28:02d}T10:00:00", "amount": 1.0 + n} for n in range(orders)
    ]
    return {"snapshot": "2011-12-10T00:00:00", "customers": [{"customer_id": f"c{n}", "orders": days} for n in range(customers)]}


def of_home(home: Path) -> list[psutil.Process]:
    """Every process that was started for a home: supervisor, workers, followers, erasers; the dead that nobody buried among them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOLDFAST_HOME") == str(home.resolve()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def supervisor(home: Path) -> psutil.Process:
    """The process that watches over the workers of a home."""
    parent = workers(home)[0].parent()
    assert parent is not None
    return parent


def gone(processes: list[psutil.Process], seconds: float) -> bool:
    """Whether all of some processes end, and are buried, within a time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            return True
        time.sleep(0.1)
    return False


def turned_down(address: str) -> bool:
    """Whether readiness goes down within three seconds while the service still answers."""
    end = time.monotonic() + 3
    while time.monotonic() < end:
        if httpx.get(f"{address}/readyz", timeout=5).status_code == 503:
            return True
        time.sleep(0.02)
    return False


def test_a_told_stop_answers_all_that_is_in_flight_and_turns_readiness_down_first(address: str, tmp_path: Path) -> None:
    body, family = json.dumps(heavy(120)).encode(), of_home(tmp_path)
    given = {"content": body, "headers": {"Content-Type": "application/json"}, "timeout": 60}
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        asked = [pool.submit(httpx.post, f"{address}/v1/score", **given) for _ in range(IN_FLIGHT)]
        time.sleep(0.7)
        waiting = sum(not one.done() for one in asked)
        supervisor(tmp_path).send_signal(signal.SIGTERM)
        assert turned_down(address)
        late = httpx.post(f"{address}/v1/score", json=heavy(1, 5), timeout=60).status_code
        answers = [one.result() for one in asked]
    assert waiting >= IN_FLIGHT // 2
    assert [answer.status_code for answer in answers] == [200] * IN_FLIGHT
    assert late == 200
    assert gone(family, STOP_SECONDS)


@pytest.mark.parametrize("address", [{"workers": "2"}], indirect=True)
def test_a_killed_worker_takes_its_own_requests_along_and_nobody_elses(address: str, tmp_path: Path) -> None:
    victim, other = workers(tmp_path)
    kept = [httpx.Client(base_url=address, timeout=60) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        for one in kept:
            one.get("/livez")
        mine = {c.raddr.port for c in victim.net_connections("tcp") if c.raddr}
        asked = {one: pool.submit(one.post, "/v1/score", json=heavy(20, 100)) for one in kept}
        time.sleep(0.2)
        victim.kill()
        killed = time.monotonic()
        lost = [one for one, told in asked.items() if told.exception() is not None]
        answered = [told.result().status_code for told in asked.values() if told.exception() is None]
    assert len(lost) <= len(mine)
    assert answered == [200] * (len(kept) - len(lost))
    assert httpx.get(f"{address}/v1/model", timeout=BACK_SECONDS).status_code == 200
    assert time.monotonic() - killed < 60
    assert other.is_running()


@pytest.mark.parametrize("address", [{"workers": "2"}], indirect=True)
def test_new_callers_are_answered_within_five_seconds_of_a_kill_and_the_worker_comes_again(address: str, tmp_path: Path) -> None:
    victim, other = workers(tmp_path)
    victim.kill()
    start = time.monotonic()
    while time.monotonic() - start < BACK_SECONDS:
        assert httpx.post(f"{address}/v1/score", json=heavy(1, 5), timeout=BACK_SECONDS).status_code == 200
    while {one.pid for one in workers(tmp_path)} <= {victim.pid, other.pid} and time.monotonic() - start < 60:
        time.sleep(0.2)
    assert len(workers(tmp_path)) == 2


def erased(address: str, customer: str) -> None:
    """Somebody who is known by a consent alone, and then erased."""
    place = f"{address}/v1/customers/{customer}"
    assert httpx.put(f"{place}/consents", json={"consents": [{"granted": True}]}).status_code == 200
    assert httpx.delete(place).status_code == 200


@pytest.mark.parametrize("address", [{"follow": f"{NAME}@champion", "workers": "2", "follow_seconds": "1"}], indirect=True)
def test_a_service_that_ends_leaves_no_child(address: str, tmp_path: Path) -> None:
    for customer in ("a", "b", "c"):
        erased(address, customer)
    family = of_home(tmp_path)
    assert any("serving.follow" in " ".join(one.cmdline()) for one in family)
    supervisor(tmp_path).terminate()
    assert gone(family, STOP_SECONDS)
    assert of_home(tmp_path) == []


@pytest.mark.parametrize("address", [{"follow": f"{NAME}@champion"}], indirect=True)
def test_a_killed_workers_follower_goes_with_it_and_finished_children_are_buried(address: str, tmp_path: Path) -> None:
    erased(address, "a")
    (worker,) = workers(tmp_path)
    end = time.monotonic() + 30
    while time.monotonic() < end and any(
        one.status() == psutil.STATUS_ZOMBIE or "serving.erase" in " ".join(one.cmdline()) for one in worker.children()
    ):
        time.sleep(0.2)
    time.sleep(1)
    assert [one.pid for one in worker.children() if one.status() == psutil.STATUS_ZOMBIE] == []
    followers = worker.children()
    os.kill(worker.pid, signal.SIGKILL)
    assert followers
    assert gone(followers, 5)
