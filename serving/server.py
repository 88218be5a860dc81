"""A running service as a child process: start, wait until ready, ask, shut down cleanly."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from features.settings import Settings

READY_SECONDS, STOP_SECONDS = 90.0, 30.0
QUIET = {"OTEL_SDK_DISABLED": "true", "BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "true"}


class ServiceError(RuntimeError):
    """The service did not start or did not answer."""


def command(target: str, host: str, port: int) -> list[str]:
    """The command line that serves a Bento folder or a service of this code."""
    return [sys.executable, "-m", "bentoml", "serve", target, "--host", host, "--port", str(port)]


def environment(settings: Settings, table: Path | None, package: Path | None = None, **given: str) -> dict[str, str]:
    """Environment of the service: its state folder, feature table and, if not in a Bento, its package; ``given`` are HOLDFAST_ settings."""
    places = {"HOLDFAST_HOME": str(settings.home.resolve()), "BENTOML_HOME": str(settings.home.resolve() / "bentoml")}
    places |= {"HOLDFAST_FEATURES": str(table.resolve())} if table else {}
    places |= {"HOLDFAST_PACKAGE": str(package.resolve())} if package else {}
    places |= {f"HOLDFAST_{name.upper()}": value for name, value in given.items()}
    ours = ("HOLDFAST_PACKAGE", "HOLDFAST_FEATURES", "HOLDFAST_FOLLOW", "HOLDFAST_AUTH", "HOLDFAST_ONLINE")
    return {**{name: value for name, value in os.environ.items() if name not in ours}, **QUIET, **places}


@contextmanager
def running(target: str, env: Mapping[str, str], log: Path) -> Iterator[str]:
    """Serve on a free port of this machine; yields the address once it is ready, stops it at the end."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(command(target, "127.0.0.1", port), env=dict(env), stdout=output, stderr=output, start_new_session=True)
        try:
            _wait(process, address, log)
            yield address
        finally:
            stop(process)


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the supervisor, which drains its workers; after thirty seconds SIGKILL to the whole group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # whoever is left of the group
    process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    tail = log.read_text(errors="replace")[-2000:]
    raise ServiceError(f"the service did not become ready within {READY_SECONDS:.0f} s; its log ends with:\n{tail}")


def ask(url: str, body: Any = None, key: str = "") -> Any:
    """GET, or POST of a JSON body, with an API key; returns the JSON answer."""
    data = None if body is None else orjson.dumps(body)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return orjson.loads(answer.read())
