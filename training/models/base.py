"""The small interface of every model, and the rows it learns from and predicts.

A model maps rows to churn probabilities (n,). A *candidate* (LightGBM, LSTM) can also be saved, loaded
without pickle, and explain a prediction.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features import sequences
from features.errors import InputError
from features.sequences import Channel
from features.table import EVENTS, KEYS, LABEL, NEXT_ORDER, WEEKLY

Floats = npt.NDArray[np.float64]
FEW_ROWS = 4096
Report = Callable[[int, float], None]
"""Called with (step, level-free validation log loss); may raise to prune the trial."""


@dataclass(frozen=True)
class Rows:
    """n rows of a feature table as arrays.

    ``x_NF``: features (n, f), NaN where unknown; ``lists``: the sequences as Arrow lists, made dense a batch at a time, or those of one
    row as arrays by name (see `single`);
    ``channels``: of the weekly ones, none where the table has no sequences; ``y``: 1.0 churned, 0.0 not, NaN unlabelled;
    ``snapshot``: datetime64; ``days``: until the next order within the horizon, NaN where there was none or it is not known.
    """

    names: tuple[str, ...]
    x_NF: Floats
    lists: pa.Table | Mapping[str, npt.NDArray[Any]]
    channels: tuple[Channel, ...]
    y: Floats
    snapshot: npt.NDArray[np.datetime64]
    days: Floats

    @classmethod
    def of(cls, table: pa.Table, names: Sequence[str], channels: tuple[Channel, ...]) -> "Rows":
        """Arrays of a feature table whose weekly sequences have these channels."""
        n, there = table.num_rows, set(table.column_names)
        lists = table.select([name for name in (*WEEKLY, *EVENTS) if name in there]).combine_chunks()
        snapshot = table[KEYS[1]].to_numpy() if KEYS[1] in there else np.full(n, np.datetime64("NaT"))
        y, days = (table[name].to_numpy() if name in there else np.full(n, np.nan) for name in (LABEL, NEXT_ORDER))
        return cls(tuple(names), _matrix(table, names), lists, channels, y, snapshot, days)

    @classmethod
    def single(
        cls,
        names: tuple[str, ...],
        x_F: npt.ArrayLike,
        lists: Mapping[str, npt.ArrayLike],
        channels: tuple[Channel, ...],
        snapshot: datetime | np.datetime64 | None = None,
    ) -> "Rows":
        """One unlabelled row without a table: features (f,) in the order of ``names``, and each sequence's values by column name.

        Raises InputError when there are not as many features as names.
        """
        x_NF = np.asarray(x_F, dtype=np.float64).reshape(1, -1)
        if x_NF.shape[1] != len(names):
            raise InputError("x_F", f"holds {x_NF.shape[1]} features, not {len(names)}", "give one value for each name, NaN where unknown")
        arrays = {name: np.asarray(lists.get(name, ()), dtype=kind) for name, kind in _KINDS.items()} if channels else {}
        moment = np.array([np.datetime64("NaT") if snapshot is None else snapshot], dtype="datetime64[us]")
        return cls(names, x_NF, arrays, channels, np.full(1, np.nan), moment, np.full(1, np.nan))

    def packed(self, place: int) -> bytes:
        """Features and sequences of one row, from which `unpacked` makes the same row to the last bit."""
        parts = [self.x_NF[place]]
        if self.channels:
            lists = self.at(slice(place, place + 1))
            values = [lists.flat(name)[0].astype(kind) for name, kind in _KINDS.items()]
            parts += [np.array([one.size for one in values], dtype=np.uint32), *values]
        return b"".join(part.tobytes() for part in parts)

    @classmethod
    def unpacked(cls, names: tuple[str, ...], row: bytes, channels: tuple[Channel, ...], snapshot: datetime | np.datetime64) -> "Rows":
        """The row that `packed` wrote. Raises ValueError when it was of other features or sequences."""
        x_F, at = np.frombuffer(row, np.float64, len(names)), 8 * len(names)
        lists = {}
        if channels:
            sizes, at = np.frombuffer(row, np.uint32, len(_KINDS), at), at + 4 * len(_KINDS)
            for (name, kind), size in zip(_KINDS.items(), sizes.tolist(), strict=True):
                lists[name] = np.frombuffer(row, kind, size, at)
                at += lists[name].nbytes
        if at != len(row):
            raise ValueError(f"a packed row of {len(row)} bytes is none of these {len(names)} features")
        return cls.single(names, x_F, lists, channels, snapshot)

    def __len__(self) -> int:
        return len(self.y)

    def column(self, name: str) -> Floats:
        """One feature, shape (n,)."""
        return self.x_NF[:, self.names.index(name)]

    def at(self, mask: npt.NDArray[Any] | slice) -> "Rows":
        """The rows for which ``mask`` (n,) holds, or those at the given positions."""
        lists = self.sequence_table()
        lists = _taken(lists, mask) if lists.num_columns else lists
        return Rows(self.names, self.x_NF[mask], lists, self.channels, self.y[mask], self.snapshot[mask], self.days[mask])

    def weeks(self) -> npt.NDArray[np.float32]:
        """Weekly sequences x_NWC of shape (n, weeks, channels)."""
        return sequences.dense(self._list(WEEKLY[0]), self._list(WEEKLY[1]), len(self.channels))

    def events(self, length: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Types and gaps in days of the last events, oldest first, zeros after them (n, length) each, and their number (n,)."""
        types, number = sequences.padded(self._list(EVENTS[0]), length)
        return types, sequences.padded(self._list(EVENTS[1]), length)[0], number

    def flat(self, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """The values of a sequence's column row after row (m,), and how many each row has (n,)."""
        if isinstance(self.lists, Mapping):
            return self.lists[name], np.array([self.lists[name].size])
        column = self._list(name)
        return column.flatten().to_numpy(), column.value_lengths().fill_null(0).to_numpy().astype(np.int64)

    def sequence_table(self) -> pa.Table:
        """The sequences as Arrow lists."""
        if not isinstance(self.lists, Mapping):
            return self.lists
        return pa.table({name: pa.array([values], pa.list_(pa.from_numpy_dtype(values.dtype))) for name, values in self.lists.items()})

    def _list(self, name: str) -> pa.ListArray:
        column = self.sequence_table()[name]
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


_KINDS = dict(zip((*WEEKLY, *EVENTS), (np.int32, np.float32, np.int8, np.float32), strict=True))
"""Columns of sequences and the types of their values."""


def _taken(lists: pa.Table, mask: npt.NDArray[Any] | slice) -> pa.Table:
    """Rows of a table as NumPy would take them; without a copy where they follow each other."""
    if isinstance(mask, slice) and mask.step in (None, 1):
        start, stop, _ = mask.indices(lists.num_rows)
        return lists.slice(start, max(stop - start, 0))
    return lists.take(pa.array(np.arange(lists.num_rows)[mask]))


def _matrix(table: pa.Table, names: Sequence[str]) -> Floats:
    """Columns side by side, (n, len(names)): as one tensor where the rows are few, since every column costs a call."""
    if not table.num_rows or not names:
        return np.empty((table.num_rows, len(names)))
    if table.num_rows <= FEW_ROWS:
        batches = table.select(list(names)).to_batches()
        with suppress(pa.ArrowException):  # a type that Arrow makes no tensor of
            parts = [batch.to_tensor(null_to_nan=True, row_major=True).to_numpy() for batch in batches]
            return np.concatenate(parts, dtype=np.float64)
    return np.column_stack([table[name].to_numpy() for name in names])


class Model(ABC):
    """A fitted churn model."""

    name: ClassVar[str]

    @abstractmethod
    def predict(self, rows: Rows) -> Floats:
        """Uncalibrated churn probability of each row, shape (n,)."""


class Candidate(Model):
    """A model that may be registered, promoted and served."""

    requirements: tuple[str, ...]
    """Packages that loading it needs."""
    reads_sequences: bool = False

    @abstractmethod
    def contributions(self, rows: Rows) -> Floats:
        """What each feature adds to the log odds of churn, shape (n, f)."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model's files, none of them pickle."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""


class Member(Candidate):
    """A candidate with hyper-parameters of its own, fitted on rows: what a study tunes and a blend is made of."""

    strong: ClassVar[Mapping[str, Any]]
    """Hyper-parameters that did well on several data sets: the first trial of every study."""

    @classmethod
    @abstractmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """Hyper-parameters of an Optuna trial."""

    @classmethod
    @abstractmethod
    def fit(cls, params: Mapping[str, Any], train: Rows, seed: int, valid: Rows | None = None, report: Report | None = None) -> Self:
        """Fit on ``train``; with ``valid`` stop early on its `level_free_log_loss`, without it use ``params["rounds"]``."""

    @property
    @abstractmethod
    def rounds(self) -> int:
        """Boosting rounds or epochs in force: what a refit on more snapshots repeats."""


def logit(p: Floats) -> Floats:
    """Log odds, clipped so that they stay finite."""
    q = np.minimum(np.maximum(p, 1e-6), 1 - 1e-6)  # as np.clip, in a third of its time for one number
    return np.log(q) - np.log1p(-q)


def sigmoid(z: Floats) -> Floats:
    """Inverse of `logit`."""
    return 0.5 * (1 + np.tanh(0.5 * z))


def weights(rows: Rows, half_life_days: float = 0, equal_snapshots: bool = False) -> Floats | None:
    """Weights of training rows (n,), None for equal ones: old snapshots fade, or each snapshot counts the same."""
    if not half_life_days and not equal_snapshots:
        return None
    age_days = (rows.snapshot.max() - rows.snapshot) / np.timedelta64(1, "D")
    weight = np.exp2(-age_days / half_life_days) if half_life_days else np.ones(len(rows))
    if equal_snapshots:
        _, place, count = np.unique(rows.snapshot, return_inverse=True, return_counts=True)
        weight = weight / count[place]
    return np.asarray(weight * (len(rows) / weight.sum()))


def level_shift(z: Floats, y: Floats) -> float:
    """The shift b for which ``sigmoid(z + b)`` has the mean of ``y``: Newton's method on the log loss."""
    shift = 0.0
    for _ in range(25):
        p = sigmoid(z + shift)
        step = float((y - p).sum() / max(float((p * (1 - p)).sum()), 1e-9))
        shift += max(-2.0, min(2.0, step))
        if abs(step) < 1e-9:
            break
    return shift


def level_free_log_loss(rows: Rows, p: Floats) -> float:
    """Mean negative log likelihood after each snapshot's level has been met: tuning and early stopping.

    Between training and validation the overall churn level drifts with the season; which customers are
    likelier to leave is what a study can learn. The level is the business of `calibration.py`.
    """
    z, total = logit(p), 0.0
    for moment in np.unique(rows.snapshot):
        here = rows.snapshot == moment
        shifted = z[here] + level_shift(z[here], rows.y[here])
        total += float(np.sum(np.logaddexp(0, shifted) - rows.y[here] * shifted))
    return total / len(rows)
