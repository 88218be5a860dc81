"""Baseline: BG/NBD's probability of no order within the horizon.

Fader, Hardie and Lee (2005), "Counting your customers the easy way": while alive a customer orders at a
Poisson rate ~ Gamma(r, alpha) and after each order leaves with a probability ~ Beta(a, b). P(alive) is no
score (it is 1 for one-time buyers); the probability of no order in the next H days is. A customer alive
at T has the rate ~ Gamma(r + x, alpha + T), and cannot leave before ordering again, hence

    P(no order in H) = 1 - P(alive) * (1 - ((alpha + T) / (alpha + T + H)) ** (r + x)).
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaln, gammaln

from training.models.base import Floats, Model, Rows


@dataclass(frozen=True)
class BgNbd(Model):
    """Fitted parameters; time in days."""

    r: float
    alpha: float
    a: float
    b: float
    horizon_days: int
    name = "bgnbd"

    @classmethod
    def fit(cls, train: Rows, horizon_days: int) -> "BgNbd":
        """Maximum likelihood on the latest training snapshot (one row a customer; the label is not used)."""
        x, t_x, T = _history(train.at(train.snapshot == train.snapshot.max()))

        def loss(log_params: Floats) -> float:
            return -float(np.mean(_log_likelihood(np.exp(log_params), x, t_x, T)))

        start = np.log([1.0, max(float(np.mean(T)) / 2, 1.0), 1.0, 2.0])
        fit = minimize(loss, start, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-6, "fatol": 1e-9})
        r, alpha, a, b = np.exp(fit.x)
        return cls(float(r), float(alpha), float(a), float(b), horizon_days)

    def predict(self, rows: Rows) -> Floats:
        """Probability of no order within the horizon, shape (n,)."""
        x, t_x, T = _history(rows)
        log_odds_left = np.log(self.a) - np.log(self.b + np.maximum(x, 1) - 1)
        log_odds_left += (self.r + x) * (np.log(self.alpha + T) - np.log(self.alpha + t_x))
        alive = np.where(x > 0, 1 / (1 + np.exp(np.minimum(log_odds_left, 700))), 1.0)
        silent = ((self.alpha + T) / (self.alpha + T + self.horizon_days)) ** (self.r + x)
        return 1 - alive * (1 - silent)


def _history(rows: Rows) -> tuple[Floats, Floats, Floats]:
    """Repeat order days x, time of the last t_x and age T since the first order, in days."""
    T = rows.column("tenure_days")
    return rows.column("active_days") - 1, T - rows.column("recency_days"), T


def _log_likelihood(params: Floats, x: Floats, t_x: Floats, T: Floats) -> Floats:
    r, alpha, a, b = params
    log_rate = gammaln(r + x) - gammaln(r) + r * np.log(alpha)
    stayed = betaln(a, b + x) - betaln(a, b) - (r + x) * np.log(alpha + T)
    left = betaln(a + 1, b + np.maximum(x, 1) - 1) - betaln(a, b) - (r + x) * np.log(alpha + t_x)
    both: Floats = np.logaddexp(stayed, np.where(x > 0, left, -np.inf))
    return log_rate + both
