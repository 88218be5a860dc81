"""Homes that several tests of training share."""

from pathlib import Path

import pytest

from tests.training import ready_made


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a challenger for a ready-made table, nothing promoted; treat it as read-only."""
    home = tmp_path_factory.mktemp("own") / "home"
    ready_made.learn(home, ready_made.frame(250))
    return home
