"""Sources of every kind become the same canonical tables; what cannot be read is told by file, key, value and fix."""

import sqlite3
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import mapping, sources, store
from features.errors import InputError
from features.pseudonym import Pseudonyms

PSEUDONYMS = Pseudonyms(b"")
ROWS = [("a", "c1", "2024-01-01 10:00:00"), ("b", "c2", "2024-02-01 11:30:00")]
HEAD = 'name = "shop"\ntimezone = "Europe/Berlin"\ncurrency = "EUR"\n[tables.orders]\n'
COLUMNS = '[tables.orders.columns]\norder_id = "id"\ncustomer_id = "who"\nordered_at = "at"\n'


def load(folder: Path, place: str, columns: str = COLUMNS) -> list[tuple[object, ...]]:
    file = folder / "shop.toml"
    file.write_text(HEAD + place + columns)
    place = folder / "sources.json"
    sources.load(mapping.read(file), place, PSEUDONYMS).write(place)
    with store.opened(place) as connection:
        return connection.sql("SELECT order_id, customer_id, ordered_at, arrived_at FROM orders ORDER BY 1").fetchall()


def csv(folder: Path, name: str = "orders.csv", rows: list[tuple[str, ...]] = ROWS) -> None:
    (folder / name).write_text("id,who,at\n" + "".join(",".join(row) + "\n" for row in rows))


EXPECTED = [
    ("a", PSEUDONYMS("c1"), datetime(2024, 1, 1, 10), datetime(2024, 1, 1, 10)),
    ("b", PSEUDONYMS("c2"), datetime(2024, 2, 1, 11, 30), datetime(2024, 2, 1, 11, 30)),
]


def test_csv_by_a_glob_over_several_files(tmp_path: Path) -> None:
    csv(tmp_path, "orders-1.csv", ROWS[:1])
    csv(tmp_path, "orders-2.csv", ROWS[1:])
    assert load(tmp_path, 'path = "orders-*.csv"\n') == EXPECTED


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table(dict(zip(("id", "who", "at"), zip(*ROWS, strict=True), strict=True))), tmp_path / "o.parquet")
    assert load(tmp_path, 'path = "o.parquet"\n') == EXPECTED


def test_a_duckdb_table(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE sales AS SELECT * FROM (VALUES ('a','c1','2024-01-01 10:00:00'),('b','c2','2024-02-01 11:30:00')) t(id, who, \"at\")"
        )
    assert load(tmp_path, 'database = "shop.duckdb"\ntable = "sales"\n') == EXPECTED


def test_an_sql_table_whose_url_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = sqlite3.connect(tmp_path / "shop.sqlite")
    connection.execute("CREATE TABLE sales (id TEXT, who TEXT, at TEXT)")
    connection.executemany("INSERT INTO sales VALUES (?, ?, ?)", ROWS)
    connection.commit()
    monkeypatch.setenv("SHOP_DB_URL", f"sqlite:///{tmp_path / 'shop.sqlite'}")
    assert load(tmp_path, 'database = "$SHOP_DB_URL"\ntable = "sales"\n') == EXPECTED


def test_times_with_a_zone_become_the_shops_local_time(tmp_path: Path) -> None:
    csv(tmp_path, rows=[("a", "c1", "2024-07-01T10:00:00+00:00")])
    assert load(tmp_path, 'path = "orders.csv"\n')[0][2] == datetime(2024, 7, 1, 12)


def test_a_bare_date_is_known_at_the_end_of_its_day(tmp_path: Path) -> None:
    csv(tmp_path, rows=[("a", "c1", "2024-07-01")])
    assert load(tmp_path, 'path = "orders.csv"\n')[0][2] == datetime(2024, 7, 1, 23, 59, 59, 999999)


@pytest.mark.parametrize(
    ("place", "columns", "told"),
    [
        ('path = "nowhere-*.csv"\n', COLUMNS, ["tables.orders.path = 'nowhere-*.csv'"]),
        ('path = "orders.json"\n', COLUMNS, ["neither Parquet, CSV nor Excel"]),
        ('path = "orders.csv"\n', COLUMNS.replace('"who"', '"whom"'), ["tables.orders.columns.customer_id = 'whom'", "id, who, at"]),
        ('path = "orders.csv"\nwhere = "state = 1"\n', COLUMNS, ["tables.orders.where = 'state = 1'"]),
        ('path = "orders.csv"\n', COLUMNS.replace('"at"', '"who"'), ["tables.orders.columns.ordered_at = 'who'", "2 row(s)"]),
        ('database = "nowhere.duckdb"\ntable = "sales"\n', COLUMNS, ["tables.orders.database = 'nowhere.duckdb'"]),
        ('database = "sqlite:///nowhere/x.db"\ntable = "sales"\n', COLUMNS, ["cannot read 'sales'"]),
    ],
)
def test_what_cannot_be_read_is_told_by_file_key_value_and_fix(tmp_path: Path, place: str, columns: str, told: list[str]) -> None:
    csv(tmp_path)
    with pytest.raises(InputError) as caught:
        load(tmp_path, place, columns)
    assert all(part in str(caught.value) for part in ["shop.toml", "fix: ", *told]), str(caught.value)


def test_the_fingerprint_is_the_same_for_rows_in_any_order(tmp_path: Path) -> None:
    prints = []
    for rows in (ROWS, ROWS[::-1]):
        csv(tmp_path, rows=rows)
        (tmp_path / "shop.toml").write_text(HEAD + 'path = "orders.csv"\n' + COLUMNS)
        prints.append(sources.load(mapping.read(tmp_path / "shop.toml"), tmp_path / "sources.json", PSEUDONYMS).fingerprint)
    assert prints[0] == prints[1]
