"""However the profile is computed, at once or source by source through the disk, the rows are the same to the bit."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from features import engines, mapping, table
from features.scores import Fitted
from features.settings import Settings
from features.simulate import simulate
from features.store import Store, engine
from validation.stages import Places, _manifest, validate

MOMENTS = [datetime(2025, 3, 1), datetime(2025, 9, 1)]
LAST = datetime(2025, 12, 1)


@pytest.mark.parametrize("fit_rows", [100_000, 150])
def test_edges_are_fitted_on_the_same_rows_however_the_table_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit_rows: int) -> None:
    dataset = mapping.read(simulate(tmp_path / "shop", 600))
    places = Places.of(Settings(home=tmp_path / "home"), dataset)
    validate(dataset, places)
    store = Store.read(places.sources)
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


def test_through_the_disk_or_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = mapping.read(simulate(tmp_path / "shop", 600))
    places = Places.of(Settings(home=tmp_path / "home"), dataset)
    validate(dataset, places)
    store = Store.read(places.sources)
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
