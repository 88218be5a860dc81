"""The batch's side into the online store: histories, consents and recent contacts of every customer, as the canonical tables have them."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa

from features import identity
from features.mapping import Identity
from features.moments import utc
from features.schema import SOURCES
from features.snapshots import Orders
from features.sql import parquet
from features.store import MOMENTS, Store, folder_of
from serving import histories, listed
from serving.online import Listed, OnlineStore
from serving.policy import CHANNELS, REMEMBERED_DAYS

LOADED = "loaded"
"""Key of the fingerprint of what was loaded last, and its last moment."""
FORMAT = 4
"""Of what is kept; a store loaded in another one is loaded again."""
CHUNK = 2000
CHILDREN = {"order_lines": "order_id", "deliveries": "order_id"}
"""Canonical tables whose customer is that of their order."""


def load(
    store: OnlineStore, sources: Path, timezone: str, progress: Callable[[str], None] = lambda text: None, guards: Identity | None = None
) -> bool:
    """Bring the store up to the canonical tables in force; False where it already is.

    Everything is kept by customer id, and beside it whom identities have joined by now, named as in the feature table.
    Events that the service was told of stay only where they lie after the last moment that the tables know.
    """
    batch = Store.read(sources)
    found = store.meta(LOADED)
    guards = guards or Identity()
    state = f"{batch.fingerprint} {FORMAT} {guards.model_dump_json()}"
    if found and found["fingerprint"] == state:
        return False
    zone = ZoneInfo(timezone)
    with batch.connect(sources) as connection:
        joined = _persons(connection, guards) if "identities" in batch.parts else []
        joined += _folded(connection, batch, sources, store, dict(joined))
        with store.transaction():
            gone = store.erased([one for pair in joined for one in pair])
            store.set_persons(pair for pair in joined if gone.isdisjoint(pair))
        names = [name for name in batch.parts if name != "identities"]
        for name in names:
            for some in _chunks(_histories(connection, name), CHUNK):
                with store.transaction():
                    gone = store.erased([row[0] for row in some])
                    store.put_histories(row for row in some if row[0] not in gone)
            progress(f"online store: {batch.rows[name]:,} rows of {name}")
        if "consents" in batch.parts:
            with store.transaction():
                rows = list(_consents(connection))
                gone = store.erased([row[0] for row in rows])
                store.set_consents(row for row in rows if row[0] not in gone)
        last = _last(connection, zone)
        if "contacts" in batch.parts:
            with store.transaction():
                store.forget_contacts(last.replace(tzinfo=UTC).timestamp())
                contacts = list(_contacts(connection, last))
                gone = store.erased([one.customer for one in contacts])
                ours = listed.keep(store, [one for one in contacts if one.customer not in gone], zone)
            progress(f"online store: {len(contacts):,} contacts of the last {REMEMBERED_DAYS} days, {ours:,} of them decided by us")
        with store.transaction():
            listed.answered(store, _orders(connection, store))
    with store.transaction():
        store.forget_events(last.replace(tzinfo=UTC).timestamp())
        store.set_meta(LOADED, {"fingerprint": state, "last": last.isoformat(), "consents": "consents" in batch.parts})
    return True


def _persons(connection: duckdb.DuckDBPyConnection, guards: Identity) -> list[tuple[str, str]]:
    """(customer, person) of those joined, by all that is known."""
    (known,) = connection.sql("SELECT max(greatest(seen_at, arrived_at)) FROM identities").fetchall()[0]
    if known is None:
        return []
    identity.join(connection, [known], guards)
    return connection.sql("SELECT customer_id, person_id FROM persons WHERE customer_id <> person_id").fetchall()


def _folded(
    connection: duckdb.DuckDBPyConnection, batch: Store, sources: Path, store: OnlineStore, persons: dict[str, str]
) -> list[tuple[str, str]]:
    """(customer, person) of ids as they were before their case was folded: what was told of them holds for the person.

    Who was erased under one of them is erased.
    """
    if not batch.folded:
        return []
    files = parquet([folder_of(sources) / name for name in batch.folded])
    pairs = connection.sql(f"SELECT DISTINCT customer_id, person_id FROM {files}").fetchall()
    gone = store.erased([before for before, _ in pairs])
    for after in {after for before, after in pairs if before in gone} - store.erased([after for _, after in pairs]):
        store.erase(after)
    return [(before, persons.get(after, after)) for before, after in pairs]


def _histories(connection: duckdb.DuckDBPyConnection, name: str) -> Iterator[tuple[str, str, bytes]]:
    """(customer, table, record batch) of a canonical table, a customer after another."""
    join = f" JOIN orders AS o USING ({CHILDREN[name]})" if name in CHILDREN else ""
    owner = "o.customer_id" if name in CHILDREN else "r.customer_id"
    columns = ", ".join(f'r."{column.name}"' for column in SOURCES[name].columns)
    relation = connection.execute(f'SELECT {owner} AS owner, {columns} FROM "{name}" AS r{join} ORDER BY owner')
    schema, held = histories.schema(name), None
    for batch in relation.to_arrow_reader(200_000):
        rows = pa.Table.from_batches([batch]) if held is None else pa.concat_tables([held, pa.Table.from_batches([batch])])
        last = rows["owner"][-1]
        whole = int(np.searchsorted(np.asarray(rows["owner"].to_numpy(zero_copy_only=False), dtype=str), last.as_py()))
        yield from _split(rows.slice(0, whole), name, schema)
        held = rows.slice(whole)
    if held is not None:
        yield from _split(held, name, schema)


def _split(rows: pa.Table, name: str, schema: pa.Schema) -> Iterator[tuple[str, str, bytes]]:
    """A record batch for each owner of rows sorted by owner."""
    if not rows.num_rows:
        return
    owners = rows["owner"].to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.append(True, owners[1:] != owners[:-1]))
    whole = rows.drop_columns(["owner"]).cast(schema).combine_chunks().to_batches()[0]
    for start, end in zip(starts, np.append(starts[1:], rows.num_rows), strict=True):
        own = whole.slice(start, end - start)
        copied = own.take(pa.array(np.arange(own.num_rows)))  # a slice is written with its neighbours' bytes as padding
        yield owners[start], name, copied.serialize().to_pybytes()


def _consents(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[str, str, str, bool, float]]:
    found = connection.execute(
        f"""SELECT customer_id, purpose, coalesce(channel, ''), arg_max(granted, (changed_at, NOT granted)), max(changed_at)
           FROM {MOMENTS}.consents GROUP BY 1, 2, 3"""
    )
    while rows := found.fetchmany(10_000):
        for customer, purpose, channel, granted, since in rows:
            yield customer, purpose, channel, granted, since.replace(tzinfo=UTC).timestamp()


def _contacts(connection: duckdb.DuckDBPyConnection, last: datetime) -> Iterator[Listed]:
    """Contacts of as many days as a policy may look back; answered by a click or a conversion. Tier 0 is nobody's contact: a hold-out."""
    found = connection.execute(
        f"""SELECT contact_id, customer_id, sent_at, coalesce(channel, ''), tier::INT,
                  clicked_at IS NOT NULL OR converted_at IS NOT NULL, decision_id
           FROM {MOMENTS}.contacts WHERE sent_at > $1 AND coalesce(tier, 1) > 0 ORDER BY sent_at, contact_id""",
        [last - timedelta(days=REMEMBERED_DAYS)],
    )
    while rows := found.fetchmany(10_000):
        for id, customer, at, channel, *more in rows:
            if channel in CHANNELS or not channel:
                yield Listed(id, customer, at.replace(tzinfo=UTC).timestamp(), channel, *more)


def _orders(connection: duckdb.DuckDBPyConnection, store: OnlineStore) -> list[tuple[str, float]]:
    """The last order (customer, moment) that was not cancelled, of those who ordered since the first contact without an answer."""
    waiting = store.unanswered()
    if not waiting:
        return []
    since = datetime.fromtimestamp(min(waiting.values()), UTC).replace(tzinfo=None)
    found = connection.execute(
        f"SELECT customer_id, max(ordered_at) FROM {MOMENTS}.orders WHERE cancelled_at IS NULL AND ordered_at >= $1 GROUP BY 1", [since]
    ).fetchall()
    return [(customer, at.replace(tzinfo=UTC).timestamp()) for customer, at in found]


def _last(connection: duckdb.DuckDBPyConnection, zone: ZoneInfo) -> datetime:
    """When the canonical tables learnt of something last, in UTC; a stray later order is no evidence of the time before it."""
    newest: datetime = connection.execute(f"SELECT max(greatest(ordered_at, arrived_at)) FROM {MOMENTS}.orders").fetchall()[0][0]
    end = datetime.combine(Orders.of(connection).span[1] + timedelta(days=1), time())
    return min(newest, utc(end, zone))


def _chunks(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    some: list[Any] = []
    for row in rows:
        some.append(row)
        if len(some) == size:
            yield some
            some = []
    yield some
