"""A day's decisions for a million customers, four tiers, three limits, all binding; the rival is HiGHS on the linear relaxation.

The relaxation is solved for a fiftieth of the customers and its seconds are not scaled up: HiGHS' grow faster than the customers.
"""

import time
from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from serving.allocate import Floats, allocate, choose
from tests.benchmarks.result import Result

CUSTOMERS, FEWER, ONLINE_US = 1_000_000, 20_000, 50.0
GAP_WANTED = 1e-4
COST_T = np.array([0, 0.05, 4, 20])
USE_KT = np.rint(1e6 * np.array([COST_T, [0, 0, 0, 0.5], [0, 1, 1, 0]])).astype(np.int64)  # millionths of money, advisor hours, messages
SHARE_K = np.array([100_000, 500, 300_000])  # of each, for a customer


def gains(n: int, seed: int = 1) -> Floats:
    """(n, 4): beta risks x lognormal values x beta effects - costs; a twentieth must not be called."""
    random = np.random.default_rng(seed)
    at_risk = random.beta(1.2, 3, n) * random.lognormal(4, 1, n)
    effect_N4 = np.stack([np.zeros(n), random.beta(2, 60, n), random.beta(4, 40, n), random.beta(6, 30, n)], axis=1)
    gains_N4 = at_risk[:, None] * effect_N4 - COST_T
    gains_N4[random.random(n) < 0.05, 3] = -np.inf
    return gains_N4


def relaxed(gains_NT: Floats, limits_K: Floats) -> float:
    """The linear relaxation's value, by SciPy's HiGHS."""
    customers, tiers = np.nonzero(gains_NT > -np.inf)
    cells = sparse.coo_array((np.ones(len(tiers)), (customers, np.arange(len(tiers)))), shape=(len(gains_NT), len(tiers)))
    found = linprog(
        -gains_NT[customers, tiers], A_ub=USE_KT[:, tiers], b_ub=limits_K, A_eq=cells.tocsr(), b_eq=np.ones(len(gains_NT)), method="highs"
    )
    return -float(found.fun)


def run() -> Iterator[Result]:
    """Seconds, the proven gap, the customers for whom the online choice differs, and microseconds of one online choice."""
    gains_NT, limits_K = gains(CUSTOMERS), SHARE_K * CUSTOMERS
    start = time.perf_counter()
    found = allocate(gains_NT, USE_KT, limits_K)
    seconds = time.perf_counter() - start
    assert (found.used <= limits_K).all()
    start = time.perf_counter()
    bound = relaxed(gains_NT[:FEWER], SHARE_K * FEWER)
    rival = time.perf_counter() - start
    fewer = allocate(gains_NT[:FEWER], USE_KT, SHARE_K * FEWER)
    assert fewer.value <= bound * (1 + 1e-9)
    yield Result("allocate.million", seconds, "s", f"HiGHS' linear relaxation of {FEWER:,} of them, not scaled up", rival)
    # a gap of 0 has no ratio: told as at least a millionth
    yield Result("allocate.gap", 1e6 * max(found.gap, 1e-6), "millionths", "wanted", 1e6 * GAP_WANTED)
    differ = int((choose(gains_NT, USE_KT, found.prices) != found.tiers).sum())
    yield Result("allocate.online_differs", max(differ, 1), "customers", "a hundred in a million, wanted", 100.0)
    yield Result("allocate.choose_one", _online_us(gains_NT, found.prices), "us", "wanted", ONLINE_US)


def _online_us(gains_NT: Floats, prices_K: Floats) -> float:
    """Microseconds of one online choice: the least of 5 times the mean of 1,000."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for at in range(1_000):
            choose(gains_NT[at : at + 1], USE_KT, prices_K)
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)
