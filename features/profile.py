"""Fold, step one: the profile (`reduce.py`) -> numbered and sorted arrays, once for all snapshots."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.events import Floats, Ints, filled, lengths, runs, sort_by
from features.reduce import KINDS, Kind
from features.schema import SOURCES

PERSON = "person"
"""Table of the profile beside the kinds: (customer_id, at, person_id), who each customer is known to be at the snapshot ``at``."""
NEVER = np.iinfo(np.int64).max
EXACT_UNITS = 10_000
"""Canonical money and quantities have four decimals."""
ORDER_NO = "order_no"
"""Column that may stand for ``order_id`` in all tables of a profile: a number for each order."""
_SECOND_US = 1_000_000
_NULL_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Log:
    """All m events of one kind, known whenever, sorted by person and time (items: by person, product and time); arrays are (m,).

    Times are microseconds of local time, `NEVER` where there is none, and None where the kind has no such time.
    """

    customer: Ints
    known_at: Ints
    columns: Mapping[str, Any]
    void_at: Ints | None = None
    done_at: Ints | None = None
    done_known_at: Ints | None = None
    due_at: Ints | None = None

    @property
    def at(self) -> Ints:
        """Time of each event."""
        at: Ints = self.columns["at"]
        return at

    @property
    def states(self) -> tuple[Ints | None, ...]:
        """The times that a kind may have or not."""
        return self.void_at, self.done_at, self.done_known_at, self.due_at

    def where(self, rows: Any, first: int = 0) -> "Log":
        """The given rows (positions or a slice), customers counted from ``first``."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        if PERSON in columns:
            columns[PERSON] = columns[PERSON] - first
        states = (None if times is None else times[rows] for times in self.states)
        return Log(self.customer[rows] - first, self.known_at[rows], columns, *states)


@dataclass(frozen=True)
class Profile:
    """The profile of whole persons as arrays; customers are numbered by person and id.

    ``hull`` numbers, for each customer, those who have to be folded together because they are one person at some snapshot.
    """

    customer_id: pa.StringArray
    hull: Ints
    logs: dict[str, Log]
    countries: pa.StringArray

    @property
    def linked(self) -> bool:
        """Whether some customers have to be folded together."""
        return bool((self.hull[1:] == self.hull[:-1]).any())

    def parts(self, events: int) -> Iterator["Profile"]:
        """The same in parts of about so many events that never cut a person in two, in order."""
        ends = np.flatnonzero(np.append(self.hull[1:] != self.hull[:-1], True)) + 1
        begins = {kind: np.append(0, np.cumsum(np.bincount(log.customer, minlength=self.hull.size))) for kind, log in self.logs.items()}
        reached = sum(begins.values(), np.zeros(self.hull.size + 1, dtype=np.int64))[ends] // events
        cuts = ends[np.append(reached[1:] != reached[:-1], True)] if self.hull.size else ends[:0]
        for first, end in zip(np.append(0, cuts[:-1]), cuts, strict=True):
            logs = {kind: log.where(slice(begins[kind][first], begins[kind][end]), first) for kind, log in self.logs.items()}
            yield Profile(self.customer_id[first:end], self.hull[first:end], logs, self.countries)


def from_arrow(profile: Mapping[str, pa.Table], hull: pa.Table | None = None) -> Profile:
    """Arrays of a profile: a table for each kind (`reduce.relations`, rows in any order), and perhaps `PERSON`.

    ``hull`` (customer_id, person_id) names who has to be folded together; others are alone.
    """
    there = {kind: rows for kind, rows in profile.items() if rows.num_rows}
    owned = [kind for kind in there if kind == PERSON or KINDS[kind].owned]
    ids, hulls, codes = _numbered([there[kind]["customer_id"] for kind in owned], hull)
    customers = dict(zip(owned, codes, strict=True))
    logs = dict(_all_logs(there, customers))
    logs = {name: log.where(_sorted(log, hulls, ("product_id",) if name == "item" else ())) for name, log in logs.items()}
    if PERSON in there:
        logs[PERSON] = _persons(there[PERSON], customers[PERSON], ids)
    return Profile(ids, hulls, logs, _words(there["customer"]["country"]) if "customer" in there else pa.array([], pa.string()))


def _all_logs(there: Mapping[str, pa.Table], customers: Mapping[str, Ints]) -> Iterator[tuple[str, Log]]:
    """The logs of all kinds, unsorted; ``customers`` numbers the customers of each owned kind's rows."""
    for name, rows in there.items():
        if name not in ("order", "line", "delivery", PERSON):
            ours = name == "return" and "order" in there
            void = _cancelled(rows, customers[name], there["order"], customers["order"]) if ours else None
            yield from _logs(name, KINDS[name], rows, customers[name], void)
    if "order" in there:
        orders, customer = there["order"], customers["order"]
        yield from _orders(orders, customer, there.get("line"))
        if "delivery" in there:
            order, deliveries = _matched(there["delivery"], orders)
            yield from _logs("delivery", KINDS["delivery"], deliveries, customer[order])


def _cancelled(returns: pa.Table, customer: Ints, orders: pa.Table, buyer: Ints) -> Ints | None:
    """When the whole order of each return was cancelled: from then on neither counts, for its value came back once; None: nowhere.

    An order of another customer is none of the return's.
    """
    at = np.append(_times(orders["cancelled_at"]), NEVER)
    if ORDER_NO in returns.column_names:
        numbers, wanted = orders[ORDER_NO].to_numpy(), pc.fill_null(returns[ORDER_NO], -1).to_numpy()
        place = np.full(max(numbers.max(initial=-1), wanted.max(initial=-1)) + 2, -1)
        place[numbers] = np.arange(numbers.size)
        order = place[wanted]
    else:
        order = _numbers(pc.index_in(returns["order_id"], orders["order_id"].combine_chunks().drop_null()).combine_chunks())
        order = np.where(np.asarray(pc.is_null(returns["order_id"])), -1, order)
    order = np.where((order >= 0) & (np.append(buyer, -1)[order] == customer), order, -1)
    void = at[order]
    return void if (void != NEVER).any() else None


def _matched(rows: pa.Table, orders: pa.Table) -> tuple[Ints, pa.Table]:
    """For each row with a known order the position of that order, and these rows; by `ORDER_NO` where the engine numbered them."""
    if ORDER_NO in rows.column_names:
        numbers = orders[ORDER_NO].to_numpy()
        place = np.empty(numbers.max(initial=-1) + 1, dtype=np.int64)
        place[numbers] = np.arange(numbers.size)
        return place[rows[ORDER_NO].to_numpy()], rows
    order = pc.index_in(rows["order_id"], orders["order_id"].combine_chunks())
    if order.null_count:
        known = pc.is_valid(order)
        order, rows = order.filter(known), rows.filter(known)
    return order.to_numpy().astype(np.int64), rows


def _orders(orders: pa.Table, customer: Ints, lines: pa.Table | None) -> Iterator[tuple[str, Log]]:
    """Orders with what their lines come to, or their own amount without any; and, one by one, the products of each order."""
    ((_, log),) = _logs("order", KINDS["order"], orders, customer)
    sums = dict.fromkeys((*_LINE_SUMS, "lines"), np.zeros(customer.size))
    if lines is not None:
        order, lines = _matched(lines, orders)
        measures = {name: _units(lines[column]) for name, column in _LINE_SUMS.items()}
        sums = {name: np.bincount(order, values, customer.size) / EXACT_UNITS for name, values in measures.items()}
        sums["lines"] = np.bincount(order, minlength=customer.size).astype(np.float64)
        if lines["product_id"].null_count < len(lines):
            yield "item", _items(log, order, lines, measures)
    sums["spend"] = np.where(sums["lines"] > 0, sums["spend"], filled(log.columns["amount"]))
    yield "order", replace(log, columns={"at": log.at} | sums)


def _items(orders: Log, order: Ints, lines: pa.Table, measures: Mapping[str, Floats]) -> Log:
    """Lines of the same order and product as one event."""
    texts = {name: _coded(KINDS["line"], name, lines[name]) for name in KINDS["line"].texts}
    named = texts["product_id"] >= 0
    keys = [values[named] for values in (order, *texts.values())]
    rows, sums = _merged(keys, {name: values[named] for name, values in measures.items()})
    order = keys[0][rows]
    found = {name: values[rows] for name, values in zip(texts, keys[1:], strict=True)}
    assert orders.void_at is not None
    return Log(orders.customer[order], orders.known_at[order], {"at": orders.at[order]} | found | sums, orders.void_at[order])


def _merged(keys: list[Ints], measures: Mapping[str, Floats]) -> tuple[Ints, dict[str, Floats]]:
    """A row of each run of rows alike in the keys; the run's measures added up, and its length as ``lines``."""
    order, starts = runs(keys)
    if not starts.size:
        return starts, dict.fromkeys((*measures, "lines"), np.zeros(0))
    sums = {name: np.add.reduceat(values[order], starts) / EXACT_UNITS for name, values in measures.items()}
    return order[starts], sums | {"lines": lengths(starts, order.size).astype(np.float64)}


def _units(column: pa.ChunkedArray) -> Floats:
    """Money and quantities (null: 0) in whole units of their fourth decimal, so that sums are exact in any order (below 9e11)."""
    values = column.to_numpy()
    units: Floats = (filled(values) if column.null_count else values) * EXACT_UNITS
    return np.rint(units, out=units)


def _numbered(columns: list[pa.ChunkedArray], hull: pa.Table | None) -> tuple[pa.StringArray, Ints, list[Ints]]:
    """Customer ids in the order of their hull and themselves, the number of each one's hull, and the columns as numbers of ids."""
    encoded = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()).dictionary_encode()
    if not encoded.num_chunks:
        return pa.array([], pa.string()), _NO_INTS, [_NO_INTS for _ in columns]
    ids = encoded.chunk(0).dictionary
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks]).astype(np.int64)
    hulls = np.arange(len(ids))
    if len(ids) > 1:
        order, hulls = _by_hull(ids, hull)
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        ids, codes = ids.take(pa.array(order)), rank[codes]
    ends = np.cumsum([len(column) for column in columns])
    return ids, hulls, [codes[end - len(column) : end] for column, end in zip(columns, ends.tolist(), strict=True)]


def _by_hull(ids: pa.StringArray, hull: pa.Table | None) -> tuple[Ints, Ints]:
    """Positions that sort ids by hull and themselves, and the number of each one's hull in that order."""
    if hull is None or not hull.num_rows:
        return pc.array_sort_indices(ids).to_numpy().astype(np.int64), np.arange(len(ids))
    of = pc.coalesce(pc.take(hull["person_id"].combine_chunks(), pc.index_in(ids, hull["customer_id"].combine_chunks())), ids)
    keys = [("of", "ascending"), ("id", "ascending")]
    order = pc.sort_indices(pa.table({"of": of, "id": ids}), sort_keys=keys)
    of = of.take(order)
    begins = pc.not_equal(of[1:], of[:-1]).to_numpy(zero_copy_only=False)
    return order.to_numpy().astype(np.int64), np.append(0, np.cumsum(begins))


def _logs(name: str, kind: Kind, rows: pa.Table, customer: Ints, void_at: Ints | None = None) -> Iterator[tuple[str, Log]]:
    """The log of a kind, and one for each of its responses; ``void_at``: from when each event no longer counts, if another table tells."""
    times = {column: _times(rows[column]) for column in kind.times}
    at = times[str(kind.at)]
    known_at = times[kind.arrived] if kind.build else _latest(at, times[kind.arrived])
    columns = {"at": at} | {text: _coded(kind, text, rows[text]) for text in kind.texts}
    columns |= {measure: rows[measure].to_numpy() for measure in kind.measures}
    if name == "points":
        columns |= {"earned": np.maximum(columns["points"], 0.0), "spent": np.maximum(-columns["points"], 0.0)}
    done = done_known = None
    if kind.done:
        done, arrived = (times[column] for column in kind.done)
        done_known = np.where(done == NEVER, NEVER, _latest(done, arrived, known_at))
    void, due = (times[column] if column else None for column in (kind.void, kind.due))
    log = Log(customer, known_at, columns, void if void_at is None else void_at, done, done_known, due)
    yield name, _returns(log, rows) if name == "return" else log
    for response in kind.responses:
        there = np.flatnonzero(times[response] != NEVER)
        when, answered = times[response][there], times[str(kind.answered)][there]
        yield response.removesuffix("_at"), Log(customer[there], _latest(when, answered, known_at[there]), {"at": when})


def _latest(at: Ints, *others: Ints) -> Ints:
    """The latest of some times; of the others those that are there."""
    for other in others:
        at = np.maximum(at, np.where(other == NEVER, at, other))
    return at


def _returns(log: Log, lines: pa.Table) -> Log:
    """Lines of the same return as one event."""
    measures = {name: _units(lines[column]) for name, column in _RETURN_SUMS.items()}
    times = [log.at, log.known_at, *(times for times in log.states if times is not None)]
    rows, sums = _merged([log.customer, log.columns["return_id"], *times], measures)
    return replace(log.where(rows), columns={"at": log.at[rows]} | sums)


def _persons(rows: pa.Table, customer: Ints, ids: pa.StringArray) -> Log:
    person = np.asarray(pc.index_in(rows["person_id"], ids).combine_chunks()).astype(np.int64)
    order = np.argsort(customer, kind="stable")
    at = _times(rows["at"])[order]
    return Log(customer[order], at, {"at": at, "person": person[order]})


def _sorted(log: Log, hulls: Ints, texts: tuple[str, ...]) -> Ints:
    """Positions that sort a log by hull, the given texts and time. The order of equals hangs on nothing but what they hold."""
    seconds, rest = np.divmod(log.at, _SECOND_US)
    hull = hulls[log.customer]
    others = [log.known_at, *(times for times in log.states if times is not None)]
    others += [values.view(np.int64) for name, values in log.columns.items() if name != "at" and name not in texts]
    return sort_by([hull, *(log.columns[text] for text in texts), seconds, rest, *others, log.customer])


def _times(column: pa.ChunkedArray) -> Ints:
    """Times as microseconds; null is ``NEVER``."""
    given = column.to_numpy().view(np.int64)
    return np.where(given == _NULL_TIME, NEVER, given) if column.null_count else given


def _coded(kind: Kind, name: str, texts: pa.ChunkedArray) -> Ints:
    """Texts as numbers (-1: null): positions among the choices that the schema declares, or in the order of the texts.

    So the order of events, and with it every last bit of a sum, is the same whichever other customers share the batch.
    """
    if texts.null_count == len(texts):
        return np.full(len(texts), -1)
    choices = SOURCES[kind.source.partition(".")[0]].column(name).choices
    if choices:
        return _numbers(pc.index_in(texts, pa.array(choices, pa.string())))
    encoded = texts.dictionary_encode()
    words = encoded.chunk(0).dictionary
    rank = np.empty(len(words) + 1, dtype=np.int64)
    rank[pc.array_sort_indices(words).to_numpy()] = np.arange(len(words))
    rank[-1] = -1
    return rank[np.concatenate([_numbers(chunk.indices) for chunk in encoded.chunks])]


def _numbers(places: pa.Array) -> Ints:
    """Arrow's positions as integers (-1: null)."""
    return np.asarray(pc.fill_null(places, -1) if places.null_count else places).astype(np.int64)


def _words(texts: pa.ChunkedArray) -> pa.StringArray:
    """The different texts in their order."""
    found = pc.unique(texts).drop_null()
    return found.take(pc.array_sort_indices(found))


def nothing() -> Iterator[tuple[str, Log]]:
    """A log without events for each kind and response."""
    empty = {name: kind.schema.empty_table() for name, kind in KINDS.items()}
    logs = dict(_all_logs(empty, dict.fromkeys(empty, _NO_INTS)))
    item = _items(logs["order"], _NO_INTS, empty["line"], dict.fromkeys(_LINE_SUMS, np.zeros(0)))
    yield from (logs | {"item": item}).items()


_NO_INTS = np.zeros(0, dtype=np.int64)
_LINE_SUMS = {"spend": "amount", "units": "quantity", "discount": "discount", "product_age": "product_age_days"}
_RETURN_SUMS = {"spend": "amount", "units": "quantity"}
