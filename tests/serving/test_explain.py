"""Reasons: at most five, by family, stable under tiny changes of the input, and a churn reason that follows its causes."""

from dataclasses import replace

import numpy as np
import pytest

from features.domain import REASON_FAMILIES, REASON_TOUCHPOINTS, ChurnReason
from serving.explain import REASONS, Explainer
from tests.conftest import Shop
from tests.features.histories import MANIFEST
from training.dataset import TrainingData
from training.models.blend import Blend
from training.models.lightgbm import LightGBM
from training.models.logistic import Ridge
from training.models.lstm import LSTM

NAMES = [feature.name for feature in MANIFEST.features]
EXPLAINER = Explainer(MANIFEST)


@pytest.fixture(scope="module")
def data(fake_run: Shop) -> TrainingData:
    return TrainingData.read(fake_run.places.features)


@pytest.fixture(scope="module")
def blend(data: TrainingData) -> Blend:
    train = data.before(data.split.test)
    rounds = {"lightgbm": 40, "lstm": 2, "logistic": 1}
    members = [kind.fit({**kind.strong, "rounds": rounds[kind.name]}, train, 1) for kind in (LightGBM, LSTM, Ridge)]
    return Blend(members, np.array([0.4, 0.3, 0.3]))


def test_a_tiny_change_of_the_input_changes_no_reason(blend: Blend, data: TrainingData) -> None:
    test, explainer = data.at([data.split.test]).at(slice(100)), Explainer(data.manifest)
    moved = replace(test, x_NF=test.x_NF * (1 + 1e-9))
    told, again = (explainer.reasons(blend.contributions(rows), rows.x_NF) for rows in (test, moved))
    assert [[(r["family"], r["effect"]) for r in reasons] for reasons in told] == [[(r["family"], r["effect"]) for r in rs] for rs in again]
    assert max(map(len, told)) == REASONS == 5


def test_contributions_of_the_blend_rank_customers_as_its_probabilities_do(blend: Blend, data: TrainingData) -> None:
    test = data.at([data.split.test])
    p = blend.predict(test)
    assert np.corrcoef(blend.contributions(test).sum(axis=1), np.log(p / (1 - p)))[0, 1] > 0.95


def contributions(**added: float) -> np.ndarray:
    found = np.zeros((1, len(NAMES)))
    for name, value in added.items():
        found[0, NAMES.index(name)] = value
    return found


def test_a_reason_is_told_by_its_familys_known_feature_that_adds_most_in_its_direction() -> None:
    """Against a plain loop, on contributions and unknown features of any kind."""
    rng, n = np.random.default_rng(1), 300
    added_NF, x_NF = rng.normal(size=(n, len(NAMES))) * 0.05, rng.normal(size=(n, len(NAMES)))
    x_NF[rng.random(x_NF.shape) < 0.3] = np.nan
    for found, added_F, x_F in zip(EXPLAINER.reasons(added_NF, x_NF), added_NF, x_NF, strict=True):
        assert len(found) == REASONS
        for reason in found:
            members = [place for place, name in enumerate(NAMES) if MANIFEST.family_of(name) == reason["family"]]
            total = sum(added_F[members])
            known = [place for place in members if not np.isnan(x_F[place])] or members[:1]
            assert reason["log_odds"] == pytest.approx(total, abs=1e-4)
            assert reason["feature"] == NAMES[max(known, key=lambda place: added_F[place] * np.sign(total))]


def test_a_family_of_which_nothing_is_known_says_so_itself() -> None:
    (found,) = EXPLAINER.reasons(contributions(discount_share=0.4), np.full((1, len(NAMES)), np.nan))
    assert (found[0]["family"], found[0]["text"].endswith(": not known")) == ("discounts", True)


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ({"discount_share": 0.4, "gap_mean_days": 2.0}, "price"),
        ({"delivery_late_share": 0.5, "discount_share": 0.2}, "service"),
        ({"product_age_days": 0.3}, "need_changed"),
        ({"discount_share": 0.05}, "unknown"),
        ({"discount_share": -0.9}, "unknown"),
        ({"recency_days": 3.0}, "unknown"),
    ],
)
def test_the_churn_reason_is_the_families_that_raise_the_risk_most(added: dict[str, float], reason: str) -> None:
    assert EXPLAINER.churn_reasons(contributions(**added), np.zeros((1, len(NAMES)))) == [reason]


@pytest.mark.parametrize("touchpoint", REASON_TOUCHPOINTS)
def test_an_open_complaint_late_refund_or_delivery_speaks_for_service(touchpoint: str) -> None:
    x = np.zeros((1, len(NAMES)))
    x[0, NAMES.index(touchpoint)] = 1.0
    assert EXPLAINER.churn_reasons(contributions(), x) == [ChurnReason.SERVICE.value]


def test_every_family_of_a_reason_exists_and_belongs_to_one_reason_only() -> None:
    named = [family for families in REASON_FAMILIES.values() for family in families]
    assert len(set(named)) == len(named)
    assert set(named) <= {family.name for family, _ in MANIFEST.families}
