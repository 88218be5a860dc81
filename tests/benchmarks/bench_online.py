"""Features of a request: one customer, 16 and 1,000 at once, from canonical tables in memory to the arrays that a model takes.

The sample's customers of about 12 orders; a request of many is compared with as many requests of one.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from features import engines, mapping, reduce, sources, table
from features.pseudonym import of_dataset
from features.table import Manifest, OnlineRows
from tests.benchmarks.bench_features import _best, _manifest, _wide
from tests.benchmarks.result import Result

MANY = (16, 1000)
TYPICAL_ORDERS = 12
REPEATS = 30


@dataclass(frozen=True)
class Requests:
    """The sample's tables, its manifest with fitted scores, and what computes a request."""

    connection: duckdb.DuckDBPyConnection
    manifest: Manifest
    engine: duckdb.DuckDBPyConnection
    statements: dict[str, str]

    @property
    def moment(self) -> datetime:
        """The test snapshot."""
        assert self.manifest.test is not None
        return self.manifest.test

    def tables(self, customers: int) -> dict[str, pa.Table]:
        """Canonical tables of the customers nearest to the typical number of orders."""
        chosen = f"(SELECT customer_id FROM orders GROUP BY 1 ORDER BY abs(count(*) - {TYPICAL_ORDERS}), 1 LIMIT {customers})"
        found = {}
        for name in self.manifest.tables:
            key = f"order_id IN (SELECT order_id FROM orders WHERE customer_id IN {chosen})"
            where = key if name == "order_lines" else f"customer_id IN {chosen}"
            found[name] = self.connection.sql(f"SELECT * FROM {name} WHERE {where}").to_arrow_table()
        return found

    def wide(self, tables: dict[str, pa.Table]) -> Callable[[], Any]:
        """The rival: one SQL statement on the same tables."""
        for name, rows in tables.items():
            self.engine.register(name, rows)
        return lambda: self.engine.sql(_wide(self.moment)).to_arrow_table()

    def rows(self, tables: dict[str, pa.Table]) -> OnlineRows:
        """The answer to a request."""
        return table.online_rows(self.engine, self.statements, tables, self.moment, self.manifest)


def run() -> Iterator[Result]:
    """All benchmarks of requests."""
    with tempfile.TemporaryDirectory() as folder:
        requests = _requests(Path(folder))
        alone = requests.tables(1)
        one = _milliseconds(lambda: requests.rows(alone))
        arguments = requests.engine, requests.statements, alone, requests.moment, requests.manifest
        yield Result("features.online.1", one, "ms", "the same as an Arrow table", _milliseconds(lambda: table.online(*arguments)))
        yield Result("features.online.1.sql", one, "ms", "wide SQL in DuckDB, 36 features", _milliseconds(requests.wide(alone)))
        for customers in MANY:
            several = requests.tables(customers)
            assert len(requests.rows(several)) > customers / 2, "most of them are worth predicting"
            taken = _milliseconds(lambda several=several: requests.rows(several))  # type: ignore[misc]
            yield Result(f"features.online.{customers}", taken, "ms", f"{customers} requests of one", customers * one)


def _requests(folder: Path) -> Requests:
    """The sample through the batch, for the scores that are fitted there."""
    file, dataset = folder / "sources.json", mapping.read()
    store = sources.load(dataset, file, of_dataset(dataset))
    connection = store.connect(file)
    start = _manifest(dataset, store, connection)
    base = start.snapshots[:1]
    with engines.raw_tables(store, file, start, start.snapshots, dataset.identity) as (raw, _):
        manifest = table.build(raw, start, base, store.customers, folder / "features.parquet")
    return Requests(connection, manifest, reduce.request_engine(), reduce.compiled(manifest.tables))


def _milliseconds(work: Callable[[], Any]) -> float:
    return _best(work, REPEATS) * 1000
