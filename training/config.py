"""Every choice of a training run: frozen, logged to MLflow, part of the run's fingerprint."""

from dataclasses import asdict, dataclass

from features.files import sha256_json

LSTM_TRIALS_SHARE = 4


@dataclass(frozen=True)
class TrainConfig:
    """Budget and seeds of a run.

    ``trials`` are those of LightGBM; the LSTM, slower by far, gets a quarter of them (at least two).
    ``timeout`` in seconds ends each study early; a study that ran out of time continues on the next call.
    """

    trials: int = 16
    timeout: float | None = None
    seed: int = 20260101
    bootstrap_draws: int = 500

    def trials_of(self, model: str) -> int:
        """Number of finished trials asked of a model's study."""
        return self.trials if model == "lightgbm" else max(2, self.trials // LSTM_TRIALS_SHARE)

    def fingerprint(self, manifest_fingerprint: str) -> str:
        """Digest of choices and data: names the studies and makes a finished run findable."""
        return sha256_json([asdict(self), manifest_fingerprint])[:16]

    def study_fingerprint(self, manifest_fingerprint: str) -> str:
        """Digest of what a study's trials depend on: more trials continue the same study."""
        return sha256_json([self.seed, manifest_fingerprint])[:16]
