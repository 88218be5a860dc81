"""The daily decisions of 1,000,000 customers: score, allocate, write; from the real rows of Online Retail II, each many times under new ids."""

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features import table
from tests.benchmarks.bench_service import _champion, sample
from tests.benchmarks.result import Result

CUSTOMERS, SECONDS, GIGABYTES = 1_000_000, 180.0, 8.0
BUDGETS = {"": 50_000.0, ".tight": 10_000.0}
"""Pounds a day: enough for a nudge to everybody for whom one pays, and a fifth of it."""


def run() -> Iterator[Result]:
    """Seconds and memory of a process of its own, as `holdfast decide` is one."""
    with sample() as (home, places, data):
        _champion(data, home / "champion")
        _many(places.features, home / "many.parquet")
        for name, budget in BUDGETS.items():
            line = [sys.executable, "-m", "tests.benchmarks.bench_decide", str(home), str(budget)]
            told = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
            size = f"{CUSTOMERS:,} customers, {budget:,.0f} a day, {told['contacts']:,} contacts, gap {told['gap']:.1e}"
            yield Result(f"decide.million{name}", told["seconds"], "s", f"wanted; {size}", SECONDS)
            yield Result(f"decide.million{name}.memory", told["gigabytes"], "GB", "wanted, at the peak", GIGABYTES)


def _many(features: Path, out: Path) -> None:
    """The latest snapshot over and over, every copy's ids other ones."""
    manifest = table.read_manifest(features)
    assert manifest.latest is not None
    rows, random, written = table.read(features, [manifest.latest]), np.random.default_rng(1), 0
    with pq.ParquetWriter(out, table.store_manifest(rows, manifest).schema, compression="zstd", compression_level=1) as writer:
        while written < CUSTOMERS:
            part = rows.slice(0, min(rows.num_rows, CUSTOMERS - written))
            ids = pa.array([f"{number:032x}" for number in range(written, written + part.num_rows)])
            shuffled = part.set_column(part.column_names.index("customer_id"), "customer_id", ids)
            value = shuffled["order_value_mean"].to_numpy() * random.lognormal(0, 0.3, part.num_rows)
            place = shuffled.column_names.index("order_value_mean")
            writer.write_table(shuffled.set_column(place, "order_value_mean", pa.array(value)).cast(writer.schema))
            written += part.num_rows


def _decide(home: Path, budget: float) -> None:
    import time

    from serving import daily, policy
    from serving.decisions import Decider
    from serving.score import Engine
    from serving.sqlite_store import SqliteStore

    start = time.perf_counter()
    rich = (
        policy.default_file()
        .read_text()
        .replace("per_day = 1000.0", f"per_day = {budget}")
        .replace("hours_per_day = 8.0", "hours_per_day = 80.0")
    )
    (home / "online.db").unlink(missing_ok=True)
    engine = Engine.load(home / "champion" / "model", policy.parse(rich, "bench"), home / "many.parquet")
    round = daily.Round(
        engine, Decider(SqliteStore(home / "online.db")), home / "many.parquet", progress=lambda text: print(text, flush=True)
    )
    day = round.run(home / "decisions.parquet")
    told = {"seconds": time.perf_counter() - start, "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    print(json.dumps(told | {"contacts": day.customers - day.contacts["none"], "gap": day.gap}))


if __name__ == "__main__":
    _decide(Path(sys.argv[1]), float(sys.argv[2]))
