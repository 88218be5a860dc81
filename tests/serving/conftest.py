"""A running service of the fake shop's champion with a client of it, and a packaged model of the embedded sample."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from features.files import write_json
from features.pseudonym import Pseudonyms
from features.settings import Settings
from serving import app, policy, server
from serving import package as packaging
from serving.check import check, write_warm
from serving.score import IDENTITY
from serving.sqlite_store import SqliteStore
from tests.conftest import Shop
from training.dataset import TrainingData
from training.models.calibration import Calibration
from training.models.level import Forecast, Level
from training.models.lightgbm import LightGBM
from training.models.scorer import Scorer
from training.models.timing import Timing

PARAMS = {"learning_rate": 0.06, "num_leaves": 31, "min_data_in_leaf": 100, "feature_fraction": 0.5, "rounds": 120}


@pytest.fixture(scope="session")
def address(fake_run: Shop) -> Iterator[str]:
    """The packaged Bento, served by BentoML on a free port."""
    settings = Settings(home=fake_run.home)
    told = packaging.packaged(settings)
    env = server.environment(settings, fake_run.places.features, auth="off", online=str(fake_run.home / "served.db"))
    with server.running(told["path"], env, fake_run.home / "service.log") as found:
        yield found


@pytest.fixture(scope="session")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as found:
        yield found


@pytest.fixture(scope="session")
def package(sample_features: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LightGBM of the sample, packaged as `holdfast package` does."""
    data = TrainingData.read(sample_features.places.features)
    model = LightGBM.fit(PARAMS, data.before(data.split.test), 1)
    folder = tmp_path_factory.mktemp("package")
    level = Level({data.split.test: Forecast(0.6, 0.5, 0.7, 0.6, None, 0, 0.1, -0.2)})
    timing = Timing.fit(data.before(data.split.test), data.manifest.horizon_days, 1)
    digest = Scorer(model, Calibration("platt", [1.1]), level, data.manifest, timing).save(folder / "model")
    (folder / "policy.toml").write_text(policy.default_file().read_text())
    identity = {"model_name": "holdfast-churn", "model_version": "1", "model": "lightgbm", "digest": digest, "run_id": "x"}
    write_json(folder / IDENTITY, identity)
    return folder


@dataclass
class Served:
    """The application in this process, with the store and the folder in which it keeps things."""

    client: TestClient
    store: SqliteStore
    home: Path
    pseudonym: Callable[[str], str] = field(default_factory=lambda: Pseudonyms(b""))


@pytest.fixture(scope="module")
def served(sample_features: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A small model of the sample, its table, and an empty online store."""
    from tests.serving.test_guard import packed

    home, package = tmp_path_factory.mktemp("in_process"), packed(sample_features, tmp_path_factory.getbasetemp() / "package-1")
    write_warm(check(package, sample_features.places.features), home)
    store = SqliteStore(home / "online.db")
    made = app.create(app.Setup(home, package, sample_features.places.features, None, "0"), lambda: store)
    with TestClient(made, "http://holdfast") as client:
        yield Served(client, store, home)
