"""The registry: only "there is no such alias" means none, and a version's files are those that were registered."""

import json
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy import event
from sqlalchemy.engine import Engine

from features.errors import InputError, RefusedError
from features.files import sha256
from features.mapping import Promotion
from features.mlflow_client import NoAnswerError
from features.settings import Settings
from serving import follow
from serving.package import fetch
from tests.training.ready_made import MODEL, copy, frame, learn, places
from training import tracking
from training.promote import promote
from training.registry import CHALLENGER, CHAMPION, Registry


def registry_of(home: Path) -> Registry:
    return Registry(tracking.connect(Settings(home=home)), MODEL)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """The database is held by another connection; MLflow waits 0.1 s for it instead of the 20 s that it asks SQLite for."""

    def sooner(connection: object, cursor: object, statement: str, parameters: object, context: object, many: bool) -> tuple[str, object]:
        return statement.replace("PRAGMA busy_timeout = 20000;", "PRAGMA busy_timeout = 100;"), parameters

    event.listen(Engine, "before_cursor_execute", sooner, retval=True)
    try:
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield
    finally:
        event.remove(Engine, "before_cursor_execute", sooner)


def test_no_model_and_no_alias_mean_none(own: Path) -> None:
    registry = registry_of(own)
    assert registry.aliased(CHALLENGER).version == 1
    assert registry.aliased(CHAMPION) is None
    assert Registry(registry.client, "holdfast-churn-nobody").aliased(CHAMPION) is None


def test_a_locked_registry_is_no_answer(own: Path) -> None:
    registry = registry_of(own)
    with locked(own / "mlflow.db"), pytest.raises(InputError, match=r"gave no answer .*database is locked") as found:
        registry.aliased(CHAMPION)
    assert "SELECT" not in str(found.value)
    assert registry.aliased(CHAMPION) is None


def test_training_without_an_answer_says_what_to_do_and_goes_on_later(own: Path, tmp_path: Path) -> None:
    home = copy(own, tmp_path)
    registry_of(home)
    with locked(home / "mlflow.db"), pytest.raises(InputError, match="run the same command again"):
        learn(home, frame(240))
    assert len(registry_of(home).versions()) == 1
    learn(home, frame(240))
    assert len(registry_of(home).versions()) == 2


def test_an_alias_of_a_deleted_version_is_no_answer(own: Path, tmp_path: Path) -> None:
    """MLflow answers with the code of a missing model."""
    home = copy(own, tmp_path)
    with closing(sqlite3.connect(home / "mlflow.db")) as db, db:
        db.execute("UPDATE registered_model_aliases SET version = 99")
    with pytest.raises(InputError, match=r"RESOURCE_DOES_NOT_EXIST.*version=99"):
        registry_of(home).aliased(CHALLENGER)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A server in the registry's place that always gives the same answer, its `status` and `body`."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(self.server.status)  # type: ignore[attr-defined]
            self.end_headers()
            self.wfile.write(self.server.body)  # type: ignore[attr-defined]

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


MISSING = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Registered Model with name=x not found"}'


@pytest.mark.parametrize(
    ("status", "body"), [(500, b"oops"), (503, b""), (404, b"no such page"), (401, b"who?"), (200, b"<html>log in"), (200, b"{}")]
)
def test_whatever_else_a_server_says_is_no_answer(server: ThreadingHTTPServer, status: int, body: bytes) -> None:
    server.status, server.body = status, body  # type: ignore[attr-defined]
    uri = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(InputError, match="gave no answer"):
        Registry(MlflowClient(uri, uri), MODEL).aliased(CHAMPION)


def test_a_server_that_knows_no_such_model_has_no_champion(server: ThreadingHTTPServer) -> None:
    server.status, server.body = 404, MISSING  # type: ignore[attr-defined]
    uri = f"http://127.0.0.1:{server.server_port}"
    assert Registry(MlflowClient(uri, uri), MODEL).aliased(CHAMPION) is None


def stored(home: Path) -> Path:
    """The folder of the challenger's files in the registry."""
    return next((home / "mlartifacts").rglob("models/*/artifacts/**/digests.json")).parent


def test_files_that_agree_with_each_other_but_not_with_the_registry_are_refused(own: Path, tmp_path: Path) -> None:
    home = copy(own, tmp_path)
    folder = stored(home)
    (folder / "level.json").write_text((folder / "level.json").read_text() + " ")
    digests = json.loads((folder / "digests.json").read_text())
    (folder / "digests.json").write_text(json.dumps(digests | {"level.json": sha256(folder / "level.json")}))
    with pytest.raises(InputError, match="do not have the registered digest"):
        registry_of(home).load("1")


def test_a_file_beside_the_models_own_is_refused(own: Path, tmp_path: Path) -> None:
    home = copy(own, tmp_path)
    (stored(home) / "extra.json").write_text("{}")
    with pytest.raises(InputError, match=r"extra\.json: was not saved with the model"):
        registry_of(home).load("1")


def test_a_version_without_a_digest_is_refused(own: Path, tmp_path: Path) -> None:
    home = copy(own, tmp_path)
    registry = registry_of(home)
    registry.client.delete_model_version_tag(MODEL, "1", "holdfast.digest")
    with pytest.raises(InputError, match="do not have the registered digest"):
        registry.load("1")


def test_versions_beyond_a_page_are_seen(own: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("training.registry.PAGE", 1)
    registry = registry_of(copy(own, tmp_path))
    source = registry.client.get_model_version(MODEL, "1")
    registry.client.create_model_version(MODEL, source.source, run_id=source.run_id)
    assert [version.version for version in registry.versions()] == [1, 2]


@pytest.mark.slow  # starts MLflow's own server
def test_a_registry_behind_a_server_registers_and_promotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, port = tmp_path / "home", free_port()
    store = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port)
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
            registry = registry_of(home)
            assert registry.aliased(CHAMPION) is None
            learn(home, frame(250))
            assert registry.aliased(CHAMPION) is None
            assert promote(MODEL, places(home), Settings(home=home), Promotion())["promoted"]
            assert str(registry.aliased(CHAMPION).version) == "1"
        finally:
            server.terminate()


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as found:
        return int(found.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"nothing answers at port {port}")


def test_packaging_takes_no_silence_for_no_champion(server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    server.status, server.body = 500, b"oops"  # type: ignore[attr-defined]
    with pytest.raises(NoAnswerError, match="gave no answer"):
        fetch(Settings(home=tmp_path), MODEL, CHAMPION, tmp_path / "package", None)
    server.status, server.body = 404, MISSING  # type: ignore[attr-defined]
    with pytest.raises(RefusedError, match="does not exist"):
        fetch(Settings(home=tmp_path), MODEL, CHAMPION, tmp_path / "package", None)


def test_the_follower_tries_again_what_the_registry_did_not_answer(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    server.status, server.body = 500, b"oops"  # type: ignore[attr-defined]
    with pytest.raises(NoAnswerError):
        follow._take_over(Settings(home=tmp_path), MODEL, CHAMPION, tmp_path, None, "7")
    assert not list(tmp_path.glob("*.json")), "a refusal would be for ever"
