"""Seeded faults in a simulated shop with all sources: each is blocked or warned of, as configured, and nothing downstream is written."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

from features import mapping
from features.errors import InputError
from features.settings import Settings
from features.simulate import simulate
from validation.contracts import Report
from validation.stages import Places, validate

CUSTOMERS = 1500
WEEK = "TIMESTAMP '2025-12-25'"
"""Begin of the last week."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[mapping.Dataset, Places]:
    """A simulated shop whose sources are validated and in force."""
    folder = tmp_path_factory.mktemp("faulty")
    dataset = mapping.read(simulate(folder / "shop", CUSTOMERS))
    places = Places.of(Settings(home=folder / "home"), dataset)
    assert validate(dataset, places).failed == []
    return dataset, places


@pytest.fixture
def part(shop: tuple[mapping.Dataset, Places]) -> Iterator[Callable[[str], Path]]:
    """Gives the file of a table to break; mends it afterwards."""
    broken: list[Path] = []

    def take(table: str) -> Path:
        file = next(iter(sorted((shop[0].file.parent / table).glob("*.parquet"))))
        shutil.copy2(file, file.with_suffix(".whole"))
        broken.append(file)
        return file

    yield take
    for file in broken:
        os.replace(file.with_suffix(".whole"), file)


def rewrite(file: Path, query: str) -> None:
    """Replace a Parquet file by a query over its old rows ``t``."""
    whole = file.with_suffix(".whole")
    duckdb.sql(f"COPY (WITH t AS (SELECT * FROM read_parquet('{whole}')) {query}) TO '{file}' (FORMAT parquet)")


def replaced(column: str, value: str, where: str = "true") -> str:
    return f"SELECT * REPLACE (CASE WHEN {where} THEN {value} ELSE {column} END AS {column}) FROM t"


SOME = "hash({0}) % 50 = 0"
RECENT_LINES = "order_id IN (SELECT order_id FROM read_parquet('{orders}') WHERE ordered_at >= " + WEEK + ")"
BLOCKED = {
    "required column dropped": ("orders", "SELECT * EXCLUDE (customer_id) FROM t", "customer_id"),
    "column renamed": ("events", "SELECT * RENAME (kind AS action) FROM t", "columns.kind"),
    "type changed": ("orders", "SELECT * REPLACE ('soon' AS ordered_at) FROM t", "columns.ordered_at"),
    "amounts x100 in the last week": ("order_lines", replaced("amount", "amount * 100", RECENT_LINES), "order_lines.amount.level"),
    "amounts x100 since the last load": ("order_lines", "SELECT * REPLACE (amount * 100 AS amount) FROM t", "order_lines.amount.unit"),
    "all-null column": ("tickets", "SELECT * REPLACE (CAST(NULL AS TIMESTAMP) AS resolved_at) FROM t", "tickets.resolved_at.empty"),
    "no rows": ("events", "SELECT * FROM t LIMIT 0", "events.rows"),
    "same key, other row": (
        "orders",
        f"FROM t UNION ALL {replaced('customer_id', chr(39) + 'C00000007' + chr(39))}",
        "orders.order_id.unique",
    ),
    "future date": ("orders", replaced("ordered_at", "TIMESTAMP '2999-01-01'", SOME.format("order_id")), "orders.ordered_at.future"),
    "ancient date": ("reviews", replaced("reviewed_at", "TIMESTAMP '1900-01-01'", SOME.format("review_id")), "reviews.reviewed_at.ancient"),
    "line without order": ("order_lines", replaced("order_id", "'lost'", SOME.format("line_id")), "order_lines.order_id.parent"),
    "delivery without order": ("deliveries", replaced("order_id", "'lost'", SOME.format("delivery_id")), "deliveries.order_id.parent"),
    "half-written Parquet": ("contacts", None, "tables.contacts"),
    "negative quantity": ("order_lines", replaced("quantity", "-quantity", SOME.format("line_id")), "order_lines.quantity.range"),
    "negative amount": ("returns", replaced("amount", "-1 - amount", SOME.format("return_id")), "returns.amount.range"),
    "unknown kind of event": ("events", replaced("kind", "'hover'", SOME.format("event_id")), "events.kind.choice"),
    "unknown channel": ("contacts", replaced("channel", "'fax'", SOME.format("contact_id")), "contacts.channel.choice"),
    "rating of 11": ("reviews", replaced("rating", "11", SOME.format("review_id")), "reviews.rating.range"),
    "arrival before event": (
        "orders",
        replaced("arrived_at", "ordered_at - INTERVAL 1 DAY", SOME.format("order_id")),
        "orders.arrived_at.order",
    ),
    "resolved before opened": ("tickets", replaced("resolved_at", "opened_at - INTERVAL 1 HOUR"), "tickets.resolved_at.order"),
    "delivered before sent": ("deliveries", replaced("delivered_at", "shipped_at - INTERVAL 1 HOUR"), "deliveries.delivered_at.order"),
    "nobody's orders": ("orders", replaced("customer_id", "NULL", SOME.format("order_id")), "orders.customer_id.null"),
    "consent neither given nor withdrawn": ("consents", replaced("granted", "NULL", SOME.format("customer_id")), "consents.granted.null"),
    "table gone": ("points", "gone", "tables.points"),
}
WARNED = {
    "identical copies": ("events", f"FROM t UNION ALL FROM t WHERE {SOME.format('event_id')}", "events.event_id.copies"),
    "broken characters": (
        "order_lines",
        replaced("category", "'Spielw' || chr(65533)", SOME.format("line_id")),
        "order_lines.category.encoding",
    ),
    "time zone shifted": (
        "events",
        f"""SELECT * REPLACE (CASE WHEN happened_at >= {WEEK} THEN happened_at - INTERVAL 8 HOUR ELSE happened_at END AS happened_at) FROM t""",
        "events.happened_at.hours",
    ),
    "stale table": ("contacts", f"SELECT * FROM t WHERE sent_at < {WEEK} - INTERVAL 20 DAY", "contacts.sent_at.freshness"),
    "last week missing": (
        "events",
        f"SELECT * FROM t WHERE happened_at < {WEEK} OR hash(event_id) % 12 = 0",
        "events.happened_at.volume",
    ),
    "last week sixfold": (
        "events",
        f"""FROM t UNION ALL SELECT t.* REPLACE (event_id || '-' || n AS event_id)
            FROM t, range(8) AS r(n) WHERE happened_at >= {WEEK}""",
        "events.happened_at.volume",
    ),
    "strangers": ("coupons", replaced("customer_id", "'X' || customer_id", "hash(coupon_id) % 2 = 0"), "coupons.customer_id.unmatched"),
}


def test_there_are_thirty_faults() -> None:
    assert len(BLOCKED) + len(WARNED) >= 30


def with_only(dataset: mapping.Dataset, table: str) -> mapping.Dataset:
    """The data set without the tables that a fault has nothing to do with: fewer rules to wait for."""
    kept = {name: found for name, found in dataset.tables.items() if name in ("orders", "order_lines", table)}
    return dataset.model_copy(update={"tables": kept})


def run(shop: tuple[mapping.Dataset, Places], file: Path, query: str | None) -> Report:
    if query is None:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif query == "gone":
        for one in file.parent.glob("*.parquet"):
            one.unlink()
    else:
        rewrite(file, query.replace("{orders}", str(file.parents[1] / "orders/*.parquet")))
    return validate(*shop)


@pytest.mark.parametrize("fault", BLOCKED)
def test_a_blocking_fault_is_named_and_changes_nothing(
    shop: tuple[mapping.Dataset, Places], part: Callable[[str], Path], fault: str
) -> None:
    table, query, told = BLOCKED[fault]
    before = shop[1].sources.read_bytes()
    with pytest.raises(InputError) as caught:
        run((with_only(shop[0], table), shop[1]), part(table), query)
    assert told in str(caught.value)
    assert "C0000" not in str(caught.value)  # no customer's id
    assert shop[1].sources.read_bytes() == before


@pytest.mark.parametrize("fault", WARNED)
def test_a_lesser_fault_is_warned_of_and_can_be_made_to_block(
    shop: tuple[mapping.Dataset, Places], part: Callable[[str], Path], fault: str
) -> None:
    table, query, told = WARNED[fault]
    dataset, places = with_only(shop[0], table), shop[1]
    before = places.sources.read_bytes()
    strict = dataset.model_copy(update={"contracts": mapping.Contracts(severity={told: "block"})})
    file = part(table)
    with pytest.raises(InputError, match=told.replace(".", r"\.")):
        run((strict, places), file, query)
    assert places.sources.read_bytes() == before
    report = validate(dataset, places)
    assert told in [finding.id for finding in report.warnings]
    assert report.failed == []
