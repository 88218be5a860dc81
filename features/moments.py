"""The one time rule: canonical tables hold moments in UTC; the shop's local time is made from them where a calendar is needed.

Local time is no order: in the autumn hour that comes twice 02:30 may lie before 02:10. A local time that exists twice is taken to be
the first, one that was skipped in spring lies an hour later, as Python's ``fold=0`` has it. A zone's offsets change at known moments:
in SQL they are a balanced CASE over these, ten times as fast as DuckDB's own `timezone` and the same text for Spark.
"""

from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

FIRST_YEAR, LAST_YEAR = 1900, 2200
_DAY = timedelta(days=1)


@cache
def offsets(zone: str) -> tuple[tuple[datetime, int], ...]:
    """(moment in UTC, seconds east of UTC from then on), from the earliest on."""
    there = ZoneInfo(zone)
    found = [(datetime(FIRST_YEAR, 1, 1), _offset(there, datetime(FIRST_YEAR, 1, 1)))]
    moment = found[0][0]
    while moment.year < LAST_YEAR:
        later = moment + 7 * _DAY
        if _offset(there, later) != found[-1][1]:
            found.append(_change(there, moment, later))
        moment = later
    return tuple(found)


def _offset(zone: ZoneInfo, moment: datetime) -> int:
    away = moment.replace(tzinfo=UTC).astimezone(zone).utcoffset()
    return int(away.total_seconds()) if away else 0


def _change(zone: ZoneInfo, low: datetime, high: datetime) -> tuple[datetime, int]:
    """The second at which the offset becomes that of ``high``."""
    after = _offset(zone, high)
    while high - low > timedelta(seconds=1):
        half = low + timedelta(seconds=int((high - low).total_seconds() // 2))
        low, high = (low, half) if _offset(zone, half) == after else (half, high)
    return high, after


def to_local(expression: str, zone: str, years: tuple[int, int] = (1970, 2100)) -> str:
    """SQL of a UTC moment as local time without a zone; outside the years the nearest offset holds."""
    return _shifted(expression, _within([(at, seconds) for at, seconds in offsets(zone)], years), 1)


def to_utc(expression: str, zone: str, second: bool = False, years: tuple[int, int] = (1970, 2100)) -> str:
    """SQL of a local time without a zone as UTC; ``second``: of a time that exists twice the second."""
    known = offsets(zone)
    steps = [known[0]]
    for (_, before), (at, after) in pairwise(known):
        away = min(before, after) if second else max(before, after)
        steps.append((at + timedelta(seconds=away), after))
    return _shifted(expression, _within(steps, years), -1)


def at_second_fold(expression: str, zone: str, years: tuple[int, int] = (1970, 2100)) -> str:
    """SQL of the UTC moment of ``fold=1`` (PEP 495) of what the zone's clocks show at a UTC moment: later in the autumn hour alone."""
    steps = [(offsets(zone)[0][0], 0)]
    for (_, before), (at, after) in pairwise(offsets(zone)):
        if after < before:  # clocks are put back: what they showed comes again
            steps += [(at - timedelta(seconds=before - after), before - after), (at, 0)]
    return _shifted(expression, _within(steps, years), 1)


def _within(steps: Sequence[tuple[datetime, int]], years: tuple[int, int]) -> Sequence[tuple[datetime, int]]:
    first = max(bisect_right([at for at, _ in steps], datetime(years[0], 1, 1)) - 1, 0)
    return [step for step in steps[first:] if step[0].year <= years[1]] or steps[:1]


def _shifted(expression: str, steps: Sequence[tuple[datetime, int]], sign: int) -> str:
    if len(steps) == 1:
        return f"({expression} + INTERVAL '{sign * steps[0][1]}' SECOND)"
    half = len(steps) // 2
    low, high = _shifted(expression, steps[:half], sign), _shifted(expression, steps[half:], sign)
    return f"CASE WHEN {expression} < TIMESTAMP '{steps[half][0]}' THEN {low} ELSE {high} END"


def local(moment: datetime, zone: ZoneInfo) -> datetime:
    """A moment as local time without a zone; one without a zone is local already."""
    return moment if moment.tzinfo is None else moment.astimezone(zone).replace(tzinfo=None)


def utc(moment: datetime, zone: ZoneInfo) -> datetime:
    """A moment in UTC, without saying so; one without a zone is local."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC).replace(tzinfo=None)
