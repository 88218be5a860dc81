"""Stages `validate` and `features`: each writes its result only when its contract holds, whole or not at all."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from features import sources, table
from features.files import read_json, replacing, write_json
from features.mapping import Dataset
from features.settings import Settings
from features.snapshots import Split, schedule
from features.table import Manifest
from validation import contracts


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
        """Validated canonical tables (DuckDB)."""
        return self.folder / "sources.duckdb"

    @property
    def features(self) -> Path:
        """Validated feature table (Parquet)."""
        return self.folder / "features.parquet"

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
    with replacing(places.sources) as candidate:
        loaded = sources.load(dataset, candidate)
        with duckdb.connect(str(candidate), read_only=True) as connection:
            mapped = {name: set(found.columns) for name, found in dataset.tables.items()}
            report = contracts.check_sources(connection, mapped, places.data_docs("sources"))
        report.enforce()
    facts = {"rows": loaded.rows, "fingerprint": loaded.fingerprint, "definition": dataset.definition()}
    write_json(places.contract("sources"), report.to_json() | facts)
    return report


def build_features(dataset: Dataset, places: Places, progress: Callable[[int], None] = lambda rows: None) -> Manifest:
    """Build the feature table from validated sources, check its contract and put it in force.

    Raises InputError or ContractError; then the table built before stays in force.
    """
    with sources.opened(places.sources) as connection, replacing(places.features) as candidate:
        spill = places.folder / "spill"
        connection.execute(f"SET temp_directory = '{spill}'")
        split, latest = _schedule(dataset, connection)
        start = Manifest(
            dataset.name,
            dataset.timezone,
            dataset.currency,
            dataset.churn.horizon_days,
            dataset.churn.lookback_days,
            dataset.segments.high_value_per_year,
            sources.present(connection, dataset),
            read_json(places.contract("sources"))["fingerprint"],
            split.labelled,
            split.test,
            latest,
        )
        manifest = table.build(connection, start, split.base, candidate, progress)
        shutil.rmtree(spill, ignore_errors=True)
        names = [*table.KEYS, table.LABEL, "lifecycle_stage", "value_segment", *manifest.names]
        report = contracts.check_features(pq.read_table(candidate, columns=names), manifest, places.data_docs("features"))
        report.enforce()
    write_json(places.contract("features"), report.to_json())
    return manifest


def split_of(dataset: Dataset, places: Places) -> Split:
    """The snapshots' roles for the validated sources."""
    with sources.opened(places.sources) as connection:
        return _schedule(dataset, connection)[0]


def _schedule(dataset: Dataset, connection: duckdb.DuckDBPyConnection) -> tuple[Split, datetime]:
    first, last = connection.sql("SELECT min(ordered_at), max(ordered_at) FROM orders").fetchall()[0]
    return schedule(dataset, first, last)
