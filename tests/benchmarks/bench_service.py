"""The service under load, beside three ways to serve the same models, on one machine in one run, one worker each.

Models: the champion's kind on Online Retail II (the blend), and a reference of 300 trees on 100 features. `ours` also parses strictly, checks
the key, answers a recommendation and counts; the rivals only predict. Load comes from a process of its own (`load.py`).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from features import mapping, store
from features.files import write_json
from features.settings import ENVIRONMENT, Settings
from serving import keys, policy, server
from serving.app import MOST_WAITING
from serving.check import write_warm
from serving.guard import LIST_BYTES
from serving.package import SERVICE
from serving.score import IDENTITY, Engine, Scored
from tests.benchmarks import load
from tests.benchmarks.result import Result
from tests.serving.raw import histories
from training.dataset import TrainingData
from training.models.base import Rows
from training.models.blend import Blend
from training.models.calibration import Calibration
from training.models.level import Forecast, Level
from training.models.lightgbm import LightGBM
from training.models.logistic import Ridge
from training.models.lstm import LSTM
from training.models.scorer import Scorer
from training.models.timing import Timing
from validation.stages import Places, build_features, validate

SECONDS, CLIENTS = 6.0, (1, 16)
ROUNDS = {"lightgbm": 120, "lstm": 2, "logistic": 1}
REFERENCE = {"learning_rate": 0.05, "num_leaves": 63, "min_data_in_leaf": 50, "rounds": 300, "seeds": 1}
RIVALS = (("starlette", "bare Starlette + orjson"), ("bentoml_api", "stock BentoML API"), ("mlflow_serve", "mlflow models serve"))
SOAK, SETTLE = 50_000, 2.0


@contextmanager
def sample() -> Iterator[tuple[Path, Places, TrainingData]]:
    """A home that lasts as long as the block, its places, and the bundled shop's training data in it."""
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        places = Places.of(Settings(home=Path(folder)), mapping.read())
        validate(mapping.read(), places)
        build_features(mapping.read(), places)
        yield Path(folder), places, TrainingData.read(places.features)


def run() -> Iterator[Result]:
    """All service benchmarks."""
    with sample() as (home, places, data):
        yield from _rows(home / "champion", _champion(data, home / "champion"), places.features, "serve.row")
        yield from _rows(home / "reference", _reference(data, home / "reference"), None, "serve.reference")
        yield from _ours(home / "champion", places)


def _champion(data: TrainingData, folder: Path) -> Scorer:
    train = data.before(data.split.test)
    members = [kind.fit({**kind.strong, "rounds": ROUNDS[kind.name]}, train, 1) for kind in (LightGBM, LSTM, Ridge)]
    level = Level({data.split.test: Forecast(0.6, 0.5, 0.7, 0.6, None, 0, 0.0)})
    timing = Timing.fit(train, data.manifest.horizon_days, 1)
    scorer = Scorer(Blend(members, np.array([0.4, 0.3, 0.3])), Calibration("platt", [1.0]), level, data.manifest, timing)
    return _packaged(scorer, folder, "blend")


def _reference(data: TrainingData, folder: Path) -> Scorer:
    """300 trees of 63 leaves on 100 features, as a table of another feature store would have them."""
    train = data.before(data.split.test)
    names = train.names[:100]
    few = Rows(names, np.ascontiguousarray(train.x_NF[:, :100]), train.lists.select([]), (), train.y, train.snapshot, train.days)
    manifest = replace(data.manifest, columns=names, sources=(), fitted=None)
    level = Level({data.split.test: Forecast(0.6, 0.5, 0.7, 0.6, None, 0, 0.0)})
    return _packaged(Scorer(LightGBM.fit(REFERENCE, few, 1), Calibration("platt", [1.0]), level, manifest), folder, "lightgbm")


def _packaged(scorer: Scorer, folder: Path, kind: str) -> Scorer:
    import mlflow

    digest = scorer.save(folder / "model")
    (folder / "policy.toml").write_text(policy.default_file().read_text())
    write_json(folder / IDENTITY, {"model_name": "bench", "model_version": "1", "model": kind, "digest": digest, "run_id": "bench"})
    mlflow.pyfunc.save_model(str(folder / "pyfunc"), loader_module="training.models.pyfunc", data_path=str(folder / "model"))
    return scorer


def _bodies(scored: Scored, places: range) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """The same customers as ours, as the rivals' and as MLflow's requests."""
    ours, rivals, frames = [], [], []
    for place in places:
        values = [None if np.isnan(value) else value for value in scored.rows.x_NF[place].tolist()]
        lists = {name: scored.rows.lists[name][place].as_py() for name in scored.rows.lists.column_names}
        one: dict[str, Any] = {"customer_id": f"c-{place}", "features": dict(zip(scored.rows.names, values, strict=True))}
        one |= {"sequences": lists} if lists else {}
        one |= {"stages": {name: column[place] for name, column in scored.stages.items()}} if scored.segment is not None else {}
        ours.append(json.dumps({"customers": [one], "reasons": False, "snapshot": "2011-12-10T00:00:00"}).encode())
        known = np.nan_to_num(scored.rows.x_NF[place]).tolist()
        rivals.append(json.dumps({"rows": [known], "lists": {name: [values] for name, values in lists.items()}}).encode())
        split = {"columns": [*scored.rows.names, *lists], "data": [[*known, *lists.values()]]}
        frames.append(json.dumps({"dataframe_split": split}).encode())
    return ours, rivals, frames


def _rows(folder: Path, scorer: Scorer, features: Path | None, name: str) -> Iterator[Result]:
    """One ready feature row a request: requests a second of us and each rival."""
    engine = Engine.load(folder / "model", policy.read(), features)
    scored = engine.lookup.scored if engine.lookup else _some(engine)
    ours, rivals, frames = _bodies(scored, range(200))
    rates: dict[str, dict[int, load.Load]] = {}
    if engine.lookup:
        write_warm(engine, folder / "home")  # else the service computes reasons beside the first loads
    with _service(folder, features) as (address, key):
        load.run(address, "/v1/score", ours, 4, 2.0, key=key)
        rates["ours"] = {clients: load.run(address, "/v1/score", ours, clients, SECONDS, key=key) for clients in CLIENTS}
    for rival, (command, env, path) in _commands(folder).items():
        bodies = frames if rival == "mlflow_serve" else rivals
        with _serving(command, env, path, bodies[0]) as address:
            load.run(address, path, bodies, 4, 2.0)
            rates[rival] = {clients: load.run(address, path, bodies, clients, SECONDS) for clients in CLIENTS}
    for rival, told in RIVALS:
        pairs = {clients: (rates["ours"][clients].good_per_second, rates[rival][clients].good_per_second) for clients in CLIENTS}
        worst = min(pairs, key=lambda clients: pairs[clients][0] / pairs[clients][1])
        yield Result(f"{name}.vs_{rival}", pairs[worst][0], "requests/s", f"{told}, {worst} client(s)", pairs[worst][1], True)
        for clients, (own, other) in pairs.items():
            yield Result(f"{name}.vs_{rival}.{clients}_clients", own, "requests/s", told, other, True)
    for clients, wanted in zip(CLIENTS, (5.0, 30.0), strict=True):
        yield Result(f"{name}.p99.{clients}_clients", rates["ours"][clients].p99_ms, "ms", "wanted", wanted)


def _some(engine: Engine) -> Scored:
    """Rows for a model without a table of its own."""
    random = np.random.default_rng(1)
    n, names = 200, tuple(engine.manifest.names)
    unknown = np.full(n, np.nan)
    import pyarrow as pa

    rows = Rows(names, random.lognormal(1, 1, (n, len(names))), pa.table({}), (), unknown, np.full(n, np.datetime64("NaT", "us")), unknown)
    return Scored([""] * n, [], rows, [0.0] * n, {}, [], None, np.zeros((n, 8), dtype=bool), [])


@contextmanager
def _service(folder: Path, features: Path | None, **given: str) -> Iterator[tuple[str, str]]:
    """Our service with a key; its online store is empty unless given."""
    home = folder / "home"
    file = home / keys.FILE
    key = keys.add(file, "bench", ["score", "events", "admin"], 1e9) if not file.exists() else (home / "key").read_text()
    (home / "key").write_text(key)
    with server.running(SERVICE, server.environment(Settings(home=home), features, folder, **given), home / "service.log") as address:
        yield address, key


def _ours(folder: Path, places: Places) -> Iterator[Result]:
    """By id, histories, events, lists, overload and a soak, on the champion."""
    from serving.load import load as fill
    from serving.sqlite_store import SqliteStore

    online = folder / "home" / "online.db"
    fill(SqliteStore(online), places.sources, "UTC")
    engine = Engine.load(folder / "model", policy.read(), places.features)
    assert engine.lookup is not None
    scored = engine.lookup.scored
    write_warm(engine, folder / "home")
    with _service(folder, places.features, online=str(online)) as (address, key):
        yield from _by_id(address, key, scored)
        yield from _histories(address, key, scored, places)
        yield from _lists(address, key, scored)
        yield from _overload(address, key, scored)
        yield from _events(address, key, scored)
        yield from _soak(address, key, scored)


def _by_id(address: str, key: str, scored: Scored) -> Iterator[Result]:
    bodies = [json.dumps({"customers": [{"customer_id": customer}]}).encode() for customer in scored.customer_id]
    load.run(address, "/v1/decisions", bodies, 4, 2.0, key=key)
    peak = load.run(address, "/v1/decisions", bodies, 16, SECONDS, key=key)
    yield Result("serve.id.decisions", peak.good_per_second, "requests/s", "wanted", 500.0, True)
    steady = load.run(address, "/v1/decisions", bodies, 16, SECONDS, 500.0, key)
    yield Result("serve.id.p99.500_per_second", steady.p99_ms, "ms", "wanted", 15.0)


def _histories(address: str, key: str, scored: Scored, places: Places) -> Iterator[Result]:
    with store.opened(places.sources) as connection:
        bodies = histories(connection, scored.customer_id[:1000])
    asked = [json.dumps({"customers": [one], "snapshot": "2011-12-10T00:00:00", "reasons": False}).encode() for one in bodies]
    found = load.run(address, "/v1/score", asked, 4, SECONDS, key=key)
    yield Result("serve.history.p99.4_clients", found.p99_ms, "ms", "wanted", 60.0)
    yield Result("serve.history.rate", found.good_per_second, "requests/s", "wanted", 60.0, True)
    for one in bodies:  # what was known at once need not be told: the list stays under the limit of a body
        for row in (*one["orders"], *one.get("returns", ())):
            row.pop("arrived_at", None)
        for line in (line for order in one["orders"] for line in order["lines"]):
            line.pop("line_id", None)
    sizes = np.cumsum([len(json.dumps(one, separators=(",", ":"))) + 1 for one in bodies])
    bodies = bodies[: int(np.searchsorted(sizes, LIST_BYTES - 1000))]
    asked_at_once = {"customers": bodies, "snapshot": "2011-12-10T00:00:00", "reasons": False}
    whole = json.dumps(asked_at_once, separators=(",", ":")).encode()
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            answer = client.post("/v1/score", content=whole, headers={"Content-Type": "application/json"})
            times.append(time.perf_counter() - start)
            assert answer.status_code == 200, answer.text[:300]
    yield Result(
        "serve.history.list_of_1000", min(times), "s", f"wanted for 1,000 ({len(bodies)} customers, {len(whole) / 1e6:.1f} MB)", 1.5
    )


def _lists(address: str, key: str, scored: Scored) -> Iterator[Result]:
    ones = [json.loads(body)["customers"][0] for body in _bodies(scored, range(1000))[0]]
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        for reasons, wanted in ((False, 20_000.0), (True, 2_000.0)):
            body = json.dumps({"customers": ones, "reasons": reasons, "snapshot": "2011-12-10T00:00:00"}).encode()
            times = []
            for _ in range(5):
                start = time.perf_counter()
                answer = client.post("/v1/score", content=body, headers={"Content-Type": "application/json"})
                times.append(time.perf_counter() - start)
                assert answer.status_code == 200, answer.text[:300]
            told = "with" if reasons else "without"
            yield Result(f"serve.list.{told}_reasons", 1000 / min(times), "customers/s", f"wanted ({len(body) / 1e6:.1f} MB)", wanted, True)


def _overload(address: str, key: str, scored: Scored) -> Iterator[Result]:
    """Feature rows, from twice and ten times as many clients as the service lets wait; each asks again as soon as it is answered.

    Peaks are those of 16 clients right before and after.
    """
    bodies = _bodies(scored, range(200))[0]

    def peak() -> float:
        return load.run(address, "/v1/score", bodies, 16, SECONDS / 2, key=key).good_per_second

    before = peak()
    for times in (2, 10):
        found = load.run(address, "/v1/score", bodies, MOST_WAITING * times, SECONDS, key=key, settle=SETTLE)
        time.sleep(1.0)
        after = peak()
        highest = (before + after) / 2
        resets = found.statuses.get("0", 0)
        told = f"of peak {highest:.0f}/s; p50 {found.p50_ms:.0f} ms; statuses {found.statuses}, {found.without_retry_after} refusals without Retry-After, {resets} resets"
        yield Result(f"serve.overload_{times}x.goodput", found.good_per_second / highest, "share", f"wanted; {told}", 0.8, True)
        yield Result(f"serve.overload_{times}x.p99", found.p99_ms, "ms", "wanted, of the accepted", 500.0)
        yield Result(f"serve.overload_{times}x.after", after / before, "share", "wanted, 1 s later, of the peak before", 0.8, True)
        before = after


def _events(address: str, key: str, scored: Scored) -> Iterator[Result]:
    """From an event's posting to the decision that knows it."""
    times = []
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        for number, customer in enumerate(scored.customer_id[1000:1200]):
            row = {
                "order_id": f"bench-{number}",
                "ordered_at": "2011-12-09T12:00:00",
                "lines": [{"quantity": 1, "amount": 10.0, "product_id": "x"}],
            }
            event = {"event_id": f"e-{number}", "customer_id": customer, "table": "orders", "row": row}
            start = time.perf_counter()
            client.post("/v1/events", json={"events": [event]}).raise_for_status()
            asked = {"customers": [{"customer_id": customer}], "snapshot": "2011-12-10T00:00:00"}
            answer = client.post("/v1/decisions", json=asked).json()
            times.append(time.perf_counter() - start)
            assert answer["results"][0]["status"] == "scored"
    yield Result("serve.event_to_decision.p99", 1000 * sorted(times)[197], "ms", "wanted", 1000.0)


def _soak(address: str, key: str, scored: Scored) -> Iterator[Result]:
    bodies = _bodies(scored, range(200))[0]
    port = int(address.rsplit(":", 1)[1])
    worker = _worker(port)
    load.run(address, "/v1/score", bodies, 16, 10.0, key=key)
    before, asked = worker.memory_info().rss, 0
    while asked < SOAK:
        found = load.run(address, "/v1/score", bodies, 16, 10.0, key=key)
        asked += sum(found.statuses.values())
    grown = (worker.memory_info().rss - before) / 1e6
    yield Result("serve.soak.memory", max(grown, 0.01), "MB", f"wanted, {asked:,} requests", 20.0)


def _worker(port: int) -> psutil.Process:
    """The process that answers: the largest of the group that listens."""
    found = [process for process in psutil.process_iter() if "_bentoml_impl.worker.service" in " ".join(_words(process))]
    return max(found, key=lambda process: process.memory_info().rss)


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _commands(folder: Path) -> dict[str, tuple[list[str], dict[str, str], str]]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow starts `uvicorn` by its name
    ours = {**os.environ, **server.QUIET, "PATH": path, "HOLDFAST_BENCH_MODEL": str(folder / "model")}
    python = [sys.executable, "-m"]
    bare = ["uvicorn", "--factory", "tests.benchmarks.rivals:starlette", "--port", "{port}", "--no-access-log", "--loop", "uvloop"]
    stock = ["bentoml", "serve", "tests.benchmarks.rivals:Stock", "--host", "127.0.0.1", "--port", "{port}"]
    served = ["mlflow", "models", "serve", "-m", str(folder / "pyfunc"), "--env-manager", "local", "--port", "{port}"]
    bento = {**ours, "HOLDFAST_BENCH_BENTOML": "1", "BENTOML_HOME": str(folder / "bentoml")}
    return {
        "starlette": ([*python, *bare], ours, "/score"),
        "bentoml_api": ([*python, *stock], bento, "/score"),
        "mlflow_serve": ([*python, *served], ours, "/invocations"),
    }


@contextmanager
def _serving(command: list[str], env: dict[str, str], path: str, body: bytes) -> Iterator[str]:
    port = server.free_port()
    line = [word.replace("{port}", str(port)) for word in command]
    process = subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(process, address + path, body)
        yield address
    finally:
        server.stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, body: bytes) -> None:
    end, last = time.monotonic() + 120, ""
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=10)
            return
        except OSError as error:
            last = str(error)
            time.sleep(0.3)
    raise RuntimeError(f"{process.args!r} did not answer: {last}")
