"""Customer lifetime value: orders expected from now on (BG/NBD) times their expected value (Gamma-Gamma).

Fader, Hardie and Lee (2005), "Counting your customers the easy way"; Fader and Hardie (2013), "The Gamma-Gamma model of monetary
value". Chosen over a LightGBM regression of the spend ahead by its error on the hold-out (`tests/benchmarks/bench_clv.py`). The
unit of both is a day with an order; revenue, not margin, as margins are the shop's own.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.optimize import minimize
from scipy.special import betaln, gammaln, hyp2f1

from features.events import Floats
from features.family import Feature

NEEDS = ("recency_days", "tenure_days", "active_days", "frequency_orders", "order_value_mean")
"""Columns of the feature table that both models read."""
FIT_ROWS = 10_000
"""Customers that parameters are fitted on, at most."""
ORDERS_DAYS, VALUE_DAYS = 90, 365
FEATURES = (
    Feature(
        "expected_orders_90d",
        "count",
        "days with an order expected in the next 90 days",
        "is expected to order {value} times in the next 90 days",
        2,
    ),
    Feature("expected_order_value", "currency", "value expected of a day with an order", "is expected to spend {value} on the next order"),
    Feature("clv_365d", "currency", "spend expected in the next 365 days", "is expected to spend {value} in the next 365 days"),
)
_LARGEST_LOG = 12.0


@dataclass(frozen=True)
class BgNbd:
    """While alive a customer orders at a Poisson rate ~ Gamma(r, alpha), and after each order leaves with probability ~ Beta(a, b).

    x is the number of repeat orders, t_x the time of the last and T that of now, in days since the first order, (n,) each.
    """

    r: float
    alpha: float
    a: float
    b: float

    @classmethod
    def fit(cls, x: Floats, t_x: Floats, T: Floats) -> Self:
        """Maximum likelihood."""
        start = np.log([1.0, max(float(np.mean(T)) / 2, 1.0), 1.0, 2.0])
        return cls(*_fitted(lambda params: cls(*params).log_likelihood(x, t_x, T), start))

    def log_likelihood(self, x: Floats, t_x: Floats, T: Floats) -> Floats:
        """Of each customer, (n,)."""
        r, alpha, a, b = self.r, self.alpha, self.a, self.b
        log_rate = gammaln(r + x) - gammaln(r) + r * np.log(alpha)
        stayed = betaln(a, b + x) - betaln(a, b) - (r + x) * np.log(alpha + T)
        left = betaln(a + 1, b + np.maximum(x, 1) - 1) - betaln(a, b) - (r + x) * np.log(alpha + t_x)
        both: Floats = np.logaddexp(stayed, np.where(x > 0, left, -np.inf))
        return log_rate + both

    def alive(self, x: Floats, t_x: Floats, T: Floats) -> Floats:
        """Probability of not having left, (n,); 1 without repeat orders."""
        log_odds = np.log(self.a) - np.log(self.b + np.maximum(x, 1) - 1)
        log_odds = log_odds + (self.r + x) * (np.log(self.alpha + T) - np.log(self.alpha + t_x))
        return np.where(x > 0, 1 / (1 + np.exp(np.minimum(log_odds, 700))), 1.0)

    def orders(self, x: Floats, t_x: Floats, T: Floats, days: float) -> Floats:
        """Orders expected in the next days, (n,): equation 10, its hypergeometric term by Pfaff's transformation, which stays bounded."""
        a = self.a if abs(self.a - 1) > 1e-6 else 1 + 1e-6  # both sides of the fraction vanish at 1
        lasting = hyp2f1(self.r + x, a - 1, a + self.b + x - 1, -days / (self.alpha + T))
        return (a + self.b + x - 1) / (a - 1) * (1 - lasting) * self.alive(x, t_x, T)


@dataclass(frozen=True)
class GammaGamma:
    """A customer's orders are worth ~ Gamma(p, nu) each, and nu differs between customers ~ Gamma(q, v)."""

    p: float
    q: float
    v: float

    @classmethod
    def fit(cls, n: Floats, mean: Floats) -> Self:
        """Maximum likelihood from the customers' numbers n and means of orders, (customers,) each; means of 0 tell nothing."""
        n, mean = n[mean > 0], mean[mean > 0]
        if not n.size:
            return cls(1.0, 1.0, 0.0)  # expects every customer's own mean
        p, above, v = _fitted(lambda params: cls._log_likelihood(params, n, mean), np.log([1.0, 1.0, float(mean.mean())]))
        return cls(p, 1 + above, v)  # above 1, so that the population has a mean

    @staticmethod
    def _log_likelihood(params: Floats, n: Floats, mean: Floats) -> Floats:
        p, q, v = params[0], 1 + params[1], params[2]
        both = gammaln(p * n + q) - gammaln(p * n) - gammaln(q) + q * np.log(v)
        log_density: Floats = both + (p * n - 1) * np.log(mean) + p * n * np.log(n) - (p * n + q) * np.log(n * mean + v)
        return log_density

    def value(self, n: Floats, mean: Floats) -> Floats:
        """Value expected of the next order, (n,): between the customer's own mean and the population's."""
        return self.p * (self.v + n * mean) / (self.p * n + self.q - 1)


def _fitted(log_likelihood: Callable[[Floats], Floats], start: Floats) -> list[float]:
    """Positive parameters of the largest mean log likelihood."""

    def loss(logs: Floats) -> float:
        return -float(np.mean(log_likelihood(np.exp(np.clip(logs, -_LARGEST_LOG, _LARGEST_LOG)))))

    found = minimize(loss, start, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-6, "fatol": 1e-9})
    return [float(value) for value in np.exp(np.clip(found.x, -_LARGEST_LOG, _LARGEST_LOG))]


@dataclass(frozen=True)
class Clv:
    """Both models, fitted on the latest training snapshot."""

    orders: BgNbd
    value: GammaGamma

    @classmethod
    def fit(cls, table: pa.Table) -> Self:
        """Fit to the latest snapshot of a raw feature table, to its first `FIT_ROWS` customers: ids are pseudonyms, and so random."""
        latest = table.filter(pc.equal(table["snapshot"], pc.max(table["snapshot"])))
        x, t_x, T, n, mean = _history(arrays(latest.sort_by("customer_id").slice(0, FIT_ROWS), NEEDS))
        return cls(BgNbd.fit(x, t_x, T), GammaGamma.fit(n, mean))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(BgNbd(**value["orders"]), GammaGamma(**value["value"]))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def features(self, columns: Mapping[str, Floats]) -> dict[str, Floats]:
        """The columns `FEATURES`, (n,) each, from the columns `NEEDS`."""
        x, t_x, T, n, mean = _history(columns)
        value = self.value.value(n, mean)
        found = self.orders.orders(x, t_x, T, ORDERS_DAYS), value, self.orders.orders(x, t_x, T, VALUE_DAYS) * value
        return {feature.name: values for feature, values in zip(FEATURES, found, strict=True)}


def arrays(table: pa.Table, names: Iterable[str]) -> dict[str, Floats]:
    """Columns of a table as arrays (n,)."""
    return {name: table[name].to_numpy() for name in names}


def _history(columns: Mapping[str, Floats]) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """x, t_x and T of `BgNbd`, n and mean of `GammaGamma`."""
    recency, tenure, days, orders, mean = (columns[name] for name in NEEDS)
    return days - 1, tenure - recency, tenure, days, mean * orders / days
