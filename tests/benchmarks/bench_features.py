"""Features: reduce and fold against one wide SQL of filtered aggregates, and against pandas, on the sample's rows.

The rivals compute only the additive window features and recency (36 of them); Holdfast
computes all of them, the label, stages and weekly sequences, so the comparison leans towards the rivals.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from features import engines, mapping, reduce, sources, table
from features.domain import WINDOWS_DAYS
from features.mapping import Dataset
from features.profile import from_arrow
from features.pseudonym import of_dataset
from features.snapshots import Orders, schedule
from features.store import Store
from tests.benchmarks.result import Result
from validation import stages

REPEATS = 3


def run() -> Iterator[Result]:
    """All feature benchmarks."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sources.json"
        dataset = mapping.read()
        store = sources.load(dataset, file, of_dataset(dataset))
        with store.connect(file) as connection:
            manifest = _manifest(dataset, store, connection)
            moments = list(manifest.snapshots)
            ours = _best(lambda: list(engines._duckdb(connection, store, manifest, moments, False, Path(folder))))
            wide = _best(lambda: [connection.sql(_wide(moment)).to_arrow_table() for moment in moments])
            frames = connection.sql(_LINES).df()
            pandas = _best(lambda: [_pandas(frames, moment) for moment in moments], 1)
            yield Result(f"features.batch.{len(moments)}_snapshots", ours, "s", "wide SQL in DuckDB, 36 features", wide)
            yield Result(f"features.batch.{len(moments)}_snapshots.pandas", ours, "s", "pandas, 36 features", pandas)
            yield from _one_customer(connection, manifest)


def _manifest(dataset: Dataset, store: Store, connection: duckdb.DuckDBPyConnection) -> table.Manifest:
    split, latest = schedule(dataset, *Orders.of(connection).span)
    return replace(stages._manifest(dataset, store), snapshots=split.labelled, test=split.test, latest=latest)


def _one_customer(connection: duckdb.DuckDBPyConnection, manifest: table.Manifest) -> Iterator[Result]:
    query = "SELECT customer_id FROM orders GROUP BY 1 ORDER BY abs(count(*) - 12), 1 LIMIT 1"
    customer = connection.sql(query).fetchall()[0][0]
    assert manifest.test is not None
    one, tables = reduce.request_engine(), {}
    for name in manifest.tables:
        key = "order_id IN (SELECT order_id FROM orders WHERE customer_id = ?)" if name == "order_lines" else "customer_id = ?"
        tables[name] = connection.execute(f"SELECT * FROM {name} WHERE {key}", [customer]).to_arrow_table()
        one.register(name, tables[name])
    statements, test = reduce.compiled(manifest.tables), manifest.test
    ours = _best(lambda: list(table.fold(from_arrow(reduce.of_tables(one, statements, tables, test)), [test], manifest)), 30) * 1000
    wide = _best(lambda: one.sql(_wide(manifest.test)).to_arrow_table(), 30) * 1000
    yield Result("features.one_customer", ours, "ms", "wide SQL in DuckDB, 36 features", wide)


_LINES = """SELECT o.customer_id, o.order_id, o.ordered_at, l.product_id, CAST(l.quantity AS DOUBLE) AS units,
            CAST(l.amount AS DOUBLE) AS spend FROM order_lines l JOIN orders o USING (order_id)"""


def _wide(moment: Any) -> str:
    parts = [f"date_diff('second', max(ordered_at), TIMESTAMP '{moment}') / 86400.0 AS recency_days"]
    for days in WINDOWS_DAYS:
        where = f"FILTER (ordered_at > TIMESTAMP '{moment}' - INTERVAL {days} DAY)"
        parts.append(
            f"count(DISTINCT order_id) {where}, sum(spend) {where}, sum(units) {where}, count(*) {where}, count(DISTINCT product_id) {where}"
        )
    return f"SELECT customer_id, {', '.join(parts)} FROM ({_LINES}) WHERE ordered_at <= TIMESTAMP '{moment}' GROUP BY 1"


def _pandas(lines: Any, moment: Any) -> Any:
    import pandas as pd

    past = lines[lines["ordered_at"] <= moment]
    found = [(pd.Timestamp(moment) - past.groupby("customer_id")["ordered_at"].max()).dt.total_seconds() / 86400]
    for days in WINDOWS_DAYS:
        recent = past[past["ordered_at"] > pd.Timestamp(moment) - pd.Timedelta(days=days)].groupby("customer_id")
        found += [recent["order_id"].nunique(), recent["spend"].sum(), recent["units"].sum(), recent.size(), recent["product_id"].nunique()]
    return pd.concat(found, axis=1).fillna(0)


def _best(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
