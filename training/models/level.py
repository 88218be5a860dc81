"""How many customers will come back in the label window: a forecast from the shop's own seasons, and the intercept that meets it.

A model pooled over snapshots predicts the level of an average season. What it cannot see is the demand of the window ahead. The
forecast needs aggregates only. With A(t) the customers who ordered in the horizon up to t,

    returning(T) = A(T) * [A(T - year + horizon) / A(T - year)] * (share of customers in A(T) who had ordered before it began)

the ratio as a mean of its logarithm over the years that are there. It is trusted as far as such ratios repeat (`YEAR_SD`) and counts are
large, against the model's own level, off by `MODEL_SD`; both standard deviations are in log odds of churn and were set by rolling origin
on Online Retail II before 2011-06 (notebooks/LOG.md, 2026-11-25). Without a full earlier cycle the level stays the model's.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Self

import numpy as np

from training.models.base import Floats, Rows, level_shift, logit, sigmoid
from training.models.calibration import Calibration

YEAR = timedelta(days=365)
MODEL_SD = 0.5
"""How far a pooled model's level is off from one season to the next."""
YEAR_SD = 0.15
"""How far a season's demand differs from one year to the next."""
NEEDS = ("recency_days", "tenure_days")


@dataclass(frozen=True)
class Demand:
    """Customers with an order in the horizon up to each snapshot, how many of them had ordered before, and how many there are."""

    horizon_days: int
    active: Mapping[datetime, int]
    returning: Mapping[datetime, int]
    first: datetime
    """Of the first order known."""

    @classmethod
    def of(cls, parts: Sequence[Rows], horizon_days: int) -> Self:
        """Count the rows of every snapshot."""
        recency, tenure = (np.concatenate([rows.column(name) for rows in parts]) for name in NEEDS)
        recent = recency <= horizon_days
        before = recent & (tenure > horizon_days)
        moments, place = np.unique(np.concatenate([rows.snapshot for rows in parts]), return_inverse=True)
        counts = [np.bincount(place, weights=mask, minlength=moments.size).astype(int).tolist() for mask in (recent, before)]
        keys = moments.astype("datetime64[us]").tolist()
        first = min(t - timedelta(days=float(tenure[place == i].max())) for i, t in enumerate(keys))
        return cls(horizon_days, dict(zip(keys, counts[0], strict=True)), dict(zip(keys, counts[1], strict=True)), first)

    def at(self, moment: datetime) -> float | None:
        """Customers active in the horizon up to a moment: geometric interpolation between snapshots, None outside them."""
        moments = sorted(self.active)
        after = bisect_right(moments, moment)
        if after and moments[after - 1] == moment:
            return float(self.active[moment])
        if not 0 < after < len(moments):
            return None
        left, right = moments[after - 1], moments[after]
        weight = (moment - left) / (right - left)
        logs = np.log([max(self.active[left], 1), max(self.active[right], 1)])
        return float(np.exp(logs @ [1 - weight, weight]))

    def until(self, moment: datetime) -> "Demand":
        """What was known at a moment."""
        active, returning = ({t: n for t, n in counts.items() if t <= moment} for counts in (self.active, self.returning))
        return Demand(self.horizon_days, active, returning, self.first)

    def ratios(self, moment: datetime) -> list[tuple[float, float]]:
        """(window ahead over window past, variance of its logarithm) one, two ... years earlier, past the first horizon of the data.

        In the first horizon every customer looks new, and in a cohort is: its ratio would tell of acquisition, not of the season.
        """
        horizon, found, year = timedelta(days=self.horizon_days), [], moment - YEAR
        while year - horizon >= self.first + horizon - timedelta(days=1):
            past, ahead = self.at(year), self.at(year + horizon)
            if past and ahead:
                found.append((ahead / past, 1 / past + 1 / ahead))
            year -= YEAR
        return found


@dataclass(frozen=True)
class Forecast:
    """Churn rate ahead of one snapshot, all its customers together."""

    churn_rate: float
    low: float
    high: float
    model_rate: float
    """What the model alone says."""
    season_rate: float | None
    """What the earlier cycles say, None without one."""
    cycles: int
    before: float
    """Added to the model's log odds before they are calibrated."""
    after: float = 0.0
    """Added to the calibrated log odds: what keeps the level while they are mapped."""


def forecast(demand: Demand | None, moment: datetime, p: Floats, calibration: Calibration, drift: float = 0.0) -> Forecast:
    """Level of the population with model probabilities ``p`` (n,) at a snapshot; ``drift`` moves the model's log odds first.

    Season and model are two measurements of the level in log odds; they are averaged by their precisions. The interval holds 95 %.
    """
    return _with_after(_forecast(demand, moment, logit(p) + drift, drift), logit(p), calibration)


def _forecast(demand: Demand | None, moment: datetime, z: Floats, drift: float) -> Forecast:
    model = float(sigmoid(z).mean())
    ratios = demand.until(moment).ratios(moment) if demand else []
    active, returning = (demand.active.get(moment, 0), demand.returning.get(moment, 0)) if demand else (0, 0)
    if not ratios or not returning:
        return _meeting(z, logit_of(model), MODEL_SD, model, None, 0, drift)
    growth = float(np.exp(np.mean([np.log(ratio) for ratio, _ in ratios])))
    season = float(np.clip(1 - growth * returning / z.size, 0.02, 0.98))
    counts = sum(variance for _, variance in ratios) / len(ratios) ** 2 + 1 / active
    season_var = YEAR_SD**2 / len(ratios) + counts / season**2  # d logit(churn) = -d log(returning) / churn
    weight = MODEL_SD**2 / (MODEL_SD**2 + season_var)
    centre = weight * logit_of(season) + (1 - weight) * logit_of(model)
    return _meeting(z, centre, float(np.sqrt(weight * season_var)), model, season, len(ratios), drift)


def _meeting(z: Floats, centre: float, sd: float, model: float, season: float | None, cycles: int, drift: float) -> Forecast:
    rate, low, high = (float(sigmoid(np.array(centre + k * sd))) for k in (0.0, -1.96, 1.96))
    return Forecast(rate, low, high, model, season, cycles, drift + level_shift(z, np.full(z.size, rate)))


def _with_after(found: Forecast, z: Floats, calibration: Calibration) -> Forecast:
    mapped = calibration.map(z + found.before)
    return replace(found, after=level_shift(mapped, np.full(z.size, found.churn_rate)))


def logit_of(p: float) -> float:
    """Log odds of one probability."""
    return float(logit(np.array(p)))


@dataclass(frozen=True)
class Level:
    """The forecasts of a model by snapshot; a row gets the latest one made at or before its snapshot, or the first."""

    forecasts: Mapping[datetime, Forecast]

    def calibrate(self, z: Floats, snapshot: Any, calibration: Calibration) -> Floats:
        """Calibrated log odds of raw ones (n,) of rows at these snapshots; an unknown snapshot is taken to be the latest."""
        moments, shifts = self._table
        known = np.searchsorted(moments, snapshot.astype("datetime64[us]"), side="right") - 1
        place = np.where(np.isnat(snapshot), len(moments) - 1, np.maximum(known, 0))
        before, after = shifts[:, place]
        return calibration.map(z + before) + after

    @cached_property
    def _table(self) -> tuple[Any, Floats]:
        """Moments (k,) in order, and what is added before and after the calibration at each, (2, k)."""
        moments = sorted(self.forecasts)
        shifts = [[getattr(self.forecasts[moment], name) for moment in moments] for name in ("before", "after")]
        return np.array(moments, dtype="datetime64[us]"), np.array(shifts)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {moment.isoformat(): asdict(found) for moment, found in sorted(self.forecasts.items())}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls({datetime.fromisoformat(moment): Forecast(**found) for moment, found in value.items()})
