"""The customer data layer at scale: 20 windowed RFM features against hand-written rivals, then all features of all sources.

The rivals read the same Parquet files and compute the same 20 features: recency, frequency, monetary value, tenure, and orders,
spend, units and lines of four windows. Holdfast computes the whole families `windows` and `rfm` (36) for that figure.
`make bench ROWS=100000000` also runs the full set at that size (half an hour, tens of gigabytes of disk).
"""

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from features import engines, mapping, reduce, rfm, table, windows
from features.history import as_of
from features.mapping import Dataset
from features.memory import PeakMemory
from features.profile import from_arrow
from features.pseudonym import of_dataset
from features.simulate import simulate
from features.sources import load
from features.store import Store
from tests.benchmarks.result import Result
from validation.stages import _manifest

SNAPSHOT = datetime(2025, 10, 1)
DAYS = (30, 90, 180, 365)
TEN_MILLION = 10_000_000
ROWS_PER_CUSTOMER = 48.4
"""Order lines and events of a simulated customer."""
TWELVE = [datetime(2025, month, 1) for month in range(1, 13)]


def run() -> Iterator[Result]:
    """All benchmarks of scale."""
    sizes = [1_000_000, TEN_MILLION, *([int(os.environ["ROWS"])] if "ROWS" in os.environ else [])]
    with tempfile.TemporaryDirectory() as folder:
        twenty = list(_twenty(Path(folder) / "lines"))
        yield from twenty
        rate = None
        for size in sizes:
            seconds, rows, results = _everything(Path(folder) / str(size), size)
            rate = rate or rows / seconds
            yield from results
            yield Result(f"features.all.{rows / 1e6:.0f}M_rows", rows / seconds, "rows/s", "same, smallest size", rate, True)
            if size == TEN_MILLION:
                yield Result("features.all.10M_rows.seconds", seconds, "s", "20 features of 10M order lines", twenty[0].value)


def _shop(folder: Path, customers: int, **given: float) -> tuple[Dataset, Store, Path]:
    dataset = mapping.read(simulate(folder / "shop", customers, **given))
    file = folder / "sources.json"
    store = load(dataset, file, of_dataset(dataset))
    store.write(file)
    return dataset, store, file


def _twenty(folder: Path) -> Iterator[Result]:
    _, store, file = _shop(folder, 250_000, lines_per_customer=40.0, events_per_customer=1.0)
    rows = store.rows["order_lines"]
    paths = {name: store.paths(file, name) for name in ("orders", "order_lines")}
    rivals = {"DuckDB SQL": _duckdb, "polars lazy": _polars, "pandas": _pandas}
    found = dict.fromkeys((*rivals, "ours"), math.inf)
    for _ in range(3):  # in turn, so that a slow minute of the machine is everybody's
        found["ours"] = min(found["ours"], _seconds(lambda: _ours(store, file), 1))
        for name, rival in rivals.items():
            found[name] = min(found[name], _seconds(lambda rival=rival: rival(paths), 1))
    for name in rivals:
        yield Result(f"features.20_windowed_rfm.{rows / 1e6:.0f}M_rows", found["ours"], "s", f"{name}, 20 features", found[name])


def _ours(store: Store, file: Path) -> int:
    """Reduce of the orders and fold of the families `rfm` and `windows`, as for a shop that maps orders and lines without products."""
    with store.connect(file) as connection:
        lines = "SELECT * REPLACE (NULL::VARCHAR AS product_id, NULL::VARCHAR AS category, NULL::VARCHAR AS brand) FROM order_lines"
        connection.execute(f"CREATE OR REPLACE TEMP VIEW order_lines AS {lines.replace('order_lines', 'memory.order_lines')}")
        h = as_of(from_arrow(engines.in_memory(connection, ["orders", "order_lines"], [SNAPSHOT], False)), SNAPSHOT, 90)
    features = rfm.FAMILY.fold(h) | windows.FAMILY.fold(h)
    return int(pa.table({"customer_id": h.customer_id} | {name: pa.array(values) for name, values in features.items()}).num_rows)


_PER_ORDER = """SELECT o.customer_id, o.order_id, o.ordered_at, sum(l.amount)::DOUBLE AS spend, sum(l.quantity)::DOUBLE AS units, count(*) AS lines
    FROM read_parquet($orders) o JOIN read_parquet($order_lines) l USING (order_id)
    WHERE greatest(o.ordered_at, o.arrived_at) <= $t AND (o.cancelled_at IS NULL OR o.cancelled_at > $t) GROUP BY ALL"""


def _duckdb(paths: dict[str, list[str]]) -> int:
    parts = [
        "date_diff('microsecond', max(ordered_at), $t) / 864e8 AS recency",
        "date_diff('microsecond', min(ordered_at), $t) / 864e8 AS tenure",
    ]
    parts += ["count(*) AS frequency", "sum(spend) AS monetary"]
    for days in DAYS:
        where = f"FILTER (ordered_at > $t - INTERVAL {days} DAY)"
        parts.append(f"count(*) {where}, sum(spend) {where}, sum(units) {where}, sum(lines) {where}")
    query = f"SELECT customer_id, {', '.join(parts)} FROM ({_PER_ORDER}) GROUP BY customer_id"
    return int(duckdb.connect().execute(query, {**paths, "t": SNAPSHOT}).to_arrow_table().num_rows)


def _polars(paths: dict[str, list[str]]) -> int:
    import polars as pl

    lines = (
        pl.scan_parquet(paths["order_lines"])
        .group_by("order_id")
        .agg(
            pl.col("amount").sum().cast(pl.Float64).alias("spend"),
            pl.col("quantity").sum().cast(pl.Float64).alias("units"),
            pl.len().alias("lines"),
        )
    )
    known = (pl.max_horizontal("ordered_at", "arrived_at") <= SNAPSHOT) & (
        pl.col("cancelled_at").is_null() | (pl.col("cancelled_at") > SNAPSHOT)
    )
    orders = pl.scan_parquet(paths["orders"]).filter(known).join(lines, on="order_id")
    age = (pl.lit(SNAPSHOT) - pl.col("ordered_at")).dt.total_microseconds() / 864e8
    wanted = [age.min().alias("recency"), age.max().alias("tenure"), pl.len().alias("frequency"), pl.col("spend").sum().alias("monetary")]
    for days in DAYS:
        recent = age < days
        wanted.append(recent.sum().alias(f"orders_{days}"))
        wanted += [pl.col(name).filter(recent).sum().alias(f"{name}_{days}") for name in ("spend", "units", "lines")]
    return int(orders.group_by("customer_id").agg(wanted).collect(engine="streaming").height)


def _pandas(paths: dict[str, list[str]]) -> int:
    import pandas as pd

    orders = pd.concat([pd.read_parquet(path) for path in paths["orders"]])
    lines = pd.concat([pd.read_parquet(path, columns=["order_id", "amount", "quantity"]) for path in paths["order_lines"]])
    known = orders[["ordered_at", "arrived_at"]].max(axis=1) <= SNAPSHOT
    orders = orders[known & ~(orders["cancelled_at"] <= SNAPSHOT)]
    lines = lines.astype({"amount": float, "quantity": float}).assign(lines=1)
    sums = lines.groupby("order_id")[["amount", "quantity", "lines"]].sum()
    joined = orders.merge(sums, left_on="order_id", right_index=True, suffixes=("_order", ""))
    age = (pd.Timestamp(SNAPSHOT) - joined["ordered_at"]).dt.total_seconds() / 86400
    joined = joined.assign(age=age)
    by = joined.groupby("customer_id")
    found = [by["age"].min(), by["age"].max(), by.size(), by["amount"].sum()]
    for days in DAYS:
        recent = joined[joined["age"] < days].groupby("customer_id")
        found += [recent.size(), recent["amount"].sum(), recent["quantity"].sum(), recent["lines"].sum()]
    return len(pd.concat(found, axis=1).fillna(0))


def _everything(folder: Path, size: int) -> tuple[float, int, list[Result]]:
    """All features of all sources at one snapshot and at twelve: seconds of the one, order lines and events, and the results."""
    dataset, store, file = _shop(folder, round(size / ROWS_PER_CUSTOMER))
    rows = store.rows["order_lines"] + store.rows["events"]
    name, peak = f"features.all.{rows / 1e6:.0f}M_rows", PeakMemory()
    peak.watch()
    one = _seconds(lambda: _build(dataset, store, file, [SNAPSHOT]), 1)
    results = [Result(f"{name}.peak_memory", peak.megabytes() / 1024, "GiB", "the bound", 16.0)]
    twelve = _seconds(lambda: _build(dataset, store, file, TWELVE), 1)
    results.append(Result(f"{name}.12_snapshots", twelve, "s", "1 snapshot", one))
    return one, rows, [*results, *(_online(dataset, store, file) if size < TEN_MILLION else ())]


def _online(dataset: Dataset, store: Store, file: Path) -> Iterator[Result]:
    """Features of one customer with about 200 events, and of 1,000 customers, all sources, as the service computes them."""
    _build(dataset, store, file, [SNAPSHOT])
    manifest = table.read_manifest(file.parent / "features.parquet")
    statements = reduce.compiled(manifest.tables)
    with store.connect(file) as connection, reduce.request_engine() as own:
        busy = "SELECT customer_id FROM events GROUP BY 1 ORDER BY abs(count(*) - 170), 1 LIMIT 1"
        many = "SELECT DISTINCT customer_id FROM orders ORDER BY 1 LIMIT 1000"
        for name, query, budget in (("one_customer", busy, 15.0), ("1000_customers", many, 500.0)):
            tables = _histories(connection, manifest, query)
            taken = _seconds(lambda tables=tables: table.online(own, statements, tables, SNAPSHOT, manifest), 20) * 1000
            yield Result(f"features.online.all_sources.{name}", taken, "ms", "the budget", budget)


def tables_of(manifest: table.Manifest) -> tuple[str, ...]:
    """The tables that a request can bring: all but the identities."""
    return tuple(name for name in manifest.tables if name != "identities")


def _histories(connection: duckdb.DuckDBPyConnection, manifest: table.Manifest, query: str) -> dict[str, pa.Table]:
    """The canonical tables of some customers, in memory as a request brings them."""
    mine = f"customer_id IN ({query})"
    where = dict.fromkeys(("order_lines", "deliveries"), f"order_id IN (SELECT order_id FROM orders WHERE {mine})")
    return {name: connection.sql(f"SELECT * FROM {name} WHERE {where.get(name, mine)}").to_arrow_table() for name in tables_of(manifest)}


def _build(dataset: Dataset, store: Store, file: Path, moments: list[datetime]) -> None:
    manifest = replace(_manifest(dataset, store), snapshots=tuple(moments))
    with engines.raw_tables(store, file, manifest, moments, dataset.identity) as (raw, _):
        table.build(raw, manifest, moments, store.customers, file.parent / "features.parquet")


def _seconds(work: Callable[[], Any], repeats: int = 2) -> float:
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)
