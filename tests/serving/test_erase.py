"""An erasure ends, whatever lies in a home and whoever is killed: odd files, readers of the online store, words that were left."""

import os
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving import erase
from serving.sqlite_store import SqliteStore
from tests.serving.conftest import Served
from tests.serving.test_online import fill, on_disk

PERSON, JOINED, OTHER = "0123456789abcdef0123456789abcdef", "e" * 32, "f" * 32


def written(file: Path, **columns: pa.Array) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())])
def test_a_person_is_removed_from_text_of_any_kind_and_numbers_are_nobody(tmp_path: Path, kind: pa.DataType) -> None:
    file = written(tmp_path / "parts" / "b.parquet", customer_id=pa.array([PERSON, None, OTHER]).cast(kind))
    odd = written(tmp_path / "exports" / "a.parquet", customer_id=pa.array([1, 2]), order_id=pa.array(["o1", "o2"]))
    (tmp_path / "exports" / "folder.parquet").mkdir()
    assert erase.holds(tmp_path, [PERSON])
    erase.ask(tmp_path, [PERSON])
    assert erase.erase_all(tmp_path) == set()
    assert erase.asked(tmp_path) == {}
    assert pq.read_table(file)["customer_id"].cast(pa.string()).to_pylist() == [None, OTHER]
    assert pq.read_table(odd).num_rows == 2
    assert not erase.holds(tmp_path, [PERSON])


def test_a_broken_file_stops_no_other_and_is_told_until_it_is_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken, file = tmp_path / "a.parquet", written(tmp_path / "b.parquet", customer_id=pa.array([PERSON, OTHER]))
    broken.touch()
    (tmp_path / "a.db").write_text(f"no database: {PERSON}")
    assert not erase.holds(tmp_path, ["nobody"])
    word = erase.ask(tmp_path, [PERSON])
    assert erase.erase_all(tmp_path) == {word} == set(erase.asked(tmp_path))
    assert pq.read_table(file)["customer_id"].to_pylist() == [OTHER]
    told = capsys.readouterr().err
    assert "a.parquet" in told
    assert "a.db" in told
    assert PERSON not in told
    broken.unlink()
    (tmp_path / "a.db").unlink()
    assert erase.erase_all(tmp_path) == set(erase.asked(tmp_path)) == set()


def test_the_service_finishes_what_an_eraser_has_left(served: Served) -> None:
    file = written(served.home / "left.parquet", customer_id=pa.array([PERSON, OTHER]))
    os.utime(erase.ask(served.home, [PERSON]), (time.time() - 120,) * 2)
    end = time.monotonic() + 60
    while erase.asked(served.home) and time.monotonic() < end:
        time.sleep(0.2)
    assert pq.read_table(file)["customer_id"].to_pylist() == [OTHER]


def test_an_unknown_one_is_404_though_a_file_cannot_be_read(served: Served) -> None:
    (served.home / "empty.parquet").touch()
    assert served.client.delete("/v1/customers/nobody").status_code == 404
    (served.home / "empty.parquet").unlink()


def test_a_person_of_whom_only_word_was_left_goes_from_the_store_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker was killed between the two; a link that came meanwhile is followed."""
    for file in (tmp_path / "online.db", tmp_path / "elsewhere" / "store.sqlite"):
        monkeypatch.setenv("HOLDFAST_ONLINE", str(file))
        store = SqliteStore(file)
        for name in (PERSON, JOINED, OTHER):
            fill(store, name)
        store.set_persons([(JOINED, PERSON)])
        table = written(tmp_path / "a.parquet", customer_id=pa.array([PERSON, JOINED, OTHER]))
        erase.ask(tmp_path, [PERSON])
        assert erase.erase_all(tmp_path) == set(erase.asked(tmp_path)) == set()
        assert store.known() == {OTHER}
        assert store.erased([PERSON, JOINED, OTHER]) == {PERSON, JOINED}
        assert pq.read_table(table)["customer_id"].to_pylist() == [OTHER]


def test_an_erasure_keeps_no_writer_waiting_for_readers_and_its_word_until_they_have_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erase, "SETTLE_SECONDS", 0.2)
    store, done = SqliteStore(tmp_path / "online.db"), threading.Event()
    fill(store, PERSON)
    with closing(sqlite3.connect(store.file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM decision").fetchone() == (1,)
        threading.Thread(target=lambda: [erase.ask(tmp_path, store.erase(PERSON)), done.set()], daemon=True).start()
        assert done.wait(8)
        assert erase.erase_all(tmp_path) == set(erase.asked(tmp_path)) != set()
        assert PERSON.encode() in on_disk(store.file)
    assert erase.erase_all(tmp_path) == set(erase.asked(tmp_path)) == set()
    assert PERSON.encode() not in on_disk(store.file)


def test_a_return_that_names_no_order_or_somebody_elses_takes_nobodys_lines(tmp_path: Path) -> None:
    tables = {
        "orders": {"order_id": ["o1", "o2"], "customer_id": ["a", "b"]},
        "returns": {"return_id": ["r1", "r2", "r3"], "customer_id": ["b", "b", "a"], "order_id": ["o1", None, None]},
        "order_lines": {"order_id": ["o1", "o2", None], "amount": [1.0, 2.0, 3.0]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    erase.erase(tmp_path, "b")
    left = {name: pq.read_table(tmp_path / f"{name}.parquet").to_pydict() for name in tables}
    assert left["orders"] == {"order_id": ["o1"], "customer_id": ["a"]}
    assert left["returns"]["return_id"] == ["r3"]
    assert left["order_lines"]["order_id"] == ["o1", None]
