"""The time rule in SQL, against Python's own zones: at every change of the clocks between 1970 and 2100, and between them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import duckdb
import pytest

from features.moments import at_second_fold, offsets, to_local, to_utc

ZONES = ["Europe/London", "America/New_York", "America/Sao_Paulo", "Australia/Lord_Howe", "Asia/Tokyo", "Pacific/Apia"]
AROUND = [-7200, -3601, -3600, -1801, -1800, -1, 0, 1, 1799, 1800, 3599, 3600, 10**7]
YEARS = (1970, 2100)


def moments(zone: str) -> list[datetime]:
    changes = [at for at, _ in offsets(zone) if YEARS[0] < at.year < YEARS[1]]
    return [at + timedelta(seconds=away) for at in changes or [datetime(2026, 1, 1)] for away in AROUND]


def sql(expression: str, given: Sequence[datetime]) -> list[datetime]:
    found = duckdb.execute(f"SELECT {expression} FROM (SELECT unnest($1::TIMESTAMP[]) AS x)", [given]).fetchall()
    return [moment for (moment,) in found]


def clock(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment.replace(tzinfo=UTC).astimezone(zone).replace(tzinfo=None)


def utc(local: datetime, zone: ZoneInfo, fold: int) -> datetime:
    return local.replace(tzinfo=zone, fold=fold).astimezone(UTC).replace(tzinfo=None)


@pytest.mark.parametrize("zone", ZONES)
def test_moments_and_what_the_clocks_show_at_them_are_those_of_python(zone: str) -> None:
    given, there = moments(zone), ZoneInfo(zone)
    shown = [clock(one, there) for one in given]
    assert sql(to_local("x", zone, YEARS), given) == shown
    assert sql(to_utc("x", zone, years=YEARS), shown) == [utc(one, there, 0) for one in shown]
    assert sql(to_utc("x", zone, second=True, years=YEARS), shown) == [utc(one, there, 1) for one in shown]
    assert sql(at_second_fold("x", zone, YEARS), given) == [utc(one, there, 1) for one in shown]
