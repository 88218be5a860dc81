"""What runs the two steps: DuckDB in this process, or Spark on any master (``HOLDFAST_ENGINE=spark``).

Both run the same Ibis expression and the same fold; on Spark the fold goes to the executors through ``mapInArrow``.
"""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from features import identity, reduce, table
from features.errors import InputError
from features.mapping import Identity
from features.settings import Settings
from features.store import Store, tables
from features.table import Manifest

_SPARK_OPTIONS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.timestampType": "TIMESTAMP_NTZ",  # times are the shop's local ones
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "100000",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.ansi.enabled": "true",
}
READ_ROWS = 50_000
STAGED_ROWS = 20_000_000
"""Source rows from which the profile is computed source by source, through the disk."""


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
                if joined:
                    _export(connection, spill)
                yield _spark(store, file, manifest, moments, joined is not None, spill), joined
            else:
                profiles = _profiles(connection, store, manifest, moments, joined is not None, spill / "profile")
                yield _ahead(_fold_all(profiles, manifest, moments)), joined
    finally:
        shutil.rmtree(spill, ignore_errors=True)


def _profiles(
    connection: duckdb.DuckDBPyConnection, store: Store, manifest: Manifest, moments: Sequence[datetime], persons: bool, folder: Path
) -> Iterator[pa.Table]:
    """The sorted profile in batches. A large one goes through the disk: computed source by source, sorted range by range of ids."""
    if sum(store.rows.values()) < STAGED_ROWS:
        yield from reduce.batches(connection, reduce.profile_sql(manifest.tables, moments, persons))
        return
    for number, stage in enumerate(reduce.stages(manifest.tables, moments, persons)):
        sql = ibis.to_sql(stage, dialect="duckdb")
        place = folder / f"stage={number}"
        place.mkdir(parents=True)
        ranged = f"SELECT *, left(person_id, 1) AS range FROM ({sql})"  # ids are hexadecimal: 16 ranges of like size
        connection.execute(f"COPY ({ranged}) TO '{place}' (FORMAT parquet, COMPRESSION lz4, PARTITION_BY (range))")
    columns, order = (", ".join(f'"{name}"' for name in names) for names in (reduce.PROFILE.names, reduce.SORTED_BY))
    for name in sorted({part.name for part in folder.glob("stage=*/range=*")}):
        rows = f"read_parquet('{folder}/stage=*/{name}/*.parquet', hive_partitioning = false)"
        yield from reduce.batches(connection, f"SELECT {columns} FROM {rows} ORDER BY {order}")


def _fold_all(profiles: Iterable[pa.Table], manifest: Manifest, moments: Sequence[datetime]) -> Iterator[pa.Table]:
    for profile in profiles:
        yield from table.fold(profile, moments, manifest, manifest.snapshots)


def _ahead(items: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same items, each made in a thread while the one before is used: folding and writing overlap."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = worker.submit(next, items, None)
            yield item


def _export(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("hull", "persons"):
        connection.execute(f"COPY {name} TO '{folder / name}.parquet' (FORMAT parquet)")


def _spark(store: Store, file: Path, manifest: Manifest, moments: Sequence[datetime], persons: bool, spill: Path) -> Iterator[pa.Table]:
    """The executors reduce, sort and fold by ranges of persons and write raw rows; here they are read in order."""
    session = _session()
    compiler = ibis.pyspark.connect(session)
    for name in tables(store.present):
        session.read.parquet(*store.paths(file, name)).createOrReplaceTempView(name)
    for name in ("hull", "persons") if persons else ():
        session.read.parquet(str(spill / f"{name}.parquet")).createOrReplaceTempView(name)
    profile = session.sql(compiler.compile(reduce.profile(manifest.tables, moments, persons)))
    ordered = profile.repartitionByRange("person_id").sortWithinPartitions(*reduce.SORTED_BY)

    def fold(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        parts = (pa.Table.from_batches([batch]).cast(reduce.PROFILE) for batch in batches)
        for found in _fold_all(reduce.whole_persons(parts), manifest, moments):
            yield from found.to_batches()

    schema = next(table.fold(reduce.PROFILE.empty_table(), moments[:1], manifest)).schema
    out = spill / "raw"
    ordered.mapInArrow(fold, _spark_schema(schema)).write.mode("overwrite").parquet(str(out))
    for part in sorted(out.glob("part-*.parquet")):
        for batch in pq.ParquetFile(part).iter_batches(READ_ROWS):
            yield pa.Table.from_batches([batch]).cast(schema)


def _session() -> Any:
    """The running Spark session, or one on the master that ``spark-submit`` or SPARK_MASTER gives (default: this machine)."""
    try:
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError:
        raise InputError("HOLDFAST_ENGINE = 'spark'", "pyspark is not installed", "pip install 'holdfast[spark]', and Java 17") from None
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("holdfast")
    if os.environ.get("SPARK_MASTER") is not None:
        builder = builder.master(os.environ["SPARK_MASTER"])
    for name, value in _SPARK_OPTIONS.items():
        builder = builder.config(name, value)
    try:
        session = builder.getOrCreate()
    except PySparkRuntimeError:
        raise InputError("HOLDFAST_ENGINE = 'spark'", "Spark did not start", "check that Java 17 is there, and SPARK_MASTER") from None
    session.sparkContext.setLogLevel("ERROR")
    session.conf.set("spark.sql.shuffle.partitions", str(4 * session.sparkContext.defaultParallelism))
    return session


def _spark_schema(schema: pa.Schema) -> Any:
    from pyspark.sql.pandas.types import from_arrow_schema

    return from_arrow_schema(schema, prefer_timestamp_ntz=True)
