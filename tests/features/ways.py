"""One shop of 120 customers, written in many ways; each ends in the same canonical tables. A new way is one line of `WAYS`."""

import bz2
import csv
import gzip
import io
import os
import random
import sqlite3
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

BERLIN = ZoneInfo("Europe/Berlin")
HEAD = 'name = "shop"\ntimezone = "Europe/Berlin"\ncurrency = "EUR"\npersonal = false\n'
Row = dict[str, Any]


def orders(customers: int = 120, seed: int = 5) -> list[Row]:
    """Orders by the hour; moments in UTC, none in an hour that a clock change makes doubtful."""
    rng = random.Random(seed)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    rows = []
    for customer in range(customers):
        for _ in range(rng.randint(3, 20)):
            moment = start + timedelta(days=rng.randint(0, 600), hours=rng.randint(6, 20), minutes=rng.randint(0, 59))
            cents = rng.choice([rng.randint(100, 99_999), 100 * rng.randint(1000, 2000)])
            rows.append(
                {"customer_id": 100_000 + customer, "ordered_at": moment, "amount": Decimal(cents) / 100, "sku": rng.choice("äbcé")}
            )
    rows.sort(key=lambda row: row["ordered_at"])
    return [{"order_id": 7_000_000 + number, **row} for number, row in enumerate(rows)]


ROWS = orders()
COLUMNS = {"order_id": "order_id", "customer_id": "customer_id", "ordered_at": "ordered_at", "amount": "amount"}


@dataclass
class Written:
    """Where the orders lie: the keys of their table in the mapping file, and the columns."""

    place: str
    columns: dict[str, str] = field(default_factory=lambda: dict(COLUMNS))

    def mapping(self, folder: Path, more: str = "") -> Path:
        """The mapping file in a folder."""
        columns = "".join(f"{name} = {text!r}\n" if "'" not in text else f'{name} = "{text}"\n' for name, text in self.columns.items())
        file = folder / "shop.toml"
        file.write_text(f"{HEAD}{more}\n[tables.orders]\n{self.place}\n[tables.orders.columns]\n{columns}", encoding="utf-8")
        return file


def iso(moment: datetime) -> str:
    """In UTC, with a Z."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def naive(moment: datetime) -> datetime:
    """The shop's local time."""
    return moment.astimezone(BERLIN).replace(tzinfo=None)


def texts(
    rows: list[Row], at: Callable[[datetime], str] = iso, money: Callable[[Decimal], str] = str, id: Callable[[int], str] = str
) -> list[Row]:
    """Every field as a text."""
    return [
        {
            "order_id": id(row["order_id"]),
            "customer_id": id(row["customer_id"]),
            "ordered_at": at(row["ordered_at"]),
            "amount": money(row["amount"]),
            "sku": row["sku"],
        }
        for row in rows
    ]


def rendered(rows: list[Row], **dialect: Any) -> str:
    """CSV as Python writes it."""
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0].keys(), **{"lineterminator": "\n", **dialect})
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def csv_way(
    change: Callable[[str], str] = lambda text: text,
    name: str = "orders.csv",
    encode: Callable[[str], bytes] = lambda text: text.encode(),
    more: str = "",
    dialect: dict[str, Any] | None = None,
    **how: Any,
) -> Callable[[Path], Written]:
    """A way with one CSV file."""

    def write(folder: Path) -> Written:
        (folder / name).write_bytes(encode(change(rendered(texts(ROWS, **how), **(dialect or {})))))
        return Written(f'path = "{name}"\n{more}')

    return write


def arrow(rows: list[Row], **kinds: Any) -> pa.Table:
    """Orders as an Arrow table; ``kinds`` gives columns other values."""
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    columns["ordered_at"] = pa.array(columns["ordered_at"], pa.timestamp("us", "UTC"))
    columns["amount"] = pa.array([float(amount) for amount in columns["amount"]])
    return pa.table(columns | {name: make(columns[name]) for name, make in kinds.items()})


def parquet_way(more: str = "", **kinds: Any) -> Callable[[Path], Written]:
    """A way with one Parquet file."""

    def write(folder: Path) -> Written:
        pq.write_table(arrow(ROWS, **kinds), folder / "orders.parquet")
        return Written(f'path = "orders.parquet"\n{more}')

    return write


def swapped(amount: Decimal) -> str:
    """1.234,50."""
    return f"{amount:,.2f}".translate(str.maketrans(",.", ".,"))


def turned(rows: list[Row]) -> list[Row]:
    """Columns in another order."""
    return [dict(reversed(row.items())) for row in rows]


def parts(folder: Path) -> Written:
    """Several CSV files with columns in different orders."""
    (folder / "orders-1.csv").write_text(rendered(texts(ROWS[:300])), encoding="utf-8")
    (folder / "orders-2.csv").write_text(rendered(turned(texts(ROWS[300:])), delimiter=";"), encoding="utf-8")
    return Written('path = "orders-*.csv"')


def months(folder: Path) -> Written:
    """Parquet files of different types: whole numbers, decimals by a row without a customer, texts."""
    nobody = {**ROWS[0], "customer_id": None, "order_id": 1}
    pq.write_table(arrow(ROWS[:300]), folder / "orders-1.parquet")
    floats = {name: lambda values: pa.array([None if v is None else float(v) for v in values]) for name in ("order_id", "customer_id")}
    pq.write_table(arrow([*ROWS[300:600], nobody], **floats), folder / "orders-2.parquet")
    words = {name: lambda values: pa.array(map(str, values), pa.large_string()) for name in ("order_id", "customer_id")}
    pq.write_table(arrow(ROWS[600:], **words), folder / "orders-3.parquet")
    return Written('path = "orders-*.parquet"\nwhere = "customer_id IS NOT NULL"')


def strange(folder: Path) -> Written:
    """Columns of every type that the mapping does not name, one of them a namesake but for its capitals."""
    n = len(ROWS)
    more = {
        "Amount": pa.array([999.0] * n),
        "tags": pa.array([["a"]] * n),
        "person": pa.array([{"a": 1}] * n),
        "blob": pa.array([b"\0"] * n),
        "wide": pa.array([Decimal("1." + "0" * 30)] * n),
        "nothing": pa.nulls(n),
        "day": pa.array([datetime(2024, 1, 1).date()] * n),
        "clock": pa.array([datetime(2024, 1, 1).time()] * n),
    }
    table = arrow(ROWS)
    pq.write_table(pa.table({**more, **{name: table[name] for name in table.column_names}}), folder / "orders.parquet")
    return Written('path = "orders.parquet"')


def wider(folder: Path) -> Written:
    """CSV with columns that the mapping does not name."""
    rows = [{"Amount": "999", "note": 'a "b", c\nd', "when": "31/02/2024", **row, "x": "€ 1,2,3"} for row in texts(ROWS)]
    (folder / "orders.csv").write_text(rendered(rows), encoding="utf-8")
    return Written('path = "orders.csv"')


def sqlite(kinds: str, rows: list[Row]) -> Callable[[Path], Written]:
    """A table of SQLite with the given column types."""

    def write(folder: Path) -> Written:
        with sqlite3.connect(folder / "shop.db") as db:
            db.execute(f"CREATE TABLE orders ({kinds}, note BLOB)")
            marks = ", ".join("?" * 4)
            db.executemany(
                f"INSERT INTO orders (order_id, customer_id, ordered_at, amount) VALUES ({marks})",
                [[row[name] for name in COLUMNS] for row in rows],
            )
        return Written(f'database = "sqlite:///{folder / "shop.db"}"\ntable = "orders"')

    return write


def workbook(ids: Callable[[int], Any], at: Callable[[datetime], Any], style: str, **sheets: str) -> Callable[[Path], Written]:
    """A sheet of Excel; ``sheets`` has the name of a second one."""

    def write(folder: Path) -> Written:
        import openpyxl

        book = openpyxl.Workbook()
        sheet = book.active
        sheet.title = "Orders"
        sheet.append(["note", *COLUMNS])
        for row in ROWS:
            sheet.append(["é", ids(row["order_id"]), ids(row["customer_id"]), at(row["ordered_at"]), float(row["amount"])])
            sheet.cell(sheet.max_row, 4).number_format = style
        for title in sheets.values():
            book.create_sheet(title).append(["something else"])
        book.save(folder / "orders.xlsx")
        return Written('path = "orders.xlsx"' + ('\nsheet = "Orders"' if sheets else ""))

    return write


def duck(kinds: str) -> Callable[[Path], Written]:
    """A table of a DuckDB file with the given column types."""

    def write(folder: Path) -> Written:
        table = arrow(ROWS)
        with duckdb.connect(str(folder / "shop.duckdb")) as db:
            db.execute("SET TimeZone = 'UTC'")
            db.register("given", table)
            db.execute(f"CREATE TABLE orders AS SELECT {kinds}, [1] AS list FROM given")
        return Written('database = "shop.duckdb"\ntable = "orders"')

    return write


def expressions(folder: Path) -> Written:
    """Ids, amounts and times made by SQL over CSV; the conditions compare numbers and dates."""
    rows = [{**row, "pieces": "2", "price": str(Decimal(row["amount"]) / 2), "state": "ok"} for row in texts(ROWS, lambda m: str(naive(m)))]
    rows.append({**rows[0], "pieces": "-1", "order_id": "1"})
    rows.append({**rows[0], "state": "test", "order_id": "2"})
    (folder / "orders.csv").write_text(rendered(rows), encoding="utf-8")
    columns = {**COLUMNS, "order_id": "order_id || ''", "amount": "pieces * price", "ordered_at": "ordered_at + INTERVAL 0 DAY"}
    return Written("path = \"orders.csv\"\nwhere = \"pieces > 0 AND state <> 'test' AND ordered_at >= '2024-01-01'\"", columns)


def lines(folder: Path) -> Written:
    """Two lines an order, added up by ``group_by``."""
    rows = [
        {**row, "amount": str(part)} for row, given in zip(texts(ROWS), ROWS, strict=True) for part in (Decimal(1), given["amount"] - 1)
    ]
    (folder / "orders.csv").write_text(rendered(rows), encoding="utf-8")
    columns = {**COLUMNS, "ordered_at": "min(ordered_at)", "amount": "sum(amount)"}
    return Written('path = "orders.csv"\ngroup_by = "order_id, customer_id"', columns)


def query(folder: Path) -> Written:
    """Two files joined by SQL."""
    (folder / "a.csv").write_text(rendered([{"id": r["order_id"], "who": r["customer_id"]} for r in texts(ROWS)]), encoding="utf-8")
    pq.write_table(arrow(ROWS, order_id=lambda values: pa.array(map(float, values))), folder / "b.parquet")
    files = 'files = { a = "a.csv", b = "b.parquet" }'
    joined = "SELECT a.id AS order_id, a.who AS customer_id, b.ordered_at, b.amount FROM a JOIN b ON a.id = b.order_id"
    return Written(f'query = "{joined}"\n{files}')


def in_folder(name: str) -> Callable[[Path], Written]:
    """Orders in a folder of a strange name."""

    def write(folder: Path) -> Written:
        (folder / name).mkdir()
        pq.write_table(arrow(ROWS), folder / name / "orders.parquet")
        (folder / name / "more.csv").write_text("x\n")
        return Written(f'path = "{name}/orders.parquet"')

    return write


FLOATS = {name: lambda values: pa.array(map(float, values)) for name in ("order_id", "customer_id")}
DECIMALS = {name: lambda values: pa.array([Decimal(v) for v in values], pa.decimal128(38, 10)) for name in ("order_id", "customer_id")}
WORDS = {name: lambda values: pa.array(map(str, values)) for name in ("order_id", "customer_id")}
MARKED = {name: lambda values: pa.array([f" {v}\u00a0" for v in values]).dictionary_encode() for name in ("order_id", "customer_id")}
NAIVE = {"ordered_at": lambda values: pa.array([naive(m.as_py()) for m in values], pa.timestamp("ns"))}
LITE = "order_id {0}, customer_id {0}, ordered_at {1}, amount {2}"

WAYS: dict[str, Callable[[Path], Written]] = {
    "csv": csv_way(),
    "csv, semicolons and decimal commas": csv_way(dialect={"delimiter": ";"}, money=swapped),
    "csv, tabs": csv_way(dialect={"delimiter": "\t"}, name="orders.tsv"),
    "csv, bars": csv_way(dialect={"delimiter": "|"}, name="orders.txt"),
    "csv, everything in quotes": csv_way(dialect={"quoting": csv.QUOTE_ALL}),
    "csv, single quotes": csv_way(dialect={"quoting": csv.QUOTE_ALL, "quotechar": "'"}),
    "csv, byte-order mark": csv_way(encode=lambda text: text.encode("utf-8-sig")),
    "csv, lines of Windows": csv_way(dialect={"lineterminator": "\r\n"}),
    "csv, lines of an old Mac": csv_way(dialect={"lineterminator": "\r"}),
    "csv, gzip": csv_way(name="orders.csv.gz", encode=lambda text: gzip.compress(text.encode())),
    "csv, bzip2": csv_way(name="orders.csv.bz2", encode=lambda text: bz2.compress(text.encode())),
    "csv, zstd": csv_way(name="orders.csv.zst", encode=lambda text: zstd(text)),
    "csv, utf-16": csv_way(encode=lambda text: text.encode("utf-16")),
    "csv, windows-1252": csv_way(encode=lambda text: text.encode("cp1252")),
    "csv, sep=; of Excel": csv_way(lambda text: "sep=;\n" + text, dialect={"delimiter": ";"}),
    "csv, empty lines before and after": csv_way(lambda text: "\n\n" + text + "\n\n"),
    "csv, no end of the last line": csv_way(str.rstrip),
    "csv, columns in another order": csv_way(lambda text: rendered(turned(list(csv.DictReader(io.StringIO(text)))))),
    "csv, the header again in the middle": csv_way(lambda text: text + text.split("\n")[0] + "\n"),
    "csv, several files": parts,
    "csv, more columns": wider,
    "csv, ids as decimals": csv_way(id=lambda value: f"{value}.0"),
    "csv, ids with white space": csv_way(id=lambda value: f"  {value} \u3000"),
    "csv, times with an offset": csv_way(at=lambda m: m.astimezone(BERLIN).isoformat()),
    "csv, times with an odd offset": csv_way(at=lambda m: m.astimezone(ZoneInfo("Asia/Kathmandu")).strftime("%Y-%m-%d %H:%M:%S%z")),
    "csv, local times": csv_way(at=lambda m: str(naive(m))),
    "csv, local times without seconds": csv_way(at=lambda m: naive(m).strftime("%Y-%m-%d %H:%M")),
    "csv, German times": csv_way(at=lambda m: naive(m).strftime("%d.%m.%Y %H:%M:%S")),
    "csv, British times": csv_way(at=lambda m: naive(m).strftime("%d/%m/%Y %H:%M")),
    "csv, American times": csv_way(at=lambda m: naive(m).strftime("%m/%d/%Y %I:%M %p")),
    "csv, times of a format": csv_way(at=lambda m: naive(m).strftime("%H:%M on %d %B %Y"), more='time_format = "%H:%M on %d %B %Y"'),
    "csv, thousands": csv_way(money=lambda amount: f"{amount:,.2f}"),
    "csv, thousands in French": csv_way(money=lambda amount: f"{amount:,.2f}".replace(",", "\u202f").replace(".", ",")),
    "csv, amounts with an exponent": csv_way(money=lambda amount: f"{amount:.6E}"),
    "csv, amounts without zeros": csv_way(money=lambda amount: f"{amount.normalize():f}"),
    "csv, expressions": expressions,
    "csv, grouped lines": lines,
    "csv and parquet, a query": query,
    "parquet": parquet_way(),
    "parquet, decimals for ids": parquet_way(**FLOATS),
    "parquet, exact decimals for ids": parquet_way(**DECIMALS),
    "parquet, texts for ids": parquet_way(**WORDS),
    "parquet, a dictionary with white space": parquet_way(**MARKED),
    "parquet, local nanoseconds": parquet_way(**NAIVE),
    "parquet, milliseconds of another zone": parquet_way(ordered_at=lambda v: v.cast(pa.timestamp("ms", "America/New_York"))),
    "parquet, times as texts": parquet_way(ordered_at=lambda v: pa.array([m.as_py().astimezone(BERLIN).isoformat() for m in v])),
    "parquet, amounts as texts": parquet_way(amount=lambda v: pa.array([swapped(Decimal(str(m.as_py()))) for m in v])),
    "parquet, exact amounts": parquet_way(amount=lambda v: pa.array([Decimal(f"{m.as_py():.2f}") for m in v], pa.decimal128(12, 2))),
    "parquet, months of different types": months,
    "parquet, more columns of every type": strange,
    "sqlite, numbers": sqlite(
        LITE.format("INTEGER", "TEXT", "REAL"), [{**r, "amount": float(r["amount"]), "ordered_at": iso(r["ordered_at"])} for r in ROWS]
    ),
    "sqlite, texts": sqlite(LITE.format("TEXT", "DATETIME", "TEXT"), texts(ROWS, lambda m: str(naive(m)))),
    "excel": workbook(int, naive, "yyyy-mm-dd hh:mm"),
    "excel, decimals and texts, two sheets": workbook(float, lambda m: str(naive(m)), "@", second="Notes"),
    "duckdb, as they are": duck("* EXCLUDE (sku)"),
    "duckdb, texts": duck("COLUMNS(* EXCLUDE (sku))::VARCHAR"),
    "duckdb, huge numbers and local times": duck(
        "order_id::HUGEINT AS order_id, customer_id::DOUBLE AS customer_id, timezone('Europe/Berlin', ordered_at) AS ordered_at, amount"
    ),
    **{f"a folder {name!r}": in_folder(name) for name in ("a b", "Bob's", "50%", "a#b", "Bücher", "a[1]")},
}


def zstd(text: str) -> bytes:
    """Compressed by Arrow in a frame."""
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(text.encode())
    return bytes(out.getvalue())


@contextmanager
def machine(zone: str, language: str) -> Iterator[None]:
    """This process under another time zone and locale."""
    before = {name: os.environ.get(name) for name in ("TZ", "LC_ALL", "LANG")}
    os.environ |= {"TZ": zone, "LC_ALL": language, "LANG": language}
    time.tzset()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        time.tzset()


def with_marks(text: str) -> str:
    """The same text decomposed, as a Mac writes file names and exports."""
    return unicodedata.normalize("NFD", text)


def named(row: Row) -> str:
    """A UUID for a customer."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, str(row["customer_id"])))
