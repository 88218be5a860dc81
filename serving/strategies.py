"""Ways to choose whom to contact, behind one small interface: what a day's decisions, a simulation and an experiment have in common.

A strategy sees gains under all hard constraints (minus infinity: forbidden), probabilities, and what the day has, which it never
uses more of.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from serving.allocate import Allocation, allocate
from serving.decide import Floats, Ints


@dataclass(frozen=True)
class Chosen:
    """Tiers (n,), the probability with which each was chosen (n,), shadow prices (k,), and the allocation's proof if there is one."""

    tiers: Ints
    propensity_N: Floats
    prices_K: Floats
    allocation: Allocation | None = None


class Strategy(ABC):
    """Chooses a tier for each customer."""

    name: ClassVar[str]

    @abstractmethod
    def choose(self, gains_NT: Floats, p_N: Floats, use_KT: Floats, limits_K: Floats) -> Chosen:
        """Tiers of n customers; no forbidden one, and together within the limits."""


class NoContact(Strategy):
    """Leaves everybody alone: what anything else is measured against."""

    name = "no_contact"

    def choose(self, gains_NT: Floats, p_N: Floats, use_KT: Floats, limits_K: Floats) -> Chosen:
        """None for all."""
        return Chosen(np.zeros(len(p_N), dtype=np.int64), np.ones(len(p_N)), np.zeros(len(limits_K)))


class TopRisk(Strategy):
    """The strongest tier that is allowed and affordable, by falling churn probability: what shops do without a value or an effect."""

    name = "top_risk"

    def choose(self, gains_NT: Floats, p_N: Floats, use_KT: Floats, limits_K: Floats) -> Chosen:
        """From the highest probability down while the day has something left."""
        strongest = gains_NT.shape[1] - 1
        wish_NT = np.where(np.isfinite(gains_NT), np.arange(strongest + 1), -np.inf)
        return Chosen(_in_order(np.argsort(-p_N, kind="stable"), wish_NT, use_KT, limits_K), np.ones(len(p_N)), np.zeros(len(limits_K)))


class ExpectedGain(Strategy):
    """Everybody's tier of the highest gain, first come first served: no prices."""

    name = "expected_gain"

    def choose(self, gains_NT: Floats, p_N: Floats, use_KT: Floats, limits_K: Floats) -> Chosen:
        """In the order of the customers while the day has something left."""
        return Chosen(_in_order(np.arange(len(p_N)), gains_NT, use_KT, limits_K), np.ones(len(p_N)), np.zeros(len(limits_K)))


class Budgeted(Strategy):
    """The largest sum of gains under all limits (`allocate.py`)."""

    name = "budgeted"

    def choose(self, gains_NT: Floats, p_N: Floats, use_KT: Floats, limits_K: Floats) -> Chosen:
        """With prices and a proven bound."""
        found = allocate(gains_NT, use_KT, limits_K)
        return Chosen(found.tiers, np.ones(len(p_N)), found.prices, found)


class Randomised(Strategy):
    """For experiments: with probability ``share`` a tier drawn evenly among the allowed ones, else what `Budgeted` chooses for everybody.

    Who is not drawn is served first, which always fits; draws share what the others would have had. A draw that finds nothing left
    becomes no contact with a propensity of NaN: such rows are no part of an experiment. The propensity logged is that of the tier
    chosen among rows that are part of it; how often a draw of each tier is served is counted in the day itself.
    """

    name = "randomised"

    def __init__(self, share: float = 0.1, seed: int = 1) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share = {share}: must lie between 0 and 1")
        self.share, self.random = share, np.random.default_rng(seed)

    def choose(self, gains_NT: Floats, p_N: Floats, use_KT: Floats, limits_K: Floats) -> Chosen:
        """Those not drawn, then the draws in a random order."""
        best = Budgeted().choose(gains_NT, p_N, use_KT, limits_K)
        allowed_NT, rows = np.isfinite(gains_NT), np.arange(len(p_N))
        number = allowed_NT.sum(axis=1)
        drawn = self.random.random(rows.size) < self.share
        kth = np.floor(self.random.random(rows.size) * number).astype(np.int64)
        tier = np.where(drawn, (np.cumsum(allowed_NT, axis=1) > kth[:, None]).argmax(axis=1), best.tiers)
        wish_NT = np.where(np.arange(gains_NT.shape[1]) == tier[:, None], 1.0, -np.inf)
        wish_NT[:, 0] = np.where(tier == 0, 1.0, 0.0)
        order = self.random.permutation(rows.size)
        got = _in_order(order[np.argsort(drawn[order], kind="stable")], wish_NT, use_KT, limits_K)
        served_T = np.array(
            [np.mean(got[drawn & (tier == t)] == t) if (drawn & (tier == t)).any() else 1.0 for t in range(wish_NT.shape[1])]
        )
        part_of_it = 1 - self.share * (1 - (allowed_NT * served_T).sum(axis=1) / number)
        propensity = (self.share * served_T[got] / number + np.where(got == best.tiers, 1 - self.share, 0.0)) / part_of_it
        return Chosen(got, np.where(got == tier, propensity, np.nan), best.prices_K, best.allocation)


STRATEGIES: dict[str, type[Strategy]] = {one.name: one for one in (NoContact, TopRisk, ExpectedGain, Budgeted, Randomised)}


def _in_order(order: Any, wish_NT: Floats, use_KT: Floats, limits_K: Floats) -> Ints:
    """Each customer's tier of the highest wish that what is left can pay, one after another; a wish below zero is none."""
    units_KT, left_K = np.rint(use_KT * 1e6).astype(np.int64), np.rint(np.where(np.isinf(limits_K), 9e12, limits_K) * 1e6).astype(np.int64)
    tiers, ranked_NT = np.zeros(len(wish_NT), dtype=np.int64), np.argsort(-wish_NT, axis=1, kind="stable")
    for row in order:
        for tier in ranked_NT[row].tolist():
            if tier == 0 or wish_NT[row, tier] < 0:
                break
            if (units_KT[:, tier] <= left_K).all():
                tiers[row] = tier
                left_K -= units_KT[:, tier]
                break
    return tiers
