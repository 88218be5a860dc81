"""Spark and DuckDB give the same features: the fake shop with all sources (and its persons) and Online Retail II."""

import shutil
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from features import engines, mapping
from features.settings import Settings
from features.simulate import simulate
from features.store import Store
from tests.conftest import Shop
from validation.stages import Places, _manifest, validate

pytest.importorskip("pyspark", reason="pip install 'holdfast[spark]'")
pytestmark = pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17 on the path")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("simulated")
    shop = Shop(simulate(folder / "shop", 1000), folder / "home")
    validate(mapping.read(shop.mapping), shop.places)
    return shop


def rows(shop: Shop, engine: str, moments: list[datetime], monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    monkeypatch.setenv("HOLDFAST_ENGINE", engine)
    monkeypatch.setenv("SPARK_MASTER", "local[2]")
    dataset, places = mapping.read(shop.mapping), Places.of(Settings(home=shop.home), mapping.read(shop.mapping))
    store = Store.read(places.sources)
    with engines.raw_tables(store, places.sources, _manifest(dataset, store), moments, dataset.identity) as (raw, _):
        return pa.concat_tables(raw).sort_by([("snapshot", "ascending"), ("customer_id", "ascending")])


def compare(shop: Shop, moments: list[datetime], monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    duck, spark = (rows(shop, engine, moments, monkeypatch) for engine in ("duckdb", "spark"))
    assert duck.num_rows == spark.num_rows > 0
    assert duck.column_names == spark.column_names
    assert sum(pa.types.is_floating(kind) for kind in duck.schema.types) >= least
    different = [name for name in duck.column_names if not _equal(duck[name], spark[name])]
    assert different == []


def _equal(left: pa.ChunkedArray, right: pa.ChunkedArray) -> bool:
    if pa.types.is_list(left.type):
        same_lengths = pc.list_value_length(left).combine_chunks().equals(pc.list_value_length(right).combine_chunks())
        return same_lengths and _equal(pc.list_flatten(left), pc.list_flatten(right))
    if pa.types.is_floating(left.type):
        return bool(np.allclose(left.to_numpy(), right.to_numpy(), rtol=1e-9, atol=1e-9, equal_nan=True))
    return left.combine_chunks().equals(right.combine_chunks())


def test_all_sources_at_two_snapshots_one_of_them_in_the_afternoon(simulated: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(simulated, [datetime(2025, 6, 1), datetime(2025, 9, 1) + timedelta(hours=15, minutes=20)], monkeypatch, 300)


def test_online_retail(sample_features: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(sample_features, [datetime(2011, 9, 1)], monkeypatch, 130)


def test_without_pyspark_the_error_names_the_next_step(sample_features: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from features.errors import InputError

    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    with pytest.raises(InputError, match=r"holdfast\[spark\]"):
        rows(sample_features, "spark", [datetime(2011, 9, 1)], monkeypatch)
