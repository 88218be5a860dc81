"""A candidate as it is registered and served: model, calibration and feature manifest in one verified folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from features.errors import InputError
from features.files import read_json, sha256, sha256_json, write_json
from features.table import Manifest
from training.models.base import Candidate, Floats, Rows
from training.models.calibration import Calibration

DIGESTS = "digests.json"


def families() -> dict[str, type[Candidate]]:
    """Every model that may be registered, by name."""
    from training.models.lightgbm import LightGBM
    from training.models.lstm import LSTM

    return {LightGBM.name: LightGBM, LSTM.name: LSTM}


@dataclass(frozen=True)
class Scorer:
    """Predicts calibrated churn probabilities from feature rows."""

    model: Candidate
    calibration: Calibration
    manifest: Manifest

    def predict(self, rows: Rows) -> Floats:
        """Calibrated churn probability of each row, shape (n,)."""
        return self.calibration.apply(self.model.predict(rows))

    def contributions(self, rows: Rows) -> Floats:
        """What each feature adds to the calibrated log odds, shape (n, f)."""
        return self.calibration.slope * self.model.contributions(rows)

    def save(self, folder: Path) -> str:
        """Write all files and their SHA-256 digests into an empty folder; return the digest of the whole."""
        folder.mkdir(parents=True)
        self.model.save(folder)
        write_json(folder / "calibration.json", self.calibration.to_json())
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
        return cls(kind.load(folder), calibration, Manifest.from_json(read_json(folder / "manifest.json")))


def verify(folder: Path) -> str:
    """Check every file against its recorded SHA-256; return the digest of the whole folder."""
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
    return sha256_json(digests)
