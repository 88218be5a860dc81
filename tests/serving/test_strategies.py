"""What every way to choose whom to contact must keep to, whatever the day looks like; and what each of them is for."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.stats import chi2_contingency

from features.errors import InputError
from serving.allocate import allocate
from serving.cli import _strategy as strategy_of
from serving.decide import Bools, Floats, Ints
from serving.experiment import Draws, Plan, plan
from serving.strategies import STRATEGIES, Budgeted, Chosen, ExpectedGain, NoContact, Randomised, Strategy, TopRisk

USE_KT = np.array([[0, 50_000, 4_000_000, 20_000_000], [0, 0, 0, 250_000]])
"""Millionths of money and of an advisor's hour, of a contact by tier."""
LIMITS_K = np.array([150_000_000, 1_000_000])
UNLIMITED_K = np.array([np.inf, np.inf])
N, DAYS = 300, 5


def names(n: int) -> list[str]:
    return [f"{number:032x}" for number in range(n)]


@dataclass(frozen=True)
class Day:
    """Gains (n, t) and probabilities (n,) of the customers of these ids."""

    gains_NT: Floats
    p_N: Floats
    ids: list[str]

    def chosen(self, strategy: Strategy, limits_K: Ints | Floats, use_KT: Ints = USE_KT) -> Chosen:
        return strategy.choose(self.gains_NT, self.p_N, use_KT, limits_K, self.ids)

    def without(self, row: int) -> "Day":
        return Day(np.delete(self.gains_NT, row, axis=0), np.delete(self.p_N, row), self.ids[:row] + self.ids[row + 1 :])

    def gain(self, chosen: Chosen) -> float:
        return float(self.gains_NT[np.arange(len(self.ids)), chosen.tiers].sum())


def day(seed: int, n: int = N) -> Day:
    """About a third of the tiers forbidden and some customers without any."""
    random = np.random.default_rng(seed)
    p_N, value_N = random.random(n), random.lognormal(4, 1, n)
    gains_NT = (p_N * value_N)[:, None] * np.array([0, 0.08, 0.24, 0.42]) * random.uniform(0.5, 1.5, (n, 4)) - USE_KT[0] / 1e6
    gains_NT[random.random((n, 4)) < 0.35] = -np.inf
    gains_NT[:, 0] = 0
    return Day(gains_NT, p_N, names(n))


def made(kind: type[Strategy], experiment: str = "spring") -> Strategy:
    return Randomised(0.5, experiment) if kind is Randomised else kind()


@pytest.mark.parametrize("kind", STRATEGIES.values(), ids=STRATEGIES)
class TestEveryStrategy:
    """Joined by whatever is in `STRATEGIES`."""

    @pytest.mark.parametrize("limits_K", [LIMITS_K, UNLIMITED_K], ids=["scarce", "plenty"])
    @pytest.mark.parametrize("seed", range(DAYS))
    def test_nobody_gets_a_forbidden_tier(self, kind: type[Strategy], seed: int, limits_K: Floats) -> None:
        tiers = day(seed).chosen(made(kind), limits_K).tiers
        assert tiers.shape == (N,)
        assert np.isfinite(day(seed).gains_NT[np.arange(N), tiers]).all()

    @pytest.mark.parametrize("seed", range(DAYS))
    def test_together_the_contacts_stay_within_the_limits(self, kind: type[Strategy], seed: int) -> None:
        tiers = day(seed).chosen(made(kind), LIMITS_K).tiers
        assert (USE_KT[:, tiers].sum(axis=1) <= LIMITS_K).all()

    def test_a_day_without_money_has_no_contacts(self, kind: type[Strategy]) -> None:
        assert not day(1).chosen(made(kind), np.array([0, 8_000_000])).tiers.any()

    def test_a_day_without_customers_is_no_error(self, kind: type[Strategy]) -> None:
        chosen = Day(np.zeros((0, 4)), np.zeros(0), []).chosen(made(kind), LIMITS_K)
        assert {field.shape for field in (chosen.tiers, chosen.propensity_N, chosen.own_N, chosen.lacking_N)} == {(0,)}

    @pytest.mark.parametrize("limits_K", [LIMITS_K, UNLIMITED_K], ids=["scarce", "plenty"])
    def test_the_same_day_gives_the_same_choice(self, kind: type[Strategy], limits_K: Floats) -> None:
        first, again = (day(2).chosen(made(kind), limits_K) for _ in range(2))
        np.testing.assert_array_equal(first.tiers, again.tiers)
        np.testing.assert_array_equal(first.propensity_N, again.propensity_N)
        np.testing.assert_array_equal(first.prices_K, again.prices_K)

    @pytest.mark.parametrize("limits_K", [LIMITS_K, UNLIMITED_K], ids=["scarce", "plenty"])
    @pytest.mark.parametrize("seed", range(DAYS))
    def test_propensities_lie_above_0_and_up_to_1(self, kind: type[Strategy], seed: int, limits_K: Floats) -> None:
        propensity_N = day(seed).chosen(made(kind), limits_K).propensity_N
        assert ((propensity_N > 0) & (propensity_N <= 1 + 1e-12)).all()

    def test_prices_are_there_for_each_resource_and_never_negative(self, kind: type[Strategy]) -> None:
        prices_K = day(1).chosen(made(kind), LIMITS_K).prices_K
        assert prices_K.shape == LIMITS_K.shape
        assert (prices_K >= 0).all()

    def test_where_no_limit_binds_none_is_said_to_lack(self, kind: type[Strategy]) -> None:
        assert set(day(1).chosen(made(kind), np.array([100_000_000_000, 500_000_000])).lacking_N.tolist()) == {-1}

    def test_columns_of_two_days_are_paid_from_their_own_day(self, kind: type[Strategy]) -> None:
        """Two tiers on two days: columns none, nudge today, nudge tomorrow, offer today, offer tomorrow."""
        random, use_KT = np.random.default_rng(3), np.array([[0, 5, 0, 400, 0], [0, 0, 5, 0, 400]])
        gains_NT = np.column_stack([np.zeros(N), random.uniform(0, 3, (N, 4))])
        tomorrow_N = random.random(N) < 0.5
        gains_NT[np.ix_(tomorrow_N, [1, 3])] = gains_NT[np.ix_(~tomorrow_N, [2, 4])] = -np.inf
        tiers = Day(gains_NT, random.random(N), names(N)).chosen(made(kind), np.array([2_000, 9_000]), use_KT).tiers
        assert (use_KT[:, tiers].sum(axis=1) <= [2_000, 9_000]).all()
        assert np.isin(tiers[tomorrow_N], [0, 2, 4]).all()
        assert np.isin(tiers[~tomorrow_N], [0, 1, 3]).all()


# Money


@pytest.mark.parametrize("strategy", [TopRisk(), ExpectedGain(), Budgeted(), Randomised(0)], ids=lambda one: one.name)
@pytest.mark.parametrize(
    ("cost", "budget", "contacts"), [(70_000, 7_000_000, 100), (70_000, 700_000, 10), (100_000, 300_000, 3), (50_000, 150_000, 3)]
)
def test_the_budget_pays_as_many_contacts_as_it_is_a_multiple_of(strategy: Strategy, cost: int, budget: int, contacts: int) -> None:
    shop = Day(np.tile([0.0, 1.0], (200, 1)), np.full(200, 0.5), names(200))
    for short, paid in ((0, contacts), (1, contacts - 1)):
        assert shop.chosen(strategy, np.array([budget - short]), np.array([[0, cost]])).tiers.sum() == paid


def exact(gains_NT: Floats, use_KT: Ints, limits_K: Ints) -> float:
    """The greatest sum of gains by the whole integer program, one variable for each allowed column of each customer."""
    rows, columns = np.nonzero(np.isfinite(gains_NT))
    one_each = (rows == np.arange(len(gains_NT))[:, None]).astype(float)
    within = use_KT[:, columns] / 1e6
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(within, -np.inf, limits_K / 1e6)]
    found = milp(-gains_NT[rows, columns], integrality=1, bounds=Bounds(0, 1), constraints=constraints, options={"mip_rel_gap": 0})
    assert found.status == 0
    return -float(found.fun)


@pytest.mark.parametrize("seed", range(5))
def test_budgeted_gains_what_the_exact_program_does_within_the_gap_it_states(seed: int) -> None:
    shop, limits_K = day(seed, 60), np.array([40_000_000, 500_000])
    chosen, best = shop.chosen(Budgeted(), limits_K), exact(shop.gains_NT, USE_KT, limits_K)
    assert chosen.allocation is not None
    assert best * (1 - chosen.allocation.gap) - 1e-6 <= shop.gain(chosen) <= best + 1e-6
    assert chosen.allocation.gap < 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_budgeted_gains_at_least_what_any_other_gains_under_limits(seed: int) -> None:
    shop = day(seed)
    found = {name: shop.gain(shop.chosen(made(kind), LIMITS_K)) for name, kind in STRATEGIES.items()}
    assert found["budgeted"] >= max(found.values()) - 1e-9
    assert found["budgeted"] > found["expected_gain"] >= found["no_contact"] == 0  # limits bind, so first come first served must lose
    assert found["budgeted"] > found["top_risk"]


def test_where_nothing_binds_budgeted_is_everybodys_best_tier() -> None:
    for kind in (Budgeted, ExpectedGain):
        np.testing.assert_array_equal(day(4).chosen(kind(), UNLIMITED_K).tiers, day(4).gains_NT.argmax(axis=1))


# What decided


def test_no_contact_leaves_everybody_alone_by_its_own_rule() -> None:
    chosen = day(1).chosen(NoContact(), np.array([100_000_000_000, 500_000_000]))
    assert not chosen.tiers.any()
    assert chosen.own_N.all()
    assert NoContact.own == "strategy"


def test_top_risk_contacts_from_the_riskiest_down_as_strongly_as_it_may() -> None:
    gains_NT = np.zeros((4, 4))
    gains_NT[1, 3] = -np.inf  # the second riskiest may get no advisor
    shop = Day(gains_NT, np.array([0.7, 0.8, 0.9, 0.6]), names(4))
    chosen = shop.chosen(TopRisk(), np.array([28_000_000, 250_000]))
    assert chosen.tiers.tolist() == [2, 2, 3, 0]  # 20 + 4 + 4, and nothing is left for the last
    assert chosen.lacking_N.tolist() == [0, -1, -1, 0]  # money, for two who would have had an advisor
    assert chosen.own_N.tolist() == [False, True, True, False]


def test_top_risk_says_when_only_an_hour_lacked() -> None:
    shop = Day(np.zeros((2, 4)), np.array([0.9, 0.8]), names(2))
    chosen = shop.chosen(TopRisk(), np.array([1_000_000_000, 250_000]))
    assert (chosen.tiers.tolist(), chosen.lacking_N.tolist()) == ([3, 2], [-1, 1])


def test_top_risk_decides_by_its_own_rule_for_those_who_would_gain_more_by_another_tier() -> None:
    shop = Day(np.array([[0.0, 1, 5, 9], [0, 9, 5, 1], [0, -1, -1, -1]]), np.array([0.9, 0.8, 0.7]), names(3))
    chosen = shop.chosen(TopRisk(), UNLIMITED_K)
    assert (chosen.tiers.tolist(), chosen.own_N.tolist()) == ([3, 3, 3], [False, True, True])


def test_expected_gain_and_budgeted_have_no_rule_of_their_own() -> None:
    for strategy in (ExpectedGain(), Budgeted()):
        assert not day(1).chosen(strategy, LIMITS_K).own_N.any()
    assert (day(1).chosen(ExpectedGain(), LIMITS_K).lacking_N >= 0).any()
    assert (day(1).chosen(Budgeted(), LIMITS_K).lacking_N == -1).all()


def test_the_experiment_decided_for_everybody_drawn_into_it_and_for_nobody_else() -> None:
    shop = day(1, 3000)
    chosen, best = shop.chosen(Randomised(0.2, "spring"), UNLIMITED_K), shop.chosen(Budgeted(), UNLIMITED_K)
    assert chosen.own_N.mean() == pytest.approx(0.2, abs=4 * np.sqrt(0.2 * 0.8 / 3000))
    np.testing.assert_array_equal(chosen.tiers[~chosen.own_N], best.tiers[~chosen.own_N])
    assert Randomised.own == "randomised"


# Experiments

PLENTY_K, SCARCE_K = np.array([100_000_000_000, 500_000_000]), np.array([600_000_000, 4_000_000])
EXPERIMENTS = 600


@dataclass(frozen=True)
class Repeated:
    """Many experiments on one day: inverse-propensity weights by tier (r, t), use (r, k) and contacts withheld (r,)."""

    weight_RT: Floats
    used_RK: Floats
    withheld_R: Ints
    lowest: float

    @classmethod
    def of(cls, shop: Day, share: float, limits_K: Ints) -> "Repeated":
        one_day = plan(share, shop.gains_NT, USE_KT, limits_K)
        chosen = [Randomised(share, f"experiment {k}").draw(one_day, USE_KT, limits_K, shop.ids) for k in range(EXPERIMENTS)]
        able_T = np.isfinite(shop.gains_NT).sum(axis=0)
        weights = np.array([np.bincount(one.tiers, 1 / one.propensity_N, 4) / able_T for one in chosen])
        used = np.array([USE_KT[:, one.tiers].sum(axis=1) for one in chosen])
        return cls(weights, used, np.array([one.withheld for one in chosen]), min(one.propensity_N.min() for one in chosen))


@pytest.mark.parametrize("limits_K", [SCARCE_K, PLENTY_K], ids=["scarce", "plenty"])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_over_many_experiments_the_inverse_propensities_of_every_tier_add_up_to_its_customers(share: float, limits_K: Ints) -> None:
    found = Repeated.of(day(1), share, limits_K)
    error_T = found.weight_RT.std(axis=0, ddof=1) / np.sqrt(EXPERIMENTS)
    assert (np.abs(found.weight_RT.mean(axis=0) - 1) <= 4 * error_T).all()
    assert (error_T < 0.1).all()  # so that the test can fail
    assert found.lowest > 0  # never missing
    assert (found.used_RK <= limits_K).all()
    assert found.withheld_R.mean() < 0.01


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_limits_that_are_scarce_are_mostly_used_where_they_pay_many_contacts(share: float) -> None:
    """A hundred times the customers and the limits of the day above: chance among the draws is a tenth as wide."""
    shop, limits_K = day(1, 30_000), 100 * SCARCE_K
    used_K = USE_KT[:, shop.chosen(Randomised(share, "spring"), limits_K).tiers].sum(axis=1)
    assert used_K[0] > 0.9 * limits_K[0]
    assert used_K[1] > 0.7 * limits_K[1]


@pytest.mark.parametrize("limits_K", [SCARCE_K, PLENTY_K], ids=["scarce", "plenty"])
def test_each_customers_propensities_add_up_to_one_over_what_may_be_chosen(limits_K: Ints) -> None:
    shop = day(2)
    one_day, allowed_NT = plan(0.3, shop.gains_NT, USE_KT, limits_K), np.isfinite(shop.gains_NT)
    propensity_NT = np.column_stack([one_day.propensity(np.full(N, tier)) for tier in range(4)])
    assert (propensity_NT * allowed_NT).sum(axis=1) == pytest.approx(np.ones(N))
    assert (propensity_NT[allowed_NT] > 0).all()


def test_the_propensity_logged_is_that_of_the_day_worked_out_by_hand() -> None:
    """One customer of three allowed columns, the best of which is the offer; nothing binds, so that every draw is served."""
    shop = Day(np.array([[0.0, 1, 5, -np.inf]]), np.ones(1), names(1))
    one_day = plan(0.3, shop.gains_NT, USE_KT, PLENTY_K)
    logged = {tier: float(one_day.propensity(np.array([tier]))[0]) for tier in range(3)}
    assert logged == pytest.approx({0: 0.1, 1: 0.1, 2: 0.8})


@pytest.mark.parametrize("pair", range(20))
def test_experiments_of_other_names_draw_independently(pair: int) -> None:
    ids = names(4000)
    one, other = (Draws.of(f"{name} {pair}", ids) for name in ("spring", "autumn"))
    for first_N, second_N in ((one.member_N, other.member_N), (one.column_N, other.column_N), (one.member_N, one.column_N)):
        table = np.histogram2d(first_N, second_N, bins=4, range=[[0, 1], [0, 1]])[0]
        assert chi2_contingency(table).pvalue > 0.001 / 60  # of 60 such tests


def test_an_erased_customer_changes_nobody_elses_draw() -> None:
    shop, strategy, stays_N = day(3), Randomised(0.5, "spring"), np.arange(N) != 17
    whole, without = shop.chosen(strategy, UNLIMITED_K), shop.without(17).chosen(strategy, UNLIMITED_K)
    np.testing.assert_array_equal(without.tiers, whole.tiers[stays_N])
    scarce, less = shop.chosen(strategy, SCARCE_K), shop.without(17).chosen(strategy, SCARCE_K)
    np.testing.assert_array_equal(less.own_N, scarce.own_N[stays_N])


def test_a_draw_lasts_whatever_the_day_and_the_order_of_the_customers() -> None:
    one, other, strategy = day(3), day(4), Randomised(0.5, "spring")
    turned = Day(other.gains_NT, other.p_N, one.ids[::-1])
    np.testing.assert_array_equal(turned.chosen(strategy, SCARCE_K).own_N[::-1], one.chosen(strategy, UNLIMITED_K).own_N)
    alike = Day(np.where(np.isfinite(one.gains_NT), one.gains_NT * 2, -np.inf), other.p_N, one.ids)  # the same tiers are allowed
    drawn_N = one.chosen(strategy, UNLIMITED_K).own_N
    np.testing.assert_array_equal(alike.chosen(strategy, PLENTY_K).tiers[drawn_N], one.chosen(strategy, UNLIMITED_K).tiers[drawn_N])


def test_a_larger_share_of_the_same_experiment_keeps_those_drawn() -> None:
    few, many = (day(3).chosen(Randomised(share, "spring"), UNLIMITED_K).own_N for share in (0.1, 0.4))
    assert 0 < few.sum() < many.sum()
    assert many[few].all()


def test_draws_beyond_a_limit_are_withheld_and_counted() -> None:
    """A plan that promises what the limits cannot keep: everybody is drawn, every draw served, and there is money for three offers."""
    shop, limits_K = Day(np.tile([0.0, -np.inf, 1.0, -np.inf], (40, 1)), np.ones(40), names(40)), np.array([12_000_000, 0])
    allowed_NT: Bools = np.isfinite(shop.gains_NT)
    promised = Plan(1.0, allowed_NT, allocate(shop.gains_NT, USE_KT, limits_K), np.ones(4))
    wanted = Draws.of("spring", shop.ids).columns(allowed_NT) == 2
    chosen = Randomised(1.0, "spring").draw(promised, USE_KT, limits_K, shop.ids)
    assert ((chosen.tiers == 2).sum(), chosen.withheld) == (3, wanted.sum() - 3)
    assert chosen.lacking_N.tolist() == np.where(wanted & (chosen.tiers == 0), 0, -1).tolist()
    last = Draws.of("spring", shop.ids).member_N
    assert last[chosen.tiers == 2].max() < last[wanted & (chosen.tiers == 0)].min()


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_beyond_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        Randomised(share)


@pytest.mark.parametrize("experiment", [None, ""])
def test_the_command_asks_for_the_name_of_the_experiment(experiment: str | None) -> None:
    with pytest.raises(InputError, match="needs the name of the experiment"):
        strategy_of("randomised", 0.1, experiment)
    named = strategy_of("randomised", 0.1, "spring")
    assert (named.share, named.experiment) == (0.1, "spring")
    assert strategy_of("top_risk", 0.1, None).name == "top_risk"
