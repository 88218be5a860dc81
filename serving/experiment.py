"""Experiments under limits: who takes part, what is drawn, and the exact probability of every contact.

Each customer's part in an experiment is a keyed hash of its name and the customer's pseudonym: three numbers in [0, 1) that no other
customer, no order and no day changes. The first draws into the experiment (below its share s), the second a column evenly among the
allowed ones (none is one), the third serves column c when it lies below phi_c, and leaves the customer alone otherwise. Those not
drawn get what `Budgeted` gives everybody. So each customer's choice is independent of all others', with the known propensities

    contact c:  (1 - s) [b = c] + s phi_c / |A|
    none:       (1 - s) [b = 0] + s (1 + sum of 1 - phi_c over the allowed contacts) / |A|

where b is what Budgeted gives the customer and A are the allowed columns that the limits could pay for one alone. b and phi are found
from the day as a whole, before anybody is drawn (`plan`): Budgeted shares out a part of each limit among everybody, of which those not
drawn use 1 - s on average, and the draws may use a part of what that leaves in expectation. The draws' part is shared out by
water-filling: each column gets as much of it as the others until it needs no more, so that cheap tiers are served fully and dear ones
thinned. Both parts are all that there is as long as a Chernoff bound on the sum of all contacts, which are independent, says that
it exceeds the limit in at most ``RISK`` of the experiments; else both are lowered until it does, so that the product of what is kept,
to the powers 1 - s and s, is greatest. Where the sum exceeds a limit nevertheless, contacts are withheld.

What stays unused on average is some standard deviations of that sum. Measured for a budget of nine tenths of what Budgeted would spend
without one: of 300 customers 19 % of the money at s = 0.1 and 41 % at 0.5, of 3,000 9 and 23 %, of 30,000 3 and 8 %. It is there for
the service's own decisions in the day.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from serving.allocate import NO_LIMIT, Allocation, allocate
from serving.decide import Bools, Floats, Ints

RISK = 3e-4
"""Bound on the probability that all contacts together exceed some limit; a tenth at most in twelve simulated plans (`notebooks/LOG.md`)."""
STEEPNESS = np.geomspace(1e-5, 60, 80)
"""Of the exponential in the bound; each gives a valid bound, the best is taken. In units of a resource's greatest use."""
TILTS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97, 0.99)
"""Ways to take from Budgeted and the draws: all from the draws, ..., nearly all from Budgeted."""
LOWEST, LESS = -30.0, 0.99
"""Logarithm of the least part, and the least step towards it."""
LOWERED = 10_000
"""Times that parts are lowered, by ``LESS`` at least: long before that nothing is left of them."""
WORD, FRACTION = 8, 2.0**-53


@dataclass(frozen=True)
class Draws:
    """Of n customers: three numbers in [0, 1) each (n,), for membership, for the column, and for whether it is served."""

    member_N: Floats
    column_N: Floats
    served_N: Floats

    @classmethod
    def of(cls, experiment: str, ids: Sequence[str]) -> "Draws":
        """By a keyed hash (BLAKE2b): the same name and pseudonym give the same numbers on every day."""
        key = hashlib.blake2b(experiment.encode()).digest()
        digests = b"".join(hashlib.blake2b(one.encode(), key=key, digest_size=3 * WORD).digest() for one in ids)
        numbers_N3 = (np.frombuffer(digests, dtype="<u8").reshape(len(ids), 3) >> 11) * FRACTION
        return cls(*numbers_N3.T)

    def columns(self, allowed_NT: Bools) -> Ints:
        """The column drawn for each customer (n,), evenly among those allowed."""
        kth_N = np.floor(self.column_N * allowed_NT.sum(axis=1)).astype(np.int64)
        return (np.cumsum(allowed_NT, axis=1) > kth_N[:, None]).argmax(axis=1)


@dataclass(frozen=True)
class Plan:
    """What a day's experiment does: ``served_T`` is phi of each column (none: 1), ``best`` what Budgeted gives everybody.

    The bound of ``best`` is that of the whole limits, its tiers and prices are those within the shares of them that it may use.
    """

    share: float
    allowed_NT: Bools
    best: Allocation
    served_T: Floats

    def propensity(self, tiers: Ints) -> Floats:
        """Probability (n,) with which each customer gets these columns; never 0 for what can be chosen."""
        number_N = self.allowed_NT.sum(axis=1)
        withheld_N = (self.allowed_NT * (1 - self.served_T)).sum(axis=1)
        drawn_N = np.where(tiers == 0, 1 + withheld_N, self.served_T[tiers]) / number_N
        return np.where(self.best.tiers == tiers, 1 - self.share, 0.0) + self.share * drawn_N


def plan(share: float, gains_NT: Floats, use_KT: Ints, limits_K: Ints) -> Plan:
    """The parts of the limits for Budgeted and for the draws, and what comes of them; of the day alone, never of who is drawn."""
    allowed_NT = np.isfinite(gains_NT) & (use_KT <= limits_K[:, None]).all(axis=0)
    best = allocate(gains_NT, use_KT, limits_K)
    bound, kinds = best.bound, _Kinds.of(share, allowed_NT, best.tiers, use_KT, limits_K)
    parts = _Parts(np.ones(len(limits_K)), kinds.left())
    for _ in range(LOWERED):
        danger_K = kinds.risk(parts) > RISK / max(len(limits_K), 1)
        if not danger_K.any():
            return Plan(share, allowed_NT, replace(best, bound=bound), kinds.served(parts))
        for place in np.flatnonzero(danger_K).tolist():
            parts = kinds.safer(parts, place)
        best = allocate(gains_NT, use_KT, parts.of(limits_K))
        kinds = kinds.under(best.tiers)
    raise RuntimeError("the parts of an experiment stay dangerous however small they are")


@dataclass(frozen=True)
class _Parts:
    """Of each limit: the part (k,) that Budgeted shares out among everybody, and what the draws may use in expectation (k,)."""

    best_K: Floats
    draws_K: Floats

    def of(self, limits_K: Ints) -> Ints:
        """Limits (k,) for Budgeted."""
        return np.where(self.best_K < 1, np.floor(self.best_K * limits_K).astype(np.int64), limits_K)

    def less(self, place: int, best: float, draws: float) -> "_Parts":
        """With the parts of one limit multiplied."""
        here_K = np.arange(len(self.best_K)) == place
        return _Parts(np.where(here_K, best, 1.0) * self.best_K, np.where(here_K, draws, 1.0) * self.draws_K)


@dataclass(frozen=True)
class _Kinds:
    """Customers who are alike in what is allowed and what Budgeted gives them: all that the sum of the draws depends on.

    ``pattern_N`` (n,) is each customer's row in ``allowed_PT``; ``count_PT`` (p, t) counts the customers of each pattern by Budgeted's
    column. A fraction of a customer is no contradiction: `safer` asks what would be if fewer were contacted.
    """

    share: float
    allowed_PT: Bools
    pattern_N: Ints
    count_PT: Floats
    use_KT: Ints
    limits_K: Ints

    @classmethod
    def of(cls, share: float, allowed_NT: Bools, tiers: Ints, use_KT: Ints, limits_K: Ints) -> "_Kinds":
        """With Budgeted's tiers (n,)."""
        packed_NB = np.packbits(allowed_NT, axis=1)
        _, first, pattern_N = np.unique(packed_NB, axis=0, return_index=True, return_inverse=True)
        nobody_PT = np.zeros((len(first), use_KT.shape[1]))
        return cls(share, allowed_NT[first], pattern_N.ravel(), nobody_PT, use_KT, limits_K).under(tiers)

    def under(self, tiers: Ints) -> "_Kinds":
        """With other tiers (n,) of Budgeted."""
        patterns, columns = self.count_PT.shape
        counts = np.bincount(self.pattern_N * columns + tiers, minlength=patterns * columns)
        return replace(self, count_PT=counts.reshape(patterns, columns).astype(np.float64))

    @property
    def used_K(self) -> Floats:
        """What Budgeted's contacts of everybody use (k,)."""
        return np.asarray(self.use_KT @ self.count_PT.sum(axis=0))

    def left(self) -> Floats:
        """What those not drawn are expected to leave of each limit (k,)."""
        return self.limits_K - (1 - self.share) * self.used_K

    def served(self, parts: _Parts) -> Floats:
        """phi (t,): the probability with which a drawn column is served."""
        chance_P1 = (self.share * self.count_PT.sum(axis=1) / self.allowed_PT.sum(axis=1))[:, None]
        drawn_T, served_T = (self.allowed_PT * chance_P1).sum(axis=0), np.ones(self.use_KT.shape[1])
        for place in np.argsort((self.use_KT > 0).sum(axis=1), kind="stable"):  # what is for one tier alone first
            if self.limits_K[place] < NO_LIMIT:
                served_T = served_T * _water(drawn_T * served_T * self.use_KT[place], float(parts.draws_K[place]))
        return served_T

    def risk(self, parts: _Parts) -> Floats:
        """A bound (k,) on the probability that all contacts together exceed each limit."""
        served_T = self.served(parts)
        return np.array([self._exceeds(place, served_T) for place in range(len(self.limits_K))])

    def safer(self, parts: _Parts, place: int) -> _Parts:
        """Parts that are about safe for one limit, were Budgeted's contacts that use it fewer in proportion.

        Of all ways to take from both, the one that keeps most in proportion, each weighted by the customers it is for.
        """
        tilts = TILTS if self.share < 1 else TILTS[:1]  # with everybody drawn, Budgeted decides for nobody
        ways = [(self._highest(parts, place, tilt), tilt) for tilt in tilts]
        kept = [log * ((1 - self.share) * tilt + self.share * (1 - tilt)) for log, tilt in ways]
        log, tilt = ways[int(np.argmax(kept))]
        return parts.less(place, math.exp(log * tilt), math.exp(log * (1 - tilt)))

    def _highest(self, parts: _Parts, place: int, tilt: float) -> float:
        """The highest log (below 0) that is safe when Budgeted keeps exp(log x tilt) of its part and the draws exp(log (1 - tilt))."""
        used, limit = float(self.used_K[place]), float(self.limits_K[place])
        low, high = LOWEST, math.log(LESS)
        while high - low > 1e-3:
            middle = (low + high) / 2
            less = parts.less(place, math.exp(middle * tilt), math.exp(middle * (1 - tilt)))
            fewer = self._fewer(place, min(float(less.best_K[place]) * limit / used, 1.0) if used else 1.0)
            safe = fewer._exceeds(place, fewer.served(less)) <= RISK / len(self.limits_K)
            low, high = (middle, high) if safe else (low, middle)
        return low

    def _fewer(self, place: int, kept: float) -> "_Kinds":
        """With a part of the contacts that use a resource; the others get none."""
        count_PT = np.where(self.use_KT[place] > 0, kept * self.count_PT, self.count_PT)
        count_PT[:, 0] += (self.count_PT - count_PT).sum(axis=1)
        return replace(self, count_PT=count_PT)

    def _exceeds(self, place: int, served_T: Floats) -> float:
        """Chernoff: P(sum > limit) <= E exp(a sum) / exp(a (limit + 1)), of independent customers, for every a > 0."""
        unit = max(int(np.gcd.reduce(self.use_KT[place])), 1)
        use_T, limit = self.use_KT[place] // unit, int(self.limits_K[place]) // unit
        if limit >= self._most(use_T, served_T):
            return 0.0
        a_A = STEEPNESS / float(use_T.max())
        more_AT = np.expm1(a_A[:, None] * use_T)
        number_P = self.allowed_PT.sum(axis=1)
        drawn_AP = (more_AT * served_T) @ self.allowed_PT.T / number_P
        there = np.nonzero(self.count_PT)
        mean_AG = (1 - self.share) * more_AT[:, there[1]] + self.share * drawn_AP[:, there[0]]
        bound_A = np.log1p(mean_AG) @ self.count_PT[there] - a_A * (limit + 1)
        return float(np.exp(min(bound_A.min(), 0.0)))

    def _most(self, use_T: Ints, served_T: Floats) -> float:
        """What all contacts together use if each customer's dearest possible one is made."""
        drawn_P = (self.allowed_PT * (use_T * (served_T > 0))).max(axis=1, initial=0) if self.share > 0 else np.zeros(len(self.allowed_PT))
        chosen_T = use_T if self.share < 1 else 0 * use_T
        return float((self.count_PT * np.maximum(drawn_P[:, None], chosen_T)).sum())


def _water(wanted_T: Floats, there: float) -> Floats:
    """The part (t,) of each want that is given when all get the same until they need no more: 1 where everything is given."""
    if wanted_T.sum() <= there:
        return np.ones(len(wanted_T))
    rising = np.sort(wanted_T)
    # the level at which the smallest are given fully and those above share the rest
    levels = (there - np.concatenate([[0.0], np.cumsum(rising)[:-1]])) / np.arange(len(rising), 0, -1)
    level = float(levels[np.argmax(levels <= rising)])
    return np.minimum(1.0, np.divide(level, wanted_T, out=np.ones(len(wanted_T)), where=wanted_T > 0))
