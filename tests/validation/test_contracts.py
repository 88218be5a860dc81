"""Broken data stop the run with exit code 2, a table of what failed with counts, and nothing downstream."""

import csv
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import cli

Rows = list[dict[str, str]]


@pytest.fixture
def shop(fake_files: Path, tmp_path: Path) -> Path:
    """A copy of the fake shop to break."""
    shutil.copytree(fake_files.parent, tmp_path / "shop")
    return tmp_path / "shop" / fake_files.name


def edit(path: Path, change: Callable[[Rows], Rows]) -> None:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
        names = list(rows[0])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(change(rows))


def future(rows: Rows) -> Rows:
    soon = (datetime.now() + timedelta(days=40)).isoformat()
    return [{**rows[0], "placed": soon, "loaded": soon}, *rows[1:]]


def duplicate(rows: Rows) -> Rows:
    return [*rows, {**rows[0], "client": "k00002"}, {**rows[1], "client": "k00002"}]


def time_travel(rows: Rows) -> Rows:
    return [{**row, "loaded": "2020-01-01T00:00:00"} for row in rows[:3]] + rows[3:]


def nobody(rows: Rows) -> Rows:
    return [{**row, "client": ""} for row in rows[:5]] + rows[5:]


def empty(rows: Rows) -> Rows:
    return []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (future, ["orders.ordered_at.future", "1 of"]),
        (duplicate, ["orders.order_id.unique", "2 of"]),
        (time_travel, ["orders.arrived_at.order", "3 of"]),
        (nobody, ["orders.customer_id.null", "5 of"]),
        (empty, ["orders.rows", "1 of 0"]),
    ],
    ids=["date in the future", "duplicate key", "arrival before event", "null key", "empty table"],
)
def test_a_broken_contract_stops_the_run(shop: Path, tmp_path: Path, change: Callable[[Rows], Rows], told: list[str]) -> None:
    for file in sorted(shop.parent.glob("sales-*.csv"))[: 2 if change is empty else 1]:
        edit(file, change)
    home = tmp_path / "home"
    done = cli(home, "run", "--dataset", str(shop))
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(part in done.stderr for part in [*told, "data_docs"]), done.stderr
    assert not list(home.rglob("sources.json"))
    assert not list(home.rglob("features.parquet"))
    assert (home / "reports/data_docs/sources/index.html").is_file()


def test_a_broken_reference_is_counted(shop: Path, tmp_path: Path) -> None:
    shop.write_text(shop.read_text().replace("""order_id = "'O' || sale_no\"""", """order_id = "'X' || sale_no\""""))
    done = cli(tmp_path / "home", "validate", "--dataset", str(shop))
    assert done.returncode == 2
    assert "order_lines.order_id.parent" in done.stderr


def test_a_corrupt_parquet_names_file_and_fix(shop: Path, tmp_path: Path) -> None:
    clients = shop.parent / "clients.parquet"
    clients.write_bytes(clients.read_bytes()[:-200])
    done = cli(tmp_path / "home", "validate", "--dataset", str(shop))
    assert done.returncode == 2
    assert "tables.customers.path = 'clients.parquet'" in done.stderr
    assert "fix: " in done.stderr


def test_a_missing_column_names_the_columns_there_are(shop: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"client": ["k1"], "since": [datetime(2023, 1, 1)]}), shop.parent / "clients.parquet")
    done = cli(tmp_path / "home", "validate", "--dataset", str(shop))
    assert done.returncode == 2
    assert "tables.customers.columns.country = 'land'" in done.stderr
    assert "client, since" in done.stderr


def test_a_label_with_one_class_stops_before_training(shop: Path, tmp_path: Path) -> None:
    """Everybody orders every week: nobody churns."""
    placed = [datetime(2023, 1, 1) + timedelta(days=7 * week) for week in range(60)]
    rows = [(f"{c}-{n}", f"k{c}", at.isoformat()) for c in range(30) for n, at in enumerate(placed)]
    for file in shop.parent.glob("sales-*.csv"):
        file.unlink()
    head = "no,client,placed,loaded,voided,state\n"
    body = "".join(f"{no},{client},{at},{at},,ok\n" for no, client, at in rows)
    (shop.parent / "sales-1.csv").write_text(head + body)
    keep = shop.read_text().split("[tables.order_lines]")[0].replace('cancelled_at = "voided"\n', "")
    shop.write_text(keep)
    home = tmp_path / "home"
    assert cli(home, "validate", "--dataset", str(shop)).returncode == 0
    done = cli(home, "features", "--dataset", str(shop))
    assert done.returncode == 2
    assert "label_profile.churn_rate" in done.stderr
    assert not list(home.rglob("features.parquet"))


def test_the_sources_validated_before_stay_in_force(shop: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert cli(home, "validate", "--dataset", str(shop)).returncode == 0
    before = next(home.rglob("sources.json")).read_bytes()
    edit(sorted(shop.parent.glob("sales-*.csv"))[0], future)
    assert cli(home, "validate", "--dataset", str(shop)).returncode == 2
    assert next(home.rglob("sources.json")).read_bytes() == before


def test_results_and_data_docs_hold_no_customer_ids(shop: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    edit(sorted(shop.parent.glob("sales-*.csv"))[0], duplicate)
    done = cli(home, "validate", "--dataset", str(shop))
    written = "".join(file.read_text(errors="replace") for file in home.rglob("*.html")) + done.stderr
    assert "k00000" not in written
    assert "k00001" not in written


@pytest.mark.parametrize(("name", "value"), [("HOLDFAST_ENGINE", "sparkle"), ("HOLDFAST_MEMORY", "lots")])
def test_a_wrong_variable_of_the_environment_is_named_with_its_rule(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    from features.errors import InputError
    from features.settings import Settings

    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name} = '{value}'"):
        Settings()
