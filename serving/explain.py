"""From contributions to reasons in words: the families that move a customer's probability most."""

from typing import Any

import numpy as np
import numpy.typing as npt

from features.table import Manifest

REASONS = 3
SMALLEST = 0.02
"""A family that moves the log odds by less is no reason."""


class Explainer:
    """Groups contributions by feature family; each reason is told by the family's strongest feature."""

    def __init__(self, manifest: Manifest) -> None:
        self.features = manifest.features
        owner = {feature.name: family.name for family, features in manifest.families for feature in features}
        self.place = {feature.name: place for place, feature in enumerate(self.features)}
        names = [owner.get(feature.name, "scores") for feature in self.features]
        self.families = sorted(set(names))
        self.member = np.array([[name == family for name in names] for family in self.families], dtype=np.float64)

    def reasons(self, contributions_NF: npt.NDArray[np.float64], x_NF: npt.NDArray[np.float64]) -> list[list[dict[str, Any]]]:
        """At most three reasons for each row, strongest first."""
        families_NG = contributions_NF @ self.member.T
        return [self._row(*row) for row in zip(families_NG, contributions_NF, x_NF, strict=True)]

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
