"""kill -9 at random moments of a feature run: readers see the old or the new table, never a part, and the next run completes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from features import mapping, table
from features.settings import Settings
from tests.conftest import ROOT, clean_environment
from validation.stages import Places, build_features, validate

RUN = """
import sys
from pathlib import Path
from features import mapping
from features.settings import Settings
from validation.stages import Places, build_features
dataset = mapping.read(Path(sys.argv[1]))
import validation.contracts
print("ready", flush=True)
build_features(dataset, Places.of(Settings(home=Path(sys.argv[2])), dataset))
"""


def started(file: Path, home: Path) -> subprocess.Popen[str]:
    """A feature run in a process of its own, imports done."""
    line = [sys.executable, "-c", RUN, str(file), str(home)]
    process = subprocess.Popen(line, env=clean_environment(home), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("times", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(fake_files: Path, tmp_path: Path, times: int) -> None:
    dataset = mapping.read(fake_files)
    places = Places.of(Settings(home=tmp_path), dataset)
    validate(dataset, places)
    begin = time.monotonic()
    build_features(dataset, places)
    seconds = time.monotonic() - begin
    undisturbed = table.content_hash(places.features)
    places.features.unlink()
    finished = False
    for moment in np.random.default_rng(5).uniform(0.02, 1.0, times) * seconds:
        process = started(fake_files, tmp_path)
        try:
            process.wait(float(moment))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
        finished |= places.features.exists()
        assert places.features.exists() == finished  # once there it stays
        if finished:
            assert table.content_hash(places.features) == undisturbed
    build_features(dataset, places)
    assert table.content_hash(places.features) == undisturbed
    assert [file.name for file in places.folder.rglob("*.tmp")] == []
