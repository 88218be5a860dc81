"""One customer a request, 1 and 16 clients, one worker: Holdfast by id against three ways to serve the same model.

Holdfast looks the id up, scores, explains, decides and logs; the rivals get a ready feature row and only score it.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from features import mapping, table
from features.files import write_json
from features.settings import ENVIRONMENT, Settings
from serving import policy, server
from serving.package import SERVICE
from serving.score import IDENTITY
from tests.benchmarks.result import Result
from training.dataset import TrainingData
from training.models.calibration import Calibration
from training.models.level import Forecast, Level
from training.models.lightgbm import LightGBM
from training.models.scorer import Scorer
from validation.stages import Places, build_features, validate

SECONDS, CLIENTS = 5.0, (1, 16)
PARAMS = {"learning_rate": 0.058, "num_leaves": 9, "min_data_in_leaf": 247, "feature_fraction": 0.12, "extra_trees": True, "rounds": 150}
Body = tuple[str, bytes]


def run() -> Iterator[Result]:
    """All service benchmarks."""
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        places = Places.of(Settings(home=home), mapping.read())
        validate(mapping.read(), places)
        build_features(mapping.read(), places)
        by_id, row = _package(places, home)
        rates: dict[str, dict[int, float]] = {}
        env = server.environment(Settings(home=home), places.features, home / "package")
        with server.running(SERVICE, env, home / "ours.log") as address:
            rates["ours"] = _rates(address, by_id)
        for name, (command, env, body) in _rivals(home, row).items():
            with _serving(command, env, body) as address:
                rates[name] = _rates(address, body)
    for name, rival in (
        ("starlette", "bare Starlette + orjson"),
        ("bentoml_api", "stock BentoML API"),
        ("mlflow_serve", "mlflow models serve"),
    ):
        for clients in CLIENTS:
            yield Result(f"serve.id.vs_{name}.{clients}_clients", rates["ours"][clients], "requests/s", rival, rates[name][clients], True)


def _package(places: Places, home: Path) -> tuple[Body, dict[str, object]]:
    import mlflow

    data = TrainingData.read(places.features)
    level = Level({data.split.test: Forecast(0.6, 0.5, 0.7, 0.6, None, 0, 0.0)})
    scorer = Scorer(LightGBM.fit(PARAMS, data.before(data.split.test), 1), Calibration("platt", [1.0]), level, data.manifest)
    digest = scorer.save(home / "package" / "model")
    (home / "package" / "policy.toml").write_text(policy.default_file().read_text())
    identity = {"model_name": "bench", "model_version": "1", "model": "lightgbm", "digest": digest, "run_id": "bench"}
    write_json(home / "package" / IDENTITY, identity)
    mlflow.pyfunc.save_model(str(home / "pyfunc"), loader_module="training.models.pyfunc", data_path=str(home / "package" / "model"))
    rows = table.read(places.features, [data.manifest.latest] if data.manifest.latest else None)
    values = np.nan_to_num(data.at([data.split.test]).x_NF[7]).tolist()
    customer = rows["customer_id"][7].as_py()
    return ("/v1/score", json.dumps({"customers": [{"customer_id": customer}]}).encode()), {"names": data.manifest.names, "values": values}


def _rivals(home: Path, row: dict[str, object]) -> dict[str, tuple[list[str], dict[str, str], Body]]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow starts `uvicorn` by its name
    ours = {**os.environ, **server.QUIET, "PATH": path, "HOLDFAST_BENCH_MODEL": str(home / "package" / "model")}
    plain = json.dumps({"rows": [row["values"]]}).encode()
    split = json.dumps({"dataframe_split": {"columns": row["names"], "data": [row["values"]]}}).encode()
    python = [sys.executable, "-m"]
    return {
        "starlette": (
            [
                *python,
                "uvicorn",
                "--factory",
                "tests.benchmarks.rivals:starlette",
                "--port",
                "{port}",
                "--no-access-log",
                "--loop",
                "uvloop",
            ],
            ours,
            ("/score", plain),
        ),
        "bentoml_api": (
            [*python, "bentoml", "serve", "tests.benchmarks.rivals:Stock", "--host", "127.0.0.1", "--port", "{port}"],
            {**ours, "HOLDFAST_BENCH_BENTOML": "1", "BENTOML_HOME": str(home / "bentoml")},
            ("/score", plain),
        ),
        "mlflow_serve": (
            [*python, "mlflow", "models", "serve", "-m", str(home / "pyfunc"), "--env-manager", "local", "--port", "{port}"],
            ours,
            ("/invocations", split),
        ),
    }


@contextmanager
def _serving(command: list[str], env: dict[str, str], body: Body) -> Iterator[str]:
    port = server.free_port()
    line = [word.replace("{port}", str(port)) for word in command]
    process = subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(process, address, body)
        yield address
    finally:
        server.stop(process)


def _wait(process: subprocess.Popen[bytes], address: str, body: Body) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(urllib.request.Request(address + body[0], body[1], {"Content-Type": "application/json"}), timeout=10)
            return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"{process.args!r} did not start")


def _rates(address: str, body: Body) -> dict[int, float]:
    asyncio.run(_load(address, body, 4, 1.0))
    return {clients: asyncio.run(_load(address, body, clients, SECONDS)) for clients in CLIENTS}


async def _load(address: str, body: Body, clients: int, seconds: float) -> float:
    """Answers with status 200 a second, over keep-alive connections."""
    host, port = address.removeprefix("http://").split(":")
    head = f"POST {body[0]} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body[1])}\r\n\r\n"
    end = time.perf_counter() + seconds
    start = time.perf_counter()
    counts = await asyncio.gather(*(_client(host, int(port), head.encode() + body[1], end) for _ in range(clients)))
    return sum(counts) / (time.perf_counter() - start)


async def _client(host: str, port: int, request: bytes, end: float) -> int:
    reader, writer = await asyncio.open_connection(host, port)
    answered = 0
    while time.perf_counter() < end:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(head.decode())
        await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        answered += 1
    writer.close()
    return answered
