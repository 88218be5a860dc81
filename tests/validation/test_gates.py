"""Gates fail closed: what is not shown to be better does not pass."""

from datetime import datetime

import numpy as np
import pytest

from features.mapping import Promotion
from validation import gates
from validation.gates import Holdout, Judged

RNG = np.random.default_rng(5)
TRUTH = RNG.random(2000)
Y = (RNG.random(2000) < TRUTH).astype(float)
BLIND = np.clip(0.5 + 0.05 * RNG.normal(size=2000), 0.01, 0.99)
NEARLY_BLIND = 0.5 + 0.05 * RNG.normal(size=400) + 0.004 * Y[:400]
TEST = datetime(2024, 6, 1)


def verdicts(
    y: np.ndarray, p: np.ndarray, rivals: dict[str, np.ndarray], until: datetime | None = TEST, **floor: int
) -> dict[str, gates.Verdict]:
    test = Holdout(y, TEST, Promotion(**floor), draws=100, seed=1)
    known = [Judged(name, rival, TEST) for name, rival in rivals.items()]
    return {verdict.gate: verdict for verdict in gates.promotion(test, Judged("challenger", p, until), known)}


def judged(p: np.ndarray, rivals: dict[str, np.ndarray]) -> list[gates.Verdict]:
    return list(verdicts(Y, p, rivals).values())


def test_the_better_model_passes_every_gate() -> None:
    assert gates.passed(judged(TRUTH, {"blind": BLIND}))


def test_the_worse_model_fails_with_the_numbers() -> None:
    found = judged(BLIND, {"truth": TRUTH})
    assert not gates.passed(found)
    assert any("log loss" in verdict.reason and verdict.outcome == "fail" for verdict in found)


def test_an_equal_model_does_not_pass() -> None:
    assert not gates.passed(judged(TRUTH, {"itself": TRUTH}))


@pytest.mark.parametrize("bad", [np.full(2000, 0.5), np.r_[np.nan, TRUTH[1:]], TRUTH + 1, TRUTH[:-1]])
def test_unsound_probabilities_fail(bad: np.ndarray) -> None:
    assert [verdict.outcome for verdict in judged(bad, {"blind": BLIND})] == ["fail"]


def test_nothing_to_compare_with_is_unknown_and_blocks() -> None:
    found = judged(TRUTH, {})
    assert found[-1].outcome == "unknown"
    assert not gates.passed(found)


def test_no_gate_at_all_does_not_pass() -> None:
    assert not gates.passed([])


def test_one_class_in_the_test_is_unknown() -> None:
    assert verdicts(np.ones(300), TRUTH[:300], {})["enough"].outcome == "unknown"


def test_an_unlabelled_row_in_the_test_is_unknown() -> None:
    assert verdicts(np.r_[np.nan, Y[1:]], TRUTH, {"blind": BLIND})["sound"].outcome == "unknown"


@pytest.mark.parametrize(("rows", "churned"), [(199, 90), (1000, 29), (1000, 971)])
def test_a_small_test_is_unknown_and_says_what_is_asked(rows: int, churned: int) -> None:
    y = (np.arange(rows) < churned).astype(float)
    found = verdicts(y, np.linspace(0.9, 0.1, rows), {"blind": BLIND[:rows]})
    assert found["enough"].outcome == "unknown"
    assert f"{rows:,} test rows" in found["enough"].reason
    assert "200 and 30 of each class" in found["enough"].reason


def test_a_small_shop_sets_its_own_floor_and_is_told_what_that_means() -> None:
    y, p = Y[:90], TRUTH[:90]
    found = verdicts(y, p, {"blind": BLIND[:90]}, min_rows=80, min_class=20)
    assert gates.passed(list(found.values()))
    assert "luck may decide" in found["enough"].reason


@pytest.mark.parametrize(("p", "outcome"), [(NEARLY_BLIND, "unknown"), (1 - TRUTH[:400], "fail")])
def test_an_auc_whose_interval_touches_a_coins_blocks(p: np.ndarray, outcome: str) -> None:
    found = verdicts(Y[:400], p, {"worse": np.where(Y[:400] == 1, 0.01, 0.99)})
    assert found["auc>0.5"].outcome == outcome
    assert found["log_loss<worse"].outcome == "pass"  # better than the rival, and still no good


@pytest.mark.parametrize("until", [datetime(2024, 6, 2), None])
def test_a_model_that_learnt_from_the_test_period_is_unknown(until: datetime | None) -> None:
    found = verdicts(Y, TRUTH, {"blind": BLIND}, until)
    assert found["unseen"].outcome == "unknown"
    assert {verdict.outcome for gate, verdict in found.items() if gate != "unseen"} == {"pass"}


def test_a_champion_that_learnt_from_the_test_period_is_unknown() -> None:
    test = Holdout(Y, TEST, Promotion(), draws=100, seed=1)
    found = gates.promotion(test, Judged("challenger", TRUTH, TEST), [Judged("champion", BLIND, datetime(2024, 9, 1))])
    [blocking] = [verdict for verdict in found if verdict.outcome != "pass"]
    assert (blocking.gate, blocking.outcome) == ("unseen", "unknown")
    assert "champion learnt from labels up to 2024-09-01" in blocking.reason
