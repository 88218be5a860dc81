"""Reduce, in the engine: canonical tables -> the profile, one narrow relation per kind of event. First step of every feature.

`KINDS` declares what the fold gets to see. Most kinds are columns of a canonical table as they are; behaviour, by far the largest
source, is added up by day. All else is left to the fold (`profile.py`, `history.py`): when a row became known, what the lines of an order
come to. So it is one definition for a batch and for a request. Written in Ibis: DuckDB and Spark run the same expressions; compiled
once to SQL, so that the service pays nothing for that.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import duckdb
import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.schema import BEHAVIOUR, EXACT, FLAG, SOURCES, TEXT, TIME

_IBIS_TYPES = {TEXT: "string", TIME: "timestamp(6)", EXACT: "decimal(18, 4)", FLAG: "boolean"}
NIGHT_HOURS = 5
"""Deep night: before this hour."""
ANY_MOMENT = datetime(2999, 12, 31, 23, 59, 59)
"""Stands for the snapshot in SQL compiled once and run for many."""
Build = Callable[[Sequence[datetime]], ir.Table]


@dataclass(frozen=True)
class Kind:
    """One table of the profile: its columns, and what they tell.

    An event is known from the later of ``at`` and ``arrived`` on (what the engine sums up: from ``arrived``, which already is the
    snapshot that knows it; ``at`` is the end of the day); from ``void`` on it no longer counts. ``done`` is a later state
    and its arrival, ``due`` a promise known from the start; each of ``responses`` is an event of its own, known no sooner than
    ``answered``. Measures are numbers. What has an ``order_id`` among its keys but no customer_id is that order's customer's.
    ``build`` makes the relation where it is not just columns of ``source``.
    """

    source: str
    at: str | None = None
    arrived: str = "arrived_at"
    keys: tuple[str, ...] = ("customer_id",)
    measures: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    void: str | None = None
    done: tuple[str, str] | None = None
    due: str | None = None
    responses: tuple[str, ...] = ()
    answered: str | None = None
    build: Build | None = None

    @property
    def owned(self) -> bool:
        """Whether it tells its customer itself."""
        return "customer_id" in self.keys

    @property
    def times(self) -> tuple[str, ...]:
        """Columns that are times."""
        if self.at is None:
            return ()
        given = (self.at, self.arrived, self.void, *(self.done or ()), self.due, *self.responses, self.answered)
        return tuple(dict.fromkeys(name for name in given if name is not None))

    @property
    def schema(self) -> pa.Schema:
        """Columns of the relation in Arrow's types."""
        types = [(name, pa.string()) for name in self.keys] + [(name, pa.timestamp("us")) for name in self.times]
        return pa.schema(types + [(name, pa.string()) for name in self.texts] + [(name, pa.float64()) for name in self.measures])


def canonical(name: str) -> ir.Table:
    """The canonical table as an unbound Ibis table."""
    columns = {column.name: _IBIS_TYPES[column.type] for column in SOURCES[name].columns}
    return ibis.table(columns, name=name)


_BEHAVIOUR = dict(zip(("views", "searches", "favourites", "adds", "removes", "checkouts", "pays"), BEHAVIOUR, strict=True))
LATEST = ("last_add",)
"""Measures of a day that are the latest moment of something; the others are sums."""
_DAILY = (*_BEHAVIOUR, "sessions", "seconds", "night_adds", *LATEST)


def _browse(moments: Sequence[datetime]) -> ir.Table:
    """One row per customer, day and first snapshot that knows it; ``at`` is the end of the day.

    A day's events known at the same snapshots can be added up before they reach the fold. A visit counts from the first
    snapshot that knows any of its events.
    """
    events = canonical("events")
    added = events.kind == "add_to_cart"
    rows = events.select(
        "customer_id",
        "session_id",
        day=events.happened_at.truncate("D").cast("timestamp(6)"),
        known_at=_first_knowing(ibis.greatest(events.happened_at, events.arrived_at), moments),
        seconds=events.seconds.cast("float64"),
        night_adds=_count(added & (events.happened_at.hour() < NIGHT_HOURS)),
        last_add=ibis.ifelse(added, events.happened_at.epoch_seconds().cast("float64"), ibis.null("float64")),
        **{measure: _count(events.kind == kind) for measure, kind in _BEHAVIOUR.items()},
    )
    rows = rows.filter(rows.known_at.notnull())
    visits = _summed(rows, ["customer_id", "day", "session_id", "known_at"], [name for name in _DAILY if name != "sessions"])
    first = ibis.literal(True)
    if len(moments) > 1:
        window = ibis.window(group_by=[visits.customer_id, visits.day, visits.session_id])
        first = visits.known_at == visits.known_at.min().over(window)
    days = _summed(visits.mutate(sessions=_count(first & visits.session_id.notnull())), ["customer_id", "day", "known_at"], _DAILY)
    return days.mutate(at=days.day + ibis.interval(days=1))


def _summed(rows: ir.Table, keys: list[str], measures: Iterable[str]) -> ir.Table:
    return rows.group_by(keys).agg(**{name: rows[name].max() if name in LATEST else rows[name].sum().coalesce(0) for name in measures})


def _count(condition: ir.Value) -> ir.Value:
    return ibis.ifelse(condition, 1, 0)


def _first_knowing(known_at: ir.Value, moments: Sequence[datetime]) -> ir.Value:
    """The first snapshot that knows an event (null: none does)."""
    return ibis.cases(*((known_at <= _moment(moment), _moment(moment)) for moment in moments), else_=ibis.null("timestamp(6)"))


def _moment(moment: datetime) -> ir.Value:
    return ibis.literal(moment.isoformat()).cast("timestamp(6)")


_LINE = ("amount", "quantity", "discount", "product_age_days")
KINDS: dict[str, Kind] = {
    "order": Kind("orders", "ordered_at", keys=("customer_id", "order_id"), measures=("amount",), void="cancelled_at"),
    "line": Kind("order_lines", keys=("order_id",), texts=("product_id", "category", "brand"), measures=_LINE),
    "return": Kind(
        "returns",
        "returned_at",
        keys=("customer_id", "order_id"),
        texts=("return_id",),
        measures=("amount", "quantity"),
        done=("completed_at", "completed_arrived_at"),
        due="due_at",
    ),
    "customer": Kind("customers", "registered_at", texts=("country",)),
    "browse": Kind("events", "at", "known_at", measures=_DAILY, build=_browse),
    "contact": Kind(
        "contacts",
        "sent_at",
        measures=("tier", "cost"),
        texts=("channel",),
        responses=("delivered_at", "opened_at", "clicked_at", "converted_at"),
        answered="response_arrived_at",
    ),
    "coupon": Kind("coupons", "claimed_at", measures=("value",), done=("redeemed_at", "redeemed_arrived_at"), due="expires_at"),
    "ticket": Kind("tickets", "opened_at", measures=("complaint",), done=("resolved_at", "resolved_arrived_at")),
    "review": Kind("reviews", "reviewed_at", measures=("rating", "nps")),
    "delivery": Kind("deliveries", "shipped_at", keys=("order_id",), done=("delivered_at", "delivered_arrived_at"), due="due_at"),
    "membership": Kind("memberships", "changed_at", measures=("level",)),
    "points": Kind("points", "booked_at", measures=("points",)),
    "consent": Kind("consents", "changed_at", measures=("granted",), texts=("purpose", "channel")),
}
"""Every table of the profile."""


def relations(sources: Iterable[str], moments: Sequence[datetime]) -> dict[str, ir.Table]:
    """The profile over these canonical tables: one relation per kind, unsorted, for the given snapshots."""
    there, found = set(sources), {}
    for name, kind in KINDS.items():
        if kind.source in there:
            rows = kind.build(sorted(moments)) if kind.build else canonical(kind.source)
            measures = {measure: _double(rows[measure]) for measure in kind.measures}
            found[name] = rows.select(*kind.keys, *kind.times, *kind.texts, **measures)
    return found


def _double(value: ir.Value) -> ir.Value:
    return (value.cast("int8") if value.type().is_boolean() else value).cast("float64")


def to_sql(relation: ir.Table) -> str:
    """A relation as DuckDB SQL."""
    return str(ibis.to_sql(relation, dialect="duckdb"))


def compiled(sources: Iterable[str]) -> dict[str, str]:
    """SQL of the kinds that the engine has to compute, for any one moment: compile once, run often (`of_tables`)."""
    return {name: to_sql(rows) for name, rows in relations(sources, [ANY_MOMENT]).items() if KINDS[name].build}


def request_engine() -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB for `of_tables`: of the few rows of a request it is planning that takes the time."""
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("PRAGMA disable_optimizer")
    return connection


def of_tables(
    connection: duckdb.DuckDBPyConnection, statements: Mapping[str, str], tables: Mapping[str, pa.Table], moment: datetime
) -> dict[str, pa.Table]:
    """The profile of canonical tables in memory at one moment: ``connection`` runs the compiled statements, the rest is picked here."""
    found = {}
    for name, kind in KINDS.items():
        if kind.source not in tables or not tables[kind.source].num_rows:
            continue
        if name in statements:
            connection.register(kind.source, tables[kind.source])
            sql = statements[name].replace(ANY_MOMENT.isoformat(), moment.isoformat())
            found[name] = connection.execute(sql).to_arrow_table()
        else:
            found[name] = _picked(kind, tables[kind.source])
    return found


def _picked(kind: Kind, rows: pa.Table) -> pa.Table:
    """What `relations` selects for a kind without ``build``."""
    measures = {name: _doubles(rows[name].combine_chunks()) for name in kind.measures}
    return pa.table({name: rows[name] for name in (*kind.keys, *kind.times, *kind.texts)} | measures)


def _doubles(values: pa.Array) -> pa.Array:
    """Flags, or DECIMAL(18,4) rounded as DuckDB and Spark round it (Arrow's own cast is off by a bit in the last place)."""
    if pa.types.is_boolean(values.type):
        return pc.cast(pc.cast(values, pa.int8()), pa.float64())
    unscaled = np.frombuffer(values.buffers()[1], np.int64)[::2][values.offset : values.offset + len(values)]
    mask = pc.is_null(values).to_numpy(zero_copy_only=False) if values.null_count else None
    return pa.array(unscaled / 10_000, pa.float64(), mask)
