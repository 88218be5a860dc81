"""Untidy files of the kinds that people report: read right, or told, or refused with the line and the next step; never wrong without a word."""

import json
import math
import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import mapping, sources
from features.engines import raw_tables
from features.errors import ContractError, InputError
from features.pseudonym import Pseudonyms
from features.settings import Settings
from features.snapshots import Orders, schedule
from features.store import Store
from tests.features.ways import COLUMNS, ROWS, Row, Written, arrow, iso, naive, rendered, texts
from validation import cli, rules, stages
from validation.rules import Rule
from validation.stages import Places

PSEUDONYMS = Pseudonyms(b"")
LINES = "\n[tables.order_lines]\npath = 'lines*.{0}'\n{1}\n[tables.order_lines.columns]\norder_id = 'order_id'\nquantity = 'quantity'\namount = 'amount'\n"


def loaded(written: Written, folder: Path, more: str = "", tables: str = "") -> Store:
    file = written.mapping(folder, more)
    file.write_text(file.read_text() + tables)
    found = sources.load(mapping.read(file), folder / "sources.json", PSEUDONYMS)
    found.write(folder / "sources.json")
    return found


def judged(written: Written, folder: Path, more: str = "", tables: str = "") -> dict[str, Rule]:
    """Every rule of the contract by its id."""
    found = loaded(written, folder, more, tables)
    dataset = mapping.read(folder / "shop.toml")
    with found.connect(folder / "sources.json") as connection:
        mapped = {name: set(table.columns) for name, table in dataset.tables.items()}
        return {rule.id: rule for rule in rules.of_sources(connection, found, mapped, dataset.contracts, None)}


def broken(found: dict[str, Rule]) -> dict[str, int]:
    return {id: rule.broken for id, rule in found.items() if rule.broken}


def csv_of(folder: Path, rows: list[Row], name: str = "orders.csv") -> Written:
    (folder / name).write_text(rendered(rows), encoding="utf-8")
    return Written(f'path = "{name}"')


def renamed(ids: dict[int, str], column: str = "customer_id") -> list[Row]:
    """The shop with other ids."""
    return [{**text, column: ids[row[column]]} for text, row in zip(texts(ROWS), ROWS, strict=True)]


CUSTOMERS = sorted({row["customer_id"] for row in ROWS})


def test_long_numeric_ids_stay_apart(tmp_path: Path) -> None:
    ids = {one: f"12345678901234567{one - 100_000:03d}" for one in CUSTOMERS}
    assert loaded(csv_of(tmp_path, renamed(ids)), tmp_path).customers == 120


def test_ids_that_look_like_scientific_notation_stay_apart(tmp_path: Path) -> None:
    ids = {one: f"{10 + k // 2}E3" if k % 2 else f"{10 + k // 2}000" for k, one in enumerate(CUSTOMERS)}
    assert loaded(csv_of(tmp_path, renamed(ids)), tmp_path).customers == 120


def test_order_ids_that_look_like_decimals_stay_apart(tmp_path: Path) -> None:
    ids = {row["order_id"]: f"{1000 + k // 2}.{'1' if k % 2 else '10'}" for k, row in enumerate(ROWS)}
    found = judged(csv_of(tmp_path, renamed(ids, "order_id")), tmp_path)
    assert Store.read(tmp_path / "sources.json").rows["orders"] == len(ROWS)
    assert broken(found) == {}


def test_leading_zeros_stay(tmp_path: Path) -> None:
    ids = {one: str(k).zfill(3 + k % 2) for k, one in enumerate(CUSTOMERS)}
    (tmp_path / "csv").mkdir()
    with_zeros = loaded(csv_of(tmp_path / "csv", renamed(ids)), tmp_path / "csv")
    pq.write_table(
        arrow(ROWS, customer_id=lambda v: pa.array([ids[x.as_py() if hasattr(x, "as_py") else x] for x in v])), tmp_path / "o.parquet"
    )
    assert with_zeros.customers == 120
    assert with_zeros.hashes == loaded(Written('path = "o.parquet"'), tmp_path).hashes


def local_times(folder: Path) -> list[datetime]:
    with Store.read(folder / "sources.json").connect(folder / "sources.json") as connection:
        return [row[0] for row in connection.sql("SELECT ordered_at FROM orders ORDER BY order_id").fetchall()]


def test_an_offset_in_a_text_of_parquet_counts(tmp_path: Path) -> None:
    table = pa.table({"order_id": ["1"], "customer_id": ["a"], "ordered_at": ["2024-01-01T12:41:00-05:00"], "amount": [1.0]})
    pq.write_table(table, tmp_path / "o.parquet")
    loaded(Written('path = "o.parquet"'), tmp_path)
    assert local_times(tmp_path) == [datetime(2024, 1, 1, 18, 41)]


def test_one_time_without_a_zone_among_times_with_one_is_local_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/Lima")
    rows = texts(ROWS[:3])
    rows[1]["ordered_at"] = "2024-05-05 10:00:00"
    found = loaded(csv_of(tmp_path, rows), tmp_path)
    assert local_times(tmp_path)[1] == datetime(2024, 5, 5, 10)
    assert found.reading == {"orders.ordered_at: times without a zone among times with one, taken as local": 1}


def total(folder: Path) -> Decimal:
    with Store.read(folder / "sources.json").connect(folder / "sources.json") as connection:
        return Decimal(connection.sql("SELECT sum(amount) FROM orders").fetchall()[0][0])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_that_differ_by_case_alone_are_told_apart(kind: str, tmp_path: Path) -> None:
    rows = [{"Amount": "999", **row} for row in texts(ROWS)]
    written = csv_of(tmp_path, rows)
    if kind == "parquet":
        pq.write_table(pa.table({name: [row[name] for row in rows] for name in rows[0]}), tmp_path / "o.parquet")
        written = Written('path = "o.parquet"')
    loaded(written, tmp_path)
    assert total(tmp_path) == sum(row["amount"] for row in ROWS)


def test_a_name_that_fits_two_columns_is_refused(tmp_path: Path) -> None:
    rows = [{"Amount": "999", **row} for row in texts(ROWS)]
    written = csv_of(tmp_path, rows)
    with pytest.raises(InputError, match="several columns fit: 'Amount', 'amount'"):
        loaded(Written(written.place, {**COLUMNS, "amount": "AMOUNT"}), tmp_path)


def test_the_autumn_hour_keeps_its_order(tmp_path: Path) -> None:
    rows = [{**row, "arrived": row["ordered_at"]} for row in texts(ROWS)]
    rows[0] |= {"ordered_at": "2024-10-27T00:30:00Z", "arrived": "2024-10-27T01:10:00Z"}
    written = csv_of(tmp_path, rows)
    assert broken(judged(Written(written.place, {**COLUMNS, "arrived_at": "arrived"}), tmp_path)) == {}
    assert datetime(2024, 10, 27, 2, 30) in local_times(tmp_path)


@pytest.mark.parametrize(("arrived", "broke"), [("2024-10-27 02:10:00", 0), ("2024-10-27 01:59:00", 1)])
def test_a_local_time_that_comes_twice_may_be_either(arrived: str, broke: int, tmp_path: Path) -> None:
    rows = [{**row, "arrived": row["ordered_at"]} for row in texts(ROWS, lambda m: str(naive(m)))]
    rows[0] |= {"ordered_at": "2024-10-27 02:30:00", "arrived": arrived}
    written = csv_of(tmp_path, rows)
    found = judged(Written(written.place, {**COLUMNS, "arrived_at": "arrived"}), tmp_path)
    assert found["orders.arrived_at.order"].broken == broke


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_local_times_that_come_twice_or_never_are_told(kind: str, tmp_path: Path) -> None:
    times = ("2024-10-27 02:30:00", "2024-03-31 02:30:00", "2024-05-01 02:30:00")
    written = csv_of(tmp_path, [{**row, "ordered_at": at} for row, at in zip(texts(ROWS[:3]), times, strict=True)])
    if kind == "parquet":
        given = pa.array([datetime.fromisoformat(at) for at in times])
        pq.write_table(arrow(ROWS[:3], ordered_at=lambda v: given), tmp_path / "o.parquet")
        written = Written('path = "o.parquet"')
    found = loaded(written, tmp_path)
    assert found.reading == {"orders.ordered_at: local times of a clock change, taken as the first of two or moved on": 2}
    assert local_times(tmp_path)[1] == datetime(2024, 3, 31, 3, 30)


def test_one_stray_later_order_is_told_and_moves_nothing(tmp_path: Path) -> None:
    (tmp_path / "tidy").mkdir()
    stray = {**ROWS[0], "order_id": 1, "ordered_at": max(row["ordered_at"] for row in ROWS) + timedelta(days=42)}
    spans = []
    for folder, rows in ((tmp_path / "tidy", ROWS), (tmp_path, [*ROWS, stray])):
        found = judged(csv_of(folder, texts(rows)), folder)
        with Store.read(folder / "sources.json").connect(folder / "sources.json") as connection:
            spans.append(Orders.of(connection).span)
    assert spans[0] == spans[1]
    assert broken(found) == {"orders.ordered_at.stray": 1}
    assert found["orders.ordered_at.stray"].severity == "warn"
    assert "snapshots.complete_until" in found["orders.ordered_at.stray"].detail


def test_the_mapping_file_may_say_until_when_the_orders_are_complete() -> None:
    dataset = mapping.read()
    given = dataset.snapshots.model_copy(update={"complete_until": date(2011, 11, 30)})
    _, latest = schedule(dataset.model_copy(update={"snapshots": given}), date(2009, 12, 1), date(2011, 12, 9))
    assert latest == datetime(2011, 12, 1)


def test_the_end_of_the_data_does_not_lie_in_the_future() -> None:
    dataset = mapping.read()
    given = dataset.snapshots.model_copy(update={"complete_until": date.today() + timedelta(days=30)})
    with pytest.raises(InputError, match="lies in the future"):
        schedule(dataset.model_copy(update={"snapshots": given}), date(2009, 12, 1), date(2011, 12, 9))


@pytest.mark.parametrize("moment", ["infinity", "9999-12-31", "0001-01-01", "200000-01-01"])
def test_moments_beyond_all_calendars_are_told_by_the_contract(moment: str, tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as db:
        db.register("given", arrow(ROWS))
        db.execute("CREATE TABLE orders AS SELECT * FROM given")
        db.execute(f"UPDATE orders SET ordered_at = TIMESTAMPTZ '{moment}' WHERE order_id = 7000000")
    found = judged(Written('database = "shop.duckdb"\ntable = "orders"'), tmp_path)
    assert found["orders.ordered_at.future"].broken + found["orders.ordered_at.ancient"].broken == 1


def test_the_first_order_of_1990_is_told_and_moves_nothing(tmp_path: Path) -> None:
    early = {**ROWS[0], "order_id": 1, "ordered_at": datetime(1990, 1, 5, tzinfo=UTC)}
    found = judged(csv_of(tmp_path, texts([*ROWS, early])), tmp_path)
    with Store.read(tmp_path / "sources.json").connect(tmp_path / "sources.json") as connection:
        assert Orders.of(connection).span[0] == min(row["ordered_at"] for row in ROWS).date()
    assert broken(found) == {"orders.ordered_at.stray": 1}


@pytest.mark.parametrize(
    ("counts", "early", "late"), [([10] * 200, 0, 0), ([10] * 150 + [0] * 20 + [10] * 30, 0, 0), ([10] * 150 + [0] * 42 + [1], 0, 1)]
)
def test_a_closed_shop_is_no_stray(counts: list[int], early: int, late: int) -> None:
    days = [(date(2024, 1, 1) + timedelta(days=k), count) for k, count in enumerate(counts) if count]
    assert Orders(*zip(*days, strict=True)).strays == (early, late)


def test_a_second_wider_header_in_a_file_is_refused_with_its_line(tmp_path: Path) -> None:
    first, second = texts(ROWS[:300]), [{**row, "more": "x"} for row in texts(ROWS[300:621])]
    (tmp_path / "orders.csv").write_text(rendered(first) + rendered(second), encoding="utf-8")
    with pytest.raises(InputError, match="line 302 is another header: two exports glued together"):
        loaded(Written('path = "orders.csv"'), tmp_path)


def test_a_row_with_one_field_too_many_is_refused_with_its_line_and_no_value(tmp_path: Path) -> None:
    lines = rendered(texts(ROWS)).splitlines()
    lines[7] += ",secret"
    (tmp_path / "orders.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match="line 8 has 6 fields, its header 5") as caught:
        loaded(Written('path = "orders.csv"'), tmp_path)
    assert not any(word in str(caught.value) for word in ("secret", str(ROWS[6]["customer_id"])))


def test_a_file_without_a_header_is_refused_without_a_value(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("\n".join(rendered(texts(ROWS)).splitlines()[1:]), encoding="utf-8")
    with pytest.raises(InputError, match="names none of the mapped columns") as caught:
        loaded(Written('path = "orders.csv"'), tmp_path)
    assert str(ROWS[0]["customer_id"]) not in str(caught.value)


@pytest.mark.parametrize("name", ["orders.csv", "orders.parquet"])
def test_an_empty_file_is_called_empty(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        loaded(Written(f'path = "{name}"'), tmp_path)


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("amount", ["1,234"], 'decimal = "."'),
        ("amount", ["12.5", "12,5"], "a comma for the decimals"),
        ("amount", ["12 EUR"], "cannot be read as a number"),
        ("amount", ["(12.50)"], "cannot be read as a number"),
        ("ordered_at", ["NULL"], "cannot be read as a moment"),
        ("ordered_at", ["0000-00-00 00:00:00"], "cannot be read as a moment"),
        ("ordered_at", ["31.12.24 10:00"], "time_format"),
        ("ordered_at", ["2024-02-05 10:00:00 CET"], "cannot be read as a moment"),
        ("ordered_at", ["01/04/2024"], "day and month cannot be told apart"),
        ("ordered_at", ["31/01/2024", "01/31/2024"], "others with the month first"),
        ("ordered_at", ["2024-02-30"], "cannot be read as a moment"),
        ("ordered_at", ["1706700000"], "cannot be read as a moment"),
    ],
)
def test_what_leaves_two_readings_or_none_is_refused(column: str, values: list[str], told: str, tmp_path: Path) -> None:
    rows = [{**texts(ROWS[:1])[0], "order_id": str(k), column: value} for k, value in enumerate(values)]
    with pytest.raises(InputError) as caught:
        loaded(csv_of(tmp_path, rows), tmp_path)
    assert told in str(caught.value)
    assert f"columns.{column}" in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda text: text.replace("sku", "amount", 1), "several columns fit: 'amount', 'amount'"),
        (lambda text: '{"order_id": 1}\n' + text, "names none of the mapped columns"),
        (lambda text: text.replace("\n7", '\n"7', 1), "line|broken"),
    ],
)
def test_other_broken_files_are_refused(spoil: Callable[[str], str], told: str, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text(spoil(rendered(texts(ROWS))), encoding="utf-8")
    with pytest.raises(InputError, match=told):
        loaded(Written('path = "orders.csv"'), tmp_path)


@pytest.mark.parametrize("condition", ["1 = 1; DROP TABLE x", "amount > 0;"])
def test_a_condition_is_one_expression(condition: str, tmp_path: Path) -> None:
    written = csv_of(tmp_path, texts(ROWS))
    with pytest.raises(InputError, match="holds a semicolon"):
        loaded(Written(f'{written.place}\nwhere = "{condition}"'), tmp_path)


@pytest.mark.parametrize(
    ("values", "told"), [([True], "is BOOLEAN, no id"), ([{"a": 1}], "no text"), ([b"a"], "is BLOB, no text"), ([["a"]], "no text")]
)
def test_an_id_of_a_type_that_is_none_is_refused(values: list[object], told: str, tmp_path: Path) -> None:
    pq.write_table(arrow(ROWS[:1], customer_id=lambda v: pa.array(values)), tmp_path / "o.parquet")
    with pytest.raises(InputError, match=told):
        loaded(Written('path = "o.parquet"'), tmp_path)


def test_a_price_written_in_two_ways_is_computed_with(tmp_path: Path) -> None:
    rows = [{**row, "price": "12.5" if k % 2 else "12.50", "n": "2"} for k, row in enumerate(texts(ROWS[:40]))]
    written = csv_of(tmp_path, rows)
    loaded(Written(f'{written.place}\nwhere = "price > 0"', {**COLUMNS, "amount": "price * n"}), tmp_path)
    assert total(tmp_path) == 40 * 25


def test_an_id_that_is_computed_with_is_refused_with_the_next_step(tmp_path: Path) -> None:
    written = csv_of(tmp_path, texts(ROWS[:40]))
    with pytest.raises(InputError, match="to be cast before they are computed with"):
        loaded(Written(written.place, {**COLUMNS, "amount": "order_id + 1"}), tmp_path)


def test_more_decimals_than_four_are_rounded_and_told(tmp_path: Path) -> None:
    rows = [{**row, "amount": amount} for row, amount in zip(texts(ROWS[:3]), ("1.00000", "0.12346", "2.5"), strict=True)]
    assert loaded(csv_of(tmp_path, rows), tmp_path).reading == {"orders.amount: more than four decimals, rounded": 1}


@pytest.mark.parametrize("amount", ["1 234 567,50", "1'234'567.50", "1.234.567,50", "1,234,567.50"])
def test_millions_are_read_in_every_form(amount: str, tmp_path: Path) -> None:
    rows = [{**row, "amount": amount} for row in texts(ROWS[:1])]
    loaded(csv_of(tmp_path, rows), tmp_path)
    assert total(tmp_path) == Decimal("1234567.50")


def test_days_in_digits_are_told_as_days(tmp_path: Path) -> None:
    found = loaded(csv_of(tmp_path, [{**row, "ordered_at": "20240501"} for row in texts(ROWS[:2])]), tmp_path)
    assert found.reading == {"orders.ordered_at: dates without a time taken as the end of their day": 2}


def test_a_decimal_id_too_large_to_be_exact_is_refused(tmp_path: Path) -> None:
    pq.write_table(arrow(ROWS[:1], customer_id=lambda v: pa.array([float(2**60)])), tmp_path / "o.parquet")
    with pytest.raises(InputError, match="too large to keep all its digits"):
        loaded(Written('path = "o.parquet"'), tmp_path)


def test_a_column_that_one_file_lacks_is_told(tmp_path: Path) -> None:
    csv_of(tmp_path, texts(ROWS[:300]), "orders-1.csv")
    csv_of(
        tmp_path,
        [{("value" if name == "amount" else name): text for name, text in row.items()} for row in texts(ROWS[300:])],
        "orders-2.csv",
    )
    found = loaded(Written('path = "orders-*.csv"'), tmp_path)
    assert found.reading == {"orders.amount: files without this column, taken as unknown there": 1}


def regulars(folder: Path, days: int) -> Places:
    """A shop whose thirty customers order every ``days`` days, validated."""
    moments = [datetime(2023, 1, 1, 12, tzinfo=UTC) + timedelta(days=days * k + k % 3) for k in range(900 // days)]
    rows = [
        {"order_id": f"{customer}-{k}", "customer_id": str(customer), "ordered_at": iso(moment), "amount": "1"}
        for customer in range(30)
        for k, moment in enumerate(moments)
    ]
    places = Places.of(Settings(home=folder / "home"), mapping.read(csv_of(folder, rows).mapping(folder)))
    stages.validate(mapping.read(folder / "shop.toml"), places)
    return places


@pytest.mark.parametrize(("days", "told"), [(10, "nobody at"), (140, "everybody churned at")])
def test_where_everybody_or_nobody_churns_the_next_step_is_told(days: int, told: str, tmp_path: Path) -> None:
    places = regulars(tmp_path, days)
    with pytest.raises(ContractError) as caught:
        stages.build_features(mapping.read(tmp_path / "shop.toml"), places)
    assert told in str(caught.value)
    assert "change churn.horizon_days (now 90)" in str(caught.value)
    assert not places.features.exists()


def test_nan_is_unknown_and_told(tmp_path: Path) -> None:
    pq.write_table(arrow(ROWS[:3], amount=lambda v: pa.array([1.0, math.nan, 2.0])), tmp_path / "o.parquet")
    assert loaded(Written('path = "o.parquet"'), tmp_path).reading == {"orders.amount: NaN taken as unknown": 1}
    assert total(tmp_path) == 3


def test_ids_kept_as_decimals_and_gaps_among_them_are_told(tmp_path: Path) -> None:
    pq.write_table(arrow(ROWS[:3], customer_id=lambda v: pa.array([1.0, math.nan, 2.0])), tmp_path / "o.parquet")
    found = judged(Written('path = "o.parquet"'), tmp_path)
    reading = Store.read(tmp_path / "sources.json").reading
    assert reading == {"orders.customer_id: decimal numbers read as ids": 2, "orders.customer_id: NaN taken as unknown": 1}
    assert found["orders.customer_id.null"].broken == 1


def test_ids_with_white_space_and_another_unicode_form_are_one_customer(tmp_path: Path) -> None:
    rng = random.Random(1)
    forms = ("Zoë {0}", "Zoe\u0308 {0}", "Zoë {0} ")
    rows = [{**row, "customer_id": rng.choice(forms).format(row["customer_id"])} for row in texts(ROWS)]
    found = loaded(csv_of(tmp_path, rows), tmp_path)
    assert found.customers == 120
    assert sum(found.reading.values()) == sum(row["customer_id"] != f"Zoë {row['customer_id'].split()[1]}" for row in rows)


def shouted(folder: Path) -> Written:
    rng = random.Random(2)
    rows = [{**row, "customer_id": rng.choice((str.upper, str.lower))(f"straße-{row['customer_id']}")} for row in texts(ROWS)]
    return csv_of(folder, rows)


def test_ids_that_differ_by_case_are_told_and_folded_where_the_mapping_says_so(tmp_path: Path) -> None:
    found = judged(shouted(tmp_path), tmp_path)
    customers = Store.read(tmp_path / "sources.json").customers
    assert customers > 200
    rule = found["orders.customer_id.case"]
    assert (rule.severity, "identity.fold_case = true" in rule.words) == ("warn", True)
    assert loaded(shouted(tmp_path), tmp_path, "[identity]\nfold_case = true\n").customers == 120


def test_case_is_compared_across_files_too(tmp_path: Path) -> None:
    for number, (part, change) in enumerate(((ROWS[::2], str.upper), (ROWS[1::2], str.lower))):
        words = {"customer_id": lambda v, c=change: pa.array([c(f"k{x}") for x in v])}
        pq.write_table(arrow(part, **words), tmp_path / f"orders-{number}.parquet")
    found = judged(Written('path = "orders-*.parquet"'), tmp_path)
    assert found["orders.customer_id.case"].broken == Store.read(tmp_path / "sources.json").customers - 120


def with_guests(word: str) -> list[Row]:
    rows = texts(ROWS)
    return [{**row, "customer_id": word if k % 5 == 0 else row["customer_id"]} for k, row in enumerate(rows)]


def test_a_customer_with_an_implausible_share_of_all_orders_is_told(tmp_path: Path) -> None:
    rows = with_guests("guest@shop.example")
    found = judged(csv_of(tmp_path, rows), tmp_path)
    assert broken(found) == {"orders.customer_id.share": sum(row["customer_id"].startswith("guest") for row in rows)}


@pytest.mark.parametrize("word", ["guest", "Anonymous", "unknown", "N/A", "-1", "0", "test", " GUEST ", "NULL", "\\N", "nan"])
def test_a_word_for_nobody_is_told_with_its_count(word: str, tmp_path: Path) -> None:
    rows = with_guests(word)
    found = judged(csv_of(tmp_path, rows), tmp_path)
    assert found["orders.customer_id.placeholder"].broken == sum(row["customer_id"] == word for row in rows)
    assert "identity.not_customers" in found["orders.customer_id.placeholder"].words


@pytest.mark.parametrize("word", ["guest@shop.example", "guest", ""])
def test_who_is_no_customer_is_left_out_and_the_orders_stay(word: str, tmp_path: Path) -> None:
    rows = with_guests(word)
    lines = [{"order_id": row["order_id"], "quantity": 1, "amount": row["amount"]} for row in rows]
    (tmp_path / "lines.csv").write_text(rendered(lines))
    found = judged(csv_of(tmp_path, rows), tmp_path, f'[identity]\nnot_customers = ["{word}"]\n', LINES.format("csv", ""))
    assert broken(found) == {}
    store = Store.read(tmp_path / "sources.json")
    assert store.customers == 120
    assert store.rows == {"orders": sum(row["customer_id"] != word for row in rows), "order_lines": len(rows)}


def test_a_missing_customer_blocks_unless_the_mapping_says_so(tmp_path: Path) -> None:
    found = judged(csv_of(tmp_path, with_guests("")), tmp_path)
    assert found["orders.customer_id.null"].broken > 0


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("duplicates", "lines", "broke"), [("", 2, True), ('duplicates = "keep"', 2, True), ('duplicates = "drop"', 1, True)]
)
def test_a_copied_file_of_a_table_without_a_key(kind: str, duplicates: str, lines: int, broke: bool, tmp_path: Path) -> None:
    rows = [{"order_id": row["order_id"], "quantity": "1", "amount": row["amount"]} for row in texts(ROWS)]
    for name in ("lines", "lines (1)"):
        if kind == "csv":
            (tmp_path / f"{name}.csv").write_text(rendered(rows))
        else:
            pq.write_table(pa.table({key: [row[key] for row in rows] for key in rows[0]}), tmp_path / f"{name}.parquet")
    found = judged(csv_of(tmp_path, texts(ROWS)), tmp_path, "", LINES.format(kind, duplicates))
    assert Store.read(tmp_path / "sources.json").rows["order_lines"] == lines * len(rows)
    rule = found["order_lines.repeats"]
    assert (rule.broken, rule.severity) == (len(rows), "warn" if duplicates else "block")
    assert "lines (1)" in rule.detail


def test_overlapping_exports_are_told_with_both_names(tmp_path: Path) -> None:
    rows = [{"order_id": row["order_id"], "quantity": "1", "amount": row["amount"]} for row in texts(ROWS)]
    (tmp_path / "lines-1.csv").write_text(rendered(rows[:600]))
    (tmp_path / "lines-2.csv").write_text(rendered(rows[500:]))
    found = judged(csv_of(tmp_path, texts(ROWS)), tmp_path, "", LINES.format("csv", ""))["order_lines.overlap"]
    assert (found.broken, found.severity) == (100, "warn")
    assert "lines-1.csv" in found.detail
    assert "lines-2.csv" in found.detail


def test_equal_lines_in_one_file_are_no_copies(tmp_path: Path) -> None:
    rows = [{"order_id": row["order_id"], "quantity": "1", "amount": row["amount"]} for row in texts(ROWS) for _ in range(2)]
    (tmp_path / "lines.csv").write_text(rendered(rows))
    found = judged(csv_of(tmp_path, texts(ROWS)), tmp_path, "", LINES.format("csv", ""))
    assert broken(found) == {}


def test_a_copied_file_is_not_added_up_by_group_by(tmp_path: Path) -> None:
    for name in ("orders-1.csv", "orders-2.csv"):
        csv_of(tmp_path, texts(ROWS), name)
    columns = {**COLUMNS, "ordered_at": "min(ordered_at)", "amount": "sum(amount)"}
    place = 'path = "orders-*.csv"\ngroup_by = "order_id, customer_id"'
    assert judged(Written(place, columns), tmp_path)["orders.repeats"].broken == len(ROWS)
    loaded(Written(place + '\nduplicates = "drop"', columns), tmp_path)
    assert total(tmp_path) == sum(row["amount"] for row in ROWS)


CANCELLED = [("OX1", "100.00", "2024-05-02T10:00:00Z"), ("OX2", "172.60", ""), ("OX3", "200.00", "")]


def cancelled(folder: Path, with_order: bool) -> tuple[Written, str]:
    rows = [
        {"order_id": id, "customer_id": "a", "ordered_at": "2024-05-01T10:00:00Z", "amount": amount, "void": void}
        for id, amount, void in CANCELLED
    ]
    returns = [{"r": "R1", "customer_id": "a", "at": "2024-05-02T11:00:00Z", "n": "1", "amount": "100.00", "o": "OX1"}]
    (folder / "returns.csv").write_text(rendered(returns))
    written = csv_of(folder, rows)
    names = {"return_id": "r", "customer_id": "customer_id", "returned_at": "at", "quantity": "n", "amount": "amount"}
    names |= {"order_id": "o"} if with_order else {}
    tables = "[tables.returns]\npath = 'returns.csv'\n[tables.returns.columns]\n" + "".join(f"{k} = '{v}'\n" for k, v in names.items())
    return Written(written.place, {**COLUMNS, "cancelled_at": "void"}), tables


@pytest.mark.parametrize(("with_order", "net", "told"), [(True, 372.6, None), (False, 272.6, 1)])
def test_an_order_cancelled_and_refunded_counts_once(with_order: bool, net: float, told: int | None, tmp_path: Path) -> None:
    written, tables = cancelled(tmp_path, with_order)
    found = judged(written, tmp_path, "", tables)
    assert broken(found).get("returns.amount.twice") == told
    store, file = Store.read(tmp_path / "sources.json"), tmp_path / "sources.json"
    from validation.stages import _manifest

    dataset = mapping.read(tmp_path / "shop.toml")
    with raw_tables(store, file, _manifest(dataset, store), [datetime(2024, 6, 1)], dataset.identity) as (raw, _):
        rows = pa.concat_tables(raw)
    assert rows["monetary_net"].to_pylist() == [pytest.approx(net)]


def test_a_return_before_the_first_order_is_told(tmp_path: Path) -> None:
    written, tables = cancelled(tmp_path, False)
    (tmp_path / "returns.csv").write_text(
        rendered([{"r": "R1", "customer_id": "a", "at": "2024-04-01T11:00:00Z", "n": "1", "amount": "1"}])
    )
    found = judged(written, tmp_path, "", tables)["returns.returned_at.before"]
    assert (found.broken, found.severity) == (1, "warn")


def test_times_are_told_in_utc_on_the_disk(tmp_path: Path) -> None:
    store = loaded(csv_of(tmp_path, texts(ROWS)), tmp_path)
    part = pq.read_table(tmp_path / "parts" / store.parts["orders"][0])
    assert {iso(moment.replace(tzinfo=UTC)) for moment in part["ordered_at"].to_pylist()} == {iso(row["ordered_at"]) for row in ROWS}


def test_validate_tells_what_it_found_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "Bob's home"))
    file = csv_of(tmp_path, [{**row, "customer_id": f" {row['customer_id']}"} for row in texts(ROWS)]).mapping(tmp_path)
    cli.validate(dataset=str(file), json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert found["rows"] == {"orders": len(ROWS)}
    assert list(found["reading"].values()) == [len(ROWS)]
    (tmp_path / "orders.csv").write_text("")
    with pytest.raises(InputError):
        cli.validate(dataset=str(file), json=True)
    assert json.loads(capsys.readouterr().out)["problem"] == "is empty"


def written_as(folder: Path, rows: list[Row], more: str = "", **columns: str) -> Written:
    return Written(csv_of(folder, rows).place + "\n" + more, {**COLUMNS, **columns})


def test_a_backslash_at_the_end_of_a_field_loses_no_row(tmp_path: Path) -> None:
    rows = [{**row, "note": "C:\\tmp\\" if k % 3 == 0 else 'say "x"'} for k, row in enumerate(texts(ROWS[:30]))]
    (tmp_path / "orders.csv").write_text(rendered(rows, quoting=1), encoding="utf-8")
    assert loaded(Written('path = "orders.csv"'), tmp_path).rows["orders"] == 30


def test_backslashes_before_quotes_are_read_where_nothing_else_fits(tmp_path: Path) -> None:
    rows = [{**row, "note": 'a, "b"'} for row in texts(ROWS[:30])]
    (tmp_path / "orders.csv").write_text(rendered(rows, doublequote=False, escapechar="\\"), encoding="utf-8")
    assert loaded(Written('path = "orders.csv"'), tmp_path).rows["orders"] == 30


def test_single_precision_ids_beyond_their_digits_are_refused(tmp_path: Path) -> None:
    pq.write_table(arrow(ROWS[:1], customer_id=lambda v: pa.array([1e8], pa.float32())), tmp_path / "o.parquet")
    with pytest.raises(InputError, match="too large to keep all its digits"):
        loaded(Written('path = "o.parquet"'), tmp_path)


def test_a_column_with_a_space_in_its_name_is_read_like_any_other(tmp_path: Path) -> None:
    rows = [{**row, "Cancelled At": "0000-00-00 00:00:00"} for row in texts(ROWS[:3])]
    with pytest.raises(InputError, match="cannot be read as a moment"):
        loaded(written_as(tmp_path, rows, cancelled_at="Cancelled At"), tmp_path)
    rows = [{**row, "Order Date": "2024-05-01"} for row in texts(ROWS[:1])]
    loaded(written_as(tmp_path, rows, 'time_format = "%Y-%d-%m"', ordered_at="Order Date"), tmp_path)
    assert local_times(tmp_path)[0].date() == date(2024, 1, 5)


def test_a_time_format_holds_in_conditions_too(tmp_path: Path) -> None:
    rows = [{**row, "ordered_at": f"{k + 1:02d}/06/2024 9:05"} for k, row in enumerate(texts(ROWS[:9]))]
    more = 'time_format = "%d/%m/%Y %-H:%-M"\nwhere = "ordered_at >= \'2024-06-05\'"'
    assert loaded(written_as(tmp_path, rows, more), tmp_path).rows["orders"] == 5
    assert local_times(tmp_path)[0] == datetime(2024, 6, 5, 9, 5)


def test_a_condition_drops_no_row_whose_value_is_broken(tmp_path: Path) -> None:
    rows = [*texts(ROWS[:9]), {**texts(ROWS[:1])[0], "order_id": "x", "ordered_at": "2024-02-30"}]
    with pytest.raises(InputError, match=r"1 value\(s\) of ordered_at cannot be read"):
        loaded(written_as(tmp_path, rows, "where = \"ordered_at < '2025-01-01'\""), tmp_path)


def test_ids_that_a_query_renames_stay_texts(tmp_path: Path) -> None:
    rows = [{"id": f"{k:04d}", "who": f"{k:03d}", "at": "2024-05-01T10:00:00Z", "n": "1"} for k in range(5)]
    (tmp_path / "a.csv").write_text(rendered(rows))
    query = "SELECT a.id AS order_id, a.who AS customer_id, a.at AS ordered_at, a.n * 2 AS amount FROM a"
    loaded(Written(f'query = "{query}"\nfiles = {{ a = "a.csv" }}'), tmp_path)
    with Store.read(tmp_path / "sources.json").connect(tmp_path / "sources.json") as connection:
        found = connection.sql("SELECT order_id, customer_id FROM orders ORDER BY 1").fetchall()
    assert found == [(row["id"], PSEUDONYMS(row["who"])) for row in rows]


def test_parts_whose_names_differ_by_case_are_one_column(tmp_path: Path) -> None:
    pq.write_table(arrow(ROWS[:300]), tmp_path / "o-1.parquet")
    pq.write_table(arrow(ROWS[300:]).rename_columns([name.title() for name in ROWS[0]]), tmp_path / "o-2.parquet")
    columns = {**COLUMNS, "ordered_at": "min(ordered_at)", "amount": "sum(amount)"}
    loaded(Written('path = "o-*.parquet"\ngroup_by = "order_id, customer_id"', columns), tmp_path)
    assert total(tmp_path) == sum(row["amount"] for row in ROWS)


def test_a_date_beside_times_of_another_part_is_the_end_of_its_day(tmp_path: Path) -> None:
    pq.write_table(arrow(ROWS[:1]), tmp_path / "o-1.parquet")
    pq.write_table(arrow(ROWS[1:2], ordered_at=lambda v: pa.array([date(2024, 5, 1)])), tmp_path / "o-2.parquet")
    columns = {**COLUMNS, "ordered_at": "min(ordered_at)", "amount": "sum(amount)"}
    loaded(Written('path = "o-*.parquet"\ngroup_by = "order_id, customer_id"', columns), tmp_path)
    assert local_times(tmp_path) == [naive(ROWS[0]["ordered_at"]), datetime(2024, 5, 1, 23, 59, 59, 999999)]


def test_a_number_other_than_0_and_1_is_no_consent(tmp_path: Path) -> None:
    pq.write_table(pa.table({"c": ["a"], "at": [datetime(2024, 5, 1)], "p": ["marketing"], "g": [2]}), tmp_path / "consents.parquet")
    tables = "[tables.consents]\npath = 'consents.parquet'\n[tables.consents.columns]\n"
    tables += "customer_id = 'c'\nchanged_at = 'at'\npurpose = 'p'\ngranted = 'g'\n"
    with pytest.raises(InputError, match="a number other than 0 and 1"):
        loaded(csv_of(tmp_path, texts(ROWS[:3])), tmp_path, "", tables)


def test_a_return_of_an_order_of_somebody_else_is_told_and_counts(tmp_path: Path) -> None:
    written, tables = cancelled(tmp_path, True)
    returns = [{"r": "R1", "customer_id": "b", "at": "2024-05-02T11:00:00Z", "n": "1", "amount": "100.00", "o": "OX1"}]
    (tmp_path / "returns.csv").write_text(rendered(returns))
    assert judged(written, tmp_path, "", tables)["returns.order_id.unmatched"].broken == 1


def test_who_is_no_longer_left_out_is_told_again(tmp_path: Path) -> None:
    rows = with_guests("Guest")
    for more, told in (('[identity]\nnot_customers = ["guest"]\n', True), ('[identity]\nnot_customers = ["Guest"]\n', False), ("", True)):
        found = judged(csv_of(tmp_path, rows), tmp_path, more)
        assert bool(found["orders.customer_id.placeholder"].broken) is told


def test_few_orders_of_a_shop_that_sells_less_are_no_strays() -> None:
    days = [(date(2022, 1, 1) + timedelta(days=k), 100) for k in range(200)]
    days += [(date(2022, 8, 10) + timedelta(days=k), 4) for k in range(300)]
    assert Orders(*zip(*days, strict=True)).strays == (0, 0)


def test_old_times_without_a_zone_are_told(tmp_path: Path) -> None:
    table = arrow(ROWS[:3], ordered_at=lambda v: pa.array([naive(m.as_py()) for m in v], pa.timestamp("ns")))
    pq.write_table(table, tmp_path / "o.parquet", use_deprecated_int96_timestamps=True)
    found = loaded(Written('path = "o.parquet"'), tmp_path)
    assert found.reading == {"orders.ordered_at: INT96 times, which tell no zone, taken as local": 1}


@pytest.mark.parametrize("condition", ["CAST(order_id AS INT) > 0", "1 / (amount - amount) > 0 AND CAST(sku AS INT) > 1"])
def test_a_condition_that_fails_names_no_value(condition: str, tmp_path: Path) -> None:
    rows = [{**row, "order_id": "secret" if k == 7 else row["order_id"]} for k, row in enumerate(texts(ROWS[:20]))]
    with pytest.raises(InputError) as caught:
        loaded(written_as(tmp_path, rows, f'where = "{condition}"'), tmp_path)
    assert not any(word in str(caught.value) for word in ("secret", "äbcé"))


@pytest.mark.parametrize(("duplicates", "lines"), [("", 2), ('duplicates = "drop"', 1)])
def test_a_copied_file_is_seen_through_a_query(duplicates: str, lines: int, tmp_path: Path) -> None:
    rows = [{"order_id": row["order_id"], "quantity": "1", "amount": row["amount"]} for row in texts(ROWS)]
    for name in ("lines-1.csv", "lines-2.csv"):
        (tmp_path / name).write_text(rendered(rows))
    tables = (
        f"\n[tables.order_lines]\nquery = 'SELECT * FROM l'\nfiles = {{ l = 'lines-*.csv' }}\n{duplicates}\n[tables.order_lines.columns]\n"
    )
    tables += "order_id = 'order_id'\nquantity = 'quantity'\namount = 'amount'\n"
    found = judged(csv_of(tmp_path, texts(ROWS)), tmp_path, "", tables)
    store = Store.read(tmp_path / "sources.json")
    assert store.rows["order_lines"] == lines * len(rows)
    assert (found["order_lines.repeats"].broken, found["order_lines.repeats"].severity) == (len(rows), "warn" if duplicates else "block")
    assert sum(store.reading.values()) == (len(rows) if duplicates else 0)


def test_a_folder_named_like_a_column_does_not_take_its_place(tmp_path: Path) -> None:
    (tmp_path / "amount=7").mkdir()
    pq.write_table(arrow(ROWS), tmp_path / "amount=7" / "o.parquet")
    loaded(Written('path = "amount=*/o.parquet"'), tmp_path)
    assert total(tmp_path) == sum(row["amount"] for row in ROWS)


@pytest.mark.parametrize("form", ['="{0}"', "'{0}'", '"{0}"'])
def test_ids_that_are_still_in_quotes_are_told(form: str, tmp_path: Path) -> None:
    rows = [{**row, "customer_id": form.format(row["customer_id"])} for row in texts(ROWS)]
    found = judged(csv_of(tmp_path, rows), tmp_path)
    assert broken(found) == {"orders.customer_id.quoted": len(rows)}


def test_parts_with_copies_are_not_read_again(tmp_path: Path) -> None:
    for number in range(2):
        pq.write_table(arrow(ROWS[number * 300 : 400 + number * 300]), tmp_path / f"orders-{number}.parquet")
    first = loaded(Written('path = "orders-*.parquet"'), tmp_path)
    made = {part: part.stat().st_mtime_ns for part in (tmp_path / "parts" / "orders").iterdir()}
    assert first.copies == {"orders": 100}
    assert loaded(Written('path = "orders-*.parquet"'), tmp_path).hashes == first.hashes
    assert {part: part.stat().st_mtime_ns for part in (tmp_path / "parts" / "orders").iterdir()} == made


def workbook(folder: Path, *rows: list[object], style: str = "General", sheets: int = 1) -> Written:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (list(COLUMNS), *rows):
        book.active.append(row)
    for cell in book.active["C"]:
        cell.number_format = style
    for _ in range(sheets - 1):
        book.create_sheet()
    book.save(folder / "orders.xlsx")
    return Written('path = "orders.xlsx"')


def test_a_day_in_excel_is_known_at_its_end_and_a_midnight_is_one(tmp_path: Path) -> None:
    loaded(workbook(tmp_path, ["1", "a", datetime(2024, 5, 1), 1], style="yyyy-mm-dd"), tmp_path)
    assert local_times(tmp_path) == [datetime(2024, 5, 1, 23, 59, 59, 999999)]
    loaded(workbook(tmp_path, ["1", "a", datetime(2024, 5, 1), 1], style="yyyy-mm-dd hh:mm"), tmp_path)
    assert local_times(tmp_path) == [datetime(2024, 5, 1)]


@pytest.mark.parametrize(
    ("row", "sheets", "told"),
    [
        (["1", "a", datetime(2024, 5, 1), "=2+3"], 1, "line 2 has a formula without its value"),
        (["1", 1e17, datetime(2024, 5, 1), 1], 1, "a number too large to keep all its digits"),
        (["1", "a", datetime(2024, 5, 1), 1], 2, "say which one: sheet = 'Sheet'"),
    ],
)
def test_a_workbook_that_leaves_something_open_is_refused(row: list[object], sheets: int, told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        loaded(workbook(tmp_path, row, sheets=sheets), tmp_path)


@pytest.mark.parametrize("content", [b"", b"no workbook"])
def test_a_broken_workbook_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "orders.xlsx").write_bytes(content)
    with pytest.raises(InputError, match=r"is empty|is no workbook"):
        loaded(Written('path = "orders.xlsx"'), tmp_path)
