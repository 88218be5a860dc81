"""The feature table: a row per (customer, snapshot), the same code for a batch and for one request.

reduce (engine, `reduce.py`) -> as_of (`history.py`) -> families -> fitted scores (`scores.py`).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features import baskets, discounts, gaps, label, lifecycle, products, reduce, returns, rfm, scores, seasons, sequences, trends, windows
from features.errors import InputError
from features.family import Family, Feature
from features.files import replacing, sha256_json
from features.history import History, as_of, from_arrow
from features.scores import Fitted

FAMILIES: tuple[Family, ...] = (
    rfm.FAMILY,
    windows.FAMILY,
    trends.FAMILY,
    gaps.FAMILY,
    baskets.FAMILY,
    products.FAMILY,
    discounts.FAMILY,
    returns.FAMILY,
    seasons.FAMILY,
)
KEYS = ("customer_id", "snapshot")
LABEL = "churned"
SEQUENCE = "weeks"
COUNTRY_SOURCE = "customers.country"
_MANIFEST_KEY = b"holdfast.manifest"


@dataclass(frozen=True)
class Manifest:
    """All that the meaning of a feature table hangs on; travels with the table and with every model."""

    dataset: str
    timezone: str
    currency: str
    horizon_days: int
    lookback_days: float
    high_value_per_year: float
    sources: tuple[str, ...]
    """Canonical tables present, and mapped optional columns as ``table.column``."""
    data_fingerprint: str
    snapshots: tuple[datetime, ...] = ()
    test: datetime | None = None
    latest: datetime | None = None
    fitted: Fitted | None = None

    @property
    def tables(self) -> tuple[str, ...]:
        """The canonical tables present."""
        return tuple(name for name in self.sources if "." not in name)

    @property
    def families(self) -> list[Family]:
        """The families whose sources are there."""
        return [family for family in FAMILIES if set(family.needs) <= set(self.sources)]

    @property
    def left_out(self) -> dict[str, tuple[str, ...]]:
        """Families left out, with the sources they lack."""
        present = self.families
        return {f.name: tuple(n for n in f.needs if n not in self.sources) for f in FAMILIES if f not in present}

    @property
    def features(self) -> list[Feature]:
        """Every numeric feature in table order."""
        country = [scores.COUNTRY] if COUNTRY_SOURCE in self.sources else []
        return [feature for family in self.families for feature in family.features] + [*scores.FEATURES, *country]

    @property
    def names(self) -> list[str]:
        """Names of the numeric features in table order."""
        return [feature.name for feature in self.features]

    @property
    def fingerprint(self) -> str:
        """Digest of data and definitions."""
        return sha256_json(self.to_json())[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinity as text."""
        value = json.loads(json.dumps(asdict(self) | {"features": self.names}, default=_plain))
        return value | {"lookback_days": "inf" if np.isinf(self.lookback_days) else self.lookback_days}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_json`; refuses a manifest written for other features than this version has."""
        given = dict(value)
        names = given.pop("features")
        moments = {name: given[name] and datetime.fromisoformat(given[name]) for name in ("test", "latest")}
        manifest = cls(
            **given
            | moments
            | {
                "lookback_days": float(given["lookback_days"]),
                "sources": tuple(given["sources"]),
                "snapshots": tuple(map(datetime.fromisoformat, given["snapshots"])),
                "fitted": given["fitted"] and Fitted.from_json(given["fitted"]),
            }
        )
        if names != manifest.names:
            raise InputError(
                "feature manifest",
                "it was written for other features than this version computes",
                "run `holdfast features` and `holdfast train` again",
            )
        return manifest


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def fold(profile: pa.Table, moments: Sequence[datetime], manifest: Manifest, labelled: Iterable[datetime] = ()) -> pa.Table:
    """A long profile of whole customers -> raw feature rows for each snapshot (scores not yet added).

    Columns: customer_id, snapshot, churned (null where not ``labelled``), the families' features, stages,
    country, weeks (WEEKS * CHANNELS float32 values). Only eligible customers have a row.
    """
    known = from_arrow(profile)
    parts = []
    for moment in moments:
        h = as_of(known, moment, manifest.horizon_days)
        rows = label.eligible(h, manifest.lookback_days)
        target = label.churned(known, h) if moment in labelled else np.full(h.n, np.nan)
        parts.append(_rows(h, target, manifest).filter(pa.array(rows)))
    return pa.concat_tables(parts)


def _rows(h: History, target: Any, manifest: Manifest) -> pa.Table:
    columns: dict[str, Any] = {"customer_id": h.customer_id, "snapshot": pa.array([h.snapshot] * h.n, pa.timestamp("us"))}
    columns[LABEL] = pa.array(target, from_pandas=True)
    for family in manifest.families:
        found = family.fold(h)
        columns |= {feature.name: pa.array(found[feature.name], pa.float64()) for feature in family.features}
    columns |= {name: pa.array(v, pa.string()) for name, v in lifecycle.describe(h, manifest.high_value_per_year).items()}
    if COUNTRY_SOURCE in manifest.sources:
        columns["country"] = _country(h)
    weeks = sequences.weekly(h).astype(np.float32).reshape(h.n, sequences.WEEKS * len(sequences.CHANNELS))
    offsets = np.arange(h.n + 1, dtype=np.int32) * weeks.shape[1]
    columns[SEQUENCE] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(weeks.ravel()))
    return pa.table(columns)


def _country(h: History) -> pa.Array:
    known = h.events["customer"]
    code = known.last(known.key.astype(np.float64))
    missing = np.isnan(code) | (code < 0)
    return h.keys.take(pa.array(np.where(missing, 0, code).astype(np.int64), mask=missing))


def online(connection: duckdb.DuckDBPyConnection, sql: str, moment: datetime, manifest: Manifest) -> pa.Table:
    """Complete feature rows at one moment for all customers whose canonical tables ``connection`` sees."""
    assert manifest.fitted is not None
    tables = [fold(batch, [moment], manifest) for batch in reduce.batches(connection, sql)]
    if not tables:
        return None
    return manifest.fitted.apply(pa.concat_tables(tables))


def build(
    connection: duckdb.DuckDBPyConnection,
    manifest: Manifest,
    base: Sequence[datetime],
    path: Path,
    progress: Callable[[int], None] = lambda rows: None,
) -> Manifest:
    """Write the feature table of all snapshots to ``path`` (Parquet, atomic) and return its full manifest.

    Two passes: raw features by batches of customers, then the scores, fitted on the ``base`` snapshots.
    """
    assert manifest.latest is not None
    moments = [*manifest.snapshots, *(t for t in [manifest.latest] if t not in manifest.snapshots)]
    sql = reduce.profile_sql(manifest.tables)
    raw = path.with_name(".raw.parquet.tmp")
    try:
        _write(raw, (fold(batch, moments, manifest, manifest.snapshots) for batch in reduce.batches(connection, sql)), progress)
        manifest = replace(manifest, fitted=_fit(raw, base))
        complete = (manifest.fitted.apply(pa.Table.from_batches([b])) for b in pq.ParquetFile(raw).iter_batches(100_000))  # type: ignore[union-attr]
        with replacing(path) as temporary:
            _write(temporary, complete, lambda rows: None, manifest)
    finally:
        raw.unlink(missing_ok=True)
    return manifest


def _write(path: Path, parts: Iterable[pa.Table], progress: Callable[[int], None], manifest: Manifest | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = None
    for part in parts:
        if manifest is not None:
            part = part.replace_schema_metadata({_MANIFEST_KEY: json.dumps(manifest.to_json())})
        writer = writer or _writer(path, part.schema, "none" if manifest is None else "zstd")
        writer.write_table(part)
        progress(part.num_rows)
    if writer is None:
        raise InputError("orders", "no customer has an order", "check the `where` filters of [tables.orders]")
    writer.close()


def _writer(path: Path, schema: pa.Schema, compression: str) -> pq.ParquetWriter:
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    return pq.ParquetWriter(path, schema, compression=compression, use_dictionary=texts)


def _fit(raw: Path, base: Sequence[datetime]) -> Fitted:
    present = pq.ParquetFile(raw).schema_arrow.names
    wanted = [feature for feature, _ in scores.SCORED.values()] + ["country"] * ("country" in present)
    rows = pq.read_table(raw, columns=wanted, filters=[("snapshot", "in", list(base))])
    if not rows.num_rows:
        raise InputError(
            "feature table",
            f"no eligible customer at the training snapshots {base[0]:%Y-%m-%d} to {base[-1]:%Y-%m-%d}",
            "set an earlier snapshots.first or a longer churn.lookback_days",
        )
    return Fitted.fit(rows)


def read_manifest(path: Path) -> Manifest:
    """The manifest inside a feature table file."""
    if not path.exists():
        raise InputError(str(path), "no feature table here", "run `holdfast features` first")
    return Manifest.from_json(json.loads(pq.read_schema(path).metadata[_MANIFEST_KEY]))


def read(path: Path, moments: Sequence[datetime] | None = None) -> pa.Table:
    """The rows of the given snapshots (default: all), sorted by snapshot and customer."""
    filters = None if moments is None else [("snapshot", "in", list(moments))]
    return pq.read_table(path, filters=filters).sort_by([("snapshot", "ascending"), ("customer_id", "ascending")])
