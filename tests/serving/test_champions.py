"""The champion changes under load and nobody notices but by the version named; a broken one never serves."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from features.errors import InputError
from features.files import read_json, sha256, sha256_json, write_json
from serving import policy
from serving.champions import POINTER, publish, refuse
from serving.score import IDENTITY, Engine
from tests.conftest import Shop
from tests.serving.test_guard import NAME, packed, serving
from training.models.scorer import DIGESTS

VERSIONS = ("1", "2", "3")
FLIPS, CLIENTS = 20, 8
SWITCH_SECONDS = 20


@pytest.fixture(scope="module")
def packages(sample_features: Shop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three versions of a model that give different probabilities, by version; the service starts with the first."""
    return {version: packed(sample_features, tmp_path_factory.getbasetemp() / f"package-{version}", version) for version in VERSIONS}


@pytest.fixture(scope="module")
def offline(packages: dict[str, Path], sample_features: Shop) -> dict[str, dict[str, float]]:
    """What each version says of each customer of the latest table, without a service."""
    found = {}
    for version, package in packages.items():
        engine = Engine.load(package / "model", policy.read(package / "policy.toml"), sample_features.places.features)
        assert engine.lookup is not None
        found[version] = dict(zip(engine.lookup.scored.customer_id, engine.lookup.scored.p, strict=True))
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("champions")


@pytest.fixture(scope="module")
def folder(home: Path) -> Path:
    """Where the service looks for a new champion; the registry that it follows is not there."""
    return home / "serving" / f"{NAME}-champion"


@pytest.fixture(scope="module")
def client(packages: dict[str, Path], sample_features: Shop, home: Path) -> Iterator[httpx.Client]:
    with serving(sample_features, packages["1"], home, auth="off", follow=f"{NAME}@champion") as found:
        yield found


def point(folder: Path, package: Path, digest: str | None = None) -> None:
    """Name a package in the pointer as `publish` does, without the trial before it."""
    identity = read_json(package / IDENTITY)
    told = {"package": str(package), "version": identity["model_version"], "digest": digest or identity["digest"]}
    write_json(folder / POINTER, told)


def served(client: httpx.Client) -> str:
    return str(client.get("/v1/model").json()["model_version"])


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return max((float(line.split()[-1]) for line in lines if line.startswith(name) and not line.startswith("#")), default=0.0)


def eventually(holds: Callable[[], bool], seconds: float = SWITCH_SECONDS) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.1)
    return False


def test_the_versions_differ(offline: dict[str, dict[str, float]]) -> None:
    customer = next(iter(offline["1"]))
    assert len({found[customer] for found in offline.values()}) == len(VERSIONS)


def test_a_published_champion_serves_without_a_restart_and_the_ones_before_it_stay_at_hand(
    client: httpx.Client, folder: Path, packages: dict[str, Path], offline: dict[str, dict[str, float]], sample_features: Shop
) -> None:
    for version in ("2", "3"):
        publish(folder, packages[version], folder.parent, sample_features.places.features)
        assert eventually(lambda version=version: served(client) == version)
    customer = next(iter(offline["1"]))
    for version in VERSIONS:
        answer = client.post("/v1/score", json={"customers": [{"customer_id": customer}], "model_version": version}).json()
        assert answer["model_version"] == version
        assert answer["results"][0]["churn_probability"] == pytest.approx(offline[version][customer], abs=1e-12)
    for path in ("/v1/score", "/v1/decisions"):
        assert client.post(path, json={"customers": [{"customer_id": customer}], "model_version": "4"}).status_code == 409


def test_twenty_flips_under_load_give_every_caller_the_score_of_the_version_named(
    client: httpx.Client, folder: Path, packages: dict[str, Path], offline: dict[str, dict[str, float]]
) -> None:
    ids, over, seen = list(offline["1"]), threading.Event(), []

    def ask(seed: int) -> int:
        count = 0
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            while not over.is_set():
                some = ids[(seed * 131 + count * 17) % (len(ids) - 10) :][:10]
                answer = own.post("/v1/score", json={"customers": [{"customer_id": one} for one in some], "reasons": False})
                assert answer.status_code == 200, answer.text
                told = answer.json()
                gaps = [abs(one["churn_probability"] - offline[told["model_version"]][one["customer_id"]]) for one in told["results"]]
                assert max(gaps) <= 1e-12
                seen.append(told["model_version"])
                count += 1
        return count

    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask, seed) for seed in range(CLIENTS)]
        flipped = [_flip(client, folder, packages[VERSIONS[n % 3]]) for n in range(FLIPS)]
        over.set()
        counts = [one.result() for one in asked]
    assert all(flipped)
    assert min(counts) >= FLIPS
    assert set(seen) == set(VERSIONS)


def _flip(client: httpx.Client, folder: Path, package: Path) -> bool:
    point(folder, package)
    return eventually(lambda: served(client) == read_json(package / IDENTITY)["model_version"])


def resealed(package: Path) -> None:
    """Make the digests right again after a file was changed, as somebody with access to everything could."""
    model = package / "model"
    write_json(model / DIGESTS, {file.name: sha256(file) for file in sorted(model.iterdir()) if file.name != DIGESTS})
    write_json(package / IDENTITY, read_json(package / IDENTITY) | {"digest": sha256_json(read_json(model / DIGESTS))})


def truncated(package: Path) -> None:
    file = package / "model" / "model.lgb.0"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    resealed(package)


def altered(package: Path) -> None:
    file = package / "model" / "calibration.json"
    file.write_text(file.read_text().replace("1.1", "1.2"))


def other_features(package: Path) -> None:
    file = package / "model" / "manifest.json"
    manifest = read_json(file)
    write_json(file, manifest | {"dataset": "another_shop"})
    resealed(package)


def missing(package: Path) -> None:
    (package / "model" / "level.json").unlink()


def no_number(package: Path) -> None:
    for file in (package / "model").glob("model.lgb.*"):
        lines = file.read_text().splitlines()
        told = ["leaf_value=" + " ".join(["nan"] * len(line.split())) if line.startswith("leaf_value=") else line for line in lines]
        file.write_text("\n".join(told) + "\n")
    resealed(package)


def no_family(package: Path) -> None:
    write_json(package / "model" / "model.json", {"model": "oracle"})
    resealed(package)


BROKEN = [truncated, altered, other_features, missing, no_number, no_family]


@pytest.fixture
def broken(request: pytest.FixtureRequest, packages: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the second version, broken by the test's ``param``, that calls itself version 9."""
    package = Path(shutil.copytree(packages["2"], tmp_path / "package", ignore=shutil.ignore_patterns("warm.json")))
    write_json(package / IDENTITY, read_json(package / IDENTITY) | {"model_version": "9"})
    request.param(package)
    return package


@pytest.mark.parametrize("broken", BROKEN, indirect=True, ids=lambda one: one.__name__)
def test_a_broken_champion_is_refused_counted_and_the_old_one_answers(
    client: httpx.Client, folder: Path, broken: Path, sample_features: Shop, packages: dict[str, Path]
) -> None:
    assert _flip(client, folder, packages["1"])
    before, pointer = metric(client, "holdfast_model_reload_failures"), (folder / POINTER).read_bytes()
    with pytest.raises(InputError) as told:
        publish(folder, broken, folder.parent, sample_features.places.features)
    refuse(folder, "9", str(told.value).splitlines()[0])
    assert (folder / POINTER).read_bytes() == pointer
    assert client.get("/readyz").status_code == 200
    assert metric(client, "holdfast_model_reload_failures") == before + 1
    assert served(client) == "1"


@pytest.mark.parametrize(
    "broken", [one for one in BROKEN if one not in (truncated, no_number)], indirect=True, ids=lambda one: one.__name__
)
def test_a_pointer_to_a_broken_champion_that_was_never_tried_changes_nothing_but_the_count(
    client: httpx.Client, folder: Path, broken: Path, packages: dict[str, Path]
) -> None:
    assert _flip(client, folder, packages["1"])
    before = metric(client, "holdfast_model_reload_failures")
    point(folder, broken)
    assert eventually(lambda: metric(client, "holdfast_model_reload_failures") == before + 1)
    assert served(client) == "1"
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "text", ["", "{", "[]", json.dumps({"package": "/nowhere"}), json.dumps({"package": 7, "version": "9", "digest": "x"})]
)
def test_a_spoilt_pointer_changes_nothing_but_the_count(client: httpx.Client, folder: Path, packages: dict[str, Path], text: str) -> None:
    assert _flip(client, folder, packages["1"])
    before = metric(client, "holdfast_model_reload_failures")
    (folder / POINTER).write_text(text)
    assert eventually(lambda: metric(client, "holdfast_model_reload_failures") == before + 1)
    assert served(client) == "1"
    assert _flip(client, folder, packages["2"])


def test_a_pointer_with_another_digest_than_the_packages_is_refused(client: httpx.Client, folder: Path, packages: dict[str, Path]) -> None:
    assert _flip(client, folder, packages["1"])
    before = metric(client, "holdfast_model_reload_failures")
    point(folder, packages["2"], digest="0" * 64)
    assert eventually(lambda: metric(client, "holdfast_model_reload_failures") == before + 1)
    assert served(client) == "1"


def test_a_refused_champion_left_the_log_without_a_word_about_customers(
    client: httpx.Client, home: Path, offline: dict[str, dict[str, float]]
) -> None:
    log = (home / "service.log").read_text()
    assert "could not be loaded" in log
    assert not any(customer in log for customer in offline["1"])
