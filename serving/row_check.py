"""Rows and moments of a request against the rules of the batch's contract (`features/row_rules.py`), so that both doors refuse the same.

Types, ranges and choices are checked while a body is read (`rows.py`); here it is what hangs on the clock or on another column.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from features.row_rules import TOLERANCE, Clock, of_times
from serving.answers import Refusal
from serving.rows import ROWS

MOST_TOLD = 20
_OF_HISTORIES = {**{source: source for source in ROWS}, "customers": "attributes", "deliveries": "deliveries", "consents": "consents"}
"""Field of a history by source."""
Broken = Iterator[tuple[str, str]]
"""(field, rule)."""


def histories(customers: Sequence[Any], clock: Clock) -> None:
    """Check the raw histories of a request. Raises Refusal that names fields and rules."""
    _refuse(broken for place, customer in enumerate(customers) for broken in _history(f"customers.{place}", customer, clock))


def events(given: Sequence[Any], clock: Clock) -> None:
    """Check new rows of any tables. Raises Refusal that names fields and rules."""
    _refuse(broken for place, event in enumerate(given) for broken in _row(event.table, event.row, f"events.{place}.row", clock))


def moment(field: str, time: datetime, clock: Clock) -> None:
    """Check one moment: not ancient, not in the future. Raises Refusal."""
    checks = ((clock.ancient, "does not lie before 1970"), (clock.future, "does not lie in the future"))
    _refuse((field, words) for broken, words in checks if broken(time))


def after_decision(field: str, time: datetime, decided: datetime, clock: Clock) -> None:
    """Check that an outcome does not lie before its decision. Raises Refusal."""
    if clock.before(time, decided - TOLERANCE):
        _refuse([(field, "does not lie before its decision")])


def _history(where: str, customer: Any, clock: Clock) -> Broken:
    for source, field in _OF_HISTORIES.items():
        given = getattr(customer, field) or ()
        rows = (given,) if isinstance(given, dict) else given
        for place, row in enumerate(rows):
            yield from _row(source, row, f"{where}.{field}" if rows is not given else f"{where}.{field}.{place}", clock)


def _row(source: str, row: dict[str, Any], where: str, clock: Clock) -> Broken:
    for column, rule in of_times(source):
        if rule.broken(row, clock):
            yield f"{where}.{column}", rule.words


def _refuse(broken: Iterable[tuple[str, str]]) -> None:
    told = [{"field": field, "rule": rule} for field, rule in islice(broken, MOST_TOLD)]
    if told:
        many = "some fields break" if len(told) == MOST_TOLD else f"{len(told)} field(s) break"
        raise Refusal(422, "Invalid request", f"{many} the rules of the data", told)
