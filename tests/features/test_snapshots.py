"""Roles of snapshots keep an embargo of one horizon between what is learnt and what is tested."""

from datetime import date, datetime, timedelta

import pytest

from features import mapping
from features.errors import InputError
from features.mapping import Snapshots
from features.snapshots import Split, schedule

HORIZON = timedelta(days=90)
SAMPLE = mapping.read()
FIRST, LAST = datetime(2009, 12, 1, 7), datetime(2011, 12, 9, 12)


def sample_split(**snapshots: object) -> Split:
    dataset = SAMPLE.model_copy(update={"snapshots": Snapshots(**snapshots)})  # type: ignore[arg-type]
    return schedule(dataset, FIRST, LAST)[0]


def test_every_label_window_ends_before_the_next_role_begins() -> None:
    split = sample_split(first=date(2010, 3, 1), test=date(2011, 9, 1))
    assert max(split.base) + HORIZON <= split.validation[-1]
    assert max(split.validation) + HORIZON <= split.calibration[-1]
    assert max(split.before(split.test)) + HORIZON <= split.test
    assert len(split.calibration) == len(split.validation) == 3
    assert all(max(split.before(origin)) + HORIZON <= origin for origin in (*split.calibration, *split.validation))


def test_the_defaults_take_the_last_complete_label_window() -> None:
    split = sample_split()
    assert split.test == datetime(2011, 9, 1)
    assert split.labelled[0].date() >= (FIRST + HORIZON).date()


def test_snapshots_every_n_days_count_back_from_the_test() -> None:
    split = sample_split(every=15, test=date(2011, 9, 1))
    assert {(split.test - moment).days % 15 for moment in split.labelled} == {0}


def test_a_test_whose_labels_are_not_complete_is_refused_with_the_latest_possible_date() -> None:
    with pytest.raises(InputError, match="2011-09-11 or earlier"):
        sample_split(test=date(2011, 10, 1))


def test_too_short_a_history_says_how_much_is_needed() -> None:
    with pytest.raises(InputError, match="450 days"):
        schedule(SAMPLE.model_copy(update={"snapshots": Snapshots()}), FIRST, FIRST + timedelta(days=200))
