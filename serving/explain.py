"""From contributions to reasons in words: the families that move a customer's probability most."""

from typing import Any

import numpy as np
import numpy.typing as npt

from features.domain import REASON_FAMILIES, REASON_LEAST, REASON_TOUCHPOINTS, ChurnReason
from features.table import Manifest

REASONS = 5
SMALLEST = 0.02
"""A family that moves the log odds by less is no reason."""


class Explainer:
    """Groups contributions by feature family; each reason is told by the family's strongest feature."""

    def __init__(self, manifest: Manifest) -> None:
        self.features = manifest.features
        self.place = {feature.name: place for place, feature in enumerate(self.features)}
        names = [manifest.family_of(feature.name) for feature in self.features]
        self.families = sorted(set(names))
        self.member = np.array([[name == family for name in names] for family in self.families], dtype=np.float64)

    def reasons(self, contributions_NF: npt.NDArray[np.float64], x_NF: npt.NDArray[np.float64]) -> list[list[dict[str, Any]]]:
        """At most five reasons for each row, strongest first."""
        families_NG = contributions_NF @ self.member.T
        return [self._row(*row) for row in zip(families_NG, contributions_NF, x_NF, strict=True)]

    def churn_reasons(self, contributions_NF: npt.NDArray[np.float64], x_NF: npt.NDArray[np.float64]) -> list[str]:
        """Price, service, need changed or unknown for each row: the reason whose families, with its touchpoints, raise the risk most."""
        added_NG = contributions_NF @ self.member.T
        votes = [self._votes(reason, added_NG, x_NF) for reason in REASON_FAMILIES]
        best = np.argmax(votes, axis=0)
        enough = np.max(votes, axis=0) >= REASON_LEAST
        names = list(REASON_FAMILIES)
        return [names[place].value if sure else ChurnReason.UNKNOWN.value for place, sure in zip(best, enough, strict=True)]

    def _votes(self, reason: ChurnReason, added_NG: npt.NDArray[np.float64], x_NF: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        families = [place for place, family in enumerate(self.families) if family in REASON_FAMILIES[reason]]
        touched = [self.place[name] for name, of in REASON_TOUCHPOINTS.items() if of is reason and name in self.place]
        flags = np.nan_to_num(x_NF[:, touched]).max(axis=1, initial=0.0)
        return np.asarray(added_NG[:, families].sum(axis=1) + REASON_LEAST * flags)

    def _row(
        self, by_family: npt.NDArray[np.float64], by_feature: npt.NDArray[np.float64], x_F: npt.NDArray[np.float64]
    ) -> list[dict[str, Any]]:
        strongest = np.argsort(-np.abs(by_family), kind="stable")[:REASONS]
        return [self._reason(g, by_family[g], by_feature, x_F) for g in strongest if abs(by_family[g]) >= SMALLEST]

    def _reason(self, group: int, total: float, by_feature: npt.NDArray[np.float64], x_F: npt.NDArray[np.float64]) -> dict[str, Any]:
        known = ~np.isnan(x_F)
        alike = np.where(self.member[group].astype(bool) & known, by_feature * np.sign(total), -np.inf)
        index = int(alike.argmax())
        feature = self.features[index]
        beside = float(x_F[self.place[feature.beside[0]]]) if feature.beside[0] in self.place else np.nan
        return {
            "family": self.families[group],
            "feature": feature.name,
            "effect": "raises" if total > 0 else "lowers",
            "log_odds": round(float(total), 4),
            "text": feature.render(float(x_F[index]), beside),
        }
