"""Events of a few customers against sums written by hand."""

import gc
import weakref

import numpy as np
import pytest

from features.events import Events, lengths, ratio, runs, sort_by

OF_TWO = Events(3, np.array([0, 0, 2]), np.array([100.0, 5.0, 40.0]), {"spend": np.array([1.0, 2.0, 4.0])})
"""Two events of the first customer, none of the second, one of the third."""


def test_a_window_is_made_once_and_holds_its_events() -> None:
    recent = OF_TWO.within(90)
    assert recent is OF_TWO.within(90)
    assert (recent.age_days.tolist(), recent.sum("spend").tolist()) == ([5.0, 40.0], [2.0, 0.0, 4.0])
    assert OF_TWO.within(365) is OF_TWO


def test_windows_and_sums_do_not_keep_their_events_alive() -> None:
    events = Events(1, np.array([0]), np.array([5.0]), {"spend": np.array([1.0])})
    assert events.within(365) is events
    assert events.sum("spend").tolist() == events.windowed("spend")[:, 0].tolist() == [1.0]
    gone = weakref.ref(events)
    gc.disable()
    del events
    gc.enable()
    assert gone() is None  # freed at once, without the garbage collector: a batch's arrays are large


def test_the_first_and_the_last_event_count_from_the_snapshot() -> None:
    assert np.array_equal(OF_TWO.since_last(), [5.0, np.nan, 40.0], equal_nan=True)
    assert np.array_equal(OF_TWO.since_first(), [100.0, np.nan, 40.0], equal_nan=True)
    assert np.array_equal(OF_TWO.last(OF_TWO["spend"]), [2.0, np.nan, 4.0], equal_nan=True)


def test_without_events_counts_are_zero_and_values_unknown() -> None:
    nothing = OF_TWO.where(OF_TWO.age_days > 999)
    assert nothing.within(7) is nothing
    assert nothing.count().tolist() == nothing.sum("spend").tolist() == nothing.windowed()[:, 6].tolist() == [0.0, 0.0, 0.0]
    for values in (nothing.since_last(), nothing.since_first(), nothing.median(nothing.age_days), nothing.first(nothing["spend"])):
        assert np.array_equal(values, [np.nan] * 3, equal_nan=True)


def test_nothing_is_divided_by_nothing() -> None:
    with np.errstate(all="raise"):
        found = ratio(np.array([1.0, 0.0, 3.0, -2.0]), np.array([0.0, 0.0, np.nan, 4.0]))
    assert np.array_equal(found, [np.nan, np.nan, np.nan, -0.5], equal_nan=True)


@pytest.mark.parametrize("span", [3, 2**40])  # keys that fit into one number, and keys that do not
def test_runs_are_the_rows_alike_in_every_key(span: int) -> None:
    keys = [np.random.default_rng(7).integers(0, 3, 200) * (span // 3) for _ in range(3)]
    order, starts = runs(keys)
    rows = [tuple(int(key[row]) for key in keys) for row in order]
    assert rows == sorted(rows) == [tuple(int(key[row]) for key in keys) for row in sort_by(keys)]
    assert [rows[start] for start in starts] == sorted(set(rows))
    assert lengths(starts, 200).tolist() == [rows.count(rows[start]) for start in starts]
