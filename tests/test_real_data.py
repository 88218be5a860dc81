"""Other real shops through a mapping file alone: CDNOW and The Complete Journey, research data sets that are not shipped.

They are looked for in the folder HOLDFAST_TEST_DATA, by default `shared/data` beside the checkout.
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


def placed(name: str, folder: Path) -> Path:
    """A mapping file with the place of the data filled in."""
    file = folder / name
    file.write_text((MAPPING.parent / name).read_text().replace("$HOLDFAST_TEST_DATA", str(DATA)))
    return file


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    return placed("cdnow.toml", tmp_path)


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
    assert {"products", "discounts", "returns", "browsing", "campaigns"} <= set(manifest.left_out)


def test_the_complete_journey_fills_campaign_and_coupon_features(tmp_path: Path) -> None:
    file = placed("complete_journey.toml", tmp_path)
    for stage in ("validate", "features"):
        done = cli(tmp_path / "home", stage, "--dataset", str(file))
        assert done.returncode == 0, done.stdout + done.stderr
    path = Shop(file, tmp_path / "home").places.features
    manifest = table.read_manifest(path)
    rows = table.read(path, [manifest.test]).to_pandas()
    assert len(manifest.names) >= 180
    assert (rows["contacts_sent_365d"] > 0).mean() > 0.4  # 1,584 of 2,469 households took part in a campaign
    assert (rows["coupons_total"] > 0).any()
    assert (rows["coupons_redeemed_365d"] > 0).any()
    assert 0 < rows["conversion_rate_365d"].mean() < 1
    assert rows["tp_no_campaign"].mean() > 0
    assert rows["categories_total"].max() > 10


@pytest.mark.slow
def test_cdnow_runs_to_a_served_champion(mapping: Path, tmp_path: Path) -> None:
    done = cli(tmp_path / "home", "run", "--dataset", str(mapping), "--trials", "4", timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "home/reports/run.json").read_text())
    assert facts["champion"]["model"] in ("lightgbm", "lstm")
    assert facts["test"]["rows"] == 23_570
