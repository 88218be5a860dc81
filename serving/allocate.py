"""The day's decisions under shared limits: one tier for each customer, the greatest sum of gains, never over a limit.

This is the multiple-choice knapsack, here with a special shape: what a tier uses is the same for every customer.
1. Prices. The Lagrangian dual  min over prices >= 0 of  prices @ limits + sum_i max_t (gain_it - prices @ use_t)  is convex and
   piecewise linear in a few prices. A sample's linear program says where to look; cutting planes in a small box around it finish.
2. A feasible answer. The choice at the prices, mended by the least loss per unit released.
3. Exactness. A tier whose loss at the prices exceeds the gap cannot be in a better answer [Kellerer, Pferschy, Pisinger 2004, ch. 11].
   What remains goes to HiGHS. Once the number of customers of each tier is given, the rest is a transportation problem, whose
   corners are whole numbers: only those t numbers need branching, however many customers remain.
Uses and limits are whole numbers (cents, or the millionths of the ledger), so that no rounding makes the last contact too dear: each
resource is counted in the greatest unit that all its uses are multiples of.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linprog

from serving.branching import Program

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Limits = Ints | Floats
"""Whole numbers; among floats inf stands for no limit."""

Whole = TypeVar("Whole", Ints, Floats)

NO_LIMIT = 1 << 62  # above what any number of customers can use, with room to add
EXACT = 2.0**53  # whole numbers up to here are exact as floats
SAMPLES = (1_000, 40_000)  # customers of the first linear program and of the step between it and all
CHUNK = 16_384  # customers evaluated at once, so that they stay in the processor's cache
WIDENED = 100  # times that a box is made wider, four times each: far beyond any price
CUTS = 150  # cutting planes in one box
CORES = (1_000, 20_000)  # groups of equal customers given to HiGHS in each turn; a better answer leaves fewer in doubt


@dataclass(frozen=True)
class Allocation:
    """Who gets what, and how far from the best it can be.

    tiers (n,); prices (k,) in gain per unit of each resource, for ``choose``; used (k,) in whole units, at most the limits;
    value, the sum of the gains chosen; bound, which no allocation within the limits exceeds.
    """

    tiers: Ints
    prices: Floats
    used: Ints
    value: float
    bound: float

    @property
    def gap(self) -> float:
        """Share of the bound that may be missing; 0 when the allocation is proven best."""
        return (self.bound - self.value) / max(self.bound, float(np.finfo(float).tiny))


def choose(gains_NT: Floats, use_KT: Floats | Ints, prices_K: Floats) -> Ints:
    """The tier (n,) with the greatest gain - prices @ use of each customer; ties go to the lowest tier."""
    return (gains_NT - prices_K @ use_KT).argmax(axis=1)


def allocate(gains_NT: Floats, use_KT: Ints, limits_K: Limits) -> Allocation:
    """The best tiers within the limits: used = use_KT @ (customers of each tier) <= limits_K, without tolerance.

    gains_NT (n, t), -inf where a customer must not get the tier, column 0 is no contact and 0; use_KT (k, t) >= 0 of each resource
    by one customer of the tier, in whole units, column 0 is 0; limits_K (k,) >= 0 in the same units, inf for no limit.
    Proven best (gap 0) when few customers are in doubt, else within the gap told. The same input gives the same answer.
    Raises ValueError for NaN, a negative or broken use or limit, a gain of +inf, a column 0 that is not 0, or shapes that do not fit.
    """
    gains_NT, use_KT = np.asarray(gains_NT, dtype=np.float64), np.asarray(use_KT)
    _check(gains_NT, use_KT, limits_K)
    use_KT = use_KT.astype(np.int64)
    unit_K = np.maximum(np.gcd.reduce(use_KT, axis=1), 1)
    counted_KT, counted_K = (use_KT // unit_K[:, None]).astype(np.float64), whole(limits_K) // unit_K
    if (len(gains_NT) * counted_KT >= EXACT).any():
        raise ValueError(f"use of all customers together must stay below {EXACT:.0f} times the greatest common unit of a resource")
    live_K = (counted_K > 0) & (counted_K < len(gains_NT) * counted_KT.max(axis=1))  # all together could use more than that
    prices_K = _barring_prices(gains_NT, use_KT, counted_K)
    gains_TN = np.ascontiguousarray(gains_NT.T)
    gains_TN[(use_KT[counted_K == 0] > 0).any(axis=0)] = -np.inf
    problem = _Problem(gains_TN, counted_KT[live_K], counted_K[live_K].astype(np.float64))
    priced_K = _prices(problem)
    prices_K[live_K] = priced_K / unit_K[live_K]
    answer = _polish(_feasible(problem, priced_K))
    return Allocation(answer.tiers, prices_K, used(use_KT, answer.tiers), answer.value, answer.bound)


def whole(limits_K: Limits) -> Ints:
    """Limits as whole numbers; no limit, or one beyond all use, is a number that nothing reaches."""
    return np.where(limits_K < NO_LIMIT, limits_K, NO_LIMIT).astype(np.int64)


def used(use_KT: Whole, tiers: Ints) -> Whole:
    """What customers of these tiers use together of each resource (k,); exact for whole numbers, also as floats below ``EXACT``."""
    return use_KT @ np.bincount(tiers, minlength=use_KT.shape[1])


def _check(gains_NT: Floats, use_KT: Ints, limits_K: Limits) -> None:
    if gains_NT.ndim != 2 or use_KT.ndim != 2 or use_KT.shape != (len(limits_K), gains_NT.shape[1]) or not gains_NT.shape[1]:
        raise ValueError(
            f"gains {gains_NT.shape}, use {use_KT.shape}, limits {limits_K.shape} do not fit: give (n, t), (k, t), (k,), t >= 1"
        )
    finite_K, finite_KT = limits_K[np.isfinite(limits_K)], use_KT[np.isfinite(use_KT)]
    rules = {
        "gains must be numbers below +inf (-inf forbids a tier)": (gains_NT < np.inf).all(),
        f"use must be finite, >= 0 and below {NO_LIMIT}": ((use_KT >= 0) & (use_KT < NO_LIMIT)).all(),
        "limits must be >= 0 (inf for no limit)": (limits_K >= 0).all(),
        "use and limits must be whole numbers": (finite_KT % 1 == 0).all() and (finite_K % 1 == 0).all(),
        "tier 0 must gain 0 and use 0: it is no contact": not gains_NT[:, 0].any() and not use_KT[:, 0].any(),
    }
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(rule)


def _barring_prices(gains_NT: Floats, use_KT: Ints, limits_K: Ints) -> Floats:
    """Prices (k,) at which nobody takes a resource whose limit is 0; 0 for the others."""
    most_T = np.maximum(gains_NT.max(axis=0, initial=0.0), 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        each_KT = np.where(use_KT > 0, most_T / use_KT, 0.0)
    dear_K = np.minimum(each_KT.max(axis=1, initial=0.0) * (1 + 1e-12), 1e150)  # a little more than needed: rounding
    return np.where(limits_K == 0, dear_K, 0.0)


@dataclass(frozen=True)
class _Problem:
    """Gains (t, n), use (k, t) and positive finite limits (k,); ``base`` is the gain of customers already decided.

    Use and limits are whole numbers small enough to be exact as floats, and so is every sum of them.
    """

    gains_TN: Floats
    use_KT: Floats
    limits_K: Floats
    base: float = 0.0

    def at(self, prices_K: Floats) -> tuple[float, Floats]:
        """The dual and its slope (k,): what the limits leave unused."""
        cost_T, total = prices_K @ self.use_KT, self.base + float(prices_K @ self.limits_K)
        counts_T = np.zeros(len(cost_T))
        for part_TC in self._chunks():
            best_C, tiers_C = _best(part_TC, cost_T)
            total += float(best_C.sum())
            counts_T += np.bincount(tiers_C, minlength=len(cost_T))
        return total, self.limits_K - self.use_KT @ counts_T

    def inside(self, low_K: Floats, high_K: Floats) -> "_Problem":
        """The same dual for prices between the two; customers who choose the same throughout are decided, not kept."""
        least_T, most_T = low_K @ self.use_KT, high_K @ self.use_KT
        kept, base, counts_T = [], self.base, np.zeros(len(least_T))
        for part_TC in self._chunks():
            sure_C, tiers_C = _best(part_TC, most_T)
            open_C = ((part_TC - least_T[:, None]) >= sure_C).sum(axis=0) > 1
            kept.append(part_TC[:, open_C])
            decided_C = tiers_C[~open_C]
            base += float(part_TC[decided_C, np.flatnonzero(~open_C)].sum())
            counts_T += np.bincount(decided_C, minlength=len(least_T))
        gains_TN = np.concatenate(kept, axis=1) if kept else self.gains_TN
        return _Problem(gains_TN, self.use_KT, self.limits_K - self.use_KT @ counts_T, base)

    def sample(self, size: int) -> "_Problem":
        """``size`` customers drawn with a fixed seed, and their share of the limits."""
        n = self.gains_TN.shape[1]
        if size >= n:
            return self
        drawn = np.sort(np.random.default_rng(0).choice(n, size, replace=False))
        return _Problem(np.ascontiguousarray(self.gains_TN[:, drawn]), self.use_KT, self.limits_K * (size / n))

    def _chunks(self) -> Iterator[Floats]:
        return (self.gains_TN[:, at : at + CHUNK] for at in range(0, self.gains_TN.shape[1], CHUNK))


def _best(gains_TC: Floats, cost_T: Floats) -> tuple[Floats, npt.NDArray[np.int8]]:
    """The greatest gain - cost (c,) and its lowest tier (c,): ``choose``, tier by tier, which is faster over many customers."""
    best_C, tiers_C = gains_TC[0] - cost_T[0], np.zeros(gains_TC.shape[1], dtype=np.int8)
    for tier in range(1, len(cost_T)):
        left_C = gains_TC[tier] - cost_T[tier]
        tiers_C[left_C > best_C] = tier
        np.maximum(best_C, left_C, out=best_C)
    return best_C, tiers_C


# Prices


def _prices(problem: _Problem) -> Floats:
    """Prices (k,) that minimise the dual: of a sample first, then of more customers, near the prices before."""
    n = problem.gains_TN.shape[1]
    if not n or not len(problem.limits_K):
        return np.zeros(len(problem.limits_K))
    size = min(SAMPLES[0], n)
    sample = problem.sample(size)
    prices_K = _relaxed_prices(sample)
    mean_gain = float(np.maximum(sample.gains_TN.max(axis=0), 0).mean()) or 1e-6  # nobody may be contacted: any box will do
    for step in (*SAMPLES[1:], n):
        if size < n:
            scale_K = prices_K + mean_gain / problem.use_KT.max(axis=1)
            prices_K = _near(problem.sample(step), prices_K, 3 * scale_K / math.sqrt(size))
            size = min(step, n)
    return prices_K


def _relaxed_prices(problem: _Problem) -> Floats:
    """Prices (k,) of the linear relaxation, by HiGHS: exact, for few customers."""
    gains_TN, (t, n) = problem.gains_TN, problem.gains_TN.shape
    tiers, customers = np.nonzero((gains_TN > 0) | (np.arange(t) == 0)[:, None])
    cells = sparse.coo_array((np.ones(len(customers)), (customers, np.arange(len(customers)))), shape=(n, len(customers)))
    unit_K, unit = problem.use_KT.max(axis=1), float(gains_TN.max()) or 1.0  # HiGHS' tolerances are absolute
    found = linprog(
        -gains_TN[tiers, customers] / unit,
        A_ub=problem.use_KT[:, tiers] / unit_K[:, None],
        b_ub=problem.limits_K / unit_K,
        A_eq=cells.tocsr(),
        b_eq=np.ones(n),
        method="highs-ds",
    )
    return np.zeros(len(unit_K)) if found.ineqlin is None else np.maximum(-found.ineqlin.marginals * unit / unit_K, 0.0)


def _near(problem: _Problem, prices_K: Floats, reach_K: Floats) -> Floats:
    """Prices (k,) that minimise the dual, sought within ``reach_K`` of those given, and further while they end at the border."""
    for _ in range(WIDENED):
        low_K, high_K = np.maximum(prices_K - reach_K, 0.0), prices_K + reach_K
        prices_K = _descend(problem.inside(low_K, high_K), low_K, high_K, prices_K)
        stuck_K = (prices_K >= high_K) | ((prices_K <= low_K) & (low_K > 0))
        if not stuck_K.any():
            break
        reach_K = np.where(stuck_K, 4 * reach_K, reach_K)
    return prices_K


def _descend(problem: _Problem, low_K: Floats, high_K: Floats, best_K: Floats) -> Floats:
    """Prices (k,) in the box that minimise the dual, by cutting planes [Kelley 1960].

    Each plane is taken between the model's minimum and the best prices so far: the minimum alone zigzags.
    """
    cuts: list[Floats] = []
    heights: list[float] = []
    least, at_K, unit_K = math.inf, best_K, (high_K - low_K)
    for turn in range(CUTS):
        value, slope_K = problem.at(at_K)
        cuts.append(slope_K * unit_K)
        heights.append(value - float(slope_K @ (at_K - low_K)))
        if value < least:
            least, best_K = value, at_K
        model, model_K = _model_minimum(np.array(cuts), np.array(heights))
        model_K = np.clip(low_K + unit_K * model_K, low_K, high_K)
        if least - model <= 1e-11 * abs(least) or (turn and np.array_equal(model_K, best_K)):
            break
        at_K = model_K if turn % 4 == 3 else (model_K + best_K) / 2
    return best_K


def _model_minimum(cuts_CK: Floats, heights_C: Floats) -> tuple[float, Floats]:
    """The least height, and where in [0, 1]^k, of the greatest of the planes; scaled for HiGHS' tolerances."""
    floor, spread = float(heights_C.max()), float(np.abs(cuts_CK).max()) or 1.0
    rows = np.column_stack([cuts_CK / spread, -np.ones(len(cuts_CK))])
    k = cuts_CK.shape[1]
    found = linprog(
        [0.0] * k + [1.0], A_ub=rows, b_ub=(floor - heights_C) / spread, bounds=[(0, 1)] * k + [(None, None)], method="highs-ds"
    )
    return floor + spread * float(found.x[-1]), found.x[:-1]


# A feasible answer


@dataclass(frozen=True)
class _Answer:
    """Tiers (n,) within the limits; prices (k,), the dual and the loss (t, n) of each tier against the best at those prices."""

    problem: _Problem
    prices_K: Floats
    dual: float
    losses_TN: Floats
    tiers: Ints
    bound: float
    rounding: float

    @property
    def value(self) -> float:
        """The sum of the gains."""
        return _value(self.problem, self.tiers)

    def or_better(self, tiers: Ints, bound: float) -> "_Answer":
        """The better of the tiers and of the bounds."""
        tiers, bound = tiers if _value(self.problem, tiers) > self.value else self.tiers, min(bound, self.bound)
        value = _value(self.problem, tiers)
        return replace(self, tiers=tiers, bound=bound if bound - value > self.rounding else value)


def _value(problem: _Problem, tiers: Ints) -> float:
    return float(problem.gains_TN[tiers, np.arange(len(tiers))].sum())


def _feasible(problem: _Problem, prices_K: Floats) -> _Answer:
    """The choice at the prices, mended. What mending leaves over is used by the exact part: filling here gained nothing."""
    cost_T = prices_K @ problem.use_KT
    best_N, tiers_N = _best(problem.gains_TN, cost_T)
    losses_TN = best_N - (problem.gains_TN - cost_T[:, None])
    dual = float(prices_K @ problem.limits_K + best_N.sum())
    tiers = tiers_N.astype(np.int64)
    for resource in range(len(prices_K)):
        tiers = _release(problem, losses_TN, tiers, resource)
    rounding = 1e-14 * float(problem.gains_TN.max(axis=0).sum())  # of sums of the gains, which may nearly cancel against the prices
    return _Answer(problem, prices_K, dual, losses_TN, tiers, dual, rounding).or_better(tiers, dual)


def _release(problem: _Problem, losses_TN: Floats, tiers: Ints, resource: int) -> Ints:
    """Tiers (n,) that keep the resource's limit: moves that lose least per unit, to tiers that use no more of anything."""
    use_KT, limit, tiers = problem.use_KT, problem.limits_K[resource], tiers.copy()
    for _ in range(use_KT.size * len(tiers)):  # each turn moves somebody to a tier that uses less
        if (over := used(use_KT, tiers)[resource] - limit) <= 0:
            break
        saved_TT = use_KT[resource][:, None] - use_KT[resource]  # from, to
        allowed_TT = (use_KT[:, :, None] >= use_KT[:, None, :]).all(axis=0) & (saved_TT > 0)
        who = np.flatnonzero(allowed_TT[:, 0][tiers])
        with np.errstate(divide="ignore", invalid="ignore"):
            rate_TM = np.where(allowed_TT[tiers[who]].T, losses_TN[:, who] / saved_TT[tiers[who]].T, np.inf)
        to, rate_M = rate_TM.argmin(axis=0), rate_TM.min(axis=0)
        order = np.argsort(rate_M, kind="stable")
        enough = int(np.searchsorted(np.cumsum(saved_TT[tiers[who], to][order]), over)) + 1
        moved = order[:enough]
        tiers[who[moved]] = to[moved]
    return tiers


# Exactness


def _polish(answer: _Answer) -> _Answer:
    """The answer, improved (or proven best) on the customers whose tier is in doubt: on the closest calls first."""
    for most in CORES:
        if answer.bound <= answer.value:
            break
        core = _core(answer, most)
        answer = _settle(answer, core)
        if core.whole:
            break
    return answer


@dataclass(frozen=True)
class _Core:
    """Customers (m,) in doubt, in groups (g,) of equal losses (t, g), inf where closed; ``whole`` when nobody else is in doubt."""

    who: Ints
    group_M: Ints
    losses_TG: Floats
    reach: float
    whole: bool


def _core(answer: _Answer, most: int) -> _Core:
    """The customers with two open tiers or more, in ``most`` groups: the closest calls only, when there are more."""
    reach = (answer.dual - answer.value) * (1 + 1e-9) + answer.rounding  # rounding must not decide for anybody
    open_TN = _open(answer.losses_TN, reach)
    open_TN[answer.tiers, np.arange(len(answer.tiers))] = True
    who = np.flatnonzero(open_TN.sum(axis=0) > 1)
    losses_TM = np.where(open_TN[:, who], answer.losses_TN[:, who], np.inf)
    losses_GT, group_M = np.unique(losses_TM.T, axis=0, return_inverse=True)
    closest = np.argsort(np.sort(losses_GT, axis=1)[:, 1], kind="stable")[:most] if len(who) else np.arange(0)
    rank_G = np.full(len(losses_GT), -1)
    rank_G[closest] = np.arange(len(closest))
    rank_M = rank_G[group_M.ravel()]
    return _Core(who[rank_M >= 0], rank_M[rank_M >= 0], losses_GT[closest].T, reach, len(closest) == len(losses_GT))


def _open(losses_TN: Floats, reach: float) -> npt.NDArray[np.bool_]:
    """Which tiers (t, n) some best allocation may give, when the best loses at most ``reach`` against the choice at the prices.

    Say m customers at most can leave tier a, as the m smallest losses of leaving it reach the limit. Then who goes from a to b is among
    the m who lose least by that: were a closer one still in a, exchanging the two would lose less and use the same.
    """
    open_TN = losses_TN <= 0
    chosen_N = losses_TN.argmin(axis=0)
    for a in range(len(losses_TN)):
        others = np.delete(losses_TN, a, axis=0)
        who = np.flatnonzero((chosen_N == a) & (others.min(axis=0, initial=np.inf) <= reach))
        open_TN[a, who] = True
        leaving = int(np.searchsorted(np.cumsum(np.sort(others[:, who].min(axis=0, initial=np.inf))), reach, side="right"))
        for b in range(len(losses_TN)):
            able = who[losses_TN[b, who] <= reach]
            open_TN[b, able[np.argpartition(losses_TN[b, able], leaving)[:leaving]] if leaving < len(able) else able] = True
    return open_TN


def _settle(answer: _Answer, core: _Core) -> _Answer:
    """The answer with the core's customers placed by HiGHS, when that is better.

    HiGHS keeps limits to 1e-6 of a unit, we keep them exactly: what overshoots is solved again with a little less, and else dropped.
    """
    problem, bound = answer.problem, answer.bound
    if not len(core.who):
        return answer.or_better(answer.tiers, answer.value)
    short_K = np.zeros(len(problem.limits_K))
    for _ in range(2):
        tiers, least = _solve(answer, core, short_K)
        if core.whole and not short_K.any():
            bound = answer.dual - least
        over_K = used(problem.use_KT, tiers) > problem.limits_K
        if not over_K.any():
            return answer.or_better(tiers, bound)
        short_K = np.where(over_K, 4e-6 * problem.use_KT.max(axis=1), short_K)
    return answer.or_better(answer.tiers, bound)


def _solve(answer: _Answer, core: _Core, short_K: Floats) -> tuple[Ints, float]:
    """Tiers (n,) with the core's customers placed anew, as they were if HiGHS finds none, and the least loss it proves (-inf: none)."""
    t, groups = core.losses_TG.shape
    chosen_G, size_G = core.losses_TG.argmin(axis=0), np.bincount(core.group_M, minlength=groups)
    move_TG = core.losses_TG < np.inf
    move_TG[chosen_G, np.arange(groups)] = False
    to_C, group_C = np.nonzero(move_TG)
    program = _program(answer, core, short_K, to_C, group_C, chosen_G, size_G)
    moved_C, least = program.solve()
    tiers = answer.tiers.copy()
    if moved_C is not None:
        counts_GT = np.zeros((groups, t), dtype=np.int64)
        counts_GT[group_C, to_C] = moved_C
        counts_GT[np.arange(groups), chosen_G] = size_G - counts_GT.sum(axis=1)
        tiers[core.who[np.argsort(core.group_M, kind="stable")]] = np.repeat(np.tile(np.arange(t), groups), counts_GT.ravel())
    return tiers, least / program.scale


def _program(answer: _Answer, core: _Core, short_K: Floats, to_C: Ints, group_C: Ints, chosen_G: Ints, size_G: Ints) -> Program:
    """The program of the core's moves; everybody else keeps the tier of the answer."""
    use_KT, (k, t), moves = answer.problem.use_KT, answer.problem.use_KT.shape, len(to_C)
    start = answer.tiers.copy()
    start[core.who] = chosen_G[core.group_M]
    unit_K = use_KT.max(axis=1)
    several = np.flatnonzero(np.bincount(group_C, minlength=len(size_G)) > 1)  # one move alone is held by its own bound
    of_group = _ones(group_C, np.arange(moves), (len(size_G), moves)).tocsr()[several]
    of_tier = _ones(to_C, np.arange(moves), (t, moves)) - _ones(chosen_G[group_C], np.arange(moves), (t, moves))
    use = sparse.coo_array(use_KT / unit_K[:, None])
    rows = sparse.block_array([[of_group, None, None], [of_tier, -sparse.eye_array(t), None], [None, use, sparse.eye_array(k)]])
    fixed = np.concatenate([np.zeros(t), (answer.problem.limits_K - used(use_KT, start) - short_K) / unit_K])
    scale, price_K = 1e3 / core.reach, answer.prices_K * unit_K
    with np.errstate(divide="ignore"):
        most_K = np.where(price_K > 0, core.reach / price_K, np.inf)  # leaving more than this loses more than the gap
    cost = np.concatenate([core.losses_TG[to_C, group_C], np.zeros(t), price_K]) * scale
    most = np.concatenate([size_G[group_C], np.full(t, len(core.who)), most_K])
    low, high = (np.concatenate([of, fixed]) for of in (np.zeros(len(several)), size_G[several]))
    return Program(cost, rows.tocsc(), low, high, most, moves, t, scale)


def _ones(rows: Ints, columns: Ints, shape: tuple[int, int]) -> Any:
    return sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=shape)
