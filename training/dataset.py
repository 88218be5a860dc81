"""Snapshots -> rows for training, by role and in time order, with an embargo of one horizon."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

import numpy as np

from features import table
from features.errors import InputError
from features.files import sha256
from features.snapshots import Split
from features.table import Manifest
from training.models.base import Rows
from training.models.level import NEEDS, Demand


def split_of(manifest: Manifest) -> Split | None:
    """Roles of the snapshots of a training table; None for a table without labels."""
    return Split(timedelta(days=manifest.horizon_days), manifest.snapshots, manifest.test) if manifest.test else None


@dataclass(frozen=True)
class TrainingData:
    """The labelled rows of a feature table and the roles of its snapshots."""

    manifest: Manifest
    split: Split
    rows: Rows
    latest: Rows
    """The rows of the latest snapshot, to be scored: no label yet (none where it is labelled)."""
    fingerprint: str
    """SHA-256 of the feature table."""
    path: Path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a validated feature table. Raises InputError where it has no labelled snapshots."""
        manifest = table.read_manifest(path)
        split = split_of(manifest)
        if split is None:
            raise InputError(
                str(path), "has no labelled snapshots: it is a table of one day", "run `holdfast features` for the training table"
            )
        unlabelled = [manifest.latest] if manifest.latest and manifest.latest not in manifest.snapshots else []
        rows, latest = (Rows.of(table.read(path, some), manifest.names, manifest.channels) for some in (manifest.snapshots, unlabelled))
        return cls(manifest, split, rows, latest, sha256(path), path)

    def at(self, moments: Iterable[datetime]) -> Rows:
        """The rows of the given snapshots, sorted by snapshot and customer."""
        wanted = np.array(list(moments), dtype="datetime64[us]")
        return self.rows.at(np.isin(self.rows.snapshot, wanted))

    def before(self, moment: datetime) -> Rows:
        """The rows that may be learnt from at a moment: their label windows have ended."""
        return self.at(self.split.before(moment))

    def demand(self) -> Demand | None:
        """Customers active up to each snapshot, for the forecast of the level; None for a table without the columns it needs."""
        if not set(NEEDS) <= set(self.manifest.names):
            return None
        return Demand.of([self.rows, self.latest], self.manifest.horizon_days)
