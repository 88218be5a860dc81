"""Snapshots -> rows for training, by role and in time order, with an embargo of one horizon."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

import numpy as np

from features import table
from features.files import sha256
from features.snapshots import Split
from features.table import Manifest
from training.models.base import Rows


@dataclass(frozen=True)
class TrainingData:
    """The labelled rows of a feature table and the roles of its snapshots."""

    manifest: Manifest
    split: Split
    rows: Rows
    fingerprint: str
    """SHA-256 of the feature table."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a validated feature table."""
        manifest = table.read_manifest(path)
        assert manifest.test is not None
        split = Split(timedelta(days=manifest.horizon_days), manifest.snapshots, manifest.test)
        rows = Rows.of(table.read(path, manifest.snapshots), manifest.names, len(manifest.channels))
        return cls(manifest, split, rows, sha256(path))

    def at(self, moments: Iterable[datetime]) -> Rows:
        """The rows of the given snapshots, sorted by snapshot and customer."""
        wanted = np.array(list(moments), dtype="datetime64[us]")
        return self.rows.at(np.isin(self.rows.snapshot, wanted))

    def before(self, moment: datetime) -> Rows:
        """The rows that may be learnt from at a moment: their label windows have ended."""
        return self.at(self.split.before(moment))
