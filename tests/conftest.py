"""One fake shop, run once through the whole path for all tests that look at its results."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from features import mapping
from features.settings import ENVIRONMENT, Settings
from tests import fake_shop
from validation.stages import Places

for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

ROOT = Path(__file__).parents[1]
HOLDFAST = str(Path(sys.executable).with_name("holdfast"))
Cli = Callable[..., subprocess.CompletedProcess[str]]


def clean_environment(home: Path) -> dict[str, str]:
    """The environment of a person with nothing set but HOLDFAST_HOME."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "MLFLOW_TRACKING", "MLFLOW_RUN"))}
    return {**kept, "HOLDFAST_HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def cli(home: Path, *words: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    """Run `holdfast WORDS` as a person would."""
    return subprocess.run([HOLDFAST, *words], env=clean_environment(home), capture_output=True, text=True, timeout=timeout, cwd=ROOT)


class Sharing(LoadFileScheduling):
    """With several workers each file goes to one, and all files that look at the run of the fake shop to the same: it is run once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "fake_run" if _looks_at_the_run(file) else file


@cache
def _looks_at_the_run(file: str) -> bool:
    return "fake_run" in (ROOT / file).read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Sharing:
    """What pytest-xdist shares out the tests by."""
    return Sharing(config, log)


@dataclass(frozen=True)
class Shop:
    """A data set with its state folder."""

    mapping: Path
    home: Path

    @property
    def places(self) -> Places:
        return Places.of(Settings(home=self.home), mapping.read(self.mapping))


@pytest.fixture(scope="session")
def fake_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mapping file of the fake shop; treat its folder as read-only."""
    return fake_shop.write(tmp_path_factory.mktemp("fake_shop"))


@pytest.fixture(scope="session")
def fake_run(fake_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The fake shop after `holdfast run`; treat its state as read-only."""
    home = tmp_path_factory.mktemp("home") / ".holdfast"  # hidden, as the default is
    done = cli(home, "run", "--dataset", str(fake_files), "--trials", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    return Shop(fake_files, home)


@pytest.fixture(scope="session")
def sample_features(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The embedded sample after `validate` and `features`; treat its state as read-only."""
    from validation.stages import build_features, validate

    shop = Shop(mapping.sample_file(), tmp_path_factory.mktemp("sample"))
    dataset = mapping.read()
    validate(dataset, shop.places)
    build_features(dataset, shop.places)
    return shop
