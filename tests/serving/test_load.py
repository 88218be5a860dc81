"""What the online store holds gives the batch's features: histories as loaded, and with events told since."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from features import table
from serving import histories, policy
from serving.load import LOADED, load
from serving.score import Engine
from serving.sqlite_store import SqliteStore
from tests.conftest import Shop

CUSTOMERS = 300


@pytest.fixture(scope="module")
def store(sample_features: Shop, tmp_path_factory: pytest.TempPathFactory) -> SqliteStore:
    found = SqliteStore(tmp_path_factory.mktemp("online") / "online.db")
    assert load(found, sample_features.places.sources, "UTC")
    return found


@pytest.fixture(scope="module")
def engine(package: Path, sample_features: Shop) -> Engine:
    return Engine.load(package / "model", policy.read(), sample_features.places.features)


def stored(store: SqliteStore, engine: Engine, names: list[str], moment: datetime) -> dict[str, tuple[np.ndarray, float]]:
    parts = [histories.of_person(store, name, engine.manifest.tables) for name in names]
    scored = engine.of_stored(parts, moment)
    return {name: (scored.rows.x_NF[place], scored.p[place]) for place, name in enumerate(scored.customer_id)}


def parity(store: SqliteStore, engine: Engine, customers: int) -> float:
    """The largest difference of any feature or probability of some customers, scaled by the value where that is above 1."""
    assert engine.lookup is not None
    batch = engine.lookup.scored
    moment = table.read_manifest(engine.lookup.file).latest
    assert moment is not None
    places = np.random.default_rng(3).permutation(len(batch))[:customers].tolist()
    worst = 0.0
    for start in range(0, len(places), 100):
        some = places[start : start + 100]
        found = stored(store, engine, [batch.customer_id[place] for place in some], moment)
        for place in some:
            x, p = found[batch.customer_id[place]]
            expected = batch.rows.x_NF[place]
            assert (np.isnan(x) == np.isnan(expected)).all()
            scale = np.maximum(np.abs(np.nan_to_num(expected)), 1)
            worst = max(worst, float(np.max(np.abs(np.nan_to_num(x - expected)) / scale)), abs(p - batch.p[place]))
    return worst


def test_histories_of_the_store_give_the_batchs_features_and_probabilities(store: SqliteStore, engine: Engine) -> None:
    assert parity(store, engine, CUSTOMERS) <= 1e-9


@pytest.mark.slow
def test_every_customer_of_the_sample_agrees(store: SqliteStore, engine: Engine) -> None:
    assert parity(store, engine, 10_000) <= 1e-9


def test_the_same_sources_are_loaded_once(store: SqliteStore, sample_features: Shop) -> None:
    assert not load(store, sample_features.places.sources, "UTC")
    assert store.meta(LOADED)["consents"] is False


def test_an_order_told_since_counts_and_one_told_again_as_cancelled_does_not(store: SqliteStore, engine: Engine) -> None:
    assert engine.lookup is not None
    name, moment = engine.lookup.scored.customer_id[5], table.read_manifest(engine.lookup.file).latest
    assert moment is not None
    orders = engine.names["frequency_orders"]
    before = stored(store, engine, [name], moment)[name][0][orders]
    row = {"order_id": "told", "ordered_at": "2011-12-09T12:00:00", "lines": [{"product_id": "x", "quantity": 1.0, "amount": 10.0}]}
    store.add_events(name, [("e-1", "orders", row)], 1.0)
    assert stored(store, engine, [name], moment)[name][0][orders] == before + 1
    store.add_events(name, [("e-2", "orders", row | {"cancelled_at": "2011-12-09T13:00:00"})], 2.0)
    assert stored(store, engine, [name], moment)[name][0][orders] == before
