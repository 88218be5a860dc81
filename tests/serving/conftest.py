"""A running service of the fake shop's champion, and clients of it."""

from collections.abc import Iterator

import httpx
import pytest

from features.settings import Settings
from serving import package, server
from tests.conftest import Shop


@pytest.fixture(scope="session")
def address(fake_run: Shop) -> Iterator[str]:
    """The packaged Bento, served by BentoML on a free port."""
    settings = Settings(home=fake_run.home)
    told = package.packaged(settings)
    env = server.environment(settings, fake_run.places.features, auth="off", online=str(fake_run.home / "served.db"))
    with server.running(told["path"], env, fake_run.home / "service.log") as found:
        yield found


@pytest.fixture(scope="session")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as found:
        yield found
