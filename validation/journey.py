"""What the data at hand say of the journey: churn after each touchpoint, and the churner's profile.

Reported figures of the founding documents stand beside the measured ones, for comparison only.
"""

from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
from rich.table import Table

from features.domain import TOUCHPOINTS
from features.table import LABEL, read_manifest
from validation.metrics import wilson

REPORTED_COUPONS = "68 % reported"
PROFILE = (
    ("low interaction", ("browse_days_30d", "contacts_opened_90d", "orders_30d")),
    ("low basket value", ("order_value_mean", "order_value_last")),
    ("low repurchase", ("frequency_orders", "orders_90d")),
    ("high price sensitivity", ("coupons_claimed_30d", "discounted_order_share")),
)
"""Three lows and one high [P 1.1.3], and the features that show each, as far as they are there."""


@dataclass(frozen=True)
class Risk:
    """Churn measured after one touchpoint: share with its 95 % interval (Wilson), and in the rest; count of rows."""

    name: str
    meaning: str
    reported: float | None
    rows: int
    churned: float
    low: float
    high: float
    rest: float


def touchpoint_risks(path: Path) -> list[Risk]:
    """Each touchpoint's churn within the horizon on the latest labelled snapshot of a table (one row a customer)."""
    manifest = read_manifest(path)
    found = []
    for point in TOUCHPOINTS:
        column = f"tp_{point.name}"
        if column not in manifest.names:
            continue
        query = f"""SELECT {column} > 0, count(*), sum({LABEL}) FROM read_parquet($1) WHERE snapshot = $2 AND {LABEL} IS NOT NULL
            GROUP BY 1"""
        counts = {
            bool(hit): (int(rows), float(churned)) for hit, rows, churned in duckdb.execute(query, [str(path), manifest.test]).fetchall()
        }
        rows, churned = counts.get(True, (0, 0.0))
        others, gone = counts.get(False, (0, 0.0))
        low, high = wilson(churned, rows)
        share, rest = (churned / rows if rows else np.nan), (gone / others if others else np.nan)
        found.append(Risk(point.name, point.meaning, point.reported_risk, rows, share, low, high, rest))
    return found


def touchpoint_report(path: Path) -> Table:
    """`touchpoint_risks` as a table for the terminal."""
    manifest = read_manifest(path)
    title = f"churn within {manifest.horizon_days} days after each touchpoint, {manifest.dataset} at {manifest.test:%Y-%m-%d}"
    title += " (synthetic data)" if manifest.synthetic else ""
    table = Table("touchpoint", "customers", "churned", "95 % interval", "without it", "reported [P]", title=title)
    for risk in touchpoint_risks(path):
        reported = "not given" if risk.reported is None else f"{risk.reported:.0%}"
        interval = f"{risk.low:.1%} to {risk.high:.1%}" if risk.rows else ""
        table.add_row(risk.meaning, f"{risk.rows:,}", _percent(risk.churned), interval, _percent(risk.rest), reported)
    return table


def profile_report(path: Path) -> Table:
    """Means of the profile's features among churned and retained customers of the latest labelled snapshot."""
    manifest = read_manifest(path)
    title = f"three lows and one high: {manifest.dataset} at {manifest.test:%Y-%m-%d}" + (" (synthetic data)" if manifest.synthetic else "")
    table = Table("side", "feature", "churned", "retained", "as the profile says", title=title)
    for side, names in PROFILE:
        for name in (name for name in names if name in manifest.names):
            gone, stayed = _means(path, manifest.test, f"avg({name})")
            expected = gone > stayed if side.startswith("high") else gone < stayed
            table.add_row(side, name, f"{gone:,.2f}", f"{stayed:,.2f}", "yes" if expected else "no")
    if "coupons_claimed_30d" in manifest.names:
        gone, stayed = _means(path, manifest.test, "avg(CASE WHEN coupons_claimed_30d > 3 THEN 1.0 ELSE 0.0 END)")
        table.add_row("high price sensitivity", "more than 3 coupons in 30 days", _percent(gone), _percent(stayed), REPORTED_COUPONS)
    return table


def _means(path: Path, moment: object, expression: str) -> tuple[float, float]:
    query = f"""SELECT {expression} FILTER ({LABEL} = 1), {expression} FILTER ({LABEL} = 0)
        FROM (SELECT * FROM read_parquet($1) WHERE snapshot = $2)"""
    gone, stayed = duckdb.execute(query, [str(path), moment]).fetchall()[0]
    return float(gone if gone is not None else np.nan), float(stayed if stayed is not None else np.nan)


def _percent(share: float) -> str:
    return "" if np.isnan(share) else f"{share:.1%}"
