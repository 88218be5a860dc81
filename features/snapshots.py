"""When predictions are made, and which snapshots may teach which."""

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any, Self

from features.errors import InputError
from features.mapping import Dataset
from features.row_rules import EARLIEST

VALIDATION_SNAPSHOTS = 3
CALIBRATION_SNAPSHOTS = 3
SILENT_DAYS_LATE, SILENT_DAYS_EARLY = 14, 90
"""A shop without any order for so long has a gap; what lies beyond it may be strays."""
STRAYS_MOST = 50
"""Orders beyond a gap that may be strays; more are a shop that sells less."""
STRAY_SHARE, EXPECTED_ORDERS = 0.05, 20.0
"""Strays are fewer than this share of what the shop sells in that time, which is so many orders at least."""
USUAL_DAYS = 90
"""Days beside a gap that tell what is usual."""


@dataclass(frozen=True)
class Orders:
    """Days with orders, oldest first, and how many."""

    days: tuple[date, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, connection: Any) -> Self:
        """The orders of the canonical tables that a connection of DuckDB sees, by the shop's calendar."""
        possible = f"ordered_at BETWEEN TIMESTAMP '{EARLIEST}' AND $1"  # the contract tells all others
        query = f"SELECT CAST(ordered_at AS DATE), count(*) FROM orders WHERE {possible} GROUP BY 1 ORDER BY 1"
        rows = connection.execute(query, [datetime.now() + timedelta(days=2)]).fetchall()
        return cls(tuple(day for day, _ in rows), tuple(count for _, count in rows))

    @property
    def strays(self) -> tuple[int, int]:
        """Orders before and after the time that the data cover: the first of 1990, or one of next year, are no evidence of the others.

        A gap in the shop's orders with far fewer beyond it than the shop sells in such a time ends the data.
        """
        first, last = self._first(), self._last()
        return sum(self.counts[:first]), sum(self.counts[last + 1 :])

    @property
    def span(self) -> tuple[date, date]:
        """First and last day that the data cover, strays left out."""
        return self.days[self._first()], self.days[self._last()]

    def _last(self) -> int:
        end = len(self.days) - 1
        gaps = [k for k in range(end) if (self.days[k + 1] - self.days[k]).days >= SILENT_DAYS_LATE]
        return next((k for k in gaps if self._few(range(k + 1, end + 1), self._usual(k, -1), self.days[-1] - self.days[k])), end)

    def _first(self) -> int:
        gaps = [k for k in range(1, len(self.days)) if (self.days[k] - self.days[k - 1]).days >= SILENT_DAYS_EARLY]
        found = [k for k in gaps if self._few(range(k), self._usual(k, 1), self.days[k] - self.days[0])]
        return found[-1] if found else 0

    def _usual(self, place: int, way: int) -> float:
        """Orders a day before (-1) or after (1) a day; 0 where the orders there span too few days to tell."""
        if abs((self.days[-1 if way > 0 else 0] - self.days[place]).days) + 1 < USUAL_DAYS:
            return 0.0
        span = [k for k, day in enumerate(self.days) if 0 <= (day - self.days[place]).days * way < USUAL_DAYS]
        return sum(self.counts[k] for k in span) / USUAL_DAYS

    def _few(self, beyond: range, usual: float, time: timedelta) -> bool:
        expected = usual * time.days
        return expected >= EXPECTED_ORDERS and sum(self.counts[k] for k in beyond) < min(STRAY_SHARE * expected, STRAYS_MOST)


@dataclass(frozen=True)
class Split:
    """Roles of the labelled snapshots; between any fit and its test lies an embargo of one horizon.

    Origins are predicted by models that learnt only from ``before(origin)``: on those of ``validation`` tuning is judged, those
    of ``calibration``, the last of them a horizon later, fit blend and calibration; the final model learns from every
    snapshot whose label window ends before ``test``. Score edges are fitted on ``base``.
    """

    horizon: timedelta
    labelled: tuple[datetime, ...]
    test: datetime

    def before(self, moment: datetime) -> tuple[datetime, ...]:
        """Snapshots whose label window has ended by ``moment``: all that may be learnt from then."""
        return tuple(t for t in self.labelled if t + self.horizon <= moment)

    def origins(self, moment: datetime, most: int) -> tuple[datetime, ...]:
        """Snapshots to predict out of time, back from a moment in steps of a horizon, each with snapshots to learn from; oldest first."""
        found: list[datetime] = []
        while len(found) < most and (known := self.before(moment)) and self.before(known[-1]):
            moment = known[-1]
            found.insert(0, moment)
        return tuple(found)

    @property
    def calibration(self) -> tuple[datetime, ...]:
        """Origins known at the test: blend and calibration are fitted on them; fitted on all but the last, they judge candidates there."""
        return self.origins(self.test, CALIBRATION_SNAPSHOTS)

    @property
    def validation(self) -> tuple[datetime, ...]:
        """Origins known at the last calibration snapshot: the rolling folds of tuning."""
        return self.origins(self.calibration[-1], VALIDATION_SNAPSHOTS)

    @property
    def base(self) -> tuple[datetime, ...]:
        """Snapshots that teach the last fold of tuning; also what score edges are fitted on, without labels."""
        return self.before(self.validation[-1])


def schedule(dataset: Dataset, first_order: date, last_order: date) -> tuple[Split, datetime]:
    """The labelled snapshots with their roles, and the scoring snapshot (the midnight after the last day that the data cover).

    Raises InputError when a label window is not complete or the history is too short for every role.
    """
    horizon = timedelta(days=dataset.churn.horizon_days)
    file, given = str(dataset.file), dataset.snapshots
    last_event = given.complete_until or last_order
    if given.complete_until and given.complete_until > date.today() + timedelta(days=1):
        fix = "give the last day whose orders are all there"
        raise InputError(f"{file}: snapshots.complete_until = {given.complete_until}", "lies in the future", fix)
    latest = datetime.combine(last_event + timedelta(days=1), time())
    first = _midnight(given.first) or datetime.combine(first_order + horizon, time())
    last_complete = latest - horizon
    if given.test and _midnight(given.test) > last_complete:  # type: ignore[operator]
        raise InputError(
            f"{file}: snapshots.test = {given.test}",
            f"its label window of {horizon.days} days ends after the last event ({last_event:%Y-%m-%d})",
            f"choose {last_complete:%Y-%m-%d} or earlier, or say until when the data are complete: snapshots.complete_until",
        )
    moments = _steps(first, _midnight(given.test) or last_complete, given.every)
    test = _midnight(given.test) or (moments[-1] if moments else last_complete)
    split = Split(horizon, (*(t for t in moments if t < test), test), test)
    _check_length(split, file, first_order, last_event)
    return split, latest


def _midnight(day: date | None) -> datetime | None:
    return datetime.combine(day, time()) if day else None


def _steps(first: datetime, last: datetime, every: str | int) -> list[datetime]:
    if isinstance(every, int):
        count = (last - first) // timedelta(days=every)
        return [last - timedelta(days=every * k) for k in range(count, -1, -1)]
    moments = []
    year, month = first.year, first.month
    while (moment := datetime(year, month, 1)) <= last:
        if moment >= first:
            moments.append(moment)
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)
    return moments


def _check_length(split: Split, file: str, first_order: date, last_event: date) -> None:
    calibration = split.calibration
    if calibration and split.origins(calibration[-1], 1):
        return
    days = split.horizon.days
    raise InputError(
        f"{file}: snapshots",
        f"{len(split.labelled)} labelled snapshots from {first_order:%Y-%m-%d} to {last_event:%Y-%m-%d} are too few: training, "
        f"validation, calibration and test need label windows of {days} days one after another",
        f"bring at least {5 * days} days of orders, set an earlier snapshots.first, or a shorter churn.horizon_days",
    )
