"""The metrics agree with scikit-learn, ties included; intervals are paired and hold the value."""

import numpy as np
import pytest
from sklearn import metrics as reference

from validation.metrics import METRICS, accuracy, auc, brier, difference, ece, lift_10, log_loss, pr_auc, with_intervals


@pytest.fixture(params=[1, 2, 3])
def sample(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(request.param)
    p = np.round(rng.random(800), 2)  # rounded: many ties
    return (rng.random(800) < p).astype(float), p


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (auc, reference.roc_auc_score),
        (pr_auc, reference.average_precision_score),
        (log_loss, reference.log_loss),
        (brier, reference.brier_score_loss),
        (accuracy, lambda y, p: reference.accuracy_score(y, p >= 0.5)),
    ],
)
def test_a_metric_agrees_with_scikit_learn(sample: tuple[np.ndarray, np.ndarray], ours, theirs) -> None:  # type: ignore[no-untyped-def]
    y, p = sample
    assert ours(y, np.clip(p, 1e-6, 1 - 1e-6)) == pytest.approx(theirs(y, np.clip(p, 1e-6, 1 - 1e-6)), abs=1e-12)


def test_calibration_error_of_a_constant_is_its_distance_from_the_rate() -> None:
    y = np.array([1.0, 0, 0, 0])
    assert ece(y, np.full(4, 0.6)) == pytest.approx(0.35)


def test_lift_is_the_rate_of_the_top_tenth_over_the_mean() -> None:
    y = np.r_[np.ones(10), np.zeros(90)]
    assert lift_10(y, np.linspace(1, 0, 100)) == pytest.approx(10.0)


def test_one_class_gives_no_auc() -> None:
    assert np.isnan(auc(np.ones(3), np.array([0.1, 0.2, 0.3])))


def test_intervals_hold_the_value_and_repeat_with_the_seed(sample: tuple[np.ndarray, np.ndarray]) -> None:
    found = with_intervals(*sample, draws=100, seed=1)
    assert set(found) == set(METRICS)
    assert all(low <= value <= high for name, (value, low, high) in found.items() if name != "ece")
    assert found == with_intervals(*sample, draws=100, seed=1)


def test_the_difference_to_itself_is_exactly_zero(sample: tuple[np.ndarray, np.ndarray]) -> None:
    y, p = sample
    assert difference(auc, y, p, p, draws=50, seed=1) == [0.0, 0.0, 0.0]
