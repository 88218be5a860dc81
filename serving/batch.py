"""Batch scoring of the latest snapshot: the same engine as the service, one Parquet file as the result."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import InputError
from features.files import replacing
from serving import policy as policies
from serving.score import Engine

CHUNK = 2000


def score(package: Path, features: Path, out: Path) -> int:
    """Score every customer of the latest snapshot; writes ``out`` atomically and returns the number of rows."""
    engine = Engine.load(package / "model", policies.read(package / "policy.toml"), features)
    if engine.lookup is None:
        raise InputError(str(features), "no feature table of the champion's data set here", "run `holdfast features` first")
    rows = engine.lookup.rows
    with replacing(out) as temporary:
        writer = None
        for start in range(0, rows.num_rows, CHUNK):
            part = pa.Table.from_pylist([_flat(one, engine) for one in engine.decide(rows.slice(start, CHUNK))])
            writer = writer or pq.ParquetWriter(temporary, part.schema)
            writer.write_table(part.cast(writer.schema))
        if writer is None:
            raise InputError(str(features), "the latest snapshot has no customers", "check churn.lookback_days and the orders")
        writer.close()
    return int(rows.num_rows)


def _flat(answer: dict[str, Any], engine: Engine) -> dict[str, Any]:
    gains = {f"expected_gain_{tier}": gain for tier, gain in answer["expected_gain"].items()}
    texts = [reason["text"] for reason in answer["reasons"]]
    kept = {name: value for name, value in answer.items() if name not in ("expected_gain", "reasons", "status", "next_order_days")}
    next_order = {f"next_order_days_{name}": days if days is not None else math.inf for name, days in answer["next_order_days"].items()}
    kept["snapshot"] = kept["snapshot"].replace(tzinfo=None)
    versions = {"model_version": engine.identity["model_version"], "policy_version": engine.policy.version}
    return {
        **kept,
        "strategy": kept["strategy"] or "",
        "channel": kept["channel"] or "",
        "reasons": texts or [""],
        **next_order,
        **gains,
        **versions,
    }
