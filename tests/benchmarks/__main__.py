"""`make bench`: each figure beside a rival's in the same run; ratio > 1 means better than the rival."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks import (
    bench_allocate,
    bench_clv,
    bench_decide,
    bench_events,
    bench_features,
    bench_inference,
    bench_models,
    bench_online,
    bench_scale,
    bench_service,
)
from tests.benchmarks.result import Result


def main() -> None:
    """Run every benchmark, print the table, write build/bench.json."""
    modules = (
        bench_clv,
        bench_models,
        bench_inference,
        bench_features,
        bench_online,
        bench_scale,
        bench_service,
        bench_events,
        bench_allocate,
        bench_decide,
    )
    results: list[Result] = [one for module in modules for one in module.run()]
    table = Table("benchmark", "value", "rival", "ratio")
    for one in results:
        table.add_row(one.name, f"{one.value:,.1f} {one.unit}", f"{one.rival_value:,.1f} ({one.rival})", f"{one.ratio:.2f}")
    Console().print(table)
    path = Path("build/bench.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([one.to_json() for one in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
