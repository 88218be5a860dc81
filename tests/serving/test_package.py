"""The package is the same whenever it is built, runs as nobody from a folder it cannot write to, and deploys by linted manifests.

No container is built or run here: hadolint and the Kubernetes schemas judge the manifests, and the Bento runs in a process.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml

from features import mapping
from features.errors import InputError
from features.files import read_json, sha256, write_json
from features.settings import Settings
from serving import deploy, package, server
from tests import check_lock
from tests.conftest import Shop

KEY = "5e" * 32
AS_NOBODY = "setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search"
"""Nobody may write nowhere; the one right left is to read an interpreter that lies in somebody's home."""


@pytest.fixture(scope="module")
def told(fake_run: Shop) -> dict[str, Any]:
    """What `holdfast run` packaged; treat its Bento as read-only."""
    return package.packaged(Settings(home=fake_run.home))


@pytest.fixture
def bento(told: dict[str, Any], tmp_path: Path) -> Path:
    """A copy of the Bento, to spoil."""
    return Path(shutil.copytree(told["path"], tmp_path / "bento"))


@pytest.fixture
def manifests(told: dict[str, Any], tmp_path: Path) -> Path:
    """The folder of `deploy.write`."""
    deploy.write(tmp_path / "deploy", Settings(home=tmp_path / "home"), told)
    return tmp_path / "deploy"


def built(fake_run: Shop, home: Path) -> Path:
    """The fake shop's champion packaged under another home."""
    settings = Settings(home=home, MLFLOW_TRACKING_URI=Settings(home=fake_run.home).tracking_uri)
    return Path(package.build(settings, mapping.read(fake_run.mapping).model_name)["path"])


def seen(folder: Path) -> dict[str, tuple[int, float, str]]:
    """Mode, time and digest of all that a folder holds."""
    paths = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mode, path.stat().st_mtime, "" if path.is_dir() else sha256(path))
        for path in paths
    }


def test_two_builds_of_a_champion_are_the_same_to_the_byte(fake_run: Shop, tmp_path: Path) -> None:
    first = built(fake_run, tmp_path / "one")
    before = os.umask(0o077)
    try:
        second = built(fake_run, tmp_path / "two")
    finally:
        os.umask(before)
    assert seen(first) == seen(second)
    assert package.check(first) == package.check(second)
    assert all(mode & 0o444 == 0o444 for mode, _, _ in seen(second).values())


def test_a_build_needs_neither_network_nor_pip(fake_run: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object, **named: object) -> None:
        raise AssertionError(f"tried {given}")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(subprocess, "Popen", refused)
    assert package.check(built(fake_run, tmp_path))


def test_packaging_the_same_champion_again_leaves_its_bento_alone(fake_run: Shop, tmp_path: Path) -> None:
    first = built(fake_run, tmp_path)
    folder = first.stat().st_ino
    assert built(fake_run, tmp_path).stat().st_ino == folder
    (first / "src/package/policy.toml").write_text("[oops]")
    assert built(fake_run, tmp_path).stat().st_ino != folder
    assert package.packaged(Settings(home=tmp_path))["path"] == str(first)


@pytest.mark.parametrize("name", ["src/package/policy.toml", "src/serving/score.py", "env/python/requirements.txt", "bento.yaml"])
def test_an_altered_or_missing_file_of_a_bento_is_named(bento: Path, name: str) -> None:
    (bento / name).write_bytes((bento / name).read_bytes() + b"\n")
    with pytest.raises(InputError, match=f"{name}: is altered"):
        package.check(bento)
    (bento / name).unlink()
    with pytest.raises(InputError, match=f"{name}: is missing"):
        package.check(bento)


def test_a_file_that_was_not_packaged_is_refused_but_bytecode_is_not(bento: Path) -> None:
    (bento / "src/__pycache__").mkdir()
    (bento / "src/__pycache__/numpy.cpython-311.pyc").touch()
    package.check(bento)
    (bento / "src/numpy.py").touch()
    with pytest.raises(InputError, match=r"src/numpy\.py: was not packaged"):
        package.check(bento)


def test_an_altered_bento_is_not_served(fake_run: Shop, tmp_path: Path) -> None:
    (built(fake_run, tmp_path) / "src/serving/policy.py").write_text("")
    with pytest.raises(InputError, match=r"policy\.py: is altered"):
        package.packaged(Settings(home=tmp_path))


def test_the_requirements_are_the_locked_versions_of_what_serving_needs(told: dict[str, Any]) -> None:
    lines = (Path(told["path"]) / "env/python/requirements.txt").read_text().split()
    pins, locked = dict(line.split("==") for line in lines), check_lock.locked()
    assert pins == {name: locked[name] for name in pins}
    assert {"bentoml", "lightgbm", "torch", "uvicorn", "typing-extensions"} <= pins.keys()
    assert not {"mlflow", "optuna", "great-expectations", "pytest", "holdfast"} & pins.keys()


def test_a_requirement_brings_what_it_and_its_extra_need() -> None:
    plain, extra = (package.pinned([name]) for name in ("ibis-framework", "ibis-framework[duckdb]"))
    assert not any(pin.startswith("duckdb==") for pin in plain)
    assert {pin.split("==")[0] for pin in extra} >= {"duckdb", "numpy", "pyarrow", "sqlglot", "six"}  # six: of python-dateutil, of ibis
    with pytest.raises(InputError, match="no-such-thing: is needed for serving and not installed"):
        package.pinned(["no-such-thing"])


def test_outside_a_checkout_the_installed_versions_are_pinned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    monkeypatch.setattr(package.resources, "files", lambda name: tmp_path / name)
    assert f"torch=={metadata.version('torch').split('+')[0]}" in package.pinned(["torch"])
    lock.write_text("# by hand\nTorch==9.9.9  # another\n")
    assert "torch==9.9.9" in package.pinned(["torch"])


ONLY = """
import importlib.metadata as metadata, re, sys
def plain(name):
    return re.sub("[-_.]+", "-", name).lower()
known = {plain(line.split("==")[0]) for line in open("REQUIREMENTS")}
owners = metadata.packages_distributions()
class Others:
    def find_spec(name, path=None, target=None):
        owned = {plain(owner) for owner in owners.get(name, [])} - {"holdfast"}
        if owned and not owned & known:
            raise ModuleNotFoundError(f"{name} of {owned} is not among the requirements", name=name)
sys.meta_path.insert(0, Others)
"""
"""Hides every installed package that is not among the Bento's requirements."""


@pytest.fixture
def served(told: dict[str, Any]) -> Iterator[tuple[str, Path, subprocess.Popen[bytes]]]:
    """Address, folder and process of a service that runs as nobody, may write to ``home`` only and sees its requirements only."""
    root, port = Path(tempfile.mkdtemp(prefix="holdfast-")), server.free_port()
    root.chmod(0o755)  # of pytest's own folders nobody may see anything
    bento, home = Path(shutil.copytree(told["path"], root / "bento")), root / "home"
    home.mkdir()
    made = subprocess.run([sys.executable, "-c", deploy.MAKE_KEY], env={**os.environ, "HOLDFAST_HOME": str(home)}, capture_output=True)
    (root / "key").write_bytes(made.stdout.strip())
    (root / "sitecustomize.py").write_text(ONLY.replace("REQUIREMENTS", str(bento / "env/python/requirements.txt")))
    for path in (bento, *bento.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    root_user = os.geteuid() == 0
    if root_user:
        for path in (home, *home.iterdir()):
            os.chown(path, 65534, 65534)
    places = {"HOLDFAST_HOME": home, "BENTOML_HOME": home / "bentoml", "TMPDIR": home, "HOME": "/nonexistent", "PYTHONPATH": root}
    env = {"PATH": os.environ["PATH"], **server.QUIET, **{name: str(place) for name, place in places.items()}}
    line = [*(AS_NOBODY.split() if root_user else ()), *server.command(str(bento), "127.0.0.1", port)]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(line, cwd="/", env=env, stdout=log, stderr=log, start_new_session=True)
    yield f"http://127.0.0.1:{port}", root, process
    server.stop(process)
    for path in (bento, *bento.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(root)


def ready(address: str, root: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + server.READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{address}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError((root / "log").read_text())


def test_the_bento_serves_as_nobody_from_a_folder_it_cannot_write_to_with_its_requirements_alone(
    served: tuple[str, Path, subprocess.Popen[bytes]], told: dict[str, Any]
) -> None:
    address, root, process = served
    ready(address, root, process)
    assert Path(f"/proc/{process.pid}").stat().st_uid != 0
    order = {"order_id": "o", "ordered_at": "2024-01-01T00:00:00", "amount": 5.0}
    body = {"customers": [{"customer_id": "c", "orders": [order]}], "snapshot": "2024-02-01T00:00:00"}
    allowed = {"Authorization": f"Bearer {(root / 'key').read_text()}"}
    answer = httpx.post(f"{address}/v1/score", json=body, headers=allowed, timeout=60)
    assert answer.status_code == 200, answer.text
    assert 0 < answer.json()["results"][0]["churn_probability"] < 1
    process.terminate()
    assert process.wait(35) == 0
    assert package.check(root / "bento") == told["bento_digest"]
    assert not list((root / "bento").rglob("__pycache__"))


def test_the_dockerfile_has_no_findings(manifests: Path) -> None:
    hadolint = str(Path(sys.executable).with_name("hadolint"))
    done = subprocess.run([hadolint, "--failure-threshold", "style", str(manifests / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_runs_the_bento_unprivileged_and_takes_signals(manifests: Path) -> None:
    lines = (manifests / "Dockerfile").read_text().splitlines()
    copied = [line.split()[-2] for line in lines if line.startswith("COPY bento")]
    assert all((manifests / source).exists() for source in copied)
    assert copied
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    assert lines[-1].startswith('CMD ["python", "-m", "bentoml", "serve"')
    assert "EXPOSE 3000" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)


@pytest.mark.parametrize("version", ["1.29", "1.34", kubernetes_validate.latest_version()])
def test_every_kubernetes_object_is_of_its_schema(manifests: Path, version: str) -> None:
    kinds = []
    for document in yaml.safe_load_all((manifests / "kubernetes.yaml").read_text()):
        kubernetes_validate.validate(document, version, strict=True)
        kinds.append(document["kind"])
    more = ["Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"]
    assert kinds == ["Deployment", "PersistentVolumeClaim", *more]


def test_the_pod_may_do_nothing_but_serve(manifests: Path) -> None:
    found = {document["kind"]: document for document in yaml.safe_load_all((manifests / "kubernetes.yaml").read_text())}
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert [container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")] == [
        "/readyz",
        "/readyz",
        "/livez",
    ]
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (found["Service"]["spec"]["selector"], found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]):
        assert selector.items() <= labels.items()
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == found["PersistentVolumeClaim"]["metadata"]["name"]


def test_compose_publishes_to_this_machine_only_and_locks_the_container(manifests: Path) -> None:
    compose = yaml.safe_load((manifests / "docker-compose.yaml").read_text())
    service = compose["services"]["holdfast"]
    assert service["ports"] == ["127.0.0.1:3000:3000"]
    assert (service["read_only"], service["cap_drop"], service["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"])
    assert service["stop_grace_period"] == "35s"
    assert [volume.split(":") for volume in service["volumes"]] == [["state", service["environment"]["HOLDFAST_HOME"]]]
    assert list(compose["volumes"]) == ["state"]
    assert service["healthcheck"]["test"][0] == "CMD"


def test_a_key_is_asked_for_where_ids_are_personal_and_is_never_written(
    told: dict[str, Any], bento: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_ID_KEY", KEY)
    manifest = bento / "src/package/model/manifest.json"
    write_json(manifest, read_json(manifest) | {"personal": True})
    package.seal(bento, datetime(2026, 1, 1, tzinfo=UTC))
    written = deploy.write(tmp_path / "deploy", Settings(home=tmp_path / "home"), {**told, "path": str(bento)})
    texts = {file.name: file.read_text() for file in written}
    assert "${HOLDFAST_ID_KEY:?" in texts["docker-compose.yaml"]
    assert "optional: false" in texts["kubernetes.yaml"]
    assert not any(KEY in text for text in texts.values())


def test_writing_again_replaces_and_an_altered_bento_is_not_deployed(told: dict[str, Any], bento: Path, manifests: Path) -> None:
    settings = Settings(home=manifests.parent / "home")
    (manifests / "bento/src/left.py").touch()
    deploy.write(manifests, settings, told, "registry.example.org:5000/shop/holdfast:3")
    assert "image: registry.example.org:5000/shop/holdfast:3\n" in (manifests / "kubernetes.yaml").read_text()
    assert package.check(manifests / "bento") == told["bento_digest"]
    (bento / "bento.yaml").write_text("")
    with pytest.raises(InputError, match="is altered"):
        deploy.write(manifests, settings, {**told, "path": str(bento)})


def test_a_folder_with_other_things_or_a_bad_image_name_is_refused(told: dict[str, Any], tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "shop/.holdfast")
    (tmp_path / "notes.txt").write_text("mine")
    for folder, problem in ((tmp_path, "holds"), (tmp_path / "notes.txt", "is not a folder"), (tmp_path / "shop", "holds HOLDFAST_HOME")):
        with pytest.raises(InputError, match=problem):
            deploy.write(folder, settings, told)
    with pytest.raises(InputError, match="is not the name of a container image"):
        deploy.write(tmp_path / "new", settings, told, "Shop image: x")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "new").exists()
