"""Tiers under limits: the best on small shops, near the best and never over a limit on large ones, the same answer again."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from serving.allocate import Allocation, Floats, Ints, allocate, choose

USE_KT = np.array([[0, 5, 400, 2000], [0, 0, 0, 30], [0, 1, 1, 0]])  # cents, advisor minutes, messages
SHARE_K = np.array([10.0, 0.03, 0.3])  # of each, for a customer
Shop = tuple[Floats, Ints, Floats]


def large(n: int, seed: int = 0) -> Floats:
    """Gains (n, 4) in currency: beta risks, lognormal values, noisy effects, some customers without tier 3."""
    random = np.random.default_rng(seed)
    at_risk = random.beta(1.2, 3, n) * random.lognormal(4, 1, n)
    effect_N3 = np.stack([random.beta(2, 60, n), random.beta(4, 40, n), random.beta(6, 30, n)], axis=1)
    gains_NT = np.column_stack([np.zeros(n), at_risk[:, None] * effect_N3 - [0.05, 4, 20]])
    gains_NT[random.random(n) < 0.05, 3] = -np.inf
    return gains_NT


def small(seed: int) -> Shop:
    """1-12 customers: whole gains full of ties, real gains, or lognormal ones; use small, in quarters or without a common divisor;
    limits of 0, without end, or between."""
    random = np.random.default_rng(seed)
    n, k, kind = random.integers(1, 13), random.integers(1, 4), seed % 3
    gains_NT = (random.integers(-2, 6, (n, 4)).astype(float), random.normal(3, 4, (n, 4)), random.lognormal(3, 1, (n, 4)) - 10)[kind]
    use_KT = (random.integers(0, 4, (k, 4)), random.integers(0, 9, (k, 4)) * 250_000, random.integers(0, 5_000_000, (k, 4)))[kind]
    gains_NT[random.random((n, 4)) < 0.15] = -np.inf
    gains_NT[:, 0], use_KT[:, 0] = 0, 0
    limits_K = np.floor(use_KT.sum(axis=1) * n / 4 * random.uniform(0, 1, k))
    share = random.random(k)
    return gains_NT, use_KT, np.where(share < 0.1, 0, np.where(share > 0.9, np.inf, limits_K))


def best_value(gains_NT: Floats, use_KT: Ints, limits_K: Floats) -> float:
    """The optimum of the whole integer program, by HiGHS alone."""
    n, t = gains_NT.shape
    allowed, finite = gains_NT.ravel() > -np.inf, np.isfinite(limits_K)
    one_each = LinearConstraint(np.kron(np.eye(n), np.ones(t)), 1, 1)
    unit_K = np.maximum(use_KT.max(axis=1), 1)[finite]  # HiGHS' tolerances are absolute
    within = (
        LinearConstraint(np.tile(use_KT[finite] / unit_K[:, None], n), -np.inf, limits_K[finite] / unit_K) if finite.any() else one_each
    )
    cost = -np.where(allowed, gains_NT.ravel(), 0)
    found = milp(cost, integrality=1, bounds=Bounds(0, allowed * 1.0), constraints=[one_each, within], options={"mip_rel_gap": 0})
    assert found.status == 0
    return -float(found.fun)


def by_hand(gains_NT: Floats, use_KT: Ints, limits_K: Floats) -> float:
    """The optimum by trying everything."""
    rows = np.arange(len(gains_NT))
    ways = (np.array(way) for way in itertools.product(range(gains_NT.shape[1]), repeat=len(gains_NT)))
    return max(gains_NT[rows, way].sum() for way in ways if (use_KT[:, way].sum(axis=1) <= limits_K).all())


def disagreements(found: Allocation, gains_NT: Floats, use_KT: Ints) -> int:
    return int((choose(gains_NT, use_KT, found.prices) != found.tiers).sum())


@pytest.mark.parametrize("part", range(10))
def test_the_value_is_that_of_the_whole_integer_program(part: int) -> None:
    for seed in range(100 * part, 100 * (part + 1)):
        shop = small(seed)
        found, best = allocate(*shop), best_value(*shop)
        assert found.value == pytest.approx(best, rel=1e-7, abs=1e-7), f"seed {seed}"
        assert found.bound >= best - 1e-7 * max(best, 1), f"seed {seed}"
        assert found.gap <= 1e-9, f"seed {seed}"


def test_the_value_is_that_of_trying_everything() -> None:
    tried = [shop for shop in map(small, range(200)) if len(shop[0]) <= 5]
    assert len(tried) > 50
    for shop in tried:
        assert allocate(*shop).value == pytest.approx(by_hand(*shop), abs=1e-9)


@pytest.mark.parametrize("seed", range(16))
def test_so_it_is_for_a_hundred_customers_under_three_binding_limits(seed: int) -> None:
    n = 40 + 10 * (seed % 8)
    shop = large(n, 100 + seed), USE_KT, np.ceil(SHARE_K * n * [3, 40, 1.5])
    assert allocate(*shop).value == pytest.approx(best_value(*shop), rel=1e-7)


@settings(max_examples=100, deadline=None)
@given(st.integers(1_000, 10**9))
def test_limits_are_kept_without_tolerance_and_the_figures_belong_to_the_tiers(seed: int) -> None:
    gains_NT, use_KT, limits_K = small(seed)
    found = allocate(gains_NT, use_KT, limits_K)
    assert (found.used <= limits_K).all()
    assert found.used.tolist() == [sum(row[tier] for tier in found.tiers.tolist()) for row in use_KT.tolist()]
    assert found.value == pytest.approx(gains_NT[np.arange(len(gains_NT)), found.tiers].sum())
    assert found.value <= found.bound
    assert (found.prices >= 0).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1_000, 10**9), st.floats(1, 3))
def test_more_of_everything_never_lowers_the_value(seed: int, more: float) -> None:
    gains_NT, use_KT, limits_K = small(seed)
    assert allocate(gains_NT, use_KT, np.floor(limits_K * more)).value >= allocate(gains_NT, use_KT, limits_K).value - 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(1_000, 10**9))
def test_the_prices_bound_every_allocation(seed: int) -> None:
    gains_NT, use_KT, limits_K = small(seed)
    found, finite = allocate(gains_NT, use_KT, limits_K), np.isfinite(limits_K)
    dual = found.prices[finite] @ limits_K[finite] + (gains_NT - found.prices @ use_KT).max(axis=1).sum()
    assert (found.prices[~finite] == 0).all()
    assert dual >= found.bound - 1e-9 * max(found.bound, 1)


@pytest.mark.parametrize("n", [300, 5_000, 60_000])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_large_shop_is_within_a_millionth_of_the_bound_and_online_choices_agree(n: int, seed: int) -> None:
    gains_NT, limits_K = large(n, seed), np.ceil(SHARE_K * n)
    found = allocate(gains_NT, USE_KT, limits_K)
    assert found.gap <= 1e-6
    assert (found.used <= limits_K).all()
    assert disagreements(found, gains_NT, USE_KT) <= 12


def test_the_bound_of_a_large_shop_is_no_lower_than_half_of_it_twice() -> None:
    gains_NT, limits_K = large(20_000, 3), np.ceil(SHARE_K * 10_000)
    halves = [allocate(part, USE_KT, limits_K) for part in (gains_NT[:10_000], gains_NT[10_000:])]
    assert allocate(gains_NT, USE_KT, 2 * limits_K).value >= sum(half.value for half in halves) - 1e-6


def test_a_limit_that_does_not_bind_has_no_price() -> None:
    gains_NT, limits_K = large(30_000, 4), np.rint(SHARE_K * 30_000 * [1, 30, 1])
    found = allocate(gains_NT, USE_KT, limits_K)
    assert found.used[1] < 0.9 * limits_K[1]
    assert found.prices[1] == pytest.approx(0, abs=1e-9)
    assert (found.prices[[0, 2]] > 0).all()


def test_without_limits_everybody_gets_their_best_tier() -> None:
    gains_NT = large(5_000, 5)
    found = allocate(gains_NT, USE_KT, np.full(3, np.inf))
    assert np.array_equal(found.tiers, gains_NT.argmax(axis=1))
    assert (found.gap, found.prices.tolist()) == (0, [0, 0, 0])


def test_a_limit_of_nothing_is_priced_so_that_online_choices_take_nothing_either() -> None:
    gains_NT = large(5_000, 6)
    found = allocate(gains_NT, USE_KT, np.array([50_000.0, 0.0, np.inf]))
    assert (found.used[1], (found.tiers == 3).sum()) == (0, 0)
    assert (choose(gains_NT, USE_KT, found.prices) < 3).all()


def test_a_forbidden_tier_is_given_to_nobody_by_either() -> None:
    gains_NT = large(5_000, 7)
    gains_NT[::2, 1:] = -np.inf
    found = allocate(gains_NT, USE_KT, SHARE_K * 5_000)
    assert not found.tiers[::2].any()
    assert not choose(gains_NT, USE_KT, found.prices)[::2].any()


@pytest.mark.parametrize("distinct", [1, 30])
def test_many_equal_customers_are_split_as_the_limits_allow(distinct: int) -> None:
    gains_NT = large(distinct, 8)[np.random.default_rng(0).integers(0, distinct, 50_000)]
    limits_K = SHARE_K * 50_000
    found = allocate(gains_NT, USE_KT, limits_K)
    assert found.gap <= 1e-6
    assert (found.used <= limits_K).all()


def test_the_order_of_customers_does_not_change_the_value_and_a_repeat_changes_nothing() -> None:
    gains_NT, limits_K = large(20_000, 9), np.ceil(SHARE_K * 20_000)
    one, again, turned = (allocate(gains, USE_KT, limits_K) for gains in (gains_NT, gains_NT.copy(), gains_NT[::-1]))
    assert np.array_equal(one.tiers, again.tiers)
    assert np.array_equal(one.prices, again.prices)
    assert turned.value == pytest.approx(one.value, rel=1e-6)


@pytest.mark.parametrize(
    ("cost", "budget", "contacts"), [(70_000, 7_000_000, 100), (70_000, 700_000, 10), (100_000, 300_000, 3), (50_000, 150_000, 3)]
)
def test_the_last_contact_that_the_budget_can_pay_is_made(cost: int, budget: int, contacts: int) -> None:
    """Money in millionths: as floats 100 x 0.07 > 7, 3 x 0.1 > 0.3 and 3 x 0.05 > 0.15."""
    found = allocate(np.tile([0.0, 1.0], (200, 1)), np.array([[0, cost]]), np.array([budget]))
    assert (found.used[0], found.value, found.bound) == (budget, contacts, contacts)


def test_a_millionth_less_pays_one_contact_less() -> None:
    found = allocate(np.tile([0.0, 1.0], (200, 1)), np.array([[0, 70_000]]), np.array([6_999_999]))
    assert (found.value, found.used.tolist()) == (99, [6_930_000])


def test_a_limit_without_end_or_beyond_all_use_is_none_and_a_whole_number_too_large_for_floats_does_no_harm() -> None:
    gains_NT = large(50, 10)
    for limit in (np.array([np.inf] * 3), np.array([2**63 - 1] * 3), np.array([1e300] * 3)):
        found = allocate(gains_NT, USE_KT, limit)
        assert np.array_equal(found.tiers, gains_NT.argmax(axis=1))
        assert found.prices.tolist() == [0, 0, 0]


def test_prices_are_told_for_the_unit_given_whatever_the_common_divisor() -> None:
    gains_NT, limits_K = large(2_000, 11), np.rint(SHARE_K * 2_000)
    cents, millionths = allocate(gains_NT, USE_KT, limits_K), allocate(gains_NT, 10_000 * USE_KT, 10_000 * limits_K + 9_999)
    assert np.array_equal(cents.tiers, millionths.tiers)
    assert millionths.prices * 10_000 == pytest.approx(cents.prices)


def test_choose_takes_the_lowest_of_equals_and_one_customer_as_well_as_many() -> None:
    gains_NT, prices = np.array([[0.0, 1.0, 5.0, -np.inf], [0.0, 2.0, 6.0, 8.0]]), np.array([1.0])
    use_KT = np.array([[0.0, 1.0, 5.0, 7.0]])
    assert choose(gains_NT, use_KT, prices).tolist() == [0, 1]
    assert [choose(row[None], use_KT, prices).tolist() for row in gains_NT] == [[0], [1]]


def test_nobody_and_no_limits_are_no_error() -> None:
    nobody = allocate(np.zeros((0, 4)), USE_KT, np.ceil(SHARE_K))
    assert (nobody.tiers.shape, nobody.value, nobody.gap) == ((0,), 0, 0)
    assert allocate(np.array([[0.0, -1.0, 2.0]]), np.zeros((0, 3)), np.zeros(0)).tiers.tolist() == [2]


@pytest.mark.parametrize(
    ("gains", "use", "limits", "rule"),
    [
        ([[0, np.nan]], [[0, 1]], [1], "gains must be numbers"),
        ([[0, np.inf]], [[0, 1]], [1], "gains must be numbers"),
        ([[0, 1]], [[0, np.nan]], [1], "use must be finite"),
        ([[0, 1]], [[0, -1]], [1], "use must be finite"),
        ([[0, 1]], [[0, 1]], [np.nan], "limits must be"),
        ([[0, 1]], [[0, 1]], [-1], "limits must be"),
        ([[0, 1]], [[0, 0.5]], [1], "whole numbers"),
        ([[0, 1]], [[0, 1]], [1.5], "whole numbers"),
        ([[0, 1, 1]], [[0, 2**53, 1]], [1], "must stay below"),
        ([[0, 1]], [[0, 2.0**62]], [1], "use must be finite"),
        ([[1, 1]], [[0, 1]], [1], "tier 0"),
        ([[0, 1]], [[1, 1]], [1], "tier 0"),
        ([[0, 1]], [[0, 1, 2]], [1], "do not fit"),
        ([[0, 1]], [[0, 1]], [1, 2], "do not fit"),
    ],
)
def test_what_cannot_be_meant_is_refused(gains: list[list[float]], use: list[list[float]], limits: list[float], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        allocate(np.array(gains, dtype=float), np.array(use), np.array(limits, dtype=float))


def test_a_currency_of_large_numbers_is_shared_out_for_a_hundred_thousand_customers() -> None:
    """Rupiah: 300,000 for a call, in millionths; all together could use 3e16 and more, which no float holds to the last unit."""
    n, use_KT = 100_000, np.array([[0, 700, 20_000, 300_000]]) * 1_000_000
    gains_NT = np.random.default_rng(3).random((n, 4)) * np.array([0, 2_000, 50_000, 700_000])
    limits_K = np.array([1_000_000_000 * 1_000_000])
    found, small = allocate(gains_NT, use_KT, limits_K), allocate(gains_NT, use_KT // 100_000_000, limits_K // 100_000_000)
    assert found.tiers.tolist() == small.tiers.tolist()
    assert 0.999 * limits_K[0] < found.used[0] <= limits_K[0]
