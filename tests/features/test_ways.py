"""One shop, written in many ways, is one shop: the same content, or an error that says what to do."""

from pathlib import Path

import pytest

from features import mapping, sources
from features.pseudonym import Pseudonyms
from features.store import Store
from tests.features.test_places import SERVERS, postgres
from tests.features.ways import HEAD, ROWS, WAYS, Written, csv_way, machine, named, rendered, texts, with_marks


def loaded(written: Written, folder: Path, more: str = "") -> Store:
    dataset = mapping.read(written.mapping(folder, more))
    return sources.load(dataset, folder / "home" / "sources.json", Pseudonyms(b""))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("plain")
    return loaded(WAYS["csv"](folder), folder)


def test_the_shop_is_what_it_is(expected: Store) -> None:
    assert expected.customers == 120
    assert expected.rows == {"orders": len(ROWS)}


@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_written(way: str, tmp_path: Path, expected: Store) -> None:
    assert loaded(WAYS[way](tmp_path), tmp_path).hashes == expected.hashes


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo", "Pacific/Chatham"])
@pytest.mark.parametrize("way", ["csv, local times", "parquet, local nanoseconds", "csv, expressions", "csv, times with an offset"])
def test_whatever_the_machines_time_zone_and_language(way: str, zone: str, tmp_path: Path, expected: Store) -> None:
    with machine(zone, "de_DE.UTF-8"):
        assert loaded(WAYS[way](tmp_path), tmp_path).hashes == expected.hashes


def test_decomposed_names_are_the_composed_ones(tmp_path: Path) -> None:
    hashes = []
    for number, form in enumerate((str, with_marks)):
        rows = [{**row, "customer_id": form(f"Zoë {row['customer_id']}")} for row in texts(ROWS)]
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "orders.csv").write_text(rendered(rows), encoding="utf-8")
        hashes.append(loaded(Written('path = "orders.csv"'), folder).hashes)
    assert hashes[0] == hashes[1]


def test_a_home_of_any_name(tmp_path: Path, expected: Store) -> None:
    dataset = mapping.read(WAYS["csv"](tmp_path).mapping(tmp_path))
    for name in ("O'Hara", "50% off", "a#b", "Öl"):
        found = sources.load(dataset, tmp_path / name / "sources.json", Pseudonyms(b""))
        found.write(tmp_path / name / "sources.json")
        assert found.hashes == expected.hashes


@pytest.mark.skipif(not SERVERS, reason="PostgreSQL is not installed (Debian: postgresql)")
def test_postgresql_in_every_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy

    by_uuid = tmp_path / "uuid"
    by_uuid.mkdir()
    (by_uuid / "orders.csv").write_text(rendered([{**row, "customer_id": named(row)} for row in texts(ROWS)]), encoding="utf-8")
    plain = loaded(WAYS["csv"](tmp_path), tmp_path).hashes
    named_ones = loaded(Written('path = "orders.csv"'), by_uuid).hashes
    kinds = ("bigint", "numeric", "numeric(30,4)", "double precision", "text", "uuid")
    with postgres() as url:
        database = sqlalchemy.create_engine(url)
        for number, kind in enumerate(kinds):
            rows = [{**row, "customer_id": named(row)} for row in texts(ROWS)] if kind == "uuid" else texts(ROWS)
            with database.begin() as connection:
                connection.exec_driver_sql(
                    f"CREATE TABLE o{number} (order_id text, customer_id {kind}, ordered_at timestamptz, amount numeric, more jsonb, list int[])"
                )
                insert = f"INSERT INTO o{number} VALUES (%(order_id)s, %(customer_id)s, %(ordered_at)s, %(amount)s, '{{}}', '{{1}}')"
                connection.exec_driver_sql(insert, rows)
        monkeypatch.setenv("SHOP_DB_URL", url)
        for number, kind in enumerate(kinds):
            folder = tmp_path / f"pg{number}"
            folder.mkdir()
            found = loaded(Written(f'database = "$SHOP_DB_URL"\ntable = "o{number}"'), folder)
            assert found.hashes == (named_ones if kind == "uuid" else plain), kind
        database.dispose()


def test_what_was_guessed_is_counted(tmp_path: Path) -> None:
    found = loaded(csv_way(dialect={"delimiter": ";"}, money=lambda a: str(a).replace(".", ","), id=lambda v: f"{v}.0")(tmp_path), tmp_path)
    assert found.reading["orders.amount: a comma read as the decimal mark"] > 600
    assert found.reading["orders.customer_id: white space cut, Unicode composed, 12345.0 read as 12345"] == len(ROWS)


def test_a_plain_shop_has_nothing_to_tell(expected: Store) -> None:
    assert expected.reading == {}
    assert HEAD.startswith('name = "shop"')
