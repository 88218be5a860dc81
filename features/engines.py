"""What runs the two steps: DuckDB in this process, or Spark on any master (``HOLDFAST_ENGINE=spark``, `spark.py`).

Both run the same Ibis relations and the same fold.
"""

import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from features import identity, reduce, table
from features.mapping import Identity
from features.profile import ORDER_NO, PERSON, from_arrow
from features.settings import Settings
from features.sql import literal
from features.store import Store
from features.table import Manifest

FOLD_EVENTS = 1_000_000
"""Events folded at once: bounds the memory of a feature run."""
STAGED_ROWS = 15_000_000
"""Source rows from which the profile goes through the disk, in ranges of persons."""
AHEAD = 8
"""Folded tables that may wait to be written, of some 50 MB each."""
RANGE_ROWS = 15_000_000
"""Source rows of a range, about and at most."""


@contextmanager
def raw_tables(
    store: Store, file: Path, manifest: Manifest, moments: Sequence[datetime], guards: Identity
) -> Iterator[tuple[Iterator[pa.Table], identity.Joined | None]]:
    """Raw feature rows of some snapshots in the order of person ids, and what joining identities found.

    ``file`` is the store's. Works in the folder ``spill`` beside it, which is removed at the end.
    """
    spill = file.parent / "spill"
    try:
        with store.connect(file) as connection:
            joined = identity.join(connection, moments, guards) if "identities" in manifest.tables else None
            if Settings().engine == "spark":
                from features import spark

                yield spark.raw_tables(connection, store, file, manifest, moments, joined is not None, spill), joined
            else:
                yield _ahead(_duckdb(connection, store, manifest, moments, joined is not None, spill / "profile")), joined
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def _duckdb(
    connection: duckdb.DuckDBPyConnection, store: Store, manifest: Manifest, moments: Sequence[datetime], linked: bool, folder: Path
) -> Iterator[pa.Table]:
    """The profile kind by kind, then the fold; a large profile waits on the disk, in ranges of persons."""
    rows = sum(store.rows.values())
    if rows < STAGED_ROWS:
        parts = iter([in_memory(connection, manifest.tables, moments, linked)])
    else:
        parts = _through_the_disk(connection, manifest.tables, moments, linked, 1 if rows <= 16 * RANGE_ROWS else 2, folder)
    hull = connection.sql("FROM hull").to_arrow_table() if linked else None
    for tables in parts:
        for part in from_arrow(tables, hull).parts(FOLD_EVENTS):
            yield from table.fold(part, moments, manifest, manifest.snapshots)


def in_memory(
    connection: duckdb.DuckDBPyConnection, sources: Sequence[str], moments: Sequence[datetime], linked: bool
) -> dict[str, pa.Table]:
    """The profile's tables over the canonical tables that ``connection`` sees."""
    queries = _queries(connection, sources, moments, linked)
    return {kind: connection.sql(f"SELECT {columns} FROM {rows}").to_arrow_table() for kind, (columns, rows, _) in queries.items()}


def _through_the_disk(
    connection: duckdb.DuckDBPyConnection, sources: Sequence[str], moments: Sequence[datetime], linked: bool, digits: int, folder: Path
) -> Iterator[dict[str, pa.Table]]:
    """The profile of one range of persons after another: those whose ids, which are hexadecimal, begin with the same digits."""
    for kind, (columns, rows, person) in _queries(connection, sources, moments, linked).items():
        (folder / kind).mkdir(parents=True)
        if linked:
            rows, person = f"{rows} LEFT JOIN hull AS h ON h.customer_id = {person}", f"coalesce(h.person_id, {person})"
        chosen = f"SELECT {columns}, left({person}, {digits}) AS range FROM {rows}"
        connection.execute(f"COPY ({chosen}) TO {literal(folder / kind)} (FORMAT parquet, COMPRESSION lz4, PARTITION_BY (range))")
    connection.execute("DROP TABLE numbered")
    for name in sorted({place.name for place in folder.glob("*/range=*")}):
        places = sorted(folder.glob(f"*/{name}"))
        yield {place.parent.name: pq.read_table(place, partitioning=None) for place in places}
        for place in places:
            shutil.rmtree(place)


def _queries(
    connection: duckdb.DuckDBPyConnection, sources: Sequence[str], moments: Sequence[datetime], linked: bool
) -> dict[str, tuple[str, str, str]]:
    """Columns, rows and customer of each of the profile's tables, as SQL.

    Orders are numbered in a table: the engine finds the order of a line faster than Arrow does outside it (`profile.ORDER_NO`).
    """
    relations = {kind: reduce.to_sql(relation) for kind, relation in reduce.relations(sources, moments).items()}
    connection.execute(f"CREATE OR REPLACE TEMP TABLE numbered AS {relations['order']}")
    found = {}
    for kind, sql in relations.items():
        if kind == "order":
            found[kind] = (f"n.* EXCLUDE (order_id), n.rowid AS {ORDER_NO}", "numbered AS n", "n.customer_id")
        elif kind == "return":
            columns = f"r.* EXCLUDE (order_id), n.rowid AS {ORDER_NO}"
            found[kind] = (columns, f"({sql}) AS r LEFT JOIN numbered AS n ON n.order_id = r.order_id", "r.customer_id")
        elif reduce.KINDS[kind].owned:
            found[kind] = ("r.*", f"({sql}) AS r", "r.customer_id")
        else:
            columns = f"r.* EXCLUDE (order_id), n.rowid AS {ORDER_NO}"
            found[kind] = (columns, f"({sql}) AS r JOIN numbered AS n ON n.order_id = r.order_id", "n.customer_id")
    if linked:
        found[PERSON] = ("r.customer_id, r.moment AS at, r.person_id", "persons AS r", "r.customer_id")
    return found


def _ahead(items: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same items, made in a thread while those before are used: folding and writing overlap."""
    worker = ThreadPoolExecutor(1)
    try:
        coming = deque(worker.submit(next, items, None) for _ in range(AHEAD))
        while (item := coming.popleft().result()) is not None:
            coming.append(worker.submit(next, items, None))
            yield item
    finally:
        worker.shutdown(cancel_futures=True)
