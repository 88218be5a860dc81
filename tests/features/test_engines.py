"""However the profile is computed, at once or source by source through the disk, the rows are the same to the bit."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import engines, mapping, table
from features.schema import SOURCES
from features.scores import Fitted
from features.settings import Settings
from features.simulate import simulate
from features.store import Store, engine
from features.table import content_hash
from validation.stages import Places, _manifest, build_features, validate

MOMENTS = [datetime(2025, 3, 1), datetime(2025, 9, 1)]
LAST = datetime(2025, 12, 1)


class Simulated(NamedTuple):
    """A validated shop with all sources."""

    dataset: mapping.Dataset
    places: Places
    store: Store


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    folder = tmp_path_factory.mktemp("engines")
    dataset = mapping.read(simulate(folder / "shop", 600))
    places = Places.of(Settings(home=folder / "home"), dataset)
    validate(dataset, places)
    return Simulated(dataset, places, Store.read(places.sources))


@pytest.mark.parametrize("fit_rows", [100_000, 150])
def test_edges_are_fitted_on_the_same_rows_however_the_table_is_cut(
    shop: Simulated, monkeypatch: pytest.MonkeyPatch, fit_rows: int
) -> None:
    dataset, places, store = shop
    manifest = replace(_manifest(dataset, store), snapshots=(*MOMENTS, LAST))
    monkeypatch.setattr(table, "FIT_ROWS", fit_rows)
    fitted, read = [], []
    for batch_rows, cut in ((1_000_000, None), (3000, None), (3000, 17)):
        monkeypatch.setattr(engines, "FOLD_EVENTS", batch_rows)
        with engines.raw_tables(store, places.sources, manifest, manifest.snapshots, dataset.identity) as (raw, _):
            tables = list(raw)
        if cut:  # as Spark's files are read: snapshots mixed
            tables = [pa.Table.from_batches([part]) for part in pa.concat_tables(tables).combine_chunks().to_batches(cut)]
        held, rows = table._sample(iter(tables), MOMENTS, LAST, store.customers)
        assert set(rows["snapshot"].to_pylist()) == set(MOMENTS)
        fitted.append(Fitted.fit(rows))
        read.append((len(held), len(tables)))
    assert fitted[0] == fitted[1] == fitted[2]
    assert (read[2][0] < read[2][1]) == (fit_rows == 150)  # the small sample is found before the end


def test_through_the_disk_or_at_once(shop: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, places, store = shop
    found = []
    for rows in (10**9, 0):
        monkeypatch.setattr(engines, "STAGED_ROWS", rows)
        with engines.raw_tables(store, places.sources, _manifest(dataset, store), MOMENTS, dataset.identity) as (raw, _):
            found.append(pa.concat_tables(raw).sort_by([("snapshot", "ascending"), ("customer_id", "ascending")]).combine_chunks())
    assert found[0].num_rows > 500
    assert found[0].to_pandas().equals(found[1].to_pandas())
    assert not (places.folder / "spill").exists()


@pytest.mark.parametrize("secret", [False, True])
def test_what_does_not_fit_into_memory_spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: bool) -> None:
    monkeypatch.setenv("HOLDFAST_MEMORY", "150MB")
    groups = 4_000_000
    query = f"SELECT count(*), sum(n) FROM (SELECT hash(range)::VARCHAR || 'a key of some length' AS k, count(*) AS n FROM range({groups}) GROUP BY k)"
    with engine(tmp_path / "spill", secret) as connection:
        assert connection.sql(query).fetchall() == [(groups, groups)]
        assert connection.sql("SELECT current_setting('temp_file_encryption')").fetchall() == [(secret,)]


def test_shuffled_doubled_and_recut_files_give_the_same_table_to_the_bit(tmp_path: Path) -> None:
    """Rows with a key may come twice: the copies are left out."""
    tidy = simulate(tmp_path / "tidy", 400)
    messy = tmp_path / "messy" / tidy.name
    messy.parent.mkdir()
    messy.write_text(tidy.read_text())
    rng = np.random.default_rng(6)
    for name in mapping.read(tidy).tables:
        rows = pq.read_table(tidy.parent / name)
        twice = rng.integers(0, rows.num_rows, rows.num_rows // 10 if SOURCES[name].key else 0)
        chosen = rng.permutation(np.concatenate([np.arange(rows.num_rows), twice]))
        (messy.parent / name).mkdir()
        for number, part in enumerate(np.array_split(chosen, 3)):
            pq.write_table(rows.take(pa.array(part)), messy.parent / name / f"{number}.parquet")
    hashes = []
    for file in (tidy, messy):
        dataset = mapping.read(file)
        places = Places.of(Settings(home=tmp_path / f"home-{file.parent.name}"), dataset)
        validate(dataset, places)
        build_features(dataset, places)
        hashes.append(content_hash(places.features))
    assert hashes[0] == hashes[1]
