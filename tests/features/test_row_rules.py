"""One definition of the row rules: what its SQL counts in a file, its Python refuses in a request."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.row_rules import TOLERANCE, Clock, of_column, of_times
from features.schema import EXACT, FLAG, SOURCES, TEXT, TIME, Source

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ODD_TIMES = [NOW + TOLERANCE, NOW + 2 * TOLERANCE, datetime(1970, 1, 2), datetime(1970, 1, 1), datetime(1, 1, 1), datetime(9999, 12, 31)]
VALUES: dict[str, Any] = {
    TIME: st.none()
    | st.sampled_from([one.replace(tzinfo=None) for one in ODD_TIMES])
    | st.datetimes(datetime(2025, 1, 1), datetime(2027, 1, 1)),
    EXACT: st.none() | st.sampled_from([0.0, -0.0001, 0.0001, 1.0, 3.0, 5.0, 5.0001, 10.0, 10.5, 100.0, 101.0, -1.0]),
    FLAG: st.none() | st.booleans(),
    TEXT: st.none() | st.sampled_from(["view", "e-mail", "customer", "other", "bro\ufffdken", "a"]),
}


def counted(source: Source, row: dict[str, Any], soon: datetime) -> set[tuple[str, str]]:
    """The rules that a row breaks, as DuckDB counts them for the contract."""
    columns = ", ".join(f'${column.name}::{column.type} AS "{column.name}"' for column in source.columns)
    rules = [(column.name, rule.name, rule.condition) for column in source.columns for rule in of_column(column)]
    counts = ", ".join(f"count(*) FILTER ({condition})" for _, _, condition in rules)
    given = row | ({"soon": soon} if "$soon" in counts else {})
    found = duckdb.connect().execute(f"SELECT {counts} FROM (SELECT {columns})", given).fetchall()[0]
    return {(column, name) for (column, name, _), broken in zip(rules, found, strict=True) if broken}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(SOURCES)))
def test_both_doors_refuse_the_same_rows(data: Any, name: str) -> None:
    source, clock = SOURCES[name], Clock.at(NOW.timestamp(), ZoneInfo("UTC"))
    row = {column.name: data.draw(VALUES[column.type], column.name) for column in source.columns}
    told = {(column.name, rule.name) for column in source.columns for rule in of_column(column) if rule.broken(row, clock)}
    assert told == counted(source, row, clock.local)


def broken(source: str, row: dict[str, Any], zone: str = "Europe/Berlin") -> set[tuple[str, str]]:
    clock = Clock.at(NOW.timestamp(), ZoneInfo(zone))
    return {(column, rule.name) for column, rule in of_times(source) if rule.broken(row, clock)}


def test_times_compare_as_moments_and_as_local_time_only_where_a_zone_is_missing() -> None:
    paris, kolkata = (datetime(2025, 5, 1, 12, tzinfo=ZoneInfo(zone)) for zone in ("Europe/Paris", "Asia/Kolkata"))
    assert broken("orders", {"ordered_at": kolkata, "cancelled_at": paris}) == set()
    assert broken("orders", {"ordered_at": paris, "cancelled_at": kolkata}) == {("cancelled_at", "order")}
    assert broken("orders", {"ordered_at": datetime(2025, 5, 1, 12, 30), "cancelled_at": paris}) == {("cancelled_at", "order")}
    assert broken("orders", {"ordered_at": datetime(2025, 5, 1, 12), "cancelled_at": paris}) == set()


def test_an_hour_that_comes_twice_is_given_the_benefit_of_the_doubt() -> None:
    first, second = datetime(2025, 10, 26, 2, 30), datetime(2025, 10, 26, 2, 10)
    assert broken("orders", {"ordered_at": first, "arrived_at": second}) == set()
    assert broken("orders", {"ordered_at": first, "arrived_at": second}, "Asia/Tokyo") == {("arrived_at", "order")}


@pytest.mark.parametrize("zone", [None, UTC, ZoneInfo("Pacific/Auckland")])
def test_clocks_may_differ_by_an_hour(zone: Any) -> None:
    soon = NOW + TOLERANCE
    told = soon.astimezone(zone) if zone else soon.astimezone(ZoneInfo("Europe/Berlin")).replace(tzinfo=None)
    assert broken("reviews", {"reviewed_at": told}) == set()
    assert broken("reviews", {"reviewed_at": told + timedelta(seconds=1)}) == {("reviewed_at", "future")}


def test_what_is_due_or_expires_may_lie_in_the_future_and_never_is_a_day() -> None:
    row = {"claimed_at": datetime(2025, 1, 1), "expires_at": datetime(9999, 12, 31, 23, 59, tzinfo=UTC)}
    assert broken("coupons", row) == set()
    assert broken("coupons", {"claimed_at": datetime(2199, 1, 1)}) == {("claimed_at", "future")}
