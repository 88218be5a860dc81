"""Branch and bound over the numbers of customers of each tier, the last step of `allocate.py`: given those, HiGHS' corners are whole."""

import heapq
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NODES = 1_000_000  # of branch and bound, times the moves of each: a limit in work, not in time, so that the answer repeats
INFEASIBLE, NOTHING = 2, 1e-7  # HiGHS' status, by SciPy; a difference in cost below its tolerance


@dataclass(frozen=True)
class Program:
    """Minimise cost @ v where low <= rows @ v <= high, 0 <= v <= most.

    v: the customers who make each move (c,), of a group from its choice at the prices to another tier; how many more or fewer each
    tier gets (t,); what is left of each resource (k,), in units of its greatest use. ``scale`` makes the gap cost 1000: HiGHS'
    tolerances are absolute.
    """

    cost: Floats
    rows: Any
    low: Floats
    high: Floats
    most: Floats
    moves: int
    tiers: int
    scale: float

    def solve(self) -> tuple[Ints | None, float]:
        """Customers of each move (c,), None if none cost less than the gap, and the least cost proven: by branch and bound."""
        best, moved_C, lost, wide_T = 1e3, None, math.inf, self.most[self._tiers()]
        nodes = [(-math.inf, 0, -wide_T, wide_T)]  # least cost, age, least and most of each tier
        for turn in range(1 + NODES // max(self.moves, 100)):
            if not nodes or nodes[0][0] >= best - NOTHING:
                break
            cost, _, low_T, high_T = heapq.heappop(nodes)
            found = self._relaxed(low_T, high_T)
            if found.x is None:
                lost = lost if found.status == INFEASIBLE else min(lost, cost)
            elif found.fun < best - NOTHING:
                halves = _halves(found.x[self._tiers()], low_T, high_T)
                for side, half in enumerate(halves):
                    heapq.heappush(nodes, (found.fun, 2 * turn + side, *half))
                if not halves:  # a corner: whole
                    best, moved_C = found.fun, np.rint(found.x[: self.moves]).astype(np.int64)
        return moved_C, min([best, lost, *(node[0] for node in nodes[:1])])

    def _tiers(self) -> slice:
        return slice(self.moves, self.moves + self.tiers)

    def _relaxed(self, low_T: Floats, high_T: Floats) -> Any:
        """The linear program; its corners with whole numbers of each tier are whole. Presolve takes seconds here and removes nothing."""
        low, high = np.zeros(len(self.cost)), self.most.copy()
        low[self._tiers()], high[self._tiers()] = low_T, high_T
        within = LinearConstraint(self.rows, self.low, self.high)
        return milp(self.cost, bounds=Bounds(low, high), constraints=within, options={"presolve": False})


def _halves(x_T: Floats, low_T: Floats, high_T: Floats) -> list[tuple[Floats, Floats]]:
    """The least and most of each tier (t,) below and above the number that is farthest from whole; none when all are whole."""
    off_T = np.abs(x_T - np.rint(x_T))
    at_T, below = np.arange(len(x_T)) == off_T.argmax(), math.floor(x_T[off_T.argmax()])
    return [(low_T, np.where(at_T, below, high_T)), (np.where(at_T, below + 1, low_T), high_T)] if off_T.max() > 1e-6 else []
