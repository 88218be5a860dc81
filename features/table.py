"""The feature table: a row per (customer, snapshot), the same code for a batch and for one request.

reduce (engine, `reduce.py`) -> as_of (`history.py`) -> families -> fitted scores (`scores.py`).
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features import (
    baskets,
    browsing,
    campaigns,
    carts,
    coupons,
    deliveries,
    discounts,
    gaps,
    label,
    lifecycle,
    loyalty,
    novelty,
    products,
    reduce,
    returns,
    reviews,
    rfm,
    scores,
    seasons,
    sequences,
    service,
    store,
    tastes,
    touchpoints,
    trends,
    windows,
)
from features.errors import InputError
from features.events import Floats
from features.family import Family, Feature
from features.files import sha256_json
from features.history import History, as_of
from features.lifecycle import Names
from features.profile import Profile, from_arrow
from features.scores import Fitted
from features.sequences import Channel

FAMILIES: tuple[Family, ...] = (
    rfm.FAMILY,
    windows.FAMILY,
    trends.FAMILY,
    gaps.FAMILY,
    baskets.FAMILY,
    products.FAMILY,
    tastes.CATEGORIES,
    tastes.BRANDS,
    tastes.PRICES,
    discounts.FAMILY,
    novelty.FAMILY,
    returns.FAMILY,
    seasons.FAMILY,
    browsing.FAMILY,
    carts.FAMILY,
    campaigns.FAMILY,
    coupons.FAMILY,
    service.FAMILY,
    deliveries.FAMILY,
    reviews.FAMILY,
    loyalty.MEMBERSHIP,
    loyalty.POINTS,
    loyalty.CONSENTS,
    loyalty.REGISTRATION,
    touchpoints.FAMILY,
)
KEYS = ("customer_id", "snapshot")
LABEL = "churned"
NEXT_ORDER = "next_order_days"
"""Days until the next order where it falls within the horizon, else null; not a feature."""
WEEKLY = ("week_cells", "week_values")
"""The weekly sequences; see `sequences.dense`."""
EVENTS = ("event_types", "event_gap_days")
"""The last events; see `sequences.last_events`."""
COUNTRY_SOURCE = "customers.country"
FIT_ROWS = 100_000
"""Base rows that the score edges are fitted on, about and at most."""
BOUND_DIGITS = 6
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
    key_check: str = ""
    """Tells which pseudonym key made the ids, not the key."""
    personal: bool = False
    synthetic: bool = False
    snapshots: tuple[datetime, ...] = ()
    test: datetime | None = None
    latest: datetime | None = None
    fitted: Fitted | None = None
    columns: tuple[str, ...] = ()
    """Features of a table that another feature store built; then there are no families, scores or sequences."""
    fold_case: bool = False
    """Whether ids of customers that differ by case are one (`ids.canonical_id`)."""
    not_customers: tuple[str, ...] = ()
    """Pseudonyms of ids that stand for nobody (``guest``)."""
    hex_ids: bool = False
    """Whether ids of the shop look like pseudonyms (32 hexadecimal digits): then the form does not tell them apart."""

    @property
    def tables(self) -> tuple[str, ...]:
        """The canonical tables present."""
        return store.tables(self.sources)

    @cached_property
    def families(self) -> list[tuple[Family, tuple[Feature, ...]]]:
        """The families whose sources are there, each with its features whose sources are there."""
        if self.columns:
            return []
        fed = [(family, family.fed_by(self.sources)) for family in FAMILIES]
        return [(family, features) for family, features in fed if features]

    @property
    def left_out(self) -> dict[str, tuple[str, ...]]:
        """Families of which features are left out, with the sources they lack."""
        found: dict[str, tuple[str, ...]] = {}
        if self.columns:
            return found
        for family in FAMILIES:
            needs = {need for feature in family.features for need in (*family.needs, *feature.needs)}
            if lacking := tuple(sorted(needs - set(self.sources))):
                found[family.name] = lacking
        return found

    @property
    def features(self) -> list[Feature]:
        """Every numeric feature in table order."""
        if self.columns:
            return [Feature(name, "z", name, f"has a {name} of {{value}}", 2) for name in self.columns]
        raw = [feature for _, features in self.families for feature in features]
        return raw + scores.features([feature.name for feature in raw], COUNTRY_SOURCE in self.sources)

    @cached_property
    def channels(self) -> tuple[Channel, ...]:
        """Channels of the weekly sequences."""
        return sequences.channels(self.sources)

    @cached_property
    def names(self) -> list[str]:
        """Names of the numeric features in table order."""
        return [feature.name for feature in self.features]

    def family_of(self, feature: str) -> str:
        """Name of the family that a feature belongs to; of a table from elsewhere, the feature's own name."""
        owner = {one.name: family.name for family, features in self.families for one in features}
        return owner.get(feature, feature if self.columns else "scores")

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
                "columns": tuple(given.get("columns", ())),
                "not_customers": tuple(given.get("not_customers", ())),
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


def fold(profile: Profile, moments: Sequence[datetime], manifest: Manifest, labelled: Iterable[datetime] = ()) -> Iterator[pa.Table]:
    """The profile of whole persons -> raw feature rows, a table for each snapshot (scores not yet added).

    Columns: customer_id, snapshot, churned and next_order_days (null where not ``labelled``), the families' features, stages,
    country, sequences. Only eligible customers have a row.
    """
    for moment in moments:
        h = as_of(profile, moment, manifest.horizon_days, manifest.lookback_days)
        known = label.next_order_days(profile, h) if moment in labelled else None
        yield _rows(h, known, manifest)


def _rows(h: History, next_days: Floats | None, manifest: Manifest) -> pa.Table:
    columns: dict[str, Any] = {"customer_id": h.customer_id, "snapshot": pa.array([h.snapshot] * h.n, pa.timestamp("us"))}
    unknown = np.full(h.n, np.nan)
    columns[LABEL] = pa.array(unknown if next_days is None else label.churned(next_days), from_pandas=True)
    columns[NEXT_ORDER] = pa.array(unknown if next_days is None else next_days, from_pandas=True)
    columns |= {name: pa.array(values, pa.float64()) for name, values in _numbers(h, manifest).items()}
    columns |= {name: pa.array(values, pa.string()) for name, values in _texts(h, manifest).items()}
    return pa.table(columns | _lists(h, manifest))


def _numbers(h: History, manifest: Manifest) -> dict[str, Floats]:
    """The families' features, (n,) each."""
    found: dict[str, Floats] = {}
    for family, features in manifest.families:
        folded = family.fold(h)
        found |= {feature.name: folded[feature.name] for feature in features}
    return found


def _texts(h: History, manifest: Manifest) -> dict[str, Names | pa.StringArray]:
    """Stages and, where the data have it, country, (n,) each."""
    stages = lifecycle.describe(h, manifest.high_value_per_year)
    return stages | {"country": _country(h)} if COUNTRY_SOURCE in manifest.sources else stages


def _lists(h: History, manifest: Manifest) -> dict[str, pa.Array]:
    return sequences.weekly(h, manifest.channels) | sequences.last_events(h)


def _country(h: History) -> pa.Array:
    known = h.events["customer"]
    code = known.last(known["country"].astype(np.float64))
    missing = np.isnan(code) | (code < 0)
    return h.countries.take(pa.array(np.where(missing, 0, code).astype(np.int64), mask=missing))


def online(
    connection: duckdb.DuckDBPyConnection,
    statements: Mapping[str, str],
    tables: Mapping[str, pa.Table],
    moment: datetime,
    manifest: Manifest,
) -> pa.Table:
    """Complete feature rows at one moment for the customers of some canonical tables in memory, in the order of their ids.

    ``statements`` are `reduce.compiled` of the manifest's tables; ``connection`` runs them.
    """
    assert manifest.fitted is not None
    profile = from_arrow(reduce.of_tables(connection, statements, tables, moment))
    return manifest.fitted.apply(next(fold(profile, [moment], manifest)))


@dataclass(frozen=True)
class OnlineRows:
    """Complete feature rows of n customers at one moment, as a model takes them.

    ``x_NF`` holds the features by the manifest's ``names`` (n, f), NaN where unknown; ``texts`` the stages and, where the data have
    it, the country (None: not known); ``lists`` the columns of WEEKLY and EVENTS.
    """

    customer_id: list[str]
    snapshot: datetime
    x_NF: Floats
    texts: dict[str, list[str | None]]
    lists: pa.Table

    def __len__(self) -> int:
        return len(self.customer_id)


def online_rows(
    connection: duckdb.DuckDBPyConnection,
    statements: Mapping[str, str],
    tables: Mapping[str, pa.Table],
    moment: datetime,
    manifest: Manifest,
) -> OnlineRows:
    """The same rows as `online` without a table of hundreds of columns, which for one customer takes a good part of the time."""
    assert manifest.fitted is not None
    profile = from_arrow(reduce.of_tables(connection, statements, tables, moment))
    h = as_of(profile, moment, manifest.horizon_days, manifest.lookback_days)
    numbers = _numbers(h, manifest)
    texts = {name: values.tolist() for name, values in _texts(h, manifest).items()}
    numbers |= manifest.fitted.scores(numbers, texts.get("country", ()))
    x_FN = np.concatenate([numbers[name] for name in manifest.names]).reshape(len(manifest.names), h.n)
    return OnlineRows(h.customer_id.to_pylist(), moment, np.ascontiguousarray(x_FN.T), texts, pa.table(_lists(h, manifest)))


def build(
    raw: Iterator[pa.Table],
    manifest: Manifest,
    base: Sequence[datetime],
    customers: int,
    path: Path,
    progress: Callable[[int], None] = lambda rows: None,
) -> Manifest:
    """Write the complete feature table to the new file ``path`` (Parquet) in one pass over raw rows; return its full manifest.

    ``raw`` is the result of `fold`, in the order of person ids. Without fitted scores in the manifest they are fitted on rows
    of the ``base`` snapshots: on all, or, where ``customers`` times base snapshots exceed FIT_ROWS, on those of the first ids, which
    are a random sample, as ids are pseudonyms.
    """
    if manifest.fitted is None:
        last = max(moment for moment in (*manifest.snapshots, manifest.latest) if moment)
        held, sample = _sample(raw, base, last, customers)
        manifest = replace(manifest, fitted=Fitted.fit(sample))
        raw = itertools.chain(held, raw)
    _write(path, map(manifest.fitted.apply, raw), manifest, progress)  # type: ignore[union-attr]
    return manifest


def _sample(raw: Iterator[pa.Table], base: Sequence[datetime], last: datetime, customers: int) -> tuple[list[pa.Table], pa.Table]:
    """Tables read from ``raw`` and the base rows among them that edges are fitted on: those of ids below a bound.

    The bound hangs on the number of customers alone, so that the rows are the same on every engine and in any batches. A batch
    of persons has its snapshots one after another and ids in order: rows of the ``last`` one beyond the bound end the search.
    """
    share = FIT_ROWS / max(customers * len(base), 1)
    bound = f"{int(share * 16**BOUND_DIGITS):0{BOUND_DIGITS}x}" if share < 1 else "g"  # after every hexadecimal digit
    held: list[pa.Table] = []
    chosen: list[pa.Table] = []
    moments = pa.array(list(base), pa.timestamp("us"))
    for table in raw:
        held.append(table)
        keys = table.select([*KEYS, *scores.fitted_on(table.column_names)])
        below = pc.less(keys["customer_id"], bound)
        chosen.append(keys.filter(pc.and_(below, pc.is_in(keys["snapshot"], moments))))
        at_last = pc.equal(keys["snapshot"], pa.scalar(last, pa.timestamp("us")))
        if pc.any(at_last).as_py() and not pc.any(pc.and_(at_last, below)).as_py():
            break
    if not held:
        raise InputError("orders", "no customer has an order", "check the `where` filters of [tables.orders]")
    rows = pa.concat_tables(chosen)
    if not rows.num_rows:
        raise InputError(
            "feature table",
            f"no eligible customer at the training snapshots {base[0]:%Y-%m-%d} to {base[-1]:%Y-%m-%d}",
            "set an earlier snapshots.first or a longer churn.lookback_days",
        )
    return held, rows


def _write(path: Path, parts: Iterable[pa.Table], manifest: Manifest, progress: Callable[[int], None]) -> None:
    writer = None
    for part in parts:
        if writer is None:
            schema = store_manifest(part, manifest).schema
            texts = [field.name for field in schema if pa.types.is_string(field.type) and field.name != "customer_id"]
            writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, use_dictionary=texts)
        writer.write_table(part.cast(writer.schema), row_group_size=100_000)
        progress(part.num_rows)
    if writer is None:
        raise InputError("orders", "no customer has an order", "check the `where` filters of [tables.orders]")
    writer.close()


def store_manifest(rows: pa.Table, manifest: Manifest) -> pa.Table:
    """The rows with their manifest, as `read_manifest` finds it in their file."""
    return rows.replace_schema_metadata({_MANIFEST_KEY: json.dumps(manifest.to_json())})


def content_hash(path: Path) -> str:
    """Digest of a table's rows and columns in the order of their keys, however they were batched and written."""
    rows = read(path).replace_schema_metadata(None).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def newest(folder: Path) -> Path:
    """The table of a data set's folder with the latest snapshot: the last daily one, or the training table."""
    training, daily = folder / "features.parquet", sorted((folder / "snapshots").glob("*.parquet"))
    if not daily:
        return training
    latest = read_manifest(training).latest if training.exists() else None
    return daily[-1] if latest is None or daily[-1].stem > f"{latest:%Y-%m-%d}" else training


def read_manifest(path: Path) -> Manifest:
    """The manifest inside a feature table file."""
    if not path.exists():
        raise InputError(str(path), "no feature table here", "run `holdfast features` first")
    return Manifest.from_json(json.loads(pq.read_schema(path).metadata[_MANIFEST_KEY]))


def read(path: Path, moments: Sequence[datetime] | None = None) -> pa.Table:
    """The rows of the given snapshots (default: all), sorted by snapshot and customer."""
    filters = None if moments is None else [("snapshot", "in", list(moments))]
    return pq.read_table(path, filters=filters).sort_by([("snapshot", "ascending"), ("customer_id", "ascending")])
