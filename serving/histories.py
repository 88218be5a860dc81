"""Raw histories -> canonical tables, as `sources.load` would make them: of a request, or of the online store and the events since."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from operator import itemgetter
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.ids import canonical_id, canonical_text
from features.schema import EXACT, FLAG, SOURCES, TEXT, TIME, Source
from serving.online import OnlineStore
from serving.schemas import CustomerRequest

_TYPES = {TEXT: pa.string(), FLAG: pa.bool_(), TIME: pa.timestamp("us"), EXACT: pa.decimal128(18, 4)}
_DEFAULTS: dict[str, Any] = {"0": 0, "false": False}
Plain = dict[str, Any]


@cache
def schema(name: str) -> pa.Schema:
    """A canonical table's columns in Arrow's types."""
    return pa.schema([(column.name, _TYPES[column.type]) for column in SOURCES[name].columns])


def canonical(customers: Mapping[str, CustomerRequest], sources: Iterable[str], zone: ZoneInfo) -> dict[str, pa.Table]:
    """Canonical tables of the raw histories of a request, by the name that each customer shall have."""
    rows: dict[str, list[Plain]] = {name: [] for name in sources if name != "identities"}
    for name, customer in customers.items():
        for source in rows.keys() - {"order_lines", "customers"}:
            for given in getattr(customer, source) or ():
                _add(rows, source, _localised(source, given, zone), name, f"{name}\x1f")
        if "customers" in rows and customer.attributes:
            _add(rows, "customers", _localised("customers", customer.attributes, zone), name)
    return {name: table(name, found) for name, found in rows.items()}


def _add(rows: dict[str, list[Plain]], source: str, row: Plain, customer: str, before: str = "") -> None:
    """Add one row of a customer, an order with its ``lines``; ``before`` keeps order ids of two customers apart."""
    row = {**row, "customer_id": customer}
    lines = row.pop("lines", None)
    if row.get("order_id") is not None:
        row["order_id"] = f"{before}{canonical_id(row['order_id'])}"
    rows[source].append(row)
    if lines and "order_lines" in rows:
        rows["order_lines"] += [{**line, "order_id": row["order_id"]} for line in lines]


def plain(source: str, row: Plain, zone: ZoneInfo) -> Plain:
    """A row of a request as the online store keeps it: JSON, times local."""
    texts = _texts(source)
    found = {
        name: field.isoformat() if isinstance(field, datetime) else texts[name](field) if name in texts and field is not None else field
        for name, field in _localised(source, row, zone).items()
    }
    if "lines" in row:
        found["lines"] = [plain("order_lines", line, zone) for line in row["lines"]]
    return {name: field for name, field in found.items() if field is not None}


def together(stored: Mapping[str, bytes], since: Sequence[tuple[str, Plain]], customer: str, sources: Iterable[str]) -> dict[str, pa.Table]:
    """Canonical tables of one customer: what the batch knows, and the events since.

    A row with the key of an earlier one takes its place: an order cancelled, a ticket resolved. An order told again with lines
    brings all of its lines again.
    """
    rows: dict[str, list[Plain]] = {name: [] for name in sources if name != "identities"}
    last = {row["order_id"]: number for number, (source, row) in enumerate(since) if source == "orders" and "lines" in row}
    for number, (source, row) in enumerate(since):
        if source == "orders" and last.get(row["order_id"], number) != number:
            row = {name: value for name, value in row.items() if name != "lines"}
        if source in rows:
            _add(rows, source, _moments(source, row), customer)
    found = {}
    for name, added in rows.items():
        base = read(name, stored[name]) if name in stored else schema(name).empty_table()
        found[name] = _replaced(SOURCES[name], base, added) if added else base
    return found


def of_person(store: OnlineStore, customer: str, sources: Sequence[str]) -> dict[str, pa.Table]:
    """Canonical tables of a customer's person in the online store: what the batch knows and the events since, of all ids, as one customer.

    A visit stays that of one id, as in the feature table.
    """
    found: dict[str, list[pa.Table]] = {name: [] for name in sources if name != "identities"}
    for id in store.ids_of(customer):
        for name, rows in together(store.history(id), store.events(id), id, sources).items():
            found[name].append(rows if id == customer else _renamed(rows, id, customer))
    return {name: parts[0] if len(parts) == 1 else pa.concat_tables(parts) for name, parts in found.items()}


def _renamed(rows: pa.Table, id: str, customer: str) -> pa.Table:
    if "customer_id" in rows.column_names:
        rows = rows.set_column(rows.column_names.index("customer_id"), "customer_id", pa.array([customer] * len(rows), pa.string()))
    if "session_id" in rows.column_names:
        visits = pc.binary_join_element_wise(pa.scalar(id), rows["session_id"], "\x1f")
        rows = rows.set_column(rows.column_names.index("session_id"), "session_id", visits)
    return rows


def _replaced(source: Source, base: pa.Table, added: Sequence[Plain]) -> pa.Table:
    if source.name == "order_lines":  # an order told again brings its lines again
        base = base.filter(pc.invert(pc.is_in(base["order_id"], pa.array([row["order_id"] for row in added]))))
        return pa.concat_tables([base, table(source.name, added)])
    if source.key and all(row.get(source.key[0]) is not None for row in added):
        key = source.key[0]
        again = pc.is_in(base[key], pa.array([row[key] for row in added]))
        added = _latest(source, base.filter(again).select([key, *_states(source.name)]).to_pylist(), added)
        return pa.concat_tables([base.filter(pc.invert(again)), table(source.name, added)])
    new = table(source.name, added)
    return pa.concat_tables([_without(base, new, str(source.event_time)), new])


def _latest(source: Source, stored: Sequence[Plain], added: Sequence[Plain]) -> list[Plain]:
    """Of rows with one key the last that was told, with every later state that any of them tells.

    A ticket is resolved, and an order cancelled, also where that is told before the row without it.
    """
    key, states = source.key[0], _states(source.name)
    latest: dict[Any, Plain] = {row[key]: row for row in stored}
    for row in added:
        before = latest.get(row[key], {})
        latest[row[key]] = {**{name: before[name] for name in states if before.get(name) is not None}, **row}
    return [latest[id] for id in dict.fromkeys(row[key] for row in added)]


@cache
def _states(source: str) -> tuple[str, ...]:
    """Columns of later states of a row, and of their arrivals."""
    columns = (column for column in SOURCES[source].columns if column.name != "arrived_at")
    return tuple(column.name for column in columns if column.after or column.name.endswith("_arrived_at"))


def _without(base: pa.Table, new: pa.Table, time: str) -> pa.Table:
    """What the batch knows without as many rows like each new one: a row without a key that was told, and then loaded, is one."""
    near = pc.is_in(base[time], new[time].combine_chunks())
    left = Counter(tuple(row.values()) for row in new.to_pylist())
    kept = np.ones(base.num_rows, dtype=bool)
    for place in np.flatnonzero(near.to_numpy(zero_copy_only=False)):
        row = tuple(base.slice(place, 1).to_pylist()[0].values())
        if left[row]:
            left[row] -= 1
            kept[place] = False
    return base if kept.all() else base.filter(pa.array(kept))


def read(name: str, rows: bytes) -> pa.Table:
    """A canonical table from the record batch that `load` has stored."""
    return pa.Table.from_batches([pa.ipc.read_record_batch(pa.py_buffer(rows), schema(name))])


def last_order(stored: Mapping[str, bytes], zone: ZoneInfo) -> float | None:
    """The moment of the last order, not cancelled, that the batch knows of a customer."""
    if "orders" not in stored:
        return None
    orders = read("orders", stored["orders"])
    last = pc.max(orders.filter(pc.is_null(orders["cancelled_at"]))["ordered_at"]).as_py()
    return None if last is None else float(last.replace(tzinfo=zone).timestamp())


def table(name: str, rows: Sequence[Plain]) -> pa.Table:
    """A canonical table of plain rows; columns that are not there get their defaults."""
    there = set().union(*rows)
    return pa.table({column.name: _column(SOURCES[name], column, rows, there) for column in SOURCES[name].columns})


def _column(source: Source, column: Any, rows: Sequence[Plain], there: set[str]) -> pa.Array:
    values = _values(column, rows, there)
    if column.default in _names(source):  # an arrival not given: known at once
        values = [row.get(column.default) if value is None else value for row, value in zip(rows, values, strict=True)]
    elif column.default != "NULL" and column.name in there:
        values = [_DEFAULTS[column.default] if value is None else value for value in values]
    if column.type == EXACT:
        return _exact(values)
    made = pa.array(values, _TYPES[column.type])
    return (
        made if column.name not in _texts(source.name) or column.name == "order_id" else _canonical(made, _texts(source.name)[column.name])
    )


def _values(column: Any, rows: Sequence[Plain], there: set[str]) -> list[Any]:
    """A column of rows; where no row has it, its default without a look at each."""
    if column.name not in there:
        return [_DEFAULTS.get(column.default)] * len(rows)
    return list(map(itemgetter(column.name), rows)) if column.required else [row.get(column.name) for row in rows]


def _canonical(texts: pa.Array, read: Callable[[str], str | None]) -> pa.Array:
    """Texts read as a file's are (`features/ids.py`); each different one once, as there are few."""
    if texts.null_count == len(texts):
        return texts
    coded = texts.dictionary_encode()
    told = coded.dictionary.to_pylist()
    found = [read(one) for one in told]
    return texts if found == told else pa.array(found, pa.string()).take(coded.indices)


def _exact(values: Sequence[float | None]) -> pa.Array:
    """Numbers as decimals with four places, rounded half to even."""
    numbers = np.array(values, dtype=np.float64)
    known = ~np.isnan(numbers)
    whole = np.zeros((numbers.size, 2), dtype=np.int64)  # 128 bits each: the low half, and the sign in the high one
    whole[known, 0] = np.rint(numbers[known] * 10_000)
    whole[:, 1] = whole[:, 0] >> 63
    valid = pa.py_buffer(np.packbits(known, bitorder="little"))
    return pa.Array.from_buffers(_TYPES[EXACT], numbers.size, [valid, pa.py_buffer(whole)])


@cache
def _names(source: Source) -> set[str]:
    return {column.name for column in source.columns}


@cache
def _texts(source: str) -> dict[str, Callable[[str], str | None]]:
    """How each text column is read: an id as an id, another text without white space around it; blank is unknown."""
    texts = [column for column in SOURCES[source].columns if column.type == TEXT and not column.choices and not column.id]
    return {column.name: _id if column.name.endswith("_id") else _text for column in texts}


def _id(text: str) -> str | None:
    return canonical_id(text) or None


def _text(text: str) -> str | None:
    return canonical_text(text) or None


@cache
def _times(source: str) -> tuple[str, ...]:
    return tuple(column.name for column in SOURCES[source].columns if column.type == TIME)


def _localised(source: str, row: Plain, zone: ZoneInfo) -> Plain:
    """The row with its times local; the same where they are."""
    elsewhere = [name for name in _times(source) if (moment := row.get(name)) is not None and moment.tzinfo is not None]
    return {**row, **{name: local(row[name], zone) for name in elsewhere}} if elsewhere else row


def _moments(source: str, row: Plain) -> Plain:
    """Times of a stored row as times again."""
    return row | {name: datetime.fromisoformat(row[name]) for name in _times(source) if row.get(name) is not None}


def local(moment: datetime, zone: ZoneInfo) -> datetime:
    """A moment as the shop's local time without a zone; one without a zone is local already."""
    try:
        return moment if moment.tzinfo is None else moment.astimezone(zone).replace(tzinfo=None)
    except OverflowError:  # the last day of 9999, by which shops say "never"
        return moment.replace(tzinfo=None)
