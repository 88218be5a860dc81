"""A candidate as it is registered and served: model, calibration and feature manifest in one verified folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from features.errors import InputError
from features.files import read_json, sha256, sha256_json, write_json
from features.table import Manifest
from training.models.base import Candidate, Floats, Member, Rows, logit, sigmoid
from training.models.calibration import Calibration
from training.models.level import Level
from training.models.timing import Timing

DIGESTS = "digests.json"
SLOPE_STEP = 1e-3
"""In log odds, over which the slope of the calibration is taken."""


def members() -> dict[str, type[Member]]:
    """Every model that has a study of its own, by name."""
    from training.models.lightgbm import LightGBM
    from training.models.logistic import Ridge
    from training.models.lstm import LSTM

    return {LightGBM.name: LightGBM, LSTM.name: LSTM, Ridge.name: Ridge}


def families() -> dict[str, type[Candidate]]:
    """Every model that may be registered, by name."""
    from training.models.blend import Blend

    return {**members(), Blend.name: Blend}


@dataclass(frozen=True)
class Scorer:
    """Predicts calibrated churn probabilities from feature rows."""

    model: Candidate
    calibration: Calibration
    level: Level
    manifest: Manifest
    timing: Timing | None = None
    """When the next order comes, for tables that tell."""

    def predict(self, rows: Rows) -> Floats:
        """Calibrated churn probability of each row, shape (n,)."""
        return self.calibrated(self.model.predict(rows), rows)

    def calibrated(self, p: Floats, rows: Rows) -> Floats:
        """Calibrated probabilities of the model's own (n,), ``model.predict(rows)``."""
        return sigmoid(self.level.calibrate(logit(p), rows.snapshot, self.calibration))

    def contributions(self, rows: Rows) -> Floats:
        """What each feature adds to the calibrated log odds, shape (n, f)."""
        return self.explain(rows, self.model.predict(rows))

    def explain(self, rows: Rows, raw: Floats) -> Floats:
        """`contributions` of rows whose raw probabilities (n,), ``model.predict(rows)``, are at hand.

        The model's own contributions, times how much the calibrated log odds rise with the raw ones there.
        """
        z = logit(raw)
        above, below = (self.level.calibrate(z + step, rows.snapshot, self.calibration) for step in (SLOPE_STEP, -SLOPE_STEP))
        return ((above - below) / (2 * SLOPE_STEP))[:, None] * self.model.contributions(rows)

    def save(self, folder: Path) -> str:
        """Write all files and their SHA-256 digests into an empty folder; return the digest of the whole."""
        folder.mkdir(parents=True)
        self.model.save(folder)
        write_json(folder / "calibration.json", self.calibration.to_json())
        write_json(folder / "level.json", self.level.to_json())
        if self.timing is not None:
            self.timing.save(folder)
        write_json(folder / "manifest.json", self.manifest.to_json())
        write_json(folder / "model.json", {"model": self.model.name})
        digests = {file.name: sha256(file) for file in sorted(folder.iterdir())}
        write_json(folder / DIGESTS, digests)
        return sha256_json(digests)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Verify every digest, then read. Raises InputError when a file is missing or altered."""
        verify(folder)
        kind = families()[read_json(folder / "model.json")["model"]]
        calibration = Calibration.from_json(read_json(folder / "calibration.json"))
        level, manifest = Level.from_json(read_json(folder / "level.json")), Manifest.from_json(read_json(folder / "manifest.json"))
        return cls(kind.load(folder), calibration, level, manifest, Timing.load(folder))


def verify(folder: Path) -> str:
    """Check every file against its recorded SHA-256; return the digest of the whole folder.

    Raises InputError when a file is missing, altered, or was not saved with the model.
    """
    fix = "restore it from the registry, or train and package again"
    if not (folder / DIGESTS).is_file():
        raise InputError(str(folder), f"holds no {DIGESTS}: not a saved model", fix)
    digests: dict[str, str] = read_json(folder / DIGESTS)
    for name, expected in digests.items():
        file = folder / name
        if not file.is_file():
            raise InputError(str(file), "is missing", fix)
        if sha256(file) != expected:
            raise InputError(str(file), "does not have the recorded SHA-256 digest", fix)
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*")}
    if extra := sorted(there - {*digests, DIGESTS}):
        raise InputError(str(folder / extra[0]), "was not saved with the model", fix)
    return sha256_json(digests)
