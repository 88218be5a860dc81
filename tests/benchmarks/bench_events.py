"""`POST /v1/events` for customers with few and with many stored events, and an opt-out of somebody else while events pour in."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx

from tests.benchmarks.bench_service import _packaged, _service, sample
from tests.benchmarks.result import Result
from training.models.calibration import Calibration
from training.models.level import Forecast, Level
from training.models.lightgbm import LightGBM
from training.models.scorer import Scorer

AT_ONCE, FEW, MANY = 500, 10, 10_000
ROUNDS, CLIENTS, OPT_OUTS = 9, 4, 300
PARAMS = {"learning_rate": 0.1, "num_leaves": 15, "min_data_in_leaf": 100, "rounds": 30}
WANTED_RATIO, WANTED_MS = 1.5, 100.0


def run() -> Iterator[Result]:
    """Both, on a small model of the sample: events ask nothing of a model."""
    with sample() as (home, _, data):
        level = Level({data.split.test: Forecast(0.6, 0.5, 0.7, 0.6, None, 0, 0.0)})
        train = data.before(data.split.test)
        _packaged(Scorer(LightGBM.fit(PARAMS, train, 1), Calibration("platt", [1.0]), level, data.manifest), home / "small", "lightgbm")
        with _service(home / "small", None) as (address, key), _client(address, key) as client:
            yield from _stored(client)
            yield from _flood(client, address, key)


def _client(address: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def _orders(customer: str, first: int, number: int) -> dict[str, Any]:
    """Orders of one customer, as a request tells them."""
    line = {"product_id": "x", "quantity": 1, "amount": 10.0}
    return {
        "events": [
            {
                "event_id": f"e-{one}",
                "customer_id": customer,
                "table": "orders",
                "row": {"order_id": f"o-{one}", "ordered_at": "2011-12-09T12:00:00", "lines": [line]},
            }
            for one in range(first, first + number)
        ]
    }


def _stored(client: httpx.Client) -> Iterator[Result]:
    """Seconds for 500 events of a customer with 10 and with 10,000 before, in turn; each time a customer of whom no more is stored."""
    times: dict[int, list[float]] = {FEW: [], MANY: []}
    for turn in range(ROUNDS):
        for stored, taken in times.items():
            customer = f"{stored}-{turn}"
            for first in range(0, stored, AT_ONCE):
                client.post("/v1/events", json=_orders(customer, first, min(AT_ONCE, stored - first))).raise_for_status()
            body = _orders(customer, stored, AT_ONCE)
            start = time.perf_counter()
            answer = client.post("/v1/events", json=body)
            taken.append(time.perf_counter() - start)
            assert answer.json()["accepted"] == AT_ONCE, answer.text
    few, many = (sorted(taken)[len(taken) // 2] for taken in times.values())
    yield Result("serve.events.500", 1000 * few, "ms", f"customer with {FEW} stored; beside: with {MANY:,}", 1000 * many)
    yield Result("serve.events.stored_ratio", many / few, "times", f"wanted, {MANY:,} stored against {FEW}", WANTED_RATIO)


def _flood(client: httpx.Client, address: str, key: str) -> Iterator[Result]:
    """Opt-outs one after another while another process posts 500 events a request, each client again as soon as it is answered."""
    line = [sys.executable, "-m", "tests.benchmarks.bench_events", address, key]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as flood:
        assert flood.stdout is not None
        assert flood.stdout.readline() == "pouring\n"
        times, begun = [], time.perf_counter()
        for number in range(OPT_OUTS):
            start = time.perf_counter()
            answer = client.put(f"/v1/customers/leaver-{number}/consents", json={"consents": [{"granted": False}]})
            times.append(time.perf_counter() - start)
            assert answer.status_code == 200, answer.text
            time.sleep(0.02)
        seconds = time.perf_counter() - begun
        posted, _ = flood.communicate("enough\n")
    told = f"wanted, under a flood of {int(posted) / seconds:,.0f} events/s"
    yield Result("serve.consent_under_events.p99", 1000 * sorted(times)[int(0.99 * len(times))], "ms", told, WANTED_MS)


def _pour(address: str, key: str) -> None:
    """Post events by several clients until a line comes in; tell how many."""
    end, counts = threading.Event(), list[int]()

    def one(number: int) -> None:
        with _client(address, key) as client:
            for first in range(0, 10**9, AT_ONCE):
                client.post("/v1/events", json=_orders(f"flood-{number}", first, AT_ONCE)).raise_for_status()
                counts.append(AT_ONCE)
                if end.is_set():
                    return

    threads = [threading.Thread(target=one, args=(number,)) for number in range(CLIENTS)]
    [thread.start() for thread in threads]
    time.sleep(1.0)
    print("pouring", flush=True)
    sys.stdin.readline()
    print(sum(counts))
    end.set()
    [thread.join() for thread in threads]


if __name__ == "__main__":
    _pour(*sys.argv[1:])
