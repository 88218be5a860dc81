"""The rules of a single row, made from the schema once for both doors: SQL for the contract of files, Python for requests.

Times compare as moments. A time without a zone is the shop's local time, and in the hour that comes twice in autumn it may be either.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

from features.schema import EXACT, SOURCES, TEXT, TIME, Column

EARLIEST = datetime(1970, 1, 2)
AHEAD = ("due_at", "expires_at")
"""Times that may lie in the future."""
TOLERANCE = timedelta(hours=1)
"""By how much the clocks of a shop and of the service may differ."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Clock:
    """Compares times; ``soon`` (aware) is the latest that is not the future."""

    zone: ZoneInfo
    soon: datetime
    local: datetime
    """The same as the shop's local time."""

    @classmethod
    def at(cls, now: float, zone: ZoneInfo) -> "Clock":
        """The clock at a moment, in seconds since 1970."""
        soon = datetime.fromtimestamp(now, UTC) + TOLERANCE
        return cls(zone, soon, soon.astimezone(zone).replace(tzinfo=None))

    def future(self, time: datetime) -> bool:
        """Whether a time lies in the future."""
        return time > (self.local if time.tzinfo is None else self.soon)

    def ancient(self, time: datetime) -> bool:
        """Whether a time lies before all times that a shop can have."""
        return time < (EARLIEST if time.tzinfo is None else EARLIEST.replace(tzinfo=UTC))

    def before(self, time: datetime, other: datetime) -> bool:
        """Whether a time lies before another, whatever the hours are that come twice."""
        if time.tzinfo is None and other.tzinfo is None and time >= other:
            return False
        return self._moment(time, 1) < self._moment(other, 0)

    def _moment(self, time: datetime, fold: int) -> datetime:
        try:
            return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=self.zone, fold=fold).astimezone(UTC)
        except OverflowError:  # within a day of the year 1 or 9999
            return time.replace(tzinfo=UTC)


@dataclass(frozen=True)
class RowRule:
    """One rule of one column; ``condition`` (SQL; ``$soon``: the latest time that is not the future) and ``broken`` say the same."""

    name: str
    words: str
    severity: str
    condition: str
    broken: Callable[[Row, Clock], bool]


def of_column(column: Column) -> Iterator[RowRule]:
    """Every rule of a column."""
    name = column.name
    if column.required:
        yield RowRule("null", "is there in every row", "block", f'"{name}" IS NULL', lambda row, clock: row.get(name) is None)
    if column.type == EXACT and (column.low is not None or column.high is not None):
        yield _range(column)
    if column.choices:
        listed = ", ".join(f"'{choice}'" for choice in column.choices)
        words = f"is one of {', '.join(column.choices)}"
        yield RowRule("choice", words, "block", f'"{name}" NOT IN ({listed})', _given(name, lambda value: value not in column.choices))
    if column.type == TIME:
        yield from _times(column)
    if column.type == TEXT and not column.id:
        condition = f'contains("{name}", chr(65533))'
        yield RowRule("encoding", "has no broken characters", "warn", condition, _given(name, lambda value: "\ufffd" in value))


def conditions(column: Column) -> Iterator[tuple[str, str, str, str]]:
    """(name, words, severity, SQL condition of a broken row) of each rule of one column."""
    for rule in of_column(column):
        yield rule.name, rule.words, rule.severity, rule.condition


@cache
def of_times(source: str) -> tuple[tuple[str, RowRule], ...]:
    """(column, rule) of the rules that a request's types do not check already."""
    return tuple((column.name, rule) for column in SOURCES[source].columns if column.type == TIME for rule in _times(column))


def _given(name: str, broken: Callable[[Any], bool]) -> Callable[[Row, Clock], bool]:
    """A rule of values that are there."""
    return lambda row, clock: (value := row.get(name)) is not None and broken(value)


def _range(column: Column) -> RowRule:
    low = -math.inf if column.low is None else column.low
    high = math.inf if column.high is None else column.high
    name = f'"{column.name}"'
    below = f"{name} {'<=' if column.above else '<'} {column.low}" if column.low is not None else "false"
    over = f"{name} > {column.high}" if column.high is not None else "false"
    words = f"is above {low:g}" if column.above else f"is {low:g} or more" if math.isinf(high) else f"lies between {low:g} and {high:g}"
    broken = _given(column.name, lambda value: value < low or value > high or (column.above and value == low))
    return RowRule("range", words, "block", f"{below} OR {over}", broken)


def _times(column: Column) -> Iterator[RowRule]:
    name, after = column.name, column.after
    if name not in AHEAD:
        yield RowRule("future", "does not lie in the future", "block", f'"{name}" > $soon', _of_clock(name, Clock.future))
    words = f"does not lie before {EARLIEST:%Y}"
    yield RowRule("ancient", words, "block", f"\"{name}\" < TIMESTAMP '{EARLIEST}'", _of_clock(name, Clock.ancient))
    if after:
        yield RowRule("order", f"does not lie before {after}", "block", f'"{name}" < "{after}"', _in_order(name, after))


def _of_clock(name: str, broken: Callable[[Clock, datetime], bool]) -> Callable[[Row, Clock], bool]:
    return lambda row, clock: (time := row.get(name)) is not None and broken(clock, time)


def _in_order(name: str, after: str) -> Callable[[Row, Clock], bool]:
    def broken(row: Row, clock: Clock) -> bool:
        time, first = row.get(name), row.get(after)
        return time is not None and first is not None and clock.before(time, first)

    return broken
