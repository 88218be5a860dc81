"""Features that need the population: RFM scores and country rank, fitted on training rows and saved."""

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa

from features.domain import RFM_WEIGHTS
from features.family import Feature
from features.history import Floats

SCORED = {"r_score": ("recency_days", -1.0), "f_score": ("frequency_orders", 1.0), "m_score": ("monetary_net", 1.0)}
"""score: (feature, direction in which it is better)."""
TOP_COUNTRIES = 8

FEATURES = (
    Feature("r_score", "score", "recency as a quantile of the training population", "ordered more recently than {value} of 100 customers"),
    Feature("f_score", "score", "orders as a quantile of the training population", "orders more than {value} of 100 customers"),
    Feature("m_score", "score", "net spend as a quantile of the training population", "has spent more than {value} of 100 customers"),
    Feature("rfm_score", "score", "weighted mean of the three scores", "has an RFM score of {value} of 100"),
)
COUNTRY = Feature(
    "country_rank", "code", "rank of the country by customers (0: most, 8: rarer or unknown)", "lives in the shop's country number {value}"
)


@dataclass(frozen=True)
class Fitted:
    """Bin edges (101 quantiles per score) and the most frequent countries of the training rows."""

    edges: dict[str, list[float]]
    countries: list[str] | None

    @classmethod
    def fit(cls, table: pa.Table) -> Self:
        """Learn from a raw feature table that holds training rows only."""
        at = np.linspace(0, 1, 101)
        edges = {name: np.quantile(table[feature].to_numpy(), at).tolist() for name, (feature, _) in SCORED.items()}
        if "country" not in table.column_names:
            return cls(edges, None)
        counts = table["country"].drop_null().value_counts().to_pylist()
        ranked = sorted(counts, key=lambda pair: (-pair["counts"], pair["values"]))
        return cls(edges, [pair["values"] for pair in ranked[:TOP_COUNTRIES]])

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**value)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the manifest."""
        return asdict(self)

    def apply(self, table: pa.Table) -> pa.Table:
        """The table with the score columns added."""
        scores = {name: self._score(name, table) for name in SCORED}
        total = sum(RFM_WEIGHTS.values())
        scores["rfm_score"] = sum((RFM_WEIGHTS[name] * scores[name] for name in SCORED), np.zeros(table.num_rows)) / total
        if self.countries is not None:
            rank = {country: float(number) for number, country in enumerate(self.countries)}
            codes = [rank.get(country, float(TOP_COUNTRIES)) for country in table["country"].to_pylist()]
            scores[COUNTRY.name] = np.array(codes, dtype=np.float64)
        for name, values in scores.items():
            table = table.append_column(name, pa.array(values))
        return table

    def reapply(self, table: pa.Table) -> pa.Table:
        """A complete table with its score columns made anew by these edges."""
        made = {COUNTRY.name, *(feature.name for feature in FEATURES)}
        return self.apply(table.drop_columns([name for name in table.column_names if name in made]))

    def _score(self, name: str, table: pa.Table) -> Floats:
        feature, direction = SCORED[name]
        values, edges = table[feature].to_numpy(), np.array(self.edges[name])
        below = np.searchsorted(edges, values, side="left" if direction > 0 else "right")
        percent = np.clip(below - (0 if direction > 0 else 1), 0, 100).astype(np.float64)
        return percent if direction > 0 else 100 - percent
