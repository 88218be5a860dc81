"""The same two steps on Spark: the kinds packed into one relation, sorted by person, folded by the executors through ``mapInArrow``."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features import reduce, table
from features.engines import FOLD_EVENTS
from features.errors import InputError
from features.profile import PERSON, from_arrow
from features.sql import literal
from features.store import Store, tables
from features.table import Manifest

READ_ROWS = 50_000
_OPTIONS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.timestampType": "TIMESTAMP_NTZ",  # times are the shop's local ones
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "100000",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.ansi.enabled": "true",
}
_PERSONS = pa.schema([("customer_id", pa.string()), ("at", pa.timestamp("us")), ("person_id", pa.string())])
_SCHEMAS = {name: kind.schema for name, kind in reduce.KINDS.items()} | {PERSON: _PERSONS}
"""Columns of each table of the profile."""
_SLOTS = {pa.timestamp("us"): "t", pa.string(): "s", pa.float64(): "m"}
_IBIS = {"t": "timestamp(6)", "s": "string", "m": "float64"}


def _slots(schema: pa.Schema) -> dict[str, str]:
    """Column of the packed relation (t1, s1, m1 ...) by column of the kind."""
    used = dict.fromkeys(_IBIS, 0)
    found = {}
    for field in schema:
        if field.name != "customer_id":
            used[_SLOTS[field.type]] += 1
            found[field.name] = f"{_SLOTS[field.type]}{used[_SLOTS[field.type]]}"
    return found


_ALL_SLOTS = sorted({slot for schema in _SCHEMAS.values() for slot in _slots(schema).values()})
PACKED = pa.schema(
    [("person_id", pa.string()), ("customer_id", pa.string()), ("kind", pa.int8())]
    + [(slot, next(kind for kind, letter in _SLOTS.items() if letter == slot[0])) for slot in _ALL_SLOTS]
)
"""Rows of all kinds: each kind's columns in slots of their type."""


def packed(relations: Mapping[str, ir.Table], linked: bool) -> ir.Table:
    """The profile's relations as one, with the id of who is to be folded together."""
    parts = []
    owners = reduce.canonical("orders").select("order_id", "customer_id")
    for name, rows in relations.items():
        if "customer_id" not in rows.columns:
            rows = rows.join(owners, "order_id")
        slots = {slot: rows[column] for column, slot in _slots(_SCHEMAS[name]).items()}
        absent = {slot: ibis.null(_IBIS[slot[0]]) for slot in _ALL_SLOTS if slot not in slots}
        kind = ibis.literal(list(_SCHEMAS).index(name), "int8")
        given = {"customer_id": rows.customer_id, "kind": kind} | slots | absent
        parts.append(rows.select(**{column: given[column] for column in PACKED.names[1:]}))
    united = ibis.union(*parts) if len(parts) > 1 else parts[0]
    if not linked:
        return united.select(person_id=united.customer_id, **{name: united[name] for name in PACKED.names[1:]})
    joined = united.left_join(ibis.table({"customer_id": "string", "person_id": "string"}, name="hull"), "customer_id")
    person_id = ibis.coalesce(joined.person_id, joined.customer_id)
    return joined.select(person_id=person_id, **{name: joined[name] for name in PACKED.names[1:]})


def unpacked(rows: pa.Table) -> tuple[dict[str, pa.Table], pa.Table]:
    """The profile's tables of packed rows, and who is to be folded together (`profile.from_arrow`)."""
    found = {}
    for number, (name, schema) in enumerate(_SCHEMAS.items()):
        chosen, slots = rows.filter(pc.equal(rows["kind"], number)), _slots(schema)
        found[name] = pa.table({column: chosen[slots.get(column, column)] for column in schema.names})
    several = rows.filter(pc.not_equal(rows["person_id"], rows["customer_id"])).select(["customer_id", "person_id"])
    return found, several.group_by(["customer_id", "person_id"]).aggregate([])


def whole_persons(tables: Iterable[pa.Table], rows: int = FOLD_EVENTS) -> Iterator[pa.Table]:
    """Regroup a stream sorted by person into tables of about so many rows that never cut a person in two."""
    held: list[pa.Table] = []
    for part in tables:
        held.append(part)
        if sum(map(len, held)) >= rows:
            together = pa.concat_tables(held)
            ids = together["person_id"]
            start = ids.index(ids[len(together) - 1]).as_py()
            held = [together.slice(start)]
            if start:
                yield together.slice(0, start)
    if held and (last := pa.concat_tables(held)).num_rows:
        yield last


def raw_tables(
    connection: duckdb.DuckDBPyConnection,
    store: Store,
    file: Path,
    manifest: Manifest,
    moments: Sequence[datetime],
    linked: bool,
    spill: Path,
) -> Iterator[pa.Table]:
    """The executors reduce, sort and fold by ranges of persons and write raw rows; here they are read in order."""
    session = _session()
    for name in tables(store.present):
        session.read.parquet(*store.paths(file, name)).createOrReplaceTempView(f"moments_{name}")
        session.sql(store.calendar(name, f"moments_{name}")).createOrReplaceTempView(name)
    for name, paths in (_export(connection, spill) if linked else {}).items():
        session.read.parquet(*paths).createOrReplaceTempView(name)
    profile = _profile(session, manifest, moments, linked)
    ordered = profile.repartitionByRange("person_id").sortWithinPartitions("person_id")

    def fold(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in whole_persons(pa.Table.from_batches([batch]).cast(PACKED) for batch in batches):
            for found in table.fold(from_arrow(*unpacked(rows)), moments, manifest, manifest.snapshots):
                yield from found.to_batches()

    schema = next(table.fold(from_arrow({}), moments[:1], manifest)).schema
    out = spill / "raw"
    ordered.mapInArrow(fold, _spark_schema(schema)).write.mode("overwrite").parquet(str(out))
    for part in sorted(out.glob("part-*.parquet")):
        for batch in pq.ParquetFile(part).iter_batches(READ_ROWS):
            yield pa.Table.from_batches([batch]).cast(schema)


def _profile(session: Any, manifest: Manifest, moments: Sequence[datetime], linked: bool) -> Any:
    """The packed profile as a Spark data frame."""
    compiler = ibis.pyspark.connect(session)
    relations = reduce.relations(manifest.tables, moments)
    if linked:
        persons = ibis.table({"moment": "timestamp(6)", "customer_id": "string", "person_id": "string"}, name="persons")
        relations[PERSON] = persons.select("customer_id", at=persons.moment, person_id=persons.person_id)
    return session.sql(compiler.compile(packed(relations, linked)))


def _export(connection: duckdb.DuckDBPyConnection, folder: Path) -> dict[str, list[str]]:
    """Write what joining identities found, for the executors to read."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("hull", "persons"):
        connection.execute(f"COPY {name} TO {literal(folder / f'{name}.parquet')} (FORMAT parquet)")
    return {name: [str(folder / f"{name}.parquet")] for name in ("hull", "persons")}


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
    for name, value in _OPTIONS.items():
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
