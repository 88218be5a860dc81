"""From contributions to reasons in words: the families that move a customer's probability most."""

from typing import Any

import numpy as np
import numpy.typing as npt

from features.domain import REASON_FAMILIES, REASON_LEAST, REASON_TOUCHPOINTS, ChurnReason
from features.table import Manifest

Floats = npt.NDArray[np.float64]
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
        self._family = self.member.argmax(axis=0)
        self._order = np.argsort(self._family, kind="stable")
        """Features family by family; ``_starts``: where each begins."""
        self._starts = np.searchsorted(self._family[self._order], np.arange(len(self.families)))

    def reasons(self, contributions_NF: Floats, x_NF: Floats) -> list[list[dict[str, Any]]]:
        """At most five reasons for each row, strongest first."""
        total_NG = contributions_NF @ self.member.T
        strongest = np.argsort(-np.abs(total_NG), axis=1, kind="stable")[:, :REASONS]
        total, feature = (
            np.take_along_axis(values, strongest, axis=1).tolist() for values in (total_NG, self._leaders(contributions_NF, x_NF, total_NG))
        )
        return [
            [self._reason(*one, x_F) for one in zip(*row, strict=True) if abs(one[1]) >= SMALLEST]
            for row, x_F in zip(zip(strongest.tolist(), total, feature, strict=True), x_NF, strict=True)
        ]

    def _leaders(self, contributions_NF: Floats, x_NF: Floats, total_NG: Floats) -> Any:
        """The known feature of each family that adds most in the direction of the whole, (n, families)."""
        alike = np.where(np.isnan(x_NF), -np.inf, contributions_NF * np.sign(total_NG)[:, self._family])[:, self._order]
        most = np.maximum.reduceat(alike, self._starts, axis=1)[:, self._family[self._order]]
        return self._order[np.minimum.reduceat(np.where(alike == most, np.arange(alike.shape[1]), alike.shape[1]), self._starts, axis=1)]

    def churn_reasons(self, contributions_NF: Floats, x_NF: Floats) -> list[str]:
        """Price, service, need changed or unknown for each row: the reason whose families, with its touchpoints, raise the risk most."""
        added_NG = contributions_NF @ self.member.T
        votes = [self._votes(reason, added_NG, x_NF) for reason in REASON_FAMILIES]
        best = np.argmax(votes, axis=0)
        enough = np.max(votes, axis=0) >= REASON_LEAST
        names = list(REASON_FAMILIES)
        return [names[place].value if sure else ChurnReason.UNKNOWN.value for place, sure in zip(best, enough, strict=True)]

    def _votes(self, reason: ChurnReason, added_NG: Floats, x_NF: Floats) -> Floats:
        families = [place for place, family in enumerate(self.families) if family in REASON_FAMILIES[reason]]
        touched = [self.place[name] for name, of in REASON_TOUCHPOINTS.items() if of is reason and name in self.place]
        flags = np.nan_to_num(x_NF[:, touched]).max(axis=1, initial=0.0)
        return np.asarray(added_NG[:, families].sum(axis=1) + REASON_LEAST * flags)

    def _reason(self, group: int, total: float, index: int, x_F: Floats) -> dict[str, Any]:
        feature = self.features[index]
        beside = float(x_F[self.place[feature.beside[0]]]) if feature.beside[0] in self.place else np.nan
        return {
            "family": self.families[group],
            "feature": feature.name,
            "effect": "raises" if total > 0 else "lowers",
            "log_odds": round(total, 4),
            "text": feature.render(float(x_F[index]), beside),
        }
