"""What every way to choose whom to contact must keep to, whatever the day looks like; and what each of them is for."""

import numpy as np
import pytest

from serving.decide import Floats
from serving.strategies import STRATEGIES, Budgeted, Chosen, ExpectedGain, NoContact, Randomised, Strategy, TopRisk

USE_KT = np.array([[0.0, 0.05, 4.0, 20.0], [0.0, 0.0, 0.0, 0.25]])
"""Money and advisors' hours of a contact by tier."""
LIMITS_K = np.array([150.0, 1.0])
UNLIMITED_K = np.array([np.inf, np.inf])
N, DAYS = 300, 5


def day(seed: int, n: int = N) -> tuple[Floats, Floats]:
    """Gains (n, 4) of a day, about a third of the tiers forbidden and some customers without any, and probabilities (n,)."""
    random = np.random.default_rng(seed)
    p_N, value_N = random.random(n), random.lognormal(4, 1, n)
    gains_NT = (p_N * value_N)[:, None] * np.array([0, 0.08, 0.24, 0.42]) * random.uniform(0.5, 1.5, (n, 4)) - USE_KT[0]
    gains_NT[random.random((n, 4)) < 0.35] = -np.inf
    gains_NT[:, 0] = 0
    return gains_NT, p_N


def made(kind: type[Strategy], seed: int = 1) -> Strategy:
    return Randomised(0.5, seed) if kind is Randomised else kind()


def gain(gains_NT: Floats, chosen: Chosen) -> float:
    return float(gains_NT[np.arange(len(gains_NT)), chosen.tiers].sum())


@pytest.mark.parametrize("kind", STRATEGIES.values(), ids=STRATEGIES)
class TestEveryStrategy:
    """Joined by whatever is in `STRATEGIES`."""

    @pytest.mark.parametrize("limits_K", [LIMITS_K, UNLIMITED_K], ids=["scarce", "plenty"])
    @pytest.mark.parametrize("seed", range(DAYS))
    def test_nobody_gets_a_forbidden_tier(self, kind: type[Strategy], seed: int, limits_K: Floats) -> None:
        gains_NT, p_N = day(seed)
        tiers = made(kind).choose(gains_NT, p_N, USE_KT, limits_K).tiers
        assert tiers.shape == (N,)
        assert np.isfinite(gains_NT[np.arange(N), tiers]).all()

    @pytest.mark.parametrize("seed", range(DAYS))
    def test_together_the_contacts_stay_within_the_limits(self, kind: type[Strategy], seed: int) -> None:
        gains_NT, p_N = day(seed)
        tiers = made(kind).choose(gains_NT, p_N, USE_KT, LIMITS_K).tiers
        assert (USE_KT[:, tiers].sum(axis=1) <= LIMITS_K + 1e-9).all()

    def test_a_day_without_money_has_no_contacts(self, kind: type[Strategy]) -> None:
        gains_NT, p_N = day(1)
        assert not made(kind).choose(gains_NT, p_N, USE_KT, np.array([0.0, 8.0])).tiers.any()

    def test_a_day_without_customers_is_no_error(self, kind: type[Strategy]) -> None:
        chosen = made(kind).choose(np.zeros((0, 4)), np.zeros(0), USE_KT, LIMITS_K)
        assert chosen.tiers.shape == chosen.propensity_N.shape == (0,)

    @pytest.mark.parametrize("limits_K", [LIMITS_K, UNLIMITED_K], ids=["scarce", "plenty"])
    def test_the_same_day_and_seed_give_the_same_choice(self, kind: type[Strategy], limits_K: Floats) -> None:
        first, again = (made(kind, 3).choose(*day(2), USE_KT, limits_K) for _ in range(2))
        np.testing.assert_array_equal(first.tiers, again.tiers)
        np.testing.assert_array_equal(first.propensity_N, again.propensity_N)
        np.testing.assert_array_equal(first.prices_K, again.prices_K)

    @pytest.mark.parametrize("seed", range(DAYS))
    def test_propensities_lie_above_0_and_up_to_1(self, kind: type[Strategy], seed: int) -> None:
        propensity_N = made(kind).choose(*day(seed), USE_KT, UNLIMITED_K).propensity_N
        assert ((propensity_N > 0) & (propensity_N <= 1 + 1e-12)).all()

    def test_only_a_draw_that_ran_out_has_no_propensity(self, kind: type[Strategy]) -> None:
        chosen = made(kind).choose(*day(1), USE_KT, LIMITS_K)
        ran_out_N = np.isnan(chosen.propensity_N)
        assert not chosen.tiers[ran_out_N].any()
        assert ran_out_N.any() == (kind is Randomised)
        assert ((chosen.propensity_N[~ran_out_N] > 0) & (chosen.propensity_N[~ran_out_N] <= 1 + 1e-12)).all()

    def test_prices_are_there_for_each_resource_and_never_negative(self, kind: type[Strategy]) -> None:
        prices_K = made(kind).choose(*day(1), USE_KT, LIMITS_K).prices_K
        assert prices_K.shape == LIMITS_K.shape
        assert (prices_K >= 0).all()


@pytest.mark.parametrize("strategy", [TopRisk(), ExpectedGain(), Budgeted(), Randomised(0)], ids=lambda one: one.name)
def test_the_last_contact_may_use_the_limit_to_the_cent(strategy: Strategy) -> None:
    gains_NT = np.array([[0.0, -np.inf, 5.0, -np.inf]])
    assert strategy.choose(gains_NT, np.ones(1), USE_KT, np.array([4.0, 0.0])).tiers.tolist() == [2]
    assert strategy.choose(gains_NT, np.ones(1), USE_KT, np.array([3.99, 0.0])).tiers.tolist() == [0]


@pytest.mark.parametrize("seed", range(20))
def test_budgeted_gains_at_least_what_any_other_gains_under_limits(seed: int) -> None:
    gains_NT, p_N = day(seed)
    found = {name: gain(gains_NT, made(kind).choose(gains_NT, p_N, USE_KT, LIMITS_K)) for name, kind in STRATEGIES.items()}
    assert found["budgeted"] >= max(found.values()) - 1e-9
    assert found["budgeted"] > found["expected_gain"] >= found["no_contact"] == 0  # limits bind, so first come first served must lose
    assert found["budgeted"] > found["top_risk"]


def test_where_nothing_binds_budgeted_is_everybodys_best_tier() -> None:
    gains_NT, p_N = day(4)
    best = gains_NT.argmax(axis=1)
    for kind in (Budgeted, ExpectedGain):
        np.testing.assert_array_equal(kind().choose(gains_NT, p_N, USE_KT, UNLIMITED_K).tiers, best)


def test_top_risk_contacts_from_the_riskiest_down_as_strongly_as_it_may() -> None:
    gains_NT = np.zeros((4, 4))
    gains_NT[1, 3] = -np.inf  # the second riskiest may get no advisor
    p_N, limits_K = np.array([0.7, 0.8, 0.9, 0.6]), np.array([28.0, 0.25])
    chosen = TopRisk().choose(gains_NT, p_N, USE_KT, limits_K)
    assert chosen.tiers.tolist() == [2, 2, 3, 0]  # 20 + 4 + 4, and nothing is left for the last


def test_no_contact_leaves_everybody_alone() -> None:
    assert not NoContact().choose(*day(1), USE_KT, UNLIMITED_K).tiers.any()


def alike(n: int) -> tuple[Floats, Floats]:
    """Four kinds of customers, n of each: all tiers allowed, two contacts, one, and none."""
    kinds_KT = np.array([[0, 3, 5, 1], [0, 2, -np.inf, 4], [0, -np.inf, 7, -np.inf], [0, -np.inf, -np.inf, -np.inf]])
    return np.repeat(kinds_KT, n, axis=0).astype(np.float64), np.full(4 * n, 0.5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_randomised_logs_the_frequency_at_which_each_tier_is_chosen(share: float) -> None:
    n = 20_000
    chosen = Randomised(share, seed=5).choose(*alike(n), USE_KT, UNLIMITED_K)
    tiers_KN, logged_KN = chosen.tiers.reshape(4, n), chosen.propensity_N.reshape(4, n)
    for kind in range(4):
        for tier in np.unique(tiers_KN[kind]):
            there = tiers_KN[kind] == tier
            (logged,) = np.unique(logged_KN[kind][there])
            assert there.mean() == pytest.approx(logged, abs=4 * np.sqrt(logged * (1 - logged) / n) + 1e-12)


def test_randomised_reaches_every_allowed_tier_so_that_its_propensities_add_up_to_one() -> None:
    chosen, n = Randomised(0.3, seed=1).choose(*alike(2000), USE_KT, UNLIMITED_K), 2000
    for kind, allowed in enumerate([(0, 1, 2, 3), (0, 1, 3), (0, 2), (0,)]):
        rows = slice(kind * n, (kind + 1) * n)
        seen = dict(zip(chosen.tiers[rows].tolist(), chosen.propensity_N[rows].tolist(), strict=True))
        assert tuple(sorted(seen)) == allowed
        assert sum(seen.values()) == pytest.approx(1)


def test_where_draws_run_out_the_logged_propensity_is_the_frequency_among_the_rows_of_the_experiment() -> None:
    n, gains = 20_000, alike(20_000)
    limits_K = np.array([np.inf, 0.25 * 3_000])  # advisors for 3,000, whom budgeted gives to whom they gain most
    best, chosen = Budgeted().choose(*gains, USE_KT, limits_K).tiers, Randomised(0.4, seed=5).choose(*gains, USE_KT, limits_K)
    kind, there = np.repeat(np.arange(4), n), ~np.isnan(chosen.propensity_N)
    assert 0.02 < np.mean(~there) < 0.2
    checked = 0
    for group in {(k, b) for k, b in zip(kind.tolist(), best.tolist(), strict=True)}:
        rows = there & (kind == group[0]) & (best == group[1])
        for tier in np.unique(chosen.tiers[rows]):
            (logged,) = np.unique(chosen.propensity_N[rows & (chosen.tiers == tier)])
            assert np.mean(chosen.tiers[rows] == tier) == pytest.approx(logged, abs=4 * np.sqrt(logged * (1 - logged) / rows.sum()) + 1e-12)
            checked += 1
    assert checked > 8


@pytest.mark.parametrize("seed", range(DAYS))
def test_an_experiment_leaves_the_others_what_budgeted_gives_them(seed: int) -> None:
    gains_NT, p_N = day(seed, 3000)
    limits_K = LIMITS_K * 10
    best, chosen = Budgeted().choose(gains_NT, p_N, USE_KT, limits_K), Randomised(0.1, seed=seed).choose(gains_NT, p_N, USE_KT, limits_K)
    assert np.mean(chosen.tiers == best.tiers) > 0.9
    assert gain(gains_NT, chosen) > 0.88 * gain(gains_NT, best)


def test_randomised_draws_anew_each_time_and_otherwise_for_another_seed() -> None:
    strategy, other = Randomised(0.5, seed=1), Randomised(0.5, seed=2)
    first, second, third = (one.choose(*day(1), USE_KT, UNLIMITED_K).tiers for one in (strategy, strategy, other))
    assert (first != second).any()
    assert (first != third).any()


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_beyond_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        Randomised(share)
