"""Gates fail closed: what is not shown to be better does not pass."""

import numpy as np
import pytest

from validation import gates

RNG = np.random.default_rng(5)
TRUTH = RNG.random(2000)
Y = (RNG.random(2000) < TRUTH).astype(float)
BLIND = np.clip(0.5 + 0.05 * RNG.normal(size=2000), 0.01, 0.99)


def judged(p: np.ndarray, rivals: dict[str, np.ndarray]) -> list[gates.Verdict]:
    return gates.promotion(Y, p, rivals, draws=100, seed=1)


def test_the_better_model_passes_every_gate() -> None:
    assert gates.passed(judged(TRUTH, {"blind": BLIND}))


def test_the_worse_model_fails_with_the_numbers() -> None:
    verdicts = judged(BLIND, {"truth": TRUTH})
    assert not gates.passed(verdicts)
    assert any("log loss" in verdict.reason and verdict.outcome == "fail" for verdict in verdicts)


def test_an_equal_model_does_not_pass() -> None:
    assert not gates.passed(judged(TRUTH, {"itself": TRUTH}))


@pytest.mark.parametrize("bad", [np.full(2000, 0.5), np.r_[np.nan, TRUTH[1:]], TRUTH + 1, TRUTH[:-1]])
def test_unsound_probabilities_fail(bad: np.ndarray) -> None:
    assert [verdict.outcome for verdict in judged(bad, {"blind": BLIND})] == ["fail"]


def test_nothing_to_compare_with_is_unknown_and_blocks() -> None:
    verdicts = judged(TRUTH, {})
    assert verdicts[-1].outcome == "unknown"
    assert not gates.passed(verdicts)


def test_no_gate_at_all_does_not_pass() -> None:
    assert not gates.passed([])


def test_one_class_in_the_test_is_unknown() -> None:
    assert gates.promotion(np.ones(10), TRUTH[:10], {}, 10, 1)[0].outcome == "unknown"
