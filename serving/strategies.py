"""Ways to choose whom to contact, behind one small interface: what a day's decisions, a simulation and an experiment have in common.

A strategy sees gains under all hard constraints (minus infinity: forbidden), probabilities, pseudonyms, and what the day has, which
it never uses more of. A column is no contact (0) or a contact of some tier on some day; each customer may have one of each tier.
Uses and limits are whole numbers (millionths of money and hours), so that the last contact a limit can pay is made.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from serving.allocate import Allocation, Limits, allocate, used, whole
from serving.decide import Bools, Floats, Ints
from serving.experiment import Draws, Plan, plan

UNNAMED = "unnamed"


@dataclass(frozen=True)
class Chosen:
    """What a strategy chose for n customers.

    ``tiers`` (n,): the column chosen; ``propensity_N`` (n,): the probability with which it was; ``prices_K`` (k,): shadow prices in gain
    per unit; ``allocation``: the proof, if there is one. ``own_N`` (n,): the strategy's own rule decided, not gain and limits.
    ``lacking_N`` (n,): the limit that kept the customer from the column the strategy wanted, -1 for none (or where prices tell).
    ``withheld``: contacts of an experiment that did not fit, which is next to never.
    """

    tiers: Ints
    propensity_N: Floats
    prices_K: Floats
    own_N: Bools
    lacking_N: Ints
    allocation: Allocation | None = None
    withheld: int = 0


class Strategy(ABC):
    """Chooses a column for each customer."""

    name: ClassVar[str]
    own: ClassVar[str] = "strategy"
    """Whose rule ``Chosen.own_N`` means: the strategy's or the experiment's (``randomised``)."""

    @abstractmethod
    def choose(self, gains_NT: Floats, p_N: Floats, use_KT: Ints, limits_K: Limits, ids: Sequence[str]) -> Chosen:
        """Columns of n customers; no forbidden one, and together within the limits."""


class NoContact(Strategy):
    """Leaves everybody alone: what anything else is measured against."""

    name = "no_contact"

    def choose(self, gains_NT: Floats, p_N: Floats, use_KT: Ints, limits_K: Limits, ids: Sequence[str]) -> Chosen:
        """None for all, by its own rule."""
        served = _Served(np.zeros(len(p_N), dtype=np.int64), _nothing_lacks(len(p_N)))
        return _certain(served, np.ones(len(p_N), dtype=bool), len(limits_K))


class TopRisk(Strategy):
    """The strongest tier that is allowed and affordable, by falling churn probability: what shops do without a value or an effect."""

    name = "top_risk"

    def choose(self, gains_NT: Floats, p_N: Floats, use_KT: Ints, limits_K: Limits, ids: Sequence[str]) -> Chosen:
        """From the highest probability down while the day has something left."""
        wish_NT = np.where(np.isfinite(gains_NT), np.arange(gains_NT.shape[1]), -np.inf)
        served = _in_order(np.argsort(-p_N, kind="stable"), wish_NT, use_KT, limits_K)
        own_N = (served.tiers != gains_NT.argmax(axis=1)) & (served.lacking_N < 0)
        return _certain(served, own_N, len(limits_K))


class ExpectedGain(Strategy):
    """Everybody's tier of the highest gain, first come first served: no prices."""

    name = "expected_gain"

    def choose(self, gains_NT: Floats, p_N: Floats, use_KT: Ints, limits_K: Limits, ids: Sequence[str]) -> Chosen:
        """In the order of the customers while the day has something left."""
        served = _in_order(np.arange(len(p_N)), gains_NT, use_KT, limits_K)
        return _certain(served, np.zeros(len(p_N), dtype=bool), len(limits_K))


class Budgeted(Strategy):
    """The largest sum of gains under all limits (`allocate.py`)."""

    name = "budgeted"

    def choose(self, gains_NT: Floats, p_N: Floats, use_KT: Ints, limits_K: Limits, ids: Sequence[str]) -> Chosen:
        """With prices and a proven bound."""
        n, found = len(p_N), allocate(gains_NT, use_KT, limits_K)
        return Chosen(found.tiers, np.ones(n), found.prices, np.zeros(n, dtype=bool), _nothing_lacks(n), found)


class Randomised(Strategy):
    """For experiments: with probability ``share`` a column drawn evenly among the allowed ones, else what `Budgeted` chooses.

    The same ``experiment`` name draws the same customers again, another name draws independently; `experiment.py` says how, what the
    propensities are, and what of the limits stays unused for them to be exact. The prices and the allocation are those of Budgeted
    for everybody within what it may use; the allocation's bound holds for the whole limits.
    """

    name = "randomised"
    own = "randomised"

    def __init__(self, share: float = 0.1, experiment: str = UNNAMED) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share = {share}: must lie between 0 and 1")
        self.share, self.experiment = share, experiment

    def choose(self, gains_NT: Floats, p_N: Floats, use_KT: Ints, limits_K: Limits, ids: Sequence[str]) -> Chosen:
        """The day's plan, and who is drawn in it."""
        return self.draw(plan(self.share, gains_NT, use_KT, whole(limits_K)), use_KT, limits_K, ids)

    def draw(self, day: Plan, use_KT: Ints, limits_K: Limits, ids: Sequence[str]) -> Chosen:
        """Those not drawn, and the draws; should they not fit together, the last of the draws in the order of the hash are left out."""
        draws = Draws.of(self.experiment, ids)
        drawn_N = draws.member_N < self.share
        column_N = draws.columns(day.allowed_NT)
        column_N = np.where(draws.served_N < day.served_T[column_N], column_N, 0)
        wanted_N = np.where(drawn_N, column_N, day.best.tiers)
        served = _Served(wanted_N, _nothing_lacks(len(ids)))
        if (used(use_KT, wanted_N) > whole(limits_K)).any():
            wish_NT = np.where(np.arange(use_KT.shape[1]) == wanted_N[:, None], 1.0, -np.inf)
            served = _in_order(np.lexsort((draws.member_N, drawn_N)), wish_NT, use_KT, limits_K)
        return Chosen(
            served.tiers,
            day.propensity(served.tiers),
            day.best.prices,
            drawn_N,
            served.lacking_N,
            day.best,
            int(np.sum(served.tiers != wanted_N)),
        )


STRATEGIES: dict[str, type[Strategy]] = {one.name: one for one in (NoContact, TopRisk, ExpectedGain, Budgeted, Randomised)}


@dataclass(frozen=True)
class _Served:
    """The column of each customer (n,), and the limit that kept him from the first he wished for (-1: none)."""

    tiers: Ints
    lacking_N: Ints


def _nothing_lacks(n: int) -> Ints:
    return np.full(n, -1)


def _certain(served: _Served, own_N: Bools, limits: int) -> Chosen:
    """A choice without chance and without prices."""
    return Chosen(served.tiers, np.ones(len(own_N)), np.zeros(limits), own_N, served.lacking_N)


def _in_order(order: Any, wish_NT: Floats, use_KT: Ints, limits_K: Limits) -> _Served:
    """Each customer's column of the highest wish that what is left can pay, one after another; a wish below zero is none."""
    tiers, lacking_N = wish_NT.argmax(axis=1), _nothing_lacks(len(wish_NT))
    left_K, wanting = whole(limits_K), order[tiers[order] > 0]
    together_KW = np.cumsum(use_KT[:, tiers[wanting]], axis=1)
    short = np.flatnonzero((together_KW > left_K[:, None]).any(axis=0))
    if not short.size:
        return _Served(tiers, lacking_N)
    first = int(short[0])  # until then everybody gets what he wishes for
    left_K -= use_KT[:, tiers[wanting[:first]]].sum(axis=1)
    for row in wanting[first:].tolist():
        lacking_K = use_KT[:, tiers[row]] > left_K
        if lacking_K.any():
            lacking_N[row] = int(lacking_K.argmax())
            affordable_T = (use_KT <= left_K[:, None]).all(axis=0) & (wish_NT[row] >= 0)
            tiers[row] = np.where(affordable_T, wish_NT[row], -1.0).argmax()
        left_K -= use_KT[:, tiers[row]]
    return _Served(tiers, lacking_N)
