"""The simulated shop: reproducible in parts, sound by the schema, flawed on purpose, and true to its own truth."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import mapping, sources, store
from features.errors import InputError
from features.files import sha256
from features.pseudonym import Pseudonyms
from features.schema import SOURCES, TIME, Column
from features.simulate import NOT_BROUGHT, TRUTH, simulate, simulate_command, true_churn_probability

CUSTOMERS, CHUNK = 3000, 1000
END, SNAPSHOT, HORIZON_DAYS = datetime(2026, 1, 1), datetime(2025, 6, 1), 90


def prints(folder: Path, parts: str = "*") -> dict[str, str]:
    return {f"{path.parent.name}/{path.name}": sha256(path) for path in folder.glob(f"*/part-{parts}.parquet")}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    simulate(folder, CUSTOMERS, seed=11, chunk_customers=CHUNK)
    return folder


@pytest.fixture(scope="module")
def loaded(shop: Path) -> store.Store:
    return sources.load(mapping.read(shop / "simulated.toml"), shop / "state" / "sources.json", Pseudonyms(b""))


@pytest.fixture(scope="module")
def canonical(shop: Path, loaded: store.Store) -> Iterator[duckdb.DuckDBPyConnection]:
    with loaded.connect(shop / "state" / "sources.json") as connection:
        yield connection


@pytest.fixture(scope="module")
def raw(shop: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for name in (*SOURCES, *TRUTH):
        connection.execute(f"CREATE VIEW {name} AS SELECT DISTINCT * FROM '{shop}/{name}/part-*.parquet'")
    return connection


def count(connection: duckdb.DuckDBPyConnection, query: str) -> float:
    return float(connection.sql(query).fetchall()[0][0])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(tmp_path / name, 300, seed=seed, days=200)
    assert len(prints(tmp_path / "a")) == len(SOURCES) + len(TRUTH)
    assert prints(tmp_path / "a") == prints(tmp_path / "b")
    assert not set(prints(tmp_path / "a").values()) & set(prints(tmp_path / "c").values())


def test_the_first_chunk_does_not_depend_on_how_many_follow(tmp_path: Path, shop: Path) -> None:
    simulate(tmp_path, CHUNK, seed=11, chunk_customers=CHUNK)
    assert prints(tmp_path) == prints(shop, "00000")


def test_memory_is_bounded_by_the_chunk_each_of_which_is_one_part_of_every_table(shop: Path) -> None:
    for name in (*SOURCES, *TRUTH):
        assert len(list((shop / name).glob("*.parquet"))) == CUSTOMERS // CHUNK
    ids = pq.read_table(shop / "orders" / "part-00001.parquet")["customer_id"].to_pylist()
    assert {(int(id[1:]) - 1) // CHUNK for id in ids} == {1}


def test_a_killed_simulation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    done: list[int] = []
    simulate(tmp_path, 250, days=100, chunk_customers=100, progress=done.append)
    before, first = prints(tmp_path), (tmp_path / "events" / "part-00000.parquet").stat().st_mtime_ns
    (tmp_path / "events" / "part-00002.parquet").unlink()
    simulate(tmp_path, 250, days=100, chunk_customers=100)
    assert done == [100, 200, 250]
    assert prints(tmp_path) == before
    assert (tmp_path / "events" / "part-00000.parquet").stat().st_mtime_ns == first


def test_a_folder_with_anything_else_is_refused_unless_forced(tmp_path: Path) -> None:
    simulate(tmp_path, 250, days=100, chunk_customers=100)
    with pytest.raises(InputError, match="not empty"):
        simulate_command(tmp_path, customers=100, days=100)
    simulate_command(tmp_path, customers=100, days=100, force=True)
    assert len(prints(tmp_path)) == len(SOURCES) + len(TRUTH)


def test_parameters_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="days = 5: lies outside 60 to 3,650"):
        simulate(tmp_path / "new", 100, days=5)
    assert not (tmp_path / "new").exists()


def test_the_mapping_says_synthetic_and_names_the_columns_written(shop: Path) -> None:
    mapped = mapping.read(shop / "simulated.toml")
    assert mapped.synthetic
    assert not mapped.personal
    for name in SOURCES:
        written = pq.read_schema(shop / name / "part-00000.parquet").names
        assert mapped.tables[name].columns == {column: column for column in written}


def broken(column: Column) -> Iterator[str]:
    name = f'"{column.name}"'
    if column.required:
        yield f"{name} IS NULL"
    if column.low is not None:
        yield f"{name} {'<=' if column.above else '<'} {column.low}"
    if column.high is not None:
        yield f"{name} > {column.high}"
    if column.choices:
        yield f"{name} NOT IN {column.choices}"
    if column.after:
        yield f'{name} < "{column.after}"'
    if column.type == TIME and column.name not in ("due_at", "expires_at"):
        yield f"{name} >= TIMESTAMP '{END}'"


def test_every_row_keeps_the_schema_and_no_time_lies_after_the_end(canonical: duckdb.DuckDBPyConnection) -> None:
    for source in SOURCES.values():
        assert count(canonical, f"SELECT count(*) FROM {source.name}") > 0
        for column in source.columns:
            brought = column.name not in NOT_BROUGHT
            assert (count(canonical, f'SELECT count("{column.name}") FROM {source.name}') > 0) == brought, column.name
            for condition in broken(column):
                assert count(canonical, f"SELECT count(*) FROM {source.name} WHERE {condition}") == 0, condition


def test_parents_exist_and_keys_are_unique_once_copies_are_dropped(canonical: duckdb.DuckDBPyConnection, loaded: store.Store) -> None:
    for source in SOURCES.values():
        if source.key:
            assert count(canonical, f"SELECT count(*) - count(DISTINCT {source.key[0]}) FROM {source.name}") == 0
            assert 0 <= loaded.copies.get(source.name, 0) < 0.02 * loaded.rows[source.name]
        if source.parent:
            parent = source.parent[1].split(".")[0]
            assert count(canonical, f"SELECT count(*) FROM {source.name} ANTI JOIN {parent} USING ({source.parent[0]})") == 0
    assert loaded.copies["events"] == pytest.approx(0.003 * loaded.rows["events"], rel=0.25)


def test_volumes_are_as_asked(shop: Path, raw: duckdb.DuckDBPyConnection) -> None:
    assert count(raw, "SELECT count(*) FROM order_lines") / CUSTOMERS == pytest.approx(8, rel=0.15)
    assert count(raw, "SELECT count(*) FROM events") / CUSTOMERS == pytest.approx(40, rel=0.1)
    assert count(raw, "SELECT count(*) FROM customers") == CUSTOMERS


def test_some_events_arrive_late(raw: duckdb.DuckDBPyConnection) -> None:
    assert count(raw, "SELECT avg((arrived_at > happened_at)::INT) FROM events") == pytest.approx(0.03, abs=0.005)
    assert count(raw, "SELECT max(arrived_at - happened_at) > INTERVAL 2 DAY FROM events") == 1


def test_second_accounts_share_a_device_and_terminals_are_a_trap(raw: duckdb.DuckDBPyConnection) -> None:
    users = "SELECT right_id, count(DISTINCT left_id) AS n FROM identities WHERE right_kind = 'device' GROUP BY 1"
    assert count(raw, f"SELECT count(*) FROM ({users}) WHERE n >= 50") == CUSTOMERS // CHUNK
    joined = f"""SELECT count(DISTINCT t.customer_id) FROM truth t JOIN identities a ON a.left_id = t.customer_id
        JOIN identities b ON b.right_id = a.right_id AND b.left_id = t.person_id
        JOIN ({users}) u ON u.right_id = a.right_id AND n < 5 WHERE t.customer_id <> t.person_id"""
    assert 0.03 * CUSTOMERS < count(raw, joined) < 0.06 * CUSTOMERS


def test_the_price_sensitive_claim_far_more_coupons(raw: duckdb.DuckDBPyConnection) -> None:
    claims = "SELECT price_sensitive, count(*) / count(DISTINCT customer_id) FROM truth LEFT JOIN coupons USING (customer_id) GROUP BY 1"
    by_kind = dict(raw.sql(claims).fetchall())
    assert by_kind[True] > 5 * by_kind[False]


@pytest.fixture(scope="module")
def persons(shop: Path, raw: duckdb.DuckDBPyConnection) -> dict[str, np.ndarray]:
    """True probability and realised silence of each person who had ordered by the snapshot, (persons,)."""
    truth, assignments = pq.read_table(shop / "truth"), pq.read_table(shop / "truth_assignments")
    true = true_churn_probability(truth, SNAPSHOT, HORIZON_DAYS, assignments)
    raw.register("known", truth.append_column("p", pa.array(true)))
    end = SNAPSHOT + timedelta(days=HORIZON_DAYS)
    lasting = f"ordered_at > '{SNAPSHOT}' AND ordered_at <= '{end}' AND (cancelled_at IS NULL OR cancelled_at > '{end}')"
    silent = f"""SELECT min(p) AS p, count(*) FILTER ({lasting}) = 0 AS silent, any_value(left_at) <= '{SNAPSHOT}' AS gone
        FROM known LEFT JOIN orders USING (customer_id) WHERE entered_at <= '{SNAPSHOT}' GROUP BY person_id"""
    return {name: np.asarray(values) for name, values in raw.sql(silent).fetchnumpy().items()}


def test_the_true_probability_is_calibrated_as_a_whole_and_by_decile(persons: dict[str, np.ndarray]) -> None:
    p, silent = persons["p"], persons["silent"].astype(float)
    assert p.size > 2000
    assert 0.3 < p.mean() < 0.8
    decile = np.searchsorted(np.quantile(p, np.linspace(0.1, 0.9, 9)), p)
    for part in (p >= 0, *(decile == number for number in np.unique(decile))):
        deviation = np.sqrt(np.sum(p[part] * (1 - p[part]))) + 0.5
        assert abs(np.sum(silent[part] - p[part])) < 3.5 * deviation


def test_without_contacts_who_has_left_is_silent_for_certain(shop: Path) -> None:
    truth = pq.read_table(shop / "truth")
    p = true_churn_probability(truth, SNAPSHOT, HORIZON_DAYS)
    left = np.array([at is not None and at <= SNAPSHOT for at in truth["left_at"].to_pylist()])
    known = ~np.isnan(p)
    assert (p[left & known] == 1).all()
    alive = known & ~left & (truth["lambda_per_day"].to_numpy() > 0)
    assert ((p[alive] > 0) & (p[alive] < 1)).all()


def test_conversions_by_tier_come_to_the_mean_true_effect(raw: duckdb.DuckDBPyConnection) -> None:
    effect = "CASE tier WHEN 0 THEN 0 WHEN 1 THEN effect_nudge WHEN 2 THEN effect_offer ELSE effect_concierge END"
    rows = raw.sql(f"""SELECT tier, count(*), avg(converted::INT), avg({effect}), avg(propensity) FROM truth_assignments
        JOIN truth USING (customer_id) WHERE assigned_at < TIMESTAMP '{END}' - INTERVAL 7 DAY GROUP BY 1 ORDER BY 1""").fetchall()
    total = sum(row[1] for row in rows)
    for tier, n, converted, true, propensity in rows:
        assert n / total == pytest.approx(propensity, abs=0.01)
        assert converted == pytest.approx(true, abs=4 * np.sqrt(true * (1 - true) / n)), tier
    assert count(raw, "SELECT count(*) FROM contacts") == count(raw, "SELECT count(*) FROM truth_assignments WHERE tier > 0")


def test_effects_differ_by_segment(raw: duckdb.DuckDBPyConnection) -> None:
    offer = dict(raw.sql("SELECT price_sensitive, avg(effect_offer) FROM truth WHERE value_level < 2 GROUP BY 1").fetchall())
    concierge = dict(raw.sql("SELECT value_level = 2, avg(effect_concierge) FROM truth GROUP BY 1").fetchall())
    assert offer[True] > 2 * offer[False]
    assert concierge[True] > 2 * concierge[False]
