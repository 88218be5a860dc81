"""Reduce, in the engine: events -> one long profile. The first of the two steps of every feature.

The profile is one relation with a row per customer and event or day, sorted by person:

    person_id  customer_id  kind  at  known_at  done_at  done_known_at  due_at  key  category  brand  m1 ... m12

``known_at`` is the later of event time and arrival time, so that the one comparison ``known_at <= snapshot`` keeps
the future out; a later state of the row (order cancelled, refund completed, ticket resolved) is ``done_at``, known
from ``done_known_at`` on. ``m1 ...`` are the measures of the kind (`MEASURES`). Behaviour, contacts and points come
as one row per customer, day and first snapshot that knows them: a day's events known at the same snapshots can be
added up before they reach the fold. Written in Ibis, so that DuckDB and Spark run the same expression; compiled
once to SQL, so that the service pays nothing for that.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import duckdb
import ibis
import ibis.expr.types as ir
import pyarrow as pa
from ibis import _

from features.schema import BEHAVIOUR, CONTACT_CHANNELS, EXACT, FLAG, SOURCES, TEXT, TIME

MEASURES: dict[str, tuple[str, ...]] = {
    "order": ("spend", "units", "lines", "discount"),
    "item": ("spend", "units", "lines", "discount"),
    "return": ("spend", "units", "lines"),
    "customer": (),
    "browse": ("views", "searches", "favourites", "adds", "removes", "checkouts", "pays", "sessions", "seconds", "night_adds", "last_add"),
    "contact": ("sent", "delivered", "opened", "clicked", "converted", "cost", "tier", "push", "e_mail", "sms", "wechat", "call"),
    "coupon": ("value",),
    "ticket": ("complaint",),
    "review": ("rating", "nps"),
    "delivery": (),
    "membership": ("level",),
    "points": ("earned", "spent"),
    "consent": ("granted",),
    "person": (),
}
"""Kinds of profile row and the names of their measures."""
KINDS = tuple(MEASURES)
WIDTH = max(map(len, MEASURES.values()))
NIGHT_HOURS = 5
"""Deep night: before this hour."""
_TIMES = ("at", "known_at", "done_at", "done_known_at", "due_at")
_TEXTS = ("key", "category", "brand")
PROFILE = pa.schema(
    [("person_id", pa.string()), ("customer_id", pa.string()), ("kind", pa.int8())]
    + [(name, pa.timestamp("us")) for name in _TIMES]
    + [(name, pa.string()) for name in _TEXTS]
    + [(f"m{number}", pa.float64()) for number in range(1, WIDTH + 1)]
)
SORTED_BY = ("person_id", "kind", "at", "key", "known_at", "customer_id", "m1", "m2")
_IBIS_TYPES = {TEXT: "string", TIME: "timestamp(6)", EXACT: "decimal(18, 4)", FLAG: "boolean"}
_SUMS = {"spend": _.amount.sum(), "units": _.quantity.sum(), "lines": _.count(), "discount": _.discount.sum()}
_HIGHEST = ("last_add", "tier")
"""Measures of which a day keeps the highest; of the others it keeps the sum."""
_BEHAVIOUR = dict(zip(MEASURES["browse"], BEHAVIOUR, strict=False))
_CHANNELS = dict(zip(("push", "e_mail", "sms", "wechat", "call"), CONTACT_CHANNELS, strict=True))
BATCH_ROWS = 1_000_000
"""Profile rows folded at once: bounds the memory of a feature run."""
ANY_MOMENT = datetime(2999, 12, 31, 23, 59, 59)
"""Stands for the snapshot in SQL compiled once and run for many."""


def canonical(name: str) -> ir.Table:
    """The canonical table as an unbound Ibis table."""
    columns = {column.name: _IBIS_TYPES[column.type] for column in SOURCES[name].columns}
    return ibis.table(columns, name=name)


def profile(sources: Iterable[str], moments: Sequence[datetime], persons: bool = False) -> ir.Table:
    """The long profile over the canonical tables named in ``sources``, for the given snapshots, unsorted.

    With ``persons`` two more tables are there: ``hull`` (customer_id, person_id: who is to be folded together) and
    ``persons`` (moment, customer_id, person_id), as `identity.py` writes them.
    """
    return _union(stages(sources, moments, persons))


def stages(sources: Iterable[str], moments: Sequence[datetime], persons: bool = False) -> list[ir.Table]:
    """The profile in parts that can be computed one after another, so that each has the memory for itself."""
    there = set(sources)
    built = {name: build(there, sorted(moments)) for name, build in _PARTS.items() if name in there}
    lines = built.pop("order_lines", [])  # together with the orders: they share the scan of the lines
    parts = [_union([*built.pop("orders"), *lines]), *(part for found in built.values() for part in found)]
    if persons:
        parts.append(_persons())
    return [_of_persons(part, persons) for part in parts]


def _union(parts: list[ir.Table]) -> ir.Table:
    return ibis.union(*parts) if len(parts) > 1 else parts[0]


def _of_persons(part: ir.Table, persons: bool) -> ir.Table:
    """The rows with the id of who is to be folded together; without links that is the customer."""
    if not persons:
        return part.select(person_id=part.customer_id, **{name: part[name] for name in PROFILE.names[1:]})
    hull = ibis.table({"customer_id": "string", "person_id": "string"}, name="hull")
    joined = part.left_join(hull, "customer_id")
    person_id = ibis.coalesce(joined.person_id, joined.customer_id)
    return joined.select(person_id=person_id, **{name: joined[name] for name in PROFILE.names[1:]})


def profile_sql(sources: Iterable[str], moments: Sequence[datetime] = (ANY_MOMENT,), persons: bool = False) -> str:
    """The sorted profile as DuckDB SQL: compile once, run often."""
    return str(ibis.to_sql(profile(sources, moments, persons).order_by(SORTED_BY), dialect="duckdb"))


def at_moment(sql: str, moment: datetime) -> str:
    """Profile SQL compiled for any moment, for this one."""
    return sql.replace(ANY_MOMENT.isoformat(), moment.isoformat())


def _long(table: ir.Table, kind: str, measures: Sequence[ir.Value] = (), **columns: ir.Value) -> ir.Table:
    absent = {name: ibis.null("timestamp(6)") for name in _TIMES} | {name: ibis.null("string") for name in _TEXTS}
    given: dict[str, ir.Value] = absent | {"kind": ibis.literal(KINDS.index(kind), "int8"), "customer_id": table.customer_id} | columns
    for number in range(WIDTH):
        value = measures[number] if number < len(measures) else ibis.null("float64")
        given[f"m{number + 1}"] = value.cast("float64")
    return table.select(**{name: given[name] for name in PROFILE.names[1:]})


def _later(*times: ir.Value) -> ir.Value:
    return ibis.greatest(*times)


def _first_knowing(known_at: ir.Value, moments: Sequence[datetime]) -> ir.Value:
    """The first snapshot that knows an event (null: none does)."""
    return ibis.cases(*((known_at <= _moment(moment), _moment(moment)) for moment in moments), else_=ibis.null("timestamp(6)"))


def _moment(moment: datetime) -> ir.Value:
    return ibis.literal(moment.isoformat()).cast("timestamp(6)")


def _daily(rows: ir.Table, kind: str, moments: Sequence[datetime]) -> ir.Table:
    """One row per customer, day and first snapshot that knows it; ``at`` is the end of the day.

    ``rows`` has customer_id, at, known_at and the measures of the kind by name (null: nothing to add).
    """
    measures = MEASURES[kind]
    given = {name: rows[name].cast("float64") for name in measures}
    known = rows.select("customer_id", day=_day(rows.at), known_at=_first_knowing(rows.known_at, moments), **given)
    known = known.filter(known.known_at.notnull())
    return _days(known, kind)


def _days(known: ir.Table, kind: str) -> ir.Table:
    measures = MEASURES[kind]
    summed = {name: known[name].max() if name in _HIGHEST else known[name].sum().coalesce(0.0) for name in measures}
    days = known.group_by(["customer_id", "day", "known_at"]).agg(**summed)
    end = days.day + ibis.interval(days=1)
    return _long(days, kind, [days[name] for name in measures], at=end, known_at=days.known_at)


def _day(at: ir.Value) -> ir.Value:
    return at.truncate("D").cast("timestamp(6)")


def _items_of_orders() -> ir.Table:
    lines = canonical("order_lines")
    return lines.group_by(["order_id", "product_id", "category", "brand"]).agg(**_SUMS)


def _orders(there: set[str], moments: Sequence[datetime]) -> list[ir.Table]:
    orders = canonical("orders")
    if "order_lines" in there:
        sums = _items_of_orders().group_by("order_id").agg(**{name: _[name].sum() for name in _SUMS})
        joined = orders.left_join(sums, "order_id")
        spend = ibis.coalesce(joined.spend, joined.amount, 0)
        measures = [spend, joined.units.coalesce(0), joined.lines.coalesce(0), joined.discount.coalesce(0)]
    else:
        joined, nothing = orders, ibis.literal(0)
        measures = [orders.amount.coalesce(0), nothing, nothing, nothing]
    return [_long(joined, "order", measures, key=joined.order_id, **_order_times(joined))]


def _order_times(orders: ir.Table) -> dict[str, ir.Value]:
    return {
        "at": orders.ordered_at,
        "known_at": _later(orders.ordered_at, orders.arrived_at),
        "done_at": orders.cancelled_at,
        "done_known_at": orders.cancelled_at,
    }


def _items(there: set[str], moments: Sequence[datetime]) -> list[ir.Table]:
    orders = canonical("orders").drop("amount")
    items = _items_of_orders()
    items = items.filter(items.product_id.notnull()).join(orders, "order_id")
    texts = {"key": items.product_id, "category": items.category, "brand": items.brand}
    return [_long(items, "item", [items.spend, items.units, items.lines, items.discount], **texts, **_order_times(items))]


def _returns(there: set[str], moments: Sequence[datetime]) -> list[ir.Table]:
    keys = ["customer_id", "return_id", "returned_at", "arrived_at", "due_at", "completed_at", "completed_arrived_at"]
    found = canonical("returns").group_by(keys).agg(spend=_.amount.sum(), units=_.quantity.sum(), lines=_.count())
    known_at = _later(found.returned_at, found.arrived_at)
    return [
        _long(
            found,
            "return",
            [found.spend, found.units, found.lines],
            key=found.return_id,
            at=found.returned_at,
            known_at=known_at,
            due_at=found.due_at,
            **_done(found.completed_at, found.completed_arrived_at, known_at),
        )
    ]


def _done(done_at: ir.Value, arrived_at: ir.Value, known_at: ir.Value) -> dict[str, ir.Value]:
    known = ibis.ifelse(done_at.isnull(), ibis.null("timestamp(6)"), _later(done_at, arrived_at, known_at))
    return {"done_at": done_at, "done_known_at": known}


def _customers(there: set[str], moments: Sequence[datetime]) -> list[ir.Table]:
    found = canonical("customers")
    known_at = _later(found.registered_at, found.arrived_at)
    return [_long(found, "customer", at=found.registered_at, known_at=known_at, key=found.country)]


def _browse(there: set[str], moments: Sequence[datetime]) -> list[ir.Table]:
    """Days of behaviour, through visits: a visit counts from the first snapshot that knows any of its events."""
    events = canonical("events")
    known_at = _first_knowing(_later(events.happened_at, events.arrived_at), moments)
    added = events.kind == "add_to_cart"
    rows = events.select(
        "customer_id",
        "session_id",
        day=_day(events.happened_at),
        known_at=known_at,
        seconds=events.seconds.cast("float64"),
        night_adds=_count(added & (events.happened_at.hour() < NIGHT_HOURS)),
        last_add=ibis.ifelse(added, events.happened_at.epoch_seconds().cast("float64"), ibis.null("float64")),
        **{measure: _count(events.kind == kind) for measure, kind in _BEHAVIOUR.items()},
    )
    rows = rows.filter(rows.known_at.notnull())
    given = [name for name in MEASURES["browse"] if name != "sessions"]
    summed = {name: rows[name].max() if name in _HIGHEST else rows[name].sum() for name in given}
    visits = rows.group_by(["customer_id", "day", "session_id", "known_at"]).agg(**summed)
    first = ibis.literal(True)
    if len(moments) > 1:
        window = ibis.window(group_by=[visits.customer_id, visits.day, visits.session_id])
        first = visits.known_at == visits.known_at.min().over(window)
    return [_days(visits.mutate(sessions=_count(first & visits.session_id.notnull())), "browse")]


def _count(condition: ir.Value) -> ir.Value:
    return ibis.ifelse(condition, 1.0, 0.0)


def _contacts(there: set[str], moments: Sequence[datetime]) -> list[ir.Table]:
    """Days of contacts: sent, and each response on its own day."""
    found = canonical("contacts")
    sent_known = _later(found.sent_at, found.arrived_at)
    nothing = dict.fromkeys(MEASURES["contact"], ibis.null("float64"))
    channels = {measure: _count(found.channel == channel) for measure, channel in _CHANNELS.items()}
    measures = nothing | {"sent": ibis.literal(1.0), "cost": found.cost, "tier": found.tier} | channels
    parts = [found.select("customer_id", at=found.sent_at, known_at=sent_known, **_doubles(measures))]
    for measure in ("delivered", "opened", "clicked", "converted"):
        at = found[f"{measure}_at"]
        known_at = _later(at, ibis.coalesce(found.response_arrived_at, at), sent_known)
        responses = found.select("customer_id", at=at, known_at=known_at, **_doubles(nothing | {measure: ibis.literal(1.0)}))
        parts.append(responses.filter(responses["at"].notnull()))
    return [_daily(ibis.union(*parts), "contact", moments)]


def _doubles(values: dict[str, ir.Value]) -> dict[str, ir.Value]:
    return {name: value.cast("float64") for name, value in values.items()}


def _coupons(there: set[str], moments: Sequence[datetime]) -> list[ir.Table]:
    found = canonical("coupons")
    known_at = _later(found.claimed_at, found.arrived_at)
    done = _done(found.redeemed_at, found.redeemed_arrived_at, known_at)
    times = {"at": found.claimed_at, "known_at": known_at, "due_at": found.expires_at, **done}
    return [_long(found, "coupon", [found.value.coalesce(0)], key=found.coupon_id, **times)]


def _tickets(there: set[str], moments: Sequence[datetime]) -> list[ir.Table]:
    found = canonical("tickets")
    known_at = _later(found.opened_at, found.arrived_at)
    done = _done(found.resolved_at, found.resolved_arrived_at, known_at)
    complaint = found.complaint.cast("int8")
    return [_long(found, "ticket", [complaint], key=found.ticket_id, at=found.opened_at, known_at=known_at, **done)]


def _reviews(there: set[str], moments: Sequence[datetime]) -> list[ir.Table]:
    found = canonical("reviews")
    known_at = _later(found.reviewed_at, found.arrived_at)
    return [_long(found, "review", [found.rating, found.nps], key=found.review_id, at=found.reviewed_at, known_at=known_at)]


def _deliveries(there: set[str], moments: Sequence[datetime]) -> list[ir.Table]:
    owners = canonical("orders").select("order_id", "customer_id")
    found = canonical("deliveries").join(owners, "order_id")
    known_at = _later(found.shipped_at, found.arrived_at)
    done = _done(found.delivered_at, found.delivered_arrived_at, known_at)
    return [_long(found, "delivery", key=found.delivery_id, at=found.shipped_at, known_at=known_at, due_at=found.due_at, **done)]


def _memberships(there: set[str], moments: Sequence[datetime]) -> list[ir.Table]:
    found = canonical("memberships")
    known_at = _later(found.changed_at, found.arrived_at)
    return [_long(found, "membership", [found.level], at=found.changed_at, known_at=known_at)]


def _points(there: set[str], moments: Sequence[datetime]) -> list[ir.Table]:
    found = canonical("points")
    known_at = _later(found.booked_at, found.arrived_at)
    earned, spent = ibis.greatest(found.points, 0), ibis.greatest(-found.points, 0)
    return [_daily(found.select("customer_id", at=found.booked_at, known_at=known_at, earned=earned, spent=spent), "points", moments)]


def _consents(there: set[str], moments: Sequence[datetime]) -> list[ir.Table]:
    found = canonical("consents")
    known_at = _later(found.changed_at, found.arrived_at)
    key = found.purpose.concat("/", found.channel.coalesce(""))
    return [_long(found, "consent", [found.granted.cast("int8")], key=key, at=found.changed_at, known_at=known_at)]


def _persons() -> ir.Table:
    found = ibis.table({"moment": "timestamp(6)", "customer_id": "string", "person_id": "string"}, name="persons")
    return _long(found, "person", key=found.person_id, at=found.moment, known_at=found.moment)


_PARTS = {
    "orders": _orders,
    "order_lines": _items,
    "returns": _returns,
    "customers": _customers,
    "events": _browse,
    "contacts": _contacts,
    "coupons": _coupons,
    "tickets": _tickets,
    "reviews": _reviews,
    "deliveries": _deliveries,
    "memberships": _memberships,
    "points": _points,
    "consents": _consents,
}


def batches(connection: duckdb.DuckDBPyConnection, sql: str) -> Iterator[pa.Table]:
    """Run the profile SQL and yield tables of about BATCH_ROWS rows that never cut a person in two."""
    reader = connection.sql(sql).to_arrow_reader(250_000)
    return whole_persons(pa.Table.from_batches([batch]).cast(PROFILE) for batch in reader)


def whole_persons(tables: Iterable[pa.Table], batch_rows: int | None = None) -> Iterator[pa.Table]:
    """Regroup a sorted stream into tables of about BATCH_ROWS rows that never cut a person in two."""
    enough = batch_rows or BATCH_ROWS
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        if rows >= enough:
            whole, rest = _cut(pa.concat_tables(held))
            held, rows = [rest], rest.num_rows
            if whole.num_rows:
                yield whole
    if held and (last := pa.concat_tables(held)).num_rows:
        yield last


def _cut(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    ids = table["person_id"]
    last = ids[table.num_rows - 1]
    start = ids.index(last).as_py()
    return table.slice(0, start), table.slice(start)
