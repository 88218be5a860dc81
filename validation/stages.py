"""Stages `validate` and `features`: each writes its result only when its contract holds, whole or not at all."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import duckdb

from features import engines, sources, table
from features.errors import InputError
from features.files import read_json, replacing, write_json
from features.mapping import Dataset
from features.pseudonym import of_dataset
from features.settings import Settings
from features.snapshots import Orders, Split, schedule
from features.store import Store
from features.table import Manifest
from validation import contracts, rules

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Places:
    """Files of one data set under ``HOLDFAST_HOME``."""

    folder: Path
    reports: Path

    @classmethod
    def of(cls, settings: Settings, dataset: Dataset) -> "Places":
        """The places of a data set."""
        return cls(settings.of(dataset.name), settings.reports)

    @property
    def sources(self) -> Path:
        """Which parts of the canonical tables are validated and in force (JSON)."""
        return self.folder / "sources.json"

    @property
    def features(self) -> Path:
        """Validated feature table (Parquet)."""
        return self.folder / "features.parquet"

    def daily(self, day: date) -> Path:
        """Feature table of one daily snapshot (Parquet)."""
        return self.folder / "snapshots" / f"{day:%Y-%m-%d}.parquet"

    def contract(self, name: str) -> Path:
        """What the contract `sources` or `features` found (JSON)."""
        return self.folder / f"contract_{name}.json"

    def data_docs(self, name: str) -> Path:
        """Data Docs of the contract `sources` or `features`."""
        return self.reports / "data_docs" / name


def validate(dataset: Dataset, places: Places) -> contracts.Report:
    """Load the sources of a mapping file, check their contract and put them in force.

    Raises InputError (unreadable source) or ContractError; then the sources validated before stay in force.
    """
    places.data_docs("sources").parent.mkdir(parents=True, exist_ok=True)
    try:
        store = sources.load(dataset, places.sources, of_dataset(dataset))
        mapped = {name: set(found.columns) for name, found in dataset.tables.items()}
        past = read_json(places.contract("sources")) if places.contract("sources").exists() else None
        with store.connect(places.sources) as connection:
            report = contracts.check_sources(connection, store, mapped, dataset.contracts, places.data_docs("sources"), past)
            report.enforce()
            facts = {"rows": store.rows, "copies": store.copies, "reading": store.reading, "means": rules.means(connection, mapped)}
    finally:
        shutil.rmtree(places.folder / "spill", ignore_errors=True)
    store.write(places.sources)
    write_json(
        places.contract("sources"), report.to_json() | facts | {"fingerprint": store.fingerprint, "definition": dataset.definition()}
    )
    return report


def build_features(dataset: Dataset, places: Places, progress: Progress = lambda rows: None) -> Manifest:
    """Build the feature table from validated sources, check its contract and put it in force.

    Raises InputError or ContractError; then the table built before stays in force.
    """
    store = Store.read(places.sources)
    with store.connect(places.sources) as connection:
        split, latest = _schedule(dataset, connection)
    start = replace(_manifest(dataset, store), snapshots=split.labelled, test=split.test, latest=latest)
    moments = [*split.labelled, *(t for t in [latest] if t not in split.labelled)]
    manifest, facts = _write(dataset, places, start, moments, split.base, places.features, progress)
    write_json(places.contract("features"), facts)
    return manifest


def build_daily(dataset: Dataset, places: Places, day: date, progress: Progress = lambda rows: None) -> tuple[Manifest, bool]:
    """Build the feature table of one snapshot, the midnight that begins ``day``; returns its manifest and whether it was new.

    The scores are those fitted for the training table. A snapshot once written stays as it is: data that became known later
    change nothing, and data that would change it are refused. Raises InputError or ContractError.
    """
    store, path = Store.read(places.sources), places.daily(day)
    fitted = table.read_manifest(places.features)
    start = replace(_manifest(dataset, store), latest=datetime.combine(day, time()), fitted=fitted.fitted)
    if fitted.sources != start.sources:
        raise InputError(str(places.features), "was built from other sources", "run `holdfast features` first, to fit the scores anew")
    assert start.latest is not None
    if not path.exists():
        return _write(dataset, places, start, [start.latest], (), path, progress)[0], True
    found = table.read_manifest(path)
    if found.fingerprint == start.fingerprint:
        return found, False
    with replacing(path.with_suffix(".again")) as again:  # other data, but perhaps none that was known on that day
        _write(dataset, places, start, [start.latest], (), again, progress)
        if table.content_hash(again) != table.content_hash(path):
            raise InputError(
                str(path),
                f"this snapshot was written from data {found.data_fingerprint}; {start.data_fingerprint} give another one",
                "snapshots are immutable: remove the file if it was wrong, or write the next day's",
            )
    path.with_suffix(".again").unlink()
    return found, False


def _manifest(dataset: Dataset, store: Store) -> Manifest:
    return Manifest(
        dataset.name,
        dataset.timezone,
        dataset.currency,
        dataset.churn.horizon_days,
        dataset.churn.lookback_days,
        dataset.segments.high_value_per_year,
        tuple(store.present),
        store.fingerprint,
        store.key_check,
        dataset.personal,
        dataset.synthetic,
        fold_case=dataset.identity.fold_case,
        not_customers=tuple(store.not_customers),
        hex_ids=store.hex_ids,
    )


def _write(
    dataset: Dataset, places: Places, start: Manifest, moments: Sequence[datetime], base: Sequence[datetime], path: Path, progress: Progress
) -> tuple[Manifest, dict[str, Any]]:
    """Compute, check and put in force one feature table."""
    store = Store.read(places.sources)
    with engines.raw_tables(store, places.sources, start, moments, dataset.identity) as (raw, joined), replacing(path) as candidate:
        manifest = table.build(raw, start, base, store.customers, candidate, progress)
        report = contracts.check_features(candidate, manifest, places.data_docs("features"))
        report.enforce()
    return manifest, report.to_json() | {"identities": joined and asdict(joined), "left_out": manifest.left_out}


def split_of(dataset: Dataset, places: Places) -> Split:
    """The snapshots' roles for the validated sources."""
    with Store.read(places.sources).connect(places.sources) as connection:
        return _schedule(dataset, connection)[0]


def _schedule(dataset: Dataset, connection: duckdb.DuckDBPyConnection) -> tuple[Split, datetime]:
    return schedule(dataset, *Orders.of(connection).span)
