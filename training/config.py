"""Every choice of a training run: frozen, logged to MLflow, part of the run's fingerprint."""

from dataclasses import asdict, dataclass
from typing import Literal

from features.files import sha256_json

ModelChoice = Literal["blend", "lightgbm", "lstm", "logistic"]
SHARES = {"lightgbm": 1.0, "lstm": 0.25, "logistic": 0.5}
"""Share of the trials that each study gets."""
MEMBERS = tuple(SHARES)
"""Candidates with a study of their own, in the order of a blend."""


@dataclass(frozen=True)
class TrainConfig:
    """Budget and seeds of a run.

    ``trials`` are those of LightGBM; the LSTM, slower by far, gets a quarter of them and the logistic regression half (at least two).
    ``timeout`` in seconds ends each study early; a study that ran out of time continues on the next call. ``workers`` are the processes
    that share a study; with more than one, which trials a study suggests depends on the order in which they end.
    """

    trials: int = 16
    timeout: float | None = None
    seed: int = 20260101
    model: ModelChoice = "blend"
    workers: int = 1
    bootstrap_draws: int = 500
    contact_effect: float = 0.12
    """Share of churners whom a contact keeps: that of one-size-fits-all coupons [P 1.3.2], assumed until measured."""
    contact_cost: float = 5.0
    """Of one contact, in the shop's currency; both only for the threshold of the largest gain that a report tells."""

    @property
    def members(self) -> tuple[str, ...]:
        """The candidates to tune."""
        return MEMBERS if self.model == "blend" else (self.model,)

    def trials_of(self, model: str) -> int:
        """Number of finished trials asked of a model's study."""
        return self.trials if SHARES[model] == 1 else max(2, int(self.trials * SHARES[model]))

    def fingerprint(self, manifest_fingerprint: str) -> str:
        """Digest of choices and data: names the studies and makes a finished run findable."""
        choices = {name: value for name, value in asdict(self).items() if name != "workers"}
        return sha256_json([choices, manifest_fingerprint])[:16]

    def study_fingerprint(self, manifest_fingerprint: str) -> str:
        """Digest of what a study's trials depend on: more trials continue the same study."""
        return sha256_json([self.seed, manifest_fingerprint])[:16]
