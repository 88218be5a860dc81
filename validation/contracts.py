"""Great Expectations contracts on the canonical sources and on the feature table.

A contract never passes vacuously: each table must have rows, each mapped column a value, each suite a
rule, and a rule that cannot be evaluated fails. Results carry counts only, never a customer's values.
"""

import logging
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from features import table as feature_table
from features.errors import ContractError
from features.family import HIGHEST, LOWEST
from features.mapping import Contracts
from features.sql import parquet
from features.store import Store
from features.table import Manifest
from validation import rules

BLOCK, WARN = "block", "warn"


@dataclass(frozen=True)
class Finding:
    """One rule of one contract and how many rows broke it; a broken rule blocks or warns."""

    table: str
    column: str
    rule: str
    passed: bool
    checked: int
    broken: int
    detail: str = ""
    severity: str = BLOCK
    id: str = ""


@dataclass(frozen=True)
class Report:
    """All findings of one run of the contracts, and where Data Docs lie."""

    findings: list[Finding]
    data_docs: str

    @property
    def failed(self) -> list[Finding]:
        """The broken rules that block."""
        return [finding for finding in self.findings if not finding.passed and finding.severity == BLOCK]

    @property
    def warnings(self) -> list[Finding]:
        """The broken rules that only warn."""
        return [finding for finding in self.findings if not finding.passed and finding.severity == WARN]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"passed": not self.failed, "rules": len(self.findings)}

    def enforce(self) -> None:
        """Raise ContractError when a rule is broken."""
        if not self.failed:
            return
        problem = f"{len(self.failed)} of {len(self.findings)} rules broken\n{told(self.failed)}"
        raise ContractError("contracts", problem, f"mend the data or the mapping file; see {self.data_docs}")


def told(findings: list[Finding]) -> str:
    """Broken rules as an aligned table of counts, without any value of a customer."""
    rows = [finding.id or f"{finding.table}.{finding.column}".rstrip(".") for finding in findings]
    width = max(map(len, rows), default=0)
    return "\n".join(
        f"  {f.severity:<5}  {row:<{width}}  {f.rule}: {f.broken:,} of {f.checked:,}" + (f" ({f.detail})" if f.detail else "")
        for row, f in zip(rows, findings, strict=True)
    )


def check_sources(
    connection: duckdb.DuckDBPyConnection, store: Store, mapped: dict[str, set[str]], given: Contracts, docs: Path, past: Any = None
) -> Report:
    """Check every canonical table in ``connection``; ``mapped`` names its mapped columns, ``past`` is the last contract's JSON."""
    found = rules.of_sources(connection, store, mapped, given, past)
    frames = {name: pd.DataFrame([{rule.id: rule.broken for rule in found if rule.table == name}]) for name in mapped}
    suites = {name: [_none_broken(rule) for rule in found if rule.table == name] for name in mapped}
    judged = {finding.column: finding.passed for finding in _run(frames, suites, docs).findings}
    findings = [Finding(r.table, r.column, r.words, judged[r.id], r.checked, r.broken, r.detail, r.severity, r.id) for r in found]
    return Report(findings, str(docs / "index.html"))


def _none_broken(rule: rules.Rule) -> Any:
    import great_expectations.expectations as gxe

    severity = "critical" if rule.severity == BLOCK else "warning"
    notes = {"notes": {"format": "string", "content": [f"rows of which it does not hold: {rule.id} {rule.words}"]}}
    return gxe.ExpectColumnValuesToBeBetween(column=rule.id, min_value=0, max_value=0, severity=severity, meta=notes)


def check_features(path: Path, manifest: Manifest, docs: Path) -> Report:
    """Check the feature table through its keys, a profile per feature and a profile per snapshot."""
    profile = _feature_profile(path, manifest)
    frames = {"feature_table": _key_profile(path), "feature_profile": profile, "label_profile": _label_profile(path, manifest)}
    report = _run(frames, _feature_rules(len(manifest.names), len(manifest.snapshots)), docs)
    labels = frames["label_profile"]
    return Report([_told_of_labels(_named(finding, profile), labels, manifest) for finding in report.findings], report.data_docs)


def _key_profile(path: Path) -> pd.DataFrame:
    keys = ", ".join(feature_table.KEYS)
    nulls = " OR ".join(f"{name} IS NULL" for name in (*feature_table.KEYS, "lifecycle_stage", "value_segment"))
    query = f"""SELECT count(*) AS rows, count(*) FILTER ({nulls}) AS nulls,
        count(*) - (SELECT count(*) FROM (SELECT DISTINCT {keys} FROM {parquet([path])})) AS copies FROM {parquet([path])}"""
    return duckdb.sql(query).df()


def _feature_rules(features: int, snapshots: int) -> dict[str, list[Any]]:
    import great_expectations.expectations as gxe

    labels = [
        gxe.ExpectTableRowCountToEqual(value=snapshots),
        gxe.ExpectColumnValuesToBeBetween(column="customers", min_value=1),
        gxe.ExpectColumnValuesToNotBeNull(column="churn_rate"),
        gxe.ExpectColumnValuesToBeBetween(column="churn_rate", min_value=0, max_value=1, strict_min=True, strict_max=True),
    ]
    return {
        "feature_table": [
            gxe.ExpectColumnValuesToBeBetween(column="rows", min_value=1),
            *(gxe.ExpectColumnValuesToBeBetween(column=c, min_value=0, max_value=0) for c in ("nulls", "copies")),
        ],
        "feature_profile": [
            gxe.ExpectTableRowCountToEqual(value=features),
            gxe.ExpectColumnValuesToBeBetween(column="known", min_value=1),
            *(gxe.ExpectColumnValuesToBeBetween(column=c, max_value=0) for c in ("infinite", "below", "above")),
        ],
        "label_profile": labels if snapshots else labels[:1],
    }


def _feature_profile(path: Path, manifest: Manifest) -> pd.DataFrame:
    """Per feature: known, infinite and out-of-bounds values, counted row group by row group."""
    names = manifest.names
    low = np.array([LOWEST.get(feature.unit, -np.inf) for feature in manifest.features]) - 1e-9
    high = np.array([HIGHEST.get(feature.unit, np.inf) for feature in manifest.features]) + 1e-9
    counts = np.zeros((4, len(names)), dtype=np.int64)
    for batch in pq.ParquetFile(path).iter_batches(100_000, columns=names):
        for place, name in enumerate(names):
            values = batch.column(name).to_numpy(zero_copy_only=False)
            infinite = np.isinf(values)
            broken = (values == values).sum(), infinite.sum(), (values < low[place]).sum(), ((values > high[place]) & ~infinite).sum()
            counts[:, place] += broken
    return pd.DataFrame({"feature": names} | dict(zip(("known", "infinite", "below", "above"), counts, strict=True)))


def _label_profile(path: Path, manifest: Manifest) -> pd.DataFrame:
    listed = ", ".join(f"TIMESTAMP '{moment}'" for moment in manifest.snapshots)
    query = f"""SELECT snapshot, count(*) AS customers, avg({feature_table.LABEL}) AS churn_rate
        FROM {parquet([path])} WHERE snapshot IN ({listed}) GROUP BY snapshot ORDER BY snapshot"""
    return duckdb.sql(query).df() if manifest.snapshots else pd.DataFrame({"snapshot": [], "customers": [], "churn_rate": []})


def _named(finding: Finding, profile: pd.DataFrame) -> Finding:
    """Add the names of the features that broke a rule (they are no personal data)."""
    if finding.passed or finding.table != "feature_profile" or finding.column not in profile:
        return finding
    bad = profile[profile["known"] < 1] if finding.column == "known" else profile[profile[finding.column] > 0]
    return Finding(**asdict(finding) | {"detail": ", ".join(bad["feature"][:10])})


def _told_of_labels(finding: Finding, labels: pd.DataFrame, manifest: Manifest) -> Finding:
    """What a broken rule of the labels means, and the next step."""
    if finding.passed or finding.table != "label_profile":
        return finding
    if finding.column == "churn_rate":
        everybody, nobody = int((labels["churn_rate"] == 1).sum()), int((labels["churn_rate"] == 0).sum())
        words = "at every snapshot some customers churn and some stay"
        odd = labels.loc[labels["churn_rate"].isin((0, 1)), "snapshot"]
        detail = (
            f"everybody churned at {everybody}, nobody at {nobody} of {len(labels)} snapshots, first {min(odd, default=None):%Y-%m-%d}; "
        )
        detail += f"change churn.horizon_days (now {manifest.horizon_days}), churn.lookback_days or snapshots.first and .test"
        return replace(finding, rule=words, broken=everybody + nobody, checked=len(labels), detail=detail)
    bare = sorted(set(manifest.snapshots) - set(labels["snapshot"].tolist()))
    detail = "no customer had ordered within the look-back"
    if bare:
        detail += f" at {bare[0]:%Y-%m-%d} ... {bare[-1]:%Y-%m-%d}; set snapshots.first after the gap, or check the oldest orders"
    return replace(finding, rule="every snapshot has customers", broken=len(bare), checked=len(manifest.snapshots), detail=detail)


def _run(frames: dict[str, pd.DataFrame], suites: dict[str, list[Any]], docs: Path) -> Report:
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    if not suites or not all(suites.values()):
        raise ContractError("contracts", "a suite without rules would pass whatever the data are", "report this as a fault of Holdfast")
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    fresh = docs.with_name(f".{docs.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    context.add_data_docs_site("local", _site(fresh))
    source = context.data_sources.add_pandas("canonical")
    findings: list[Finding] = []
    for name, expectations in suites.items():
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        suite = context.suites.add(gx.ExpectationSuite(name, expectations=expectations))
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
        counts_only = {"result_format": "BASIC", "partial_unexpected_count": 0}
        checkpoint = context.checkpoints.add(gx.Checkpoint(name=name, validation_definitions=[definition], result_format=counts_only))
        result = next(iter(checkpoint.run(batch_parameters={"dataframe": frames[name]}).run_results.values()))
        if len(result.results) != len(expectations):
            problem = f"{len(result.results)} of {len(expectations)} rules have a result"
            raise ContractError(f"contract {name}", problem, "report this as a fault of Holdfast")
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
