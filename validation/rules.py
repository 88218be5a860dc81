"""The rules of the source contracts, made from the schema, and how many rows break each, counted in the engine.

One scan of a table answers all its row rules; keys, parents and the recent past take one query each. Only counts
leave the engine: a source of any size becomes one row of numbers, which Great Expectations then judges.
"""

import fnmatch
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any

import duckdb

from features.errors import InputError
from features.mapping import Contracts
from features.moments import at_second_fold, offsets
from features.row_rules import conditions
from features.schema import SOURCES, Column, Source
from features.snapshots import Orders
from features.store import MOMENTS, Store

WEEKS_BEFORE = 8
LEVEL_FACTOR = 10.0
"""A typical amount that moves by this factor from one week to the next, or from one load to the next, is another unit."""
HOURS_SHIFT = 3.0
"""A mean hour of the day that moves by more is another time zone."""
NAMES = (
    *("rows", "null", "empty", "range", "choice", "future", "ancient", "order", "unique", "parent"),
    *("copies", "encoding", "unmatched", "freshness", "volume", "level", "hours", "unit"),
    *("repeats", "overlap", "placeholder", "quoted", "case", "share", "stray", "before", "twice"),
)
"""Names of the rules."""
_TYPICAL = "exp(avg(ln(CASE WHEN {0} > 0 THEN {0} END)))"
"""Geometric mean of the amounts above 0: a single huge order does not move it."""
SHARE, TIMES_THE_MEAN = 0.03, 20.0
"""A customer with this share of all orders, and so many times the orders of the mean customer, is hardly one customer: the largest of
Online Retail II has .011 and 63, of CDNOW .003 and 60, of Complete Journey .003 and 7; a guest's account .20 and 75."""
MIN_ROWS_A_WEEK = 50
"""Weeks with fewer rows say nothing about volume, level or hours."""


@dataclass(frozen=True)
class Rule:
    """One rule of one table: ``broken`` of ``checked`` rows break it."""

    table: str
    column: str
    name: str
    words: str
    severity: str
    checked: int
    broken: int
    detail: str = ""

    @property
    def id(self) -> str:
        """``table.column.rule``, or ``table.rule`` for a rule of the whole table."""
        return ".".join(part for part in (self.table, self.column, self.name) if part)


def of_sources(connection: duckdb.DuckDBPyConnection, store: Store, mapped: dict[str, set[str]], given: Contracts, past: Any) -> list[Rule]:
    """Every rule of every mapped table with its count; ``past`` is what the last contract found, or None."""
    orders = Orders.of(connection)
    until = datetime.combine(orders.span[1] + timedelta(days=1), time()) if orders.days else _soon()
    newest = max((at for at in (_newest(connection, SOURCES[name], until) for name in mapped) if at), default=None)
    found: list[Rule] = []
    for name in mapped:
        table = _Table(connection, SOURCES[name], mapped[name], store, given)
        found += [*table.rows(), *table.keys(), *table.repeats(), *table.parents(), *table.matched()]
        found += [*table.recent(newest, past, until), *(table.orders(orders) if name == "orders" else ())]
        found += table.returns("cancelled_at" in mapped["orders"]) if name == "returns" else ()
    return _with_severity(found, given)


def _with_severity(rules: list[Rule], given: Contracts) -> list[Rule]:
    for pattern in given.severity:
        table, name = pattern.split(".")[0], pattern.split(".")[-1]
        if not (fnmatch.filter(SOURCES, table) and fnmatch.filter(NAMES, name)):
            fix = f'write "table.column.rule", * stands for anything; rules: {", ".join(NAMES)}'
            raise InputError(f"[contracts.severity] {pattern!r}", "names no rule", fix)
    found = []
    for rule in rules:
        wanted = [severity for pattern, severity in given.severity.items() if fnmatch.fnmatch(rule.id, pattern)]
        severity = wanted[-1] if wanted else rule.severity
        if severity != "off":
            found.append(Rule(**{**rule.__dict__, "severity": severity}))
    return found


def _newest(connection: duckdb.DuckDBPyConnection, source: Source, until: datetime) -> datetime | None:
    if source.event_time is None:
        return None
    query = f'SELECT max("{source.event_time}") FROM "{source.name}" WHERE "{source.event_time}" <= $1'
    newest: datetime | None = connection.execute(query, [min(_soon(), until)]).fetchall()[0][0]
    return newest


def _soon() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)  # a bare date of today is the end of today


class _Table:
    """Counts the rules of one canonical table; ``facts`` were counted while it was read."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, source: Source, mapped: set[str], store: Store, given: Contracts) -> None:
        self.connection, self.source, self.mapped, self.given = connection, source, mapped, given
        self.facts, self.zone, self.years = store.facts[source.name], store.timezone, store.years
        self.moments = f'{MOMENTS}."{source.name}"'
        self.count = int(connection.sql(f"SELECT count(*) FROM {self.moments}").fetchall()[0][0])

    def rows(self) -> Iterator[Rule]:
        """Rules of single rows, all answered by one scan."""
        rules = [(c.name, *rule) for c in self.source.columns if c.required or c.name in self.mapped for rule in self._conditions(c)]
        counts = ", ".join(f"count(*) FILTER ({condition})" for _, _, _, _, condition in rules)
        known = [c for c in self.source.columns if not c.required and c.name in self.mapped]
        filled = ", ".join(f'count("{column.name}")' for column in known)
        query = f"SELECT {', '.join(filter(None, [counts, filled]))} FROM {self.moments}"
        found = self.connection.execute(query, {"soon": _soon()} if "$soon" in query else None).fetchall()[0]
        yield self._rule("", "rows", "has rows", "block", int(self.count == 0))
        for (column, name, words, severity, _), broken in zip(rules, found, strict=False):
            yield self._rule(column, name, words, severity, int(broken))
        for optional, some in zip(known, found[len(rules) :], strict=True):
            yield self._rule(optional.name, "empty", "has a value somewhere", "block", 0 if some else self.count)

    def _conditions(self, column: Column) -> Iterator[tuple[str, str, str, str]]:
        """The row rules of a column; a local time that comes twice in autumn may be either, so it breaks an order only if both do."""
        for name, words, severity, condition in conditions(column):
            if name == "order" and len(offsets(self.zone)) > 1:
                again = at_second_fold(f'"{column.name}"', self.zone, self.years)
                condition = f'{condition} AND ({again}) < "{column.after}"'
            yield name, words, severity, condition

    def keys(self) -> Iterator[Rule]:
        """Keys are unique, as counted while loading, when copies were left out."""
        copies, clashes = self.facts["copies"], self.facts["clashes"]
        if not self.source.key or not set(self.source.key) <= self.mapped:
            return
        key = self.source.key[0]
        yield self._rule(key, "unique", "no two different rows have the same key", "block", clashes)
        yield self._rule(key, "copies", "no row comes twice (copies are left out)", "warn", copies)

    def repeats(self) -> Iterator[Rule]:
        """No file holds another's rows again, as counted while loading."""
        found, severity = self.facts["overlaps"], "warn" if self.facts["duplicates"] else "block"
        for name, kind, words in (
            ("repeats", True, 'no file is a copy of another (else: duplicates = "drop" or "keep" in the mapping file)'),
            ("overlap", False, 'hardly a row stands in two files (else: duplicates = "drop" or "keep" in the mapping file)'),
        ):
            some = [one for one in found if one["whole"] is kind]
            detail = "; ".join(f"{one['files'][1]}: {one['rows']:,} rows of {one['files'][0]}" for one in some[:5])
            yield self._rule("", name, words, severity if kind else "warn", sum(one["rows"] for one in some), detail=detail)

    def orders(self, orders: Orders) -> Iterator[Rule]:
        """Customers are customers, and the orders' time has neither end far from the rest."""
        out = "leave it out: identity.not_customers in the mapping file"
        words = f"the customer is no word for nobody (guest, unknown, 0 ...); {out}"
        yield self._rule("customer_id", "placeholder", words, "warn", self.facts["placeholders"])
        words = "the customer's id has no quotes around it (take them off in the expression: trim(column, '=\"'))"
        yield self._rule("customer_id", "quoted", words, "warn", self.facts["quoted"])
        words = "no two customers' ids differ by case alone (else: identity.fold_case = true in the mapping file)"
        yield self._rule("customer_id", "case", words, "warn", self.facts["cases"])
        query = "SELECT max(n), count(*), sum(n) FROM (SELECT count(*) AS n FROM orders WHERE customer_id IS NOT NULL GROUP BY customer_id)"
        most, customers, total = (int(one or 0) for one in self.connection.sql(query).fetchall()[0])
        odd = total > 0 and most >= SHARE * total and most > TIMES_THE_MEAN * total / customers
        words = f"no customer has {SHARE:.0%} of all orders and {TIMES_THE_MEAN:g} times those of the mean one; a guest's account? {out}"
        yield self._rule("customer_id", "share", words, "warn", most if odd else 0, detail=f"{most / total:.0%} of all" if odd else "")
        yield from self._strays(orders)

    def _strays(self, orders: Orders) -> Iterator[Rule]:
        early, late = orders.strays if orders.days else (0, 0)
        words = "no few orders lie far from all others; they count, but the data are taken to cover the time of the others"
        detail = ""
        if early or late:
            first, last = orders.span
            detail = f"{early:,} before {first}, {late:,} after {last}; if that is wrong set snapshots.first, snapshots.complete_until"
        yield self._rule("ordered_at", "stray", words, "warn", early + late, detail=detail)

    def returns(self, cancellations: bool) -> Iterator[Rule]:
        """Returns belong to orders."""
        first = "SELECT customer_id, min(ordered_at) AS first FROM orders GROUP BY 1"
        query = f"SELECT count(*) FROM returns AS r JOIN ({first}) AS o USING (customer_id) WHERE r.returned_at < o.first"
        early = int(self.connection.sql(query).fetchall()[0][0])
        yield self._rule("returned_at", "before", "does not lie before the customer's first order", "warn", early)
        if "order_id" in self.mapped:
            query = "SELECT count(*) FROM returns AS r ANTI JOIN orders AS o USING (customer_id, order_id) WHERE r.order_id IS NOT NULL"
            strangers = int(self.connection.sql(query).fetchall()[0][0])
            yield self._rule("order_id", "unmatched", "is an order of the same customer", "warn", strangers)
        if cancellations:
            named = "r.order_id IS NULL OR r.order_id NOT IN (SELECT order_id FROM orders)"
            lines = "SELECT order_id, sum(amount) AS total FROM order_lines GROUP BY 1"
            total = lines if self._lines() else "SELECT NULL::VARCHAR AS order_id, NULL::DECIMAL(18, 4) AS total"
            back = "SELECT customer_id, CAST(returned_at AS DATE) AS day, sum(amount) AS back FROM returns AS r"
            void = f"""SELECT customer_id, CAST(cancelled_at AS DATE) AS day, coalesce(l.total, o.amount) AS back
                FROM orders AS o LEFT JOIN ({total}) AS l USING (order_id)"""
            query = f"SELECT count(*) FROM ({back} WHERE {named} GROUP BY ALL) AS r SEMI JOIN ({void}) AS o USING (customer_id, day, back)"
            twice = int(self.connection.sql(query).fetchall()[0][0])
            words = "does not give back the value of an order cancelled that day (it would count twice: map returns.order_id)"
            yield self._rule("amount", "twice", words, "warn", twice)

    def _lines(self) -> bool:
        query = "SELECT count(*) FROM duckdb_views() WHERE view_name = 'order_lines' AND schema_name = 'main'"
        return bool(self.connection.sql(query).fetchall()[0][0])

    def parents(self) -> Iterator[Rule]:
        """Each row finds its parent."""
        if not self.source.parent:
            return
        here, (parent, key) = self.source.parent[0], self.source.parent[1].split(".")
        query = f'SELECT count(*) FROM {self.moments} AS c ANTI JOIN {MOMENTS}."{parent}" AS p ON c."{here}" = p."{key}"'
        yield self._rule(here, "parent", f"is found in {parent}", "block", int(self.connection.sql(query).fetchall()[0][0]))

    def matched(self) -> Iterator[Rule]:
        """Most customers of a table are customers who order."""
        columns = {"left_id": "left_kind", "right_id": "right_kind"} if self.source.name == "identities" else {"customer_id": ""}
        for column, kind in columns.items():
            if self.source.name == "orders" or column not in {c.name for c in self.source.columns}:
                continue
            where = f"WHERE \"{kind}\" = 'customer'" if kind else ""
            query = f"""SELECT count(*), count(*) FILTER (o.customer_id IS NULL)
                FROM (SELECT DISTINCT "{column}" AS id FROM "{self.source.name}" {where}) AS c
                LEFT JOIN (SELECT DISTINCT customer_id FROM orders) AS o ON c.id = o.customer_id"""
            persons, strangers = map(int, self.connection.sql(query).fetchall()[0])
            share = strangers / persons if persons else 0.0
            broken = strangers if share > self.given.max_unmatched else 0
            words = f"at most {self.given.max_unmatched:.0%} of the customers have no order"
            yield self._rule(column, "unmatched", words, "warn", broken, persons, f"{share:.1%} have none" if broken else "")

    def recent(self, newest: datetime | None, past: Any, until: datetime) -> Iterator[Rule]:
        """The last week against the eight before, and the typical amount against the last load."""
        time = self.source.event_time or ("ordered_at" if self.source.name == "order_lines" else None)
        if time is None or newest is None or not self.count:
            return
        if self.source.event_time:
            own = _newest(self.connection, self.source, until)
            lag = (newest - own).total_seconds() / 86_400 if own else math.inf
            late = int(lag > self.given.freshness_days)
            words = f"its newest event lags at most {self.given.freshness_days:g} days behind"
            yield self._rule(time, "freshness", words, "warn", late, 1, f"{lag:.0f} days behind" if late else "")
        weeks = self._weeks(time, newest)
        last, before = weeks.get(0), [week for number, week in weeks.items() if number > 0]
        busy = [week for week in before if week["n"] >= MIN_ROWS_A_WEEK]
        if len(busy) == WEEKS_BEFORE:
            yield self._volume(time, last, busy)
            if last and last["n"] >= MIN_ROWS_A_WEEK:
                yield from self._level(last, busy)
                yield self._hours(time, last, busy)
        if "amount" in self.mapped:
            yield self._against_past(past)

    def _weeks(self, time: str, newest: datetime) -> dict[int, dict[str, float]]:
        amount = "CAST(amount AS DOUBLE)" if "amount" in self.mapped else "NULL"
        rows = f'SELECT "{time}" AS moment, {amount} AS amount FROM "{self.source.name}"'
        if self.source.name == "order_lines":
            rows = "SELECT o.ordered_at AS moment, CAST(l.amount AS DOUBLE) AS amount FROM order_lines l JOIN orders o USING (order_id)"
        angle = "hour(moment) * 2 * pi() / 24"
        query = f"""SELECT CAST(floor(date_diff('second', moment, $newest) / 604800) AS INTEGER) AS week,
            count(*) AS n, {_TYPICAL.format("amount")} AS amount,
            avg(sin({angle})) AS sin, avg(cos({angle})) AS cos
            FROM ({rows}) WHERE moment > $newest - INTERVAL {7 * (WEEKS_BEFORE + 1)} DAY AND moment <= $newest GROUP BY 1"""
        found = self.connection.execute(query, {"newest": newest}).fetchall()
        return {int(row[0]): dict(zip(("n", "amount", "sin", "cos"), row[1:], strict=True)) for row in found}

    def _volume(self, time: str, last: dict[str, float] | None, before: list[dict[str, float]]) -> Rule:
        usual, now = _median(week["n"] for week in before), last["n"] if last else 0
        factor = self.given.volume_factor
        odd = not usual / factor <= now <= usual * factor
        words = f"the last week has a {factor:g}th to {factor:g} times the rows of the {WEEKS_BEFORE} weeks before"
        return self._rule(
            time, "volume", words, "warn", int(odd) * int(now or 1), int(now), f"{now:,.0f} against {usual:,.0f}" if odd else ""
        )

    def _level(self, last: dict[str, float], before: list[dict[str, float]]) -> Iterator[Rule]:
        if "amount" not in self.mapped:
            return
        usual, now = _median(week["amount"] or 0.0 for week in before), last["amount"] or 0.0
        odd = usual > 0 and not usual / LEVEL_FACTOR < now < usual * LEVEL_FACTOR
        words = f"the last week's typical amount is within a factor of {LEVEL_FACTOR:g} of the weeks before"
        yield self._rule("amount", "level", words, "block", int(odd) * int(last["n"]), int(last["n"]), "another unit?" if odd else "")

    def _hours(self, time: str, last: dict[str, float], before: list[dict[str, float]]) -> Rule:
        shift = 0.0
        sines, cosines = _median(week["sin"] for week in before), _median(week["cos"] for week in before)
        if math.hypot(sines, cosines) > 0.1 and math.hypot(last["sin"], last["cos"]) > 0.1:
            turn = math.atan2(last["sin"], last["cos"]) - math.atan2(sines, cosines)
            shift = abs((turn + math.pi) % (2 * math.pi) - math.pi) * 24 / (2 * math.pi)
        odd = shift > HOURS_SHIFT
        words = f"the mean hour of the last week is within {HOURS_SHIFT:g} h of the weeks before"
        return self._rule(time, "hours", words, "warn", int(odd) * int(last["n"]), int(last["n"]), f"{shift:.1f} h off" if odd else "")

    def _against_past(self, past: Any) -> Rule:
        now = _typical(self.connection, self.source.name)
        usual = float(((past or {}).get("means") or {}).get(self.source.name) or 0.0)
        odd = usual > 0 and not usual / LEVEL_FACTOR < now < usual * LEVEL_FACTOR
        words = f"the typical amount is within a factor of {LEVEL_FACTOR:g} of the last load's"
        return self._rule("amount", "unit", words, "block", int(odd) * self.count, detail="another unit?" if odd else "")

    def _rule(self, column: str, name: str, words: str, severity: str, broken: int, checked: int | None = None, detail: str = "") -> Rule:
        return Rule(self.source.name, column, name, words, severity, self.count if checked is None else checked, broken, detail)


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def means(connection: duckdb.DuckDBPyConnection, mapped: dict[str, set[str]]) -> dict[str, float]:
    """Typical amount (geometric mean) by table: what the next load is held against."""
    found = {}
    for name, columns in mapped.items():
        if "amount" in columns:
            found[name] = _typical(connection, name)
    return found


def _typical(connection: duckdb.DuckDBPyConnection, table: str) -> float:
    amount = "CAST(amount AS DOUBLE)"
    return float(connection.sql(f'SELECT {_TYPICAL.format(amount)} FROM "{table}"').fetchall()[0][0] or 0.0)
