"""The guard of a real service: keys, scopes, rates and sizes; what is open is what the document says, and nothing else."""

import os
import re
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import httpx
import pytest

from features.errors import InputError
from features.files import read_json, write_json
from features.settings import Settings
from serving import keys, openapi, policy, server
from serving.cli import _serveable
from serving.guard import HEADERS, LIST_BYTES, PUBLIC, SINGLE_BYTES, route
from serving.package import SERVICE
from serving.score import IDENTITY
from tests.conftest import Shop, cli
from training.dataset import TrainingData
from training.models.calibration import Calibration
from training.models.level import Forecast, Level
from training.models.lightgbm import LightGBM
from training.models.scorer import Scorer
from training.models.timing import Timing

PARAMS = {"learning_rate": 0.1, "min_data_in_leaf": 50, "feature_fraction": 0.5, "rounds": 20}
NAME = "holdfast-churn"


@cache
def trained(features: Path, leaves: int) -> Scorer:
    """A small LightGBM of a feature table."""
    data = TrainingData.read(features)
    before, test = data.before(data.split.test), data.split.test
    model, timing = LightGBM.fit(PARAMS | {"num_leaves": leaves}, before, 1), Timing.fit(before, data.manifest.horizon_days, 1)
    return Scorer(
        model, Calibration("platt", [1.1]), Level({test: Forecast(0.6, 0.5, 0.7, 0.6, None, 0, 0.1, -0.2)}), data.manifest, timing
    )


def packed(shop: Shop, folder: Path, version: str = "1") -> Path:
    """A version of the small model, packaged as `holdfast package` does; made once for a folder."""
    if not folder.exists():
        digest = trained(shop.places.features, 3 + 2 * int(version)).save(folder / "model")
        (folder / "policy.toml").write_text(policy.default_file().read_text())
        identity = {"model_name": NAME, "model_version": version, "model": "lightgbm", "digest": digest, "run_id": "x"}
        write_json(folder / IDENTITY, identity)
    return folder


@contextmanager
def serving(shop: Shop, package: Path, home: Path, **given: str) -> Iterator[httpx.Client]:
    """A client of a real service of a package, with the ``HOLDFAST_`` settings given."""
    env = server.environment(Settings(home=home), shop.places.features, package, **given)
    with server.running(SERVICE, env, home / "service.log") as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def tokens(home: Path) -> dict[str, str]:
    """A key for each scope, by scope."""
    return {scope: keys.add(home / keys.FILE, scope, [scope], 5000) for scope in keys.SCOPES}


@pytest.fixture(scope="module")
def client(sample_features: Shop, home: Path, tokens: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    package = packed(sample_features, tmp_path_factory.getbasetemp() / "package-1")
    with serving(sample_features, package, home) as found:
        yield found


def patient(send: Callable[[], httpx.Response]) -> httpx.Response:
    """The answer to a request without a good key, once the few of them that are answered in a second leave room."""
    while (answer := send()).status_code == 429:
        time.sleep(int(answer.headers["retry-after"]))
    return answer


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


ROUTES = [
    ("POST", "/v1/score", "score"),
    ("POST", "/v1/decisions", "score"),
    ("GET", "/v1/decisions", "score"),
    ("GET", "/v1/decisions/0123456789abcdef0123456789abcdef", "score"),
    ("GET", "/v1/customers/nobody", "score"),
    ("GET", "/v1/model", "score"),
    ("GET", "/v1/policy", "score"),
    ("POST", "/v1/events", "events"),
    ("POST", "/v1/outcomes", "events"),
    ("POST", "/v1/customers/profile", "score"),
    ("POST", "/v1/customers/consents", "events"),
    ("POST", "/v1/customers/erasure", "admin"),
    ("PUT", "/v1/customers/nobody/consents", "events"),
    ("DELETE", "/v1/customers/nobody", "admin"),
    ("DELETE", "/v1/customers/consents", "admin"),
    ("GET", "/v1/customers/consents", "score"),
    ("GET", "/metrics", "admin"),
]
"""Every place that needs a key, with the scope that the key needs; the last but one are of a customer called ``consents``."""
CLOSED = [
    *("/docs.json", "/schema.json", "/static_content/index.css", "/static_content/swagger-ui.css", "/ui", "/ui/", "/favicon.ico"),
    *(
        "/docs",
        "/redoc",
        "/v1",
        "/v1/",
        "/livez/",
        "/readyz/x",
        "/x//y",
        "/%2e%2e/livez",
        "/metrics/",
        "/openapi.json/",
        "/LIVEZ",
        "/try/x",
    ),
]


def test_the_routes_told_here_are_all_that_the_document_has() -> None:
    document = openapi.document("1")["paths"]
    closed = {(method.upper(), path) for path, places in document.items() for method, told in places.items() if told.get("security") != []}
    told = {
        (method, path if method == "POST" else re.sub(r"/(nobody|consents|[0-9a-f]{32})(?=/|$)(?!.*decisions$)", "/{id}", path, count=1))
        for method, path, _ in ROUTES
    }
    assert closed == told
    assert set(document) - {path for _, path in closed} | {"/", "/try", "/openapi.json"} == PUBLIC


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_a_route_needs_a_key_and_its_scope(client: httpx.Client, tokens: dict[str, str], method: str, path: str, scope: str) -> None:
    for headers in ({}, bearer("hf_wrong"), {"X-API-Key": "hf_wrong"}, {"Authorization": f"Basic {tokens['admin']}"}):
        answer = patient(lambda headers=headers: client.request(method, path, headers=headers))
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    for other in {"score", "events"} - {scope}:
        assert client.request(method, path, headers=bearer(tokens[other])).status_code == 403


@pytest.mark.parametrize(("method", "path", "scope"), [one for one in ROUTES if one[0] != "DELETE"])
def test_a_good_key_is_let_in_by_either_header(client: httpx.Client, tokens: dict[str, str], method: str, path: str, scope: str) -> None:
    for token in (tokens[scope], tokens["admin"]):
        for headers in (bearer(token), {"authorization": f"bearer {token}"}, {"X-API-Key": token}):
            assert client.request(method, path, headers=headers).status_code in (200, 404, 415)


@pytest.mark.parametrize("path", CLOSED)
def test_unknown_paths_and_bentos_own_pages_need_a_key_and_are_not_there(client: httpx.Client, tokens: dict[str, str], path: str) -> None:
    assert patient(lambda: client.get(path)).status_code == 401
    answer = client.get(path, headers=bearer(tokens["admin"]), follow_redirects=False)
    assert answer.status_code in (404, 307)
    assert "bento" not in answer.text.lower()


@pytest.mark.parametrize("path", sorted(PUBLIC))
def test_public_paths_answer_without_a_key_and_change_nothing(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 200
    assert client.post(path, json={}).status_code == 405
    assert client.delete(path).status_code == 405
    assert "http://" not in client.get("/try").text.replace(str(client.base_url), "")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/livez", 200), ("GET", "/try", 200), ("GET", "/v1/model", 401), ("GET", "/nowhere", 401), ("POST", "/try", 405)],
)
def test_every_answer_carries_the_security_headers(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = patient(lambda: client.request(method, path))
    assert answer.status_code == status
    for name, value in HEADERS:
        assert answer.headers[name.decode()] == value.decode()
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "bento" not in " ".join(answer.headers.values()).lower()


def test_the_rate_of_a_key_is_kept_and_the_answer_tells_when_to_come_again(client: httpx.Client, home: Path) -> None:
    token = keys.add(home / keys.FILE, "slow", ["score"], 2)
    time.sleep(2)
    answers = [client.get("/v1/model", headers=bearer(token)) for _ in range(8)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert answers[0].status_code == answers[1].status_code == 200
    assert len(refused) >= 4
    assert 1 <= int(refused[0].headers["retry-after"]) <= 2
    time.sleep(int(refused[-1].headers["retry-after"]))
    assert client.get("/v1/model", headers=bearer(token)).status_code == 200


def test_a_key_made_again_has_its_new_rate(client: httpx.Client, home: Path) -> None:
    for per_second in (1000, 1):
        token = keys.add(home / keys.FILE, "again", ["score"], per_second)
        time.sleep(2)
        codes = [client.get("/v1/model", headers=bearer(token)).status_code for _ in range(5)]
        keys.remove(home / keys.FILE, "again")
    assert codes.count(429) >= 2


def test_strangers_use_up_their_own_rate_only(client: httpx.Client, tokens: dict[str, str]) -> None:
    codes = [client.get("/v1/model").status_code for _ in range(60)]
    assert set(codes) == {401, 429}
    assert client.get("/v1/model", headers=bearer(tokens["score"])).status_code == 200


def test_a_withdrawn_key_is_refused_within_two_seconds(client: httpx.Client, home: Path) -> None:
    token = keys.add(home / keys.FILE, "leaver", ["score"], 5000)
    time.sleep(2)
    assert client.get("/v1/model", headers=bearer(token)).status_code == 200
    keys.remove(home / keys.FILE, "leaver")
    time.sleep(2)
    assert patient(lambda: client.get("/v1/model", headers=bearer(token))).status_code == 401


def test_a_spoilt_file_of_keys_never_opens_the_door_nor_breaks_it(client: httpx.Client, home: Path, tokens: dict[str, str]) -> None:
    whole = (home / keys.FILE).read_bytes()
    try:
        (home / keys.FILE).write_bytes(whole[:-20])
        time.sleep(2)
        codes = {patient(lambda: client.get("/v1/model", headers=bearer("hf_wrong"))).status_code for _ in range(3)}
        assert codes <= {401, 503}
    finally:
        (home / keys.FILE).write_bytes(whole)
        time.sleep(2)
    assert client.get("/v1/model", headers=bearer(tokens["score"])).status_code == 200


@pytest.mark.parametrize(("path", "limit"), [("/v1/score", LIST_BYTES), ("/v1/customers/c/consents", SINGLE_BYTES)])
def test_a_body_too_large_is_refused_told_its_length_or_not(client: httpx.Client, tokens: dict[str, str], path: str, limit: int) -> None:
    headers = bearer(tokens["admin"]) | {"Content-Type": "application/json"}
    method = "PUT" if path.endswith("consents") else "POST"
    parts = [b" " * 1_000_000] * (limit // 1_000_000 + 1)
    assert client.request(method, path, headers=headers, content=b"".join(parts)).status_code == 413
    assert client.request(method, path, headers=headers, content=iter(parts)).status_code == 413


def test_a_length_without_a_body_is_refused_before_the_body_comes(client: httpx.Client, tokens: dict[str, str]) -> None:
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nX-API-Key: {tokens['score']}\r\nContent-Length: {LIST_BYTES + 1}\r\n\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), 5) as one:
        one.sendall(head.encode())
        assert one.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_customer_called_consents_is_erased_by_an_admin_only() -> None:
    assert route("DELETE", "/v1/customers/consents").scope == "admin"
    assert route("DELETE", "/v1/customers/a%2Fconsents").scope == "admin"
    assert route("PUT", "/v1/customers/consents/consents").scope == "events"
    assert route("PUT", "/v1/customers/a%2Fb/consents").scope == "events"


@pytest.mark.parametrize("host", ["0.0.0.0", pytest.param("::", marks=pytest.mark.slow)])
def test_a_service_without_keys_refuses_to_be_reached_by_others(sample_features: Shop, tmp_path: Path, host: str) -> None:
    env = server.environment(Settings(home=tmp_path), None, packed(sample_features, tmp_path / "package"), auth="off")
    port, log, end = server.free_port(), tmp_path / "service.log", time.monotonic() + 60
    with log.open("wb") as output:
        process = subprocess.Popen(server.command(SERVICE, host, port), env=env, stdout=output, stderr=output, start_new_session=True)
    try:
        while "must ask for keys" not in log.read_text() and time.monotonic() < end:
            with pytest.raises(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/v1/model", timeout=1)
            time.sleep(0.2)
    finally:
        server.stop(process)
    assert "HOLDFAST_AUTH=off on " + host in log.read_text()


def test_the_command_serves_without_keys_on_this_machine_only(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.2", "shop.example"):
        with pytest.raises(InputError, match="must ask for keys"):
            _serveable(Settings(home=tmp_path), host, auth=False)
    for host in ("127.0.0.1", "localhost", "::1"):
        _serveable(Settings(home=tmp_path), host, auth=False)


def test_keys_are_made_listed_and_withdrawn_and_the_file_holds_digests_only(tmp_path: Path) -> None:
    made = cli(tmp_path, "keys", "add", "till", "--scope", "score", "--per-second", "5")
    token, file = made.stdout.strip(), tmp_path / keys.FILE
    assert token.startswith(keys.PREFIX)
    assert len(token) >= 43
    assert token not in file.read_text()
    assert read_json(file)["keys"][0]["digest"] == keys.digest(token)
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    listed = cli(tmp_path, "keys", "list").stdout
    assert "till" in listed
    assert token not in listed
    assert cli(tmp_path, "keys", "remove", "till").returncode == 0
    assert keys.read(file) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "a", "--scope", "all"), "does not exist"),
        (("remove", "nobody"), "does not exist"),
        (("add", "b", "--per-second", "0"), "0.01"),
    ],
)
def test_a_wrong_key_command_ends_with_2_and_writes_nothing(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = cli(tmp_path, "keys", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / keys.FILE).exists()
