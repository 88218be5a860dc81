"""Great Expectations contracts on the canonical sources and on the feature table.

A contract never passes vacuously: each table must have rows, each mapped column a value, each suite a
rule, and a rule that cannot be evaluated fails. Results carry counts only, never a customer's values.
"""

import logging
import os
import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features import table as feature_table
from features.errors import ContractError
from features.family import HIGHEST, LOWEST
from features.schema import EXACT, SOURCES, Column, Source
from features.table import Manifest

EARLIEST = datetime(1970, 1, 2)
POSITIVE, NOT_NEGATIVE = {"quantity"}, {"amount", "discount"}


@dataclass(frozen=True)
class Finding:
    """One rule of one contract and how many rows broke it."""

    table: str
    column: str
    rule: str
    passed: bool
    checked: int
    broken: int
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """All findings of one run of the contracts, and where Data Docs lie."""

    findings: list[Finding]
    data_docs: str

    @property
    def failed(self) -> list[Finding]:
        """The rules that were broken."""
        return [finding for finding in self.findings if not finding.passed]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"passed": not self.failed, "rules": len(self.findings)}

    def enforce(self) -> None:
        """Raise ContractError when a rule is broken."""
        if not self.failed:
            return
        rows = [f"{f.table}.{f.column}" if f.column else f.table for f in self.failed]
        width = max(map(len, rows))
        told = "\n  ".join(
            f"{row:<{width}}  {f.rule}: {f.broken:,} of {f.checked:,}" + (f" ({f.detail})" if f.detail else "")
            for row, f in zip(rows, self.failed, strict=True)
        )
        problem = f"{len(self.failed)} of {len(self.findings)} rules broken\n  {told}"
        raise ContractError("contracts", problem, f"mend the data or the mapping file; see {self.data_docs}")


def check_sources(connection: duckdb.DuckDBPyConnection, mapped: dict[str, set[str]], docs: Path) -> Report:
    """Check every canonical table in ``connection``; ``mapped`` names its mapped columns by table."""
    frames, suites = {}, {}
    for name, columns in mapped.items():
        frames[name] = _frame(connection, SOURCES[name])
        suites[name] = _source_rules(SOURCES[name], columns)
    return _run(frames, suites, docs)


def check_features(table: pa.Table, manifest: Manifest, docs: Path) -> Report:
    """Check the feature table through its keys, a profile per feature and a profile per snapshot."""
    profile = _feature_profile(table, manifest)
    frames = {
        "feature_table": table.select([*feature_table.KEYS, "lifecycle_stage", "value_segment"]).to_pandas(),
        "feature_profile": profile,
        "label_profile": _label_profile(table, manifest),
    }
    report = _run(frames, _feature_rules(len(manifest.names), len(manifest.snapshots)), docs)
    return Report([_named(finding, profile) for finding in report.findings], report.data_docs)


def _frame(connection: duckdb.DuckDBPyConnection, source: Source) -> pd.DataFrame:
    columns = [f'CAST("{c.name}" AS DOUBLE) AS "{c.name}"' if c.type == EXACT else f'"{c.name}"' for c in source.columns]
    if source.parent:
        here, (parent, key) = source.parent[0], source.parent[1].split(".")
        columns.append(f'"{here}" IN (SELECT "{key}" FROM "{parent}") AS parent_found')
    query = f'SELECT {", ".join(columns)} FROM "{source.name}"'
    return connection.sql(query).to_arrow_table().to_pandas()


def _source_rules(source: Source, mapped: set[str]) -> list[Any]:
    import great_expectations.expectations as gxe

    rules: list[Any] = [gxe.ExpectTableRowCountToBeBetween(min_value=1)]
    for column in source.columns:
        rules += _column_rules(column, mapped)
    if len(source.key) == 1:
        rules.append(gxe.ExpectColumnValuesToBeUnique(column=source.key[0]))
    if source.parent:
        rules.append(gxe.ExpectColumnValuesToBeInSet(column="parent_found", value_set=[True]))
    return rules + (_time_rules(source.event_time) if source.event_time else [])


def _column_rules(column: Column, mapped: set[str]) -> list[Any]:
    import great_expectations.expectations as gxe

    if not column.required and column.name not in mapped:
        return []
    if column.required:
        rules = [gxe.ExpectColumnValuesToNotBeNull(column=column.name)]
    else:
        rules = [gxe.ExpectColumnProportionOfNonNullValuesToBeBetween(column=column.name, min_value=0, strict_min=True)]
    if column.name in POSITIVE | NOT_NEGATIVE:
        rules.append(gxe.ExpectColumnValuesToBeBetween(column=column.name, min_value=0, strict_min=column.name in POSITIVE))
    return rules


def _time_rules(event_time: str) -> list[Any]:
    import great_expectations.expectations as gxe

    soon = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=14)  # the zone furthest ahead of UTC
    within = [gxe.ExpectColumnValuesToBeBetween(column=c, min_value=EARLIEST, max_value=soon) for c in (event_time, "arrived_at")]
    not_before = gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A="arrived_at", column_B=event_time, or_equal=True, ignore_row_if="either_value_is_missing"
    )
    return [*within, not_before]


def _feature_rules(features: int, snapshots: int) -> dict[str, list[Any]]:
    import great_expectations.expectations as gxe

    return {
        "feature_table": [
            gxe.ExpectTableRowCountToBeBetween(min_value=1),
            gxe.ExpectCompoundColumnsToBeUnique(column_list=list(feature_table.KEYS)),
            *(gxe.ExpectColumnValuesToNotBeNull(column=c) for c in (*feature_table.KEYS, "lifecycle_stage", "value_segment")),
        ],
        "feature_profile": [
            gxe.ExpectTableRowCountToEqual(value=features),
            gxe.ExpectColumnValuesToBeBetween(column="known", min_value=1),
            *(gxe.ExpectColumnValuesToBeBetween(column=c, max_value=0) for c in ("infinite", "below", "above")),
        ],
        "label_profile": [
            gxe.ExpectTableRowCountToEqual(value=snapshots),
            gxe.ExpectColumnValuesToBeBetween(column="customers", min_value=1),
            gxe.ExpectColumnValuesToNotBeNull(column="churn_rate"),
            gxe.ExpectColumnValuesToBeBetween(column="churn_rate", min_value=0, max_value=1, strict_min=True, strict_max=True),
        ],
    }


def _feature_profile(table: pa.Table, manifest: Manifest) -> pd.DataFrame:
    rows = []
    for feature in manifest.features:
        values = table[feature.name].to_numpy()
        low, high = LOWEST.get(feature.unit, float("-inf")), HIGHEST.get(feature.unit, float("inf"))
        finite = values[abs(values) != float("inf")]
        rows.append(
            {
                "feature": feature.name,
                "known": int((values == values).sum()),
                "infinite": int(values.size - finite.size),
                "below": int((finite < low - 1e-9).sum()),
                "above": int((finite > high + 1e-9).sum()),
            }
        )
    return pd.DataFrame(rows)


def _label_profile(table: pa.Table, manifest: Manifest) -> pd.DataFrame:
    labelled = table.filter(pc.is_in(table["snapshot"], pa.array(manifest.snapshots, pa.timestamp("us"))))
    rates = labelled.group_by("snapshot").aggregate([("customer_id", "count"), (feature_table.LABEL, "mean")])
    return rates.rename_columns(["snapshot", "customers", "churn_rate"]).to_pandas()


def _named(finding: Finding, profile: pd.DataFrame) -> Finding:
    """Add the names of the features that broke a rule (they are no personal data)."""
    if finding.passed or finding.table != "feature_profile" or finding.column not in profile:
        return finding
    bad = profile[profile["known"] < 1] if finding.column == "known" else profile[profile[finding.column] > 0]
    return Finding(**asdict(finding) | {"detail": ", ".join(bad["feature"][:10])})


def _run(frames: dict[str, pd.DataFrame], suites: dict[str, list[Any]], docs: Path) -> Report:
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    assert suites, "no suite would pass"
    assert all(suites.values()), "an empty suite would pass"
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    fresh = docs.with_name(f".{docs.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    context.add_data_docs_site("local", _site(fresh))
    source = context.data_sources.add_pandas("canonical")
    findings: list[Finding] = []
    for name, rules in suites.items():
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        suite = context.suites.add(gx.ExpectationSuite(name, expectations=rules))
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
        counts_only = {"result_format": "BASIC", "partial_unexpected_count": 0}
        checkpoint = context.checkpoints.add(gx.Checkpoint(name=name, validation_definitions=[definition], result_format=counts_only))
        result = next(iter(checkpoint.run(batch_parameters={"dataframe": frames[name]}).run_results.values()))
        assert len(result.results) == len(rules), "every rule must have a result"
        findings += [_finding(name, one, len(frames[name])) for one in result.results]
    context.build_data_docs(site_names=["local"])
    shutil.rmtree(docs, ignore_errors=True)
    fresh.rename(docs)
    return Report(findings, str(docs / "index.html"))


def _site(folder: Path) -> dict[str, Any]:
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.resolve())},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }


def _finding(table: str, one: Any, rows: int) -> Finding:
    config, result = one.expectation_config, one.result or {}
    given = config.kwargs
    column = given.get("column") or given.get("column_A") or " + ".join(given.get("column_list", []))
    broken = result.get("unexpected_count")
    detail = "" if one.success or broken is not None or "observed_value" not in result else f"found {result['observed_value']}"
    if not one.success and not result:
        detail = "the rule could not be evaluated"
    count = (0 if one.success else rows) if broken is None else int(broken)
    return Finding(table, column, _rule(config.type, given), bool(one.success), int(result.get("element_count", rows)), count, detail)


def _rule(kind: str, given: dict[str, Any]) -> str:
    words = kind.removeprefix("expect_").removeprefix("column_values_").removeprefix("column_").replace("_", " ")
    bounds = [f"{word} {given[key]}" for key, word in (("min_value", "from"), ("max_value", "to")) if given.get(key) is not None]
    other = f" column {given['column_B']}" if "column_B" in given else ""
    return " ".join([words + other, *bounds])
