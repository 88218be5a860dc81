"""Another real shop through a mapping file alone: CDNOW, a research data set that is not shipped.

It is looked for in the folder HOLDFAST_TEST_DATA, by default `shared/data` beside the checkout.
"""

import json
import os
from pathlib import Path

import pytest

from features import table
from tests.conftest import ROOT, Shop, cli

DATA = Path(os.environ.get("HOLDFAST_TEST_DATA", ROOT.parent / "shared" / "data"))
MAPPING = ROOT / "tests" / "data" / "cdnow.toml"
pytestmark = pytest.mark.skipif(
    not (DATA / "cdnow.parquet").exists(), reason=f"cdnow.parquet does not lie in {DATA}; set HOLDFAST_TEST_DATA"
)


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    """The mapping file with the place of the data filled in."""
    file = tmp_path / "cdnow.toml"
    file.write_text(MAPPING.read_text().replace("$HOLDFAST_TEST_DATA", str(DATA)))
    return file


def test_the_mapping_file_is_short() -> None:
    assert len(MAPPING.read_text().splitlines()) <= 25


def test_cdnow_has_the_published_test_population(mapping: Path, tmp_path: Path) -> None:
    """23,570 past buyers on 1998-04-01 of whom 86.0 % order nothing in 90 days; 6,055 of them active in the last 180."""
    for stage in ("validate", "features"):
        done = cli(tmp_path / "home", stage, "--dataset", str(mapping))
        assert done.returncode == 0, done.stdout + done.stderr
    path = Shop(mapping, tmp_path / "home").places.features
    manifest = table.read_manifest(path)
    rows = table.read(path, [manifest.test])
    assert rows.num_rows == 23_570
    assert rows["churned"].to_numpy().mean() == pytest.approx(0.860, abs=5e-4)
    assert (rows["recency_days"].to_numpy() <= 180).sum() == 6055
    assert set(manifest.left_out) == {"products", "discounts", "returns"}


@pytest.mark.slow
def test_cdnow_runs_to_a_served_champion(mapping: Path, tmp_path: Path) -> None:
    done = cli(tmp_path / "home", "run", "--dataset", str(mapping), "--trials", "4", timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "home/reports/run.json").read_text())
    assert facts["champion"]["model"] in ("lightgbm", "lstm")
    assert facts["test"]["rows"] == 23_570
