"""A running service as a child process: start, wait until ready, ask, shut down cleanly."""

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

READY_SECONDS = 90.0
QUIET = {"OTEL_SDK_DISABLED": "true", "BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "true"}


class ServiceError(RuntimeError):
    """The service did not start or did not answer."""


def command(target: str, host: str, port: int) -> list[str]:
    """The command line that serves a Bento folder or a service of this code."""
    return [sys.executable, "-m", "bentoml", "serve", target, "--host", host, "--port", str(port)]


def environment(settings: Settings, table: Path | None, package: Path | None = None) -> dict[str, str]:
    """Environment of the service: its state folder, feature table and, if not in a Bento, its package."""
    given = {"HOLDFAST_HOME": str(settings.home.resolve()), "BENTOML_HOME": str(settings.home.resolve() / "bentoml")}
    given |= {"HOLDFAST_FEATURES": str(table.resolve())} if table else {}
    given |= {"HOLDFAST_PACKAGE": str(package.resolve())} if package else {}
    kept = {name: value for name, value in os.environ.items() if name not in ("HOLDFAST_PACKAGE", "HOLDFAST_FEATURES")}
    return {**kept, **QUIET, **given}


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
    """SIGTERM, and after ten seconds SIGKILL, to the whole group."""
    for sign, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        if process.poll() is None:
            os.killpg(process.pid, sign)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            ask(f"{address}/v1/model")
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    tail = log.read_text(errors="replace")[-2000:]
    raise ServiceError(f"the service did not become ready within {READY_SECONDS:.0f} s; its log ends with:\n{tail}")


def ask(url: str, body: Any = None) -> Any:
    """GET, or POST of a JSON body; returns the JSON answer."""
    data = None if body is None else orjson.dumps(body)
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return orjson.loads(answer.read())
