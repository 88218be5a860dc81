"""Baseline: BG/NBD's probability of no order within the horizon.

The model is that of `features/clv.py`. P(alive) is no score (it is 1 for one-time buyers); the probability of no order in
the next H days is. A customer alive at T has the rate ~ Gamma(r + x, alpha + T), and cannot leave before ordering again, hence

    P(no order in H) = 1 - P(alive) * (1 - ((alpha + T) / (alpha + T + H)) ** (r + x)).
"""

from dataclasses import dataclass

from features import clv
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
        fitted = clv.BgNbd.fit(*_history(train.at(train.snapshot == train.snapshot.max())))
        return cls(fitted.r, fitted.alpha, fitted.a, fitted.b, horizon_days)

    def predict(self, rows: Rows) -> Floats:
        """Probability of no order within the horizon, shape (n,)."""
        x, t_x, T = _history(rows)
        alive = clv.BgNbd(self.r, self.alpha, self.a, self.b).alive(x, t_x, T)
        silent = ((self.alpha + T) / (self.alpha + T + self.horizon_days)) ** (self.r + x)
        return 1 - alive * (1 - silent)


def _history(rows: Rows) -> tuple[Floats, Floats, Floats]:
    """Repeat order days x, time of the last t_x and age T since the first order, in days."""
    T = rows.column("tenure_days")
    return rows.column("active_days") - 1, T - rows.column("recency_days"), T
