"""What people write for numbers, times and flags: looked at as a whole column, then converted by one rule of ours.

A text is converted only where the column leaves one reading: ``1,234`` alone is refused, beside ``12,50`` it is 1.234 and beside
``1,234.50`` it is 1234; ``01/04/2024`` alone is refused, beside ``31/01/2024`` it is the 1st of April. The mapping file says it where the
column does not (``decimal``, ``time_format``).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import duckdb

from features.errors import Unreadable
from features.ids import sql_text
from features.moments import to_utc
from features.sql import literal

_CLOCK = r"([0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?)"
_ZONE = r" ?(Z|z|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2})?)"
ISO = rf"([0-9]{{4}})[-/.]([0-9]{{1,2}})[-/.]([0-9]{{1,2}})(?:(?:[Tt]| +){_CLOCK}(?:{_ZONE})?)?"
COMPACT = r"([0-9]{4})([0-9]{2})([0-9]{2})"
TURNED = rf"([0-9]{{1,2}})[-/.]([0-9]{{1,2}})[-/.]([0-9]{{4}})(?:(?:[Tt]|,? +){_CLOCK}(?: ?([AaPp][Mm]))?(?:{_ZONE})?)?"
"""Day or month first."""
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_COMMAS = r"[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?"
"""Commas between thousands."""
_DOTS = r"[+-]?[1-9][0-9]{0,2}(?:\.[0-9]{3})+(?:,[0-9]+)?"
_GAPS = r"[+-]?[1-9][0-9]{0,2}(?:[ '’\x{a0}\x{202f}][0-9]{3})+"
_GAPS_POINT, _GAPS_COMMA = rf"{_GAPS}(?:\.[0-9]+)?", rf"{_GAPS}(?:,[0-9]+)?"
_COMMA = rf"[+-]?[0-9]*,[0-9]+|{_DOTS}"
_POINT = rf"{_NUMBER}|{_COMMAS}"
TRUE, FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


@dataclass(frozen=True)
class Looks:
    """How many texts of a column are what; empty ones are not counted."""

    known: int = 0
    whole: int = 0
    """Whole numbers that are the same text again: no leading zero, at most 18 digits."""
    points: int = 0
    """Numbers with a point for the decimals, or none."""
    commas: int = 0
    """Numbers with a comma for the decimals, or none."""
    sure_points: int = 0
    """Numbers that cannot be read with a comma for the decimals."""
    sure_commas: int = 0
    ambiguous: int = 0
    """Numbers like 1,234, which a comma for the decimals and one between thousands leave open."""
    grouped: int = 0
    """Numbers with a mark between the thousands, if a point marks the decimals."""
    plain_numbers: int = 0
    """Whole numbers in digits alone."""
    rounded: int = 0
    """Numbers with more than the four decimals that count."""
    thousands: int = 0
    """Numbers like 1.500, which are taken to be one and a half where nothing in the column says otherwise."""
    zeros: int = 0
    """Texts that would not be the same again after they were numbers: leading zeros, a plus, an exponent."""
    iso: int = 0
    plain: int = 0
    """A day and a time of day, year first, without a zone, as the engine itself reads them."""
    compact: int = 0
    turned: int = 0
    days_first: int = 0
    """Day or month first, and it can only be the day."""
    months_first: int = 0
    dates: int = 0
    """Without a time of day."""
    zoned: int = 0
    flags: int = 0
    truths: int = 0
    """The words true and false."""


_TEXT = "x"
"""Name of the text in the conditions below."""


def _full(pattern: str) -> str:
    return f"regexp_full_match({_TEXT}, {literal(pattern)})"


_COUNTS = {
    "known": f"{_TEXT} IS NOT NULL",
    "whole": _full("-?[1-9][0-9]{0,17}|0"),
    "points": _full(f"{_POINT}|{_GAPS_POINT}"),
    "commas": _full(f"{_COMMA}|[+-]?[0-9]+|{_GAPS_COMMA}"),
    "sure_points": _full(f"{_POINT}|{_GAPS_POINT}") + " AND NOT " + _full(f"{_COMMA}|[+-]?[0-9]+|{_GAPS_COMMA}"),
    "sure_commas": _full(f"{_COMMA}|{_GAPS_COMMA}") + " AND NOT " + _full(f"{_POINT}|{_GAPS_POINT}"),
    "ambiguous": f"{_full(_COMMAS)} AND {_full(_COMMA)}",
    "grouped": f"{_full(_COMMAS)} OR {_full(_GAPS_POINT)} OR {_full(_GAPS_COMMA)}",
    "plain_numbers": _full("[+-]?[0-9]+"),
    "rounded": rf"regexp_matches({_TEXT}, '^[^:]*[.,][0-9]{{4,}}[1-9][0-9]*$')",
    "thousands": _full(r"[+-]?[1-9][0-9]{0,2}\.[0-9]{3}"),
    "zeros": rf"regexp_matches({_TEXT}, '^(-?0[0-9]|[+])|[eE]')",
    "iso": _full(ISO),
    "plain": _full(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"),
    "compact": _full(COMPACT),
    "turned": _full(TURNED),
    "days_first": f"{_full(TURNED)} AND (regexp_matches({_TEXT}, '^(1[3-9]|[23][0-9])') OR regexp_matches({_TEXT}, '^[0-9]+[.]'))",
    "months_first": f"{_full(TURNED)} AND regexp_matches({_TEXT}, '^[0-9]+[-/](1[3-9]|[23][0-9])[-/]')",
    "dates": f"NOT contains({_TEXT}, ':')",
    "zoned": f"contains({_TEXT}, ':') AND regexp_matches({_TEXT}, '{_ZONE}$')",
    "flags": f"lower({_TEXT}) IN {(*TRUE, *FALSE)}",
    "truths": f"lower({_TEXT}) IN ('true', 'false')",
}


_FAST = ("known", "whole", "plain")
"""What most columns are, all of it: then nothing else has to be counted."""


def look(connection: duckdb.DuckDBPyConnection, relation: str, name: str) -> Looks:
    """How the texts of a column look; ``name`` is the column as SQL has it."""
    rows = f"(SELECT {sql_text(name)} AS {_TEXT} FROM {relation})"
    found = _counted(connection, rows, _FAST)
    if max(found.whole, found.plain) == found.known:
        alike = dict.fromkeys(("points", "commas"), found.whole) | {"iso": found.plain}
        compact = _counted(connection, rows, ("compact",)).compact if found.whole else 0
        return replace(found, **alike, compact=compact, dates=compact)
    return _counted(connection, rows, tuple(_COUNTS))


def _counted(connection: duckdb.DuckDBPyConnection, rows: str, names: Sequence[str]) -> Looks:
    counts = ", ".join(f"count(*) FILTER ({_COUNTS[name]})" for name in names)
    found = connection.sql(f"SELECT {counts} FROM {rows}").fetchall()[0]
    return Looks(**dict(zip(names, map(int, found), strict=True)))


Step = Callable[[str], str]
"""A column's name in SQL -> SQL of its next form."""


@dataclass(frozen=True)
class Reading:
    """How a column becomes its canonical type: steps one after another, and what was guessed on the way, with counts.

    A value that cannot be read is null at the end.
    """

    steps: tuple[Step, ...]
    guesses: dict[str, int]
    local: tuple[Step, ...] = ()
    """Of a time: the steps to its local form, null where it has a zone; then clock changes can be counted."""


def number(looks: Looks, decimal: str | None, kind: str) -> Reading:
    """A number of SQL type ``kind``. Raises Unreadable where the column leaves two readings."""
    mark = decimal or _decimal(looks)
    thousands = "." if mark == "," else ","
    guesses = (
        {"a comma read as the decimal mark": looks.sure_commas} if mark == "," else {"marks between thousands left out": looks.grouped}
    )
    guesses["more than four decimals, rounded"] = looks.rounded
    if mark == "." and decimal is None and looks.thousands and looks.thousands == looks.points - looks.plain_numbers:
        guesses["like 1.500, read with a point for the decimals"] = looks.thousands

    def read(x: str) -> str:
        gaps = f"regexp_full_match({x}, {literal(f'{_GAPS_POINT}|{_GAPS_COMMA}')})"
        bare = f"CASE WHEN {gaps} THEN regexp_replace({x}, '[^0-9.,+-]', '', 'g') ELSE {x} END" if looks.grouped else x
        form = f"{_COMMA}|[+-]?[0-9]+" if mark == "," else _POINT
        value = f"TRY_CAST(replace(replace({bare}, '{thousands}', ''), ',', '.') AS {kind})"
        return f"CASE WHEN regexp_full_match({bare}, {literal(form)}) THEN {value} END"

    return Reading((sql_text, read), guesses)


def _decimal(looks: Looks) -> str:
    if looks.sure_points and looks.sure_commas:
        problem = f"{looks.sure_points:,} value(s) have a point and {looks.sure_commas:,} a comma for the decimals"
        raise Unreadable(problem, "bring one form, or convert it in the expression")
    if looks.sure_commas:
        return ","
    if looks.ambiguous and not looks.sure_points:
        raise Unreadable(
            f"{looks.ambiguous:,} value(s) like 1,234 may be one thousand or one and a bit",
            'say which mark the decimals have: decimal = "." or decimal = ","',
        )
    return "."


def moment(looks: Looks, zone: str, time_format: str | None) -> Reading:
    """A moment in UTC; a bare date is the end of its day. Raises Unreadable where day and month cannot be told apart."""
    if time_format is not None:
        return _formatted(zone, time_format)
    if looks.plain == looks.known:
        return local_time((sql_text, lambda x: f"TRY_CAST({x} AS TIMESTAMP)"), zone)
    day_first = _day_first(looks)
    guesses = {"dates without a time taken as the end of their day": looks.dates}
    if looks.turned:
        guesses[f"dates read with the {'day' if day_first else 'month'} first"] = looks.turned
    if looks.zoned:
        clocks = looks.iso + looks.turned + looks.compact - looks.dates
        guesses["times without a zone among times with one, taken as local"] = clocks - looks.zoned
    steps = (sql_text, lambda x: _parts(x, day_first), _at)
    local = (*steps, lambda x: f"CASE WHEN {x}.away IS NULL THEN {x}.at END")
    return Reading((*steps, lambda x: _in_utc(x, zone)), guesses, local)


def local_time(steps: tuple[Step, ...], zone: str) -> Reading:
    """A moment from steps to a local time without a zone."""
    return Reading((*steps, lambda x: to_utc(x, zone)), {}, steps)


def _formatted(zone: str, time_format: str) -> Reading:
    def parse(x: str) -> str:
        return f"try_strptime({x}, {literal(time_format)})"

    if "%z" in time_format:
        return Reading((sql_text, parse, lambda x: f"timezone('UTC', {x})"), {})
    return local_time((sql_text, parse) if has_clock(time_format) else (sql_text, parse, end_of_day), zone)


def has_clock(time_format: str) -> bool:
    """Whether a format tells the time of day."""
    return re.search("%-?[HIMSfgnpXc]", time_format) is not None


def _day_first(looks: Looks) -> bool:
    if not looks.turned:
        return True
    if bool(looks.days_first) == bool(looks.months_first):
        both = "some fit only with the day first, others with the month first" if looks.days_first else "day and month cannot be told apart"
        raise Unreadable(
            f"{looks.turned:,} date(s) like 01/04/2024: {both}",
            'say how they are written: time_format = "%d/%m/%Y %H:%M" (or "%m/%d/%Y")',
        )
    return bool(looks.days_first)


def end_of_day(expression: str) -> str:
    """SQL of the last microsecond of a local day: only then are the day's events known."""
    return f"(CAST({expression} AS TIMESTAMP) + INTERVAL 1 DAY - INTERVAL 1 MICROSECOND)"


def _parts(x: str, day_first: bool) -> str:
    """The parts of a text that tells a moment: year, month, day, clock, half of the day, offset; null for any other text."""
    turned = ("d", "m", "y", "t", "p", "z") if day_first else ("m", "d", "y", "t", "p", "z")
    forms = ((ISO, ("y", "m", "d", "t", "z")), (TURNED, turned), (COMPACT, ("y", "m", "d")))
    cases = []
    for form, groups in forms:
        found = f"regexp_extract({x}, {literal(f'^(?:{form})$')}, {list(groups)})"
        parts = ", ".join(f"{part} := {f'{found}.{part}' if part in groups else literal('')}" for part in "ymdtpz")
        cases.append(f"WHEN regexp_full_match({x}, {literal(form)}) THEN struct_pack({parts})")
    return f"CASE {' '.join(cases)} END"


def _at(x: str) -> str:
    """(at, away): the time as it is written, a bare date as the end of its day, and minutes east of UTC (null: local)."""
    date = f"TRY_CAST({x}.y || '-' || {x}.m || '-' || {x}.d AS DATE)"
    clock = f"regexp_replace(replace({x}.t, ',', '.'), '([.][0-9]{{6}})[0-9]+$', '\\1')"
    at = f"({date} + TRY_CAST(CASE WHEN length({clock}) <= 5 THEN {clock} || ':00' ELSE {clock} END AS TIME))"
    hour = f"hour({at})"
    noon = f"CASE lower({x}.p) WHEN 'pm' THEN 12 ELSE 0 END"
    twelve = f"CASE WHEN {hour} BETWEEN 1 AND 12 THEN {at} - to_hours({hour}) + to_hours({hour} % 12 + {noon}) END"
    written = f"CASE WHEN {x}.t = '' THEN {end_of_day(date)} WHEN {x}.p = '' THEN {at} ELSE {twelve} END"
    digits = f"rpad(replace(substr({x}.z, 2), ':', ''), 4, '0')"
    minutes = f"CAST(left({digits}, 2) AS INT) * 60 + CAST(right({digits}, 2) AS INT)"
    east = f"CASE left({x}.z, 1) WHEN '' THEN NULL WHEN '+' THEN {minutes} WHEN '-' THEN -({minutes}) ELSE 0 END"
    return f"CASE WHEN {x} IS NOT NULL THEN struct_pack(at := {written}, away := {east}) END"


def _in_utc(x: str, zone: str) -> str:
    return f"CASE WHEN {x}.away IS NULL THEN {to_utc(f'{x}.at', zone)} ELSE {x}.at - to_minutes({x}.away) END"


def flag() -> Reading:
    """A truth value."""
    return Reading((sql_text, lambda x: f"CASE WHEN lower({x}) IN {TRUE} THEN true WHEN lower({x}) IN {FALSE} THEN false END"), {})
