"""A champion is tried in a process of its own before it serves: a corrupt LightGBM text kills whoever reads it.

``python -m serving.check PACKAGE HOME [FEATURES]`` loads a package (see `package.py`), scores the latest snapshot of a feature table, and
keeps what it found for the service (`score.warm_file`): probabilities, days to the next order, reasons. Exit code 0: fit to serve.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from features.errors import InputError
from features.files import replacing
from features.table import Manifest
from serving import policy
from serving.score import Engine, Scored, stamp, warm_file

MOST_EXPLAINED = 20_000
"""Customers whose reasons are computed ahead; beyond that they are computed when asked for."""


def check(package: Path, features: Path | None) -> Engine:
    """Load a package and try it. Raises InputError when it must not serve."""
    engine = Engine.load(package / "model", policy.read(package / "policy.toml"), features)
    where = f"{engine.identity['model_name']} version {engine.version}"
    if features is not None and features.exists() and engine.lookup is None:
        raise InputError(where, f"was not trained on the features of {features.name}", "train on this data set, or build its features anew")
    scored = engine.lookup.scored if engine.lookup else _probe(engine)
    p = np.array(scored.p)
    if not np.isfinite(p).all() or (p < 0).any() or (p > 1).any():
        raise InputError(where, f"gives {np.sum(~np.isfinite(p) | (p < 0) | (p > 1))} of {p.size} customers no probability", "train again")
    if p.size > 100 and np.ptp(p) == 0:
        raise InputError(where, "gives every customer the same probability", "train again")
    if not np.isfinite(engine.scorer.contributions(scored.rows.at(slice(3)))).all():
        raise InputError(where, "gives contributions that are no numbers", "train again")
    return engine


def like(candidate: Manifest, served: Manifest) -> None:
    """Raise InputError when a model answers another question, or of other features, than the one that is served."""
    for name in ("dataset", "timezone", "currency", "horizon_days", "key_check", "sources", "names"):
        if getattr(candidate, name) != getattr(served, name):
            raise InputError(
                f"manifest.{name}", "differs from that of the model in service", "restart the service to serve another kind of model"
            )


def _probe(engine: Engine) -> Scored:
    """Made-up rows where there is no table: all features unknown, and all at one."""
    import pyarrow as pa

    from features import table

    n = 2
    columns: dict[str, Any] = {
        "customer_id": ["a", "b"],
        "snapshot": pa.array([max(engine.scorer.level.forecasts)] * n, pa.timestamp("us")),
    }
    columns |= {name: pa.array([np.nan, 1.0]) for name in engine.manifest.names}
    if engine.manifest.channels:
        kinds = (pa.int32(), pa.float32(), pa.int8(), pa.float32())
        columns |= {name: pa.array([[], [1]], pa.list_(kind)) for name, kind in zip((*table.WEEKLY, *table.EVENTS), kinds, strict=True)}
    return engine.of_table(pa.table(columns))


def write_warm(engine: Engine, home: Path) -> None:
    """Keep the latest table's scores and reasons for the service."""
    if engine.lookup is None:
        return
    scored = engine.lookup.scored
    engine.foresee(scored, range(len(scored)))
    if len(scored) <= MOST_EXPLAINED:
        engine.explain(scored, range(len(scored)))
    digest, why = engine.identity["digest"], [scored.why.get(place) for place in range(len(scored))]
    found = {
        "table": stamp(engine.lookup.file),
        "digest": digest,
        "p": scored.p,
        "days": [scored.days[place] for place in range(len(scored))],
        "why": why,
    }
    with replacing(warm_file(home, digest)) as temporary:
        temporary.write_bytes(orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY))


def main() -> None:
    """Exit code 2 with the reason on standard error when the package must not serve."""
    package, home, features = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""
    try:
        engine = check(package, Path(features) if features else None)
        write_warm(engine, home)
    except InputError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
