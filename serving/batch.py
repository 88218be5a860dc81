"""Batch scores of everybody in the latest snapshot, by the engine of the service."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import InputError
from features.files import replacing
from serving import policy as policies
from serving.policy import TIERS
from serving.score import NEXT_ORDER, Engine, Scored

CHUNK, EXPLAINED = 20_000, 2_000
"""Customers at a time, without and with reasons."""


def score(package: Path, features: Path, out: Path, reasons: bool = True) -> int:
    """Score every customer of the latest snapshot; writes ``out`` atomically and returns the number of rows."""
    engine = Engine.load(package / "model", policies.read(package / "policy.toml"), features)
    scored = everybody(engine, features)
    with replacing(out) as temporary:
        writer, size = None, EXPLAINED if reasons else CHUNK
        for start in range(0, len(scored), size):
            part = _scores(engine, scored, range(start, min(start + size, len(scored))), reasons)
            writer = writer or pq.ParquetWriter(temporary, part.schema)
            writer.write_table(part)
        if writer is not None:
            writer.close()
    return len(scored)


def everybody(engine: Engine, features: Path) -> Scored:
    """The latest snapshot, scored. Raises InputError when there is none."""
    if engine.lookup is None:
        raise InputError(str(features), "no feature table of the champion's data set here", "run `holdfast features` first")
    if not len(engine.lookup.scored):
        raise InputError(str(features), "the latest snapshot has no customers", "check churn.lookback_days and the orders")
    return engine.lookup.scored


def _scores(engine: Engine, scored: Scored, places: range, reasons: bool) -> pa.Table:
    ones = [(scored, place) for place in places]
    engine.foresee(scored, places)
    why = engine.explain(scored, places) if reasons else [None] * len(ones)
    rows = [
        {**engine.answer(one, scored.customer_id[one[1]], scored.customer_id[one[1]], because), **more}
        for one, because, more in zip(ones, why, engine.recommendation(ones, why), strict=True)
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in _NESTED}
    columns["snapshot"] = [moment.replace(tzinfo=None) for moment in columns["snapshot"]]
    columns |= {f"next_order_days_{name}": [row["next_order_days"][name] for row in rows] for name in NEXT_ORDER}
    columns |= {f"expected_gain_{tier}": [(row["expected_gain"] or {}).get(tier) for row in rows] for tier in TIERS}
    columns |= {"reasons": [[reason["text"] for reason in row["reasons"] or []] for row in rows]}
    n = len(rows)
    columns |= {"model_version": [engine.version] * n, "policy_version": [engine.policy.version] * n}
    return pa.table(columns, schema=_score_schema(columns))


_NESTED = ("status", "pseudonym", "reasons", "next_order_days", "expected_gain")
_KINDS = {"snapshot": pa.timestamp("us"), "reasons": pa.list_(pa.string())}


def _score_schema(columns: dict[str, Any]) -> pa.Schema:
    numbers = ("churn_probability", "next_order_days_", "expected_gain_")
    return pa.schema([(name, _KINDS.get(name, pa.float64() if name.startswith(numbers) else pa.string())) for name in columns])
