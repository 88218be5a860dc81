"""A daily snapshot reads only what is new, is written once, and never changes."""

import shutil
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pytest

from features import mapping, table
from features.errors import InputError
from features.simulate import simulate
from features.store import Store
from tests.conftest import Shop, cli
from validation.stages import build_daily, build_features, validate

DAY = date(2025, 12, 30)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A simulated shop of two partitions with its training table."""
    folder = tmp_path_factory.mktemp("daily")
    shop = Shop(simulate(folder / "shop", 1200, chunk_customers=600), folder / "home")
    validate(mapping.read(shop.mapping), shop.places)
    build_features(mapping.read(shop.mapping), shop.places)
    return shop


@pytest.fixture
def shop(built: Shop, tmp_path: Path) -> Shop:
    """A copy to work on, with the times of its files kept."""
    shutil.copytree(built.mapping.parent, tmp_path / "shop")
    return Shop(tmp_path / "shop" / built.mapping.name, shutil.copytree(built.home, tmp_path / "home"))


def test_a_day_is_written_once_and_the_same_data_change_nothing(shop: Shop) -> None:
    dataset = mapping.read(shop.mapping)
    manifest, new = build_daily(dataset, shop.places, DAY)
    before = shop.places.daily(DAY).read_bytes()
    assert (new, manifest.snapshots, manifest.latest.date()) == (True, (), DAY)  # type: ignore[union-attr]
    assert build_daily(dataset, shop.places, DAY)[1] is False
    assert shop.places.daily(DAY).read_bytes() == before


def test_a_day_has_the_scores_of_the_training_table(shop: Shop) -> None:
    manifest, _ = build_daily(mapping.read(shop.mapping), shop.places, DAY)
    trained = table.read_manifest(shop.places.features)
    assert manifest.fitted == trained.fitted
    assert table.read(shop.places.daily(DAY)).num_rows > 100
    assert set(table.read(shop.places.daily(DAY))["snapshot"].to_pylist()) == {manifest.latest}


def test_other_data_do_not_change_a_day_that_was_written(shop: Shop) -> None:
    dataset = mapping.read(shop.mapping)
    build_daily(dataset, shop.places, DAY)
    before = shop.places.daily(DAY).read_bytes()
    add_a_part(shop)
    validate(dataset, shop.places)
    with pytest.raises(InputError, match="immutable"):
        build_daily(dataset, shop.places, DAY)
    assert shop.places.daily(DAY).read_bytes() == before
    assert build_daily(dataset, shop.places, DAY + timedelta(days=1))[1] is True


def test_what_became_known_later_leaves_the_day_as_it_is(shop: Shop) -> None:
    dataset = mapping.read(shop.mapping)
    build_daily(dataset, shop.places, DAY)
    before = shop.places.daily(DAY).read_bytes()
    late = "TIMESTAMP '2025-12-31 12:00:00'"
    add_a_part(shop, f", {late} AS arrived_at")
    validate(dataset, shop.places)
    assert build_daily(dataset, shop.places, DAY)[1] is False
    assert [file.name for file in shop.places.daily(DAY).parent.iterdir()] == [f"{DAY}.parquet"]
    assert shop.places.daily(DAY).read_bytes() == before


def add_a_part(shop: Shop, changed: str = "") -> None:
    """More reviews arrive."""
    source = shop.mapping.parent / "reviews"
    query = f"SELECT * REPLACE ('new-' || review_id AS review_id{changed}) FROM read_parquet('{source}/part-00000.parquet') LIMIT 50"
    duckdb.sql(f"COPY ({query}) TO '{source}/part-90000.parquet' (FORMAT parquet)")


def in_force(shop: Shop) -> dict[str, int]:
    """The parts in force and when each was written."""
    folder = shop.places.folder / "parts"
    return {part: (folder / part).stat().st_mtime_ns for part in Store.read(shop.places.sources).names()}


def test_only_new_source_files_are_read(shop: Shop) -> None:
    dataset = mapping.read(shop.mapping)
    validate(dataset, shop.places)
    before = in_force(shop)
    add_a_part(shop)
    validate(dataset, shop.places)
    after = in_force(shop)
    assert {part for part in before.items() - after.items() if not part[0].startswith("reviews/")} == set()
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"reviews"}
    assert Store.read(shop.places.sources).rows["reviews"] > 50


def test_the_command_writes_today_and_refuses_what_is_no_day(shop: Shop) -> None:
    done = cli(shop.home, "features", "--dataset", str(shop.mapping), "--snapshot", "2025-12-31")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wrote" in done.stdout
    assert shop.places.daily(date(2025, 12, 31)).is_file()
    done = cli(shop.home, "features", "--dataset", str(shop.mapping), "--snapshot", "someday")
    assert (done.returncode, "YYYY-MM-DD" in done.stderr) == (2, True)
