"""Features that need the population: RFM-B scores, customer value and country rank, fitted on training rows and saved."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa

from features import clv
from features.clv import Clv
from features.domain import HIGH_VALUE_HIGH_RISK, RFMB_WEIGHTS
from features.events import Floats, filled
from features.family import Feature

SCORED = {"r_score": ("recency_days", -1.0), "f_score": ("frequency_orders", 1.0), "m_score": ("monetary_net", 1.0)}
"""score: (feature, direction in which it is better)."""
BEHAVIOUR = ("browse_minutes_90d", "cart_add_rate_90d", "tickets_365d", "contacts_clicked_90d")
"""B is the mean of the scores of these, as far as they are there: browsing time, add-to-cart rate, service contacts and
campaign participation [P 2.3.1]."""
TOP_COUNTRIES = 8

R_F_M = (
    Feature("r_score", "score", "recency as a quantile of the training population", "ordered more recently than {value} of 100 customers"),
    Feature("f_score", "score", "orders as a quantile of the training population", "orders more than {value} of 100 customers"),
    Feature("m_score", "score", "net spend as a quantile of the training population", "has spent more than {value} of 100 customers"),
)
B = Feature("b_score", "score", "behaviour as a quantile of the training population", "is more engaged than {value} of 100 customers")
RFM = Feature("rfm_score", "score", "weighted mean of the R, F and M scores", "has an RFM score of {value} of 100")
RFMB = Feature("rfmb_score", "score", "weighted mean of the R, F, M and B scores", "has an RFM-B score of {value} of 100")
AT_RISK = Feature("high_value_high_risk", "flag", "high value with hardly any behaviour [P 2.3.1]", "is of high value and hardly engaged")
COUNTRY = Feature(
    "country_rank", "code", "rank of the country by customers (0: most, 8: rarer or unknown)", "lives in the shop's country number {value}"
)


def features(names: Iterable[str], country: bool) -> list[Feature]:
    """The features added to a raw table with these columns."""
    behaviour = [B, RFMB, AT_RISK] if set(BEHAVIOUR) & set(names) else []
    return [*R_F_M, RFM, *behaviour, *clv.FEATURES, *([COUNTRY] if country else [])]


def fitted_on(names: Iterable[str]) -> list[str]:
    """Columns of the raw table that `Fitted.fit` reads."""
    there = set(names)
    return list(dict.fromkeys([*_edged(there), *clv.NEEDS, *({"country"} & there)]))


def _edged(there: set[str]) -> list[str]:
    """Columns that are scored by edges."""
    return [*(feature for feature, _ in SCORED.values()), *(name for name in BEHAVIOUR if name in there)]


@dataclass(frozen=True)
class Fitted:
    """Bin edges (101 quantiles per scored feature), the models of customer value and the most frequent countries of the training rows."""

    edges: dict[str, list[float]]
    clv: Clv
    countries: list[str] | None

    @classmethod
    def fit(cls, table: pa.Table) -> Self:
        """Learn from a raw feature table that holds training rows only."""
        at = np.linspace(0, 1, 101)
        known = {name: filled(table[name].to_numpy()) for name in _edged(set(table.column_names))}
        edges = {name: np.quantile(values, at).tolist() for name, values in known.items()}
        value = Clv.fit(table)
        if "country" not in table.column_names:
            return cls(edges, value, None)
        counts = table["country"].drop_null().value_counts().to_pylist()
        ranked = sorted(counts, key=lambda pair: (-pair["counts"], pair["values"]))
        return cls(edges, value, [pair["values"] for pair in ranked[:TOP_COUNTRIES]])

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**value | {"clv": Clv.from_json(value["clv"])})

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the manifest."""
        return asdict(self)

    def scores(self, columns: Mapping[str, Floats], countries: Sequence[str | None] = ()) -> dict[str, Floats]:
        """The score columns, (n,) each, from the columns `fitted_on` and, where countries were fitted, each customer's."""
        scores = {name: self._score(columns, feature, direction) for name, (feature, direction) in SCORED.items()}
        scores["rfm_score"] = _weighted(scores, list(SCORED))
        behaviour = [self._score(columns, name, 1.0) for name in BEHAVIOUR if name in self.edges]
        if behaviour:
            scores["b_score"] = np.mean(behaviour, axis=0)
            scores["rfmb_score"] = _weighted(scores, list(RFMB_WEIGHTS))
            scores["high_value_high_risk"] = _at_risk(columns, scores["b_score"])
        scores |= self.clv.features(columns)
        if self.countries is not None:
            rank: dict[str | None, float] = {country: float(number) for number, country in enumerate(self.countries)}
            scores[COUNTRY.name] = np.array([rank.get(country, float(TOP_COUNTRIES)) for country in countries], dtype=np.float64)
        return scores

    def apply(self, table: pa.Table) -> pa.Table:
        """The table with the score columns added."""
        columns = clv.arrays(table, [name for name in fitted_on(table.column_names) if name != "country"])
        scores = self.scores(columns, table["country"].to_pylist() if self.countries is not None else ())
        for name, values in scores.items():
            table = table.append_column(name, pa.array(values, pa.float64()))
        return table

    def reapply(self, table: pa.Table) -> pa.Table:
        """A complete table with its score columns made anew by these edges."""
        made = {feature.name for feature in (*R_F_M, RFM, B, RFMB, AT_RISK, *clv.FEATURES, COUNTRY)}
        return self.apply(table.drop_columns([name for name in table.column_names if name in made]))

    @cached_property
    def _edges(self) -> dict[str, Floats]:
        return {name: np.array(edges) for name, edges in self.edges.items()}

    def _score(self, columns: Mapping[str, Floats], feature: str, direction: float) -> Floats:
        below = self._edges[feature].searchsorted(filled(columns[feature]), side="left" if direction > 0 else "right")
        percent = np.minimum(np.maximum(below - (0 if direction > 0 else 1), 0), 100).astype(np.float64)
        return percent if direction > 0 else 100 - percent


def _weighted(scores: dict[str, Floats], names: Sequence[str]) -> Floats:
    total = sum(RFMB_WEIGHTS[name] for name in names)
    parts = [RFMB_WEIGHTS[name] * scores[name] for name in names]
    return np.asarray(sum(parts[1:], parts[0]) / total)


def _at_risk(columns: Mapping[str, Floats], b_score: Floats) -> Floats:
    most = HIGH_VALUE_HIGH_RISK
    recent = columns["recency_days"] <= most["recency_days"]
    loyal = (columns["frequency_orders"] >= most["frequency_orders"]) & (columns["monetary_net"] >= most["monetary_net"])
    return np.asarray(recent & loyal & (b_score <= most["b_score"])).astype(np.float64)
