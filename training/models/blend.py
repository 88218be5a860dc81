"""A weighted mean of the candidates' log odds, the weights fitted on out-of-time predictions of several snapshots (stacking)."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.models.base import Candidate, Floats, Rows, logit, sigmoid
from training.models.calibration import ridge_slopes

TOWARDS_EQUAL = 0.02
"""Ridge towards equal weights that add up to one: members agree so much that their weights are ill determined."""
WEIGHTS_FILE = "blend.json"


class Blend(Candidate):
    """Members and their weights; each member saves its own files beside those of the others."""

    name = "blend"

    def __init__(self, members: Sequence[Candidate], member_weights: Floats) -> None:
        self.members, self.weights = list(members), member_weights
        self.requirements = tuple(sorted({need for member in members for need in member.requirements}))
        self.reads_sequences = any(member.reads_sequences for member in members)

    def predict(self, rows: Rows) -> Floats:
        """Uncalibrated churn probability, shape (n,)."""
        return mixed([member.predict(rows) for member in self.members], self.weights)

    def contributions(self, rows: Rows) -> Floats:
        """The members' contributions in their weights, which add up as the log odds do, shape (n, f)."""
        parts = [weight * member.contributions(rows) for member, weight in zip(self.members, self.weights, strict=True) if weight]
        return np.asarray(np.sum(parts, axis=0))

    def save(self, folder: Path) -> None:
        """Write every member's files and the weights."""
        for member in self.members:
            member.save(folder)
        found = {member.name: weight for member, weight in zip(self.members, self.weights.tolist(), strict=True)}
        (folder / WEIGHTS_FILE).write_text(json.dumps(found), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Blend":
        """Read what `save` wrote."""
        from training.models.scorer import families

        found = json.loads((folder / WEIGHTS_FILE).read_text(encoding="utf-8"))
        return cls([families()[name].load(folder) for name in found], np.array(list(found.values())))


def mixed(probabilities: Sequence[Floats], member_weights: Floats) -> Floats:
    """Probabilities of the weighted mean of log odds, (n,)."""
    return sigmoid(np.stack([logit(p) for p in probabilities], axis=1) @ member_weights)


def stack(samples: Sequence[tuple[Sequence[Floats], Floats]]) -> Floats:
    """Weights of the members, none below 0, from samples of (each member's out-of-time probabilities, labels), one a snapshot.

    A logistic regression of the labels on the log odds with an intercept a snapshot, drawn towards equal weights.
    """
    members = len(samples[0][0])
    if members == 1:
        return np.ones(1)
    z = np.concatenate([np.stack([logit(p) for p in parts], axis=1) for parts, _ in samples])
    y = np.concatenate([labels for _, labels in samples])
    place = np.repeat(np.arange(len(samples)), [labels.size for _, labels in samples])
    return np.array(ridge_slopes(z, y, place, 1 / members, TOWARDS_EQUAL, 0.0))
