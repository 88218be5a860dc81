"""Models against rivals on published protocols: same rows, paired intervals, three seeds for what is random."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from features import table
from features.files import read_json, sha256, sha256_json, write_json
from training import fit
from training.config import TrainConfig
from training.dataset import TrainingData
from training.fit import Fitted
from training.models.base import Floats, Rows, logit, sigmoid
from training.models.calibration import Calibration
from training.models.level import Level, forecast
from training.models.lightgbm import LightGBM
from training.models.logistic import Ridge
from training.models.scorer import members
from training.protocols import PROTOCOLS, Protocol, of_mapping
from training.tune import end_with_parent
from validation import metrics
from validation.stages import Places, build_features, validate

REFERENCE = "lightgbm"
"""Differences are to the tuned LightGBM of the same seed."""
DEFAULTS = {"learning_rate": 0.1, "num_leaves": 31, "bagging_freq": 0, "max_bin": 255, "rounds": 100, "seeds": 1}
"""LightGBM as it comes."""
DRAWS = 500
LIFT_15 = 0.15
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What a benchmark runs."""

    home: Path
    data: Path | None
    trials: int = 8
    seeds: tuple[int, ...] = (1, 2, 3)
    draws: int = DRAWS


def run(protocols: Sequence[str], options: Options, jobs: int, progress: Progress) -> list[dict[str, Any]]:
    """Results of protocols by name, or of mapping files; each in a process of its own, ``jobs`` at a time.

    A protocol that was finished before, with the same code, data and options, is read and not run again.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(min(jobs, len(protocols)), get_context("spawn"), end_with_parent) as pool:
        waiting = {pool.submit(_one, name, options): name for name in protocols}
        for done in as_completed(waiting):
            results[waiting[done]] = done.result()
            progress(f"{waiting[done]}: {len(results[waiting[done]])} results, {len(results)} of {len(protocols)} protocols")
    return [result for name in protocols for result in results[name]]


def named(name: str) -> Protocol:
    """A published protocol, or that of a mapping file."""
    known = {protocol.name: protocol for protocol in PROTOCOLS}
    return known[name] if name in known else of_mapping(Path(name))


def _one(name: str, options: Options) -> list[dict[str, Any]]:
    """One protocol from its sources to its results."""
    protocol = named(name)
    folder = options.home / "benchmark" / protocol.name
    folder.mkdir(parents=True, exist_ok=True)
    dataset = protocol.dataset(options.data, folder)
    places = Places(folder / "state", folder / "reports")
    validate(dataset, places)
    build_features(dataset, places)
    data = TrainingData.read(places.features)
    done, key = folder / "results.json", _key(data, options)
    if done.exists() and (saved := read_json(done))["key"] == key:
        return list(saved["results"])
    print(f"{protocol.name}: {len(data.rows):,} rows, {len(data.manifest.names)} features, test {data.split.test:%Y-%m-%d}", flush=True)
    results = list(_results(protocol, data, options, folder))
    write_json(done, {"key": key, "results": results})
    return results


def _key(data: TrainingData, options: Options) -> str:
    """Digest of all that results hang on: the table, the options, the code of the models."""
    code = sorted(path for path in Path(__file__).parent.rglob("*.py"))
    return sha256_json([data.fingerprint, options.trials, options.seeds, options.draws, [sha256(path) for path in code]])


def _results(protocol: Protocol, data: TrainingData, options: Options, folder: Path) -> Iterator[dict[str, Any]]:
    told = _stamped(protocol.name)
    test = data.at([data.split.test])
    rows = table.read(data.path, [data.split.test])["customer_id"].to_pylist() if protocol.truth else []
    truth = protocol.truth(folder, rows, data.split.test, data.manifest.horizon_days) if protocol.truth else None
    fixed = {kind.name: _timed(partial(fit.baseline, kind, data)) for kind in fit.BASELINES}
    config = TrainConfig(options.trials, seed=options.seeds[0])
    params = {
        name: fit.tuned(name, data, config, f"sqlite:///{folder / 'optuna.db'}", told, lambda *of: None)
        for name in fit.possible(data, config)
    }
    fixed |= {Ridge.name: _timed(lambda: fit.fitted({Ridge.name: params[Ridge.name]}, data, 1)[Ridge.name])}
    predictions = {(name, 0): (model.predict(test), seconds) for name, (model, seconds) in fixed.items()}
    for seed in options.seeds:
        for name, (model, seconds) in _seeded(params, data, seed, told).items():
            predictions[name, seed] = model.predict(test), seconds
        told(f"seed {seed} done")
    for population in protocol.populations:
        kept = population.keep(test)
        for (name, seed), (p, seconds) in predictions.items():
            reference = predictions[REFERENCE, seed or options.seeds[0]][0]
            yield {
                "protocol": protocol.name,
                "population": population.name,
                "model": name,
                "seed": seed,
                **_measured(test.y[kept], p[kept], reference[kept], options.draws),
                **({} if truth is None else _against_truth(truth[kept], p[kept])),
                "fit_seconds": round(seconds, 2),
            }


def _seeded(params: Mapping[str, dict[str, Any]], data: TrainingData, seed: int, told: Progress) -> dict[str, tuple[Fitted, float]]:
    """Models that hang on a seed, with the seconds of their fits; the blend's are those of its members."""
    demand = data.demand()
    found: dict[str, fit.OutOfTime] = {}
    seconds: dict[str, float] = {}
    for name, chosen in params.items():
        kind = members()[name]
        fitting = partial(kind.fit, chosen, seed=seed)
        found[name], seconds[name] = _timed(partial(fit.out_of_time, fitting, data))
        told(f"seed {seed}: {name} fitted in {seconds[name]:.0f} s")
    plain, plain_seconds = _timed(lambda: fit.out_of_time(lambda rows: LightGBM.fit(DEFAULTS, rows, seed), data))
    models = {name: (fit.calibrated(one, data, demand), seconds[name]) for name, one in found.items() if name != Ridge.name}
    models["lightgbm_defaults"] = fit.calibrated(plain, data, demand), plain_seconds
    return models | {"blend": (fit.blended(found, data, demand), sum(seconds.values()))}


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def _stamped(name: str) -> Progress:
    start = time.monotonic()
    return lambda line: print(f"{time.monotonic() - start:7.0f} s  {name}: {line}", flush=True)


def _measured(y: Floats, p: Floats, reference: Floats, draws: int) -> dict[str, Any]:
    """Every metric, AUC with its interval, and the differences to the reference with theirs."""
    found = {name: metric(y, p) for name, metric in metrics.METRICS.items()}
    top = np.argsort(-p, kind="stable")[: max(1, int(LIFT_15 * p.size))]
    return {
        "rows": int(y.size),
        **found,
        "auc": metrics.with_intervals(y, p, draws, 0, {"auc": metrics.auc})["auc"],
        "lift_15": float(y[top].mean() / y.mean()),
        "predicted": float(p.mean()),
        "observed": float(y.mean()),
        "auc_difference": metrics.difference(metrics.auc, y, p, reference, draws, 0),
        "log_loss_difference": metrics.difference(metrics.log_loss, y, p, reference, draws, 0),
    }


def _against_truth(truth: Floats, p: Floats) -> dict[str, float]:
    """Mean absolute distance to the true probability, which knows who has left, and how the ranks agree."""
    from scipy.stats import spearmanr

    known = ~np.isnan(truth)
    return {"truth_distance": float(np.abs(p - truth)[known].mean()), "truth_rank_correlation": float(spearmanr(truth[known], p[known])[0])}


def rolling_level(data: TrainingData, first: datetime) -> list[dict[str, Any]]:
    """Log loss by rolling origin with the level forecast and with the model's own level, of the ridge regression.

    Every origin from ``first`` on is predicted from what was known then, its earlier origins calibrate as in a real run.
    """
    demand, strong, found = data.demand(), {**Ridge.strong, "rounds": 1}, []
    predicted: dict[datetime, tuple[Rows, Floats]] = {}
    for origin in data.split.labelled:
        if len(data.split.before(origin)):
            rows = data.at([origin])
            predicted[origin] = rows, Ridge.fit(strong, data.before(origin), 1).predict(rows)
    for origin in (t for t in predicted if t >= first):
        rows, p = predicted[origin]
        known = [predicted[t] for t in data.split.before(origin)[::-3][:3] if t in predicted]
        calibration = Calibration.fit([(q, past.y) for past, q in known]) if known else Calibration("platt", [1.0])
        losses = {}
        for name, seen in (("season", demand), ("model", None)):
            level = forecast(seen, origin, p, calibration)
            losses[name] = level, metrics.log_loss(rows.y, sigmoid(Level({origin: level}).calibrate(logit(p), rows.snapshot, calibration)))
        found.append(
            {
                "origin": str(origin.date()),
                "observed": float(rows.y.mean()),
                "model_rate": losses["model"][0].churn_rate,
                "forecast": losses["season"][0].churn_rate,
                "interval": [losses["season"][0].low, losses["season"][0].high],
                "cycles": losses["season"][0].cycles,
                "log_loss_model": losses["model"][1],
                "log_loss_forecast": losses["season"][1],
            }
        )
    return found


COLUMNS = (
    *("protocol", "customers", "model", "AUC [95 %]", "log loss", "AUC less that of tuned LightGBM", "log loss less that of it"),
    *("PR-AUC", "Brier", "ECE", "accuracy", "lift 10 %", "lift 15 %", "predicted (observed)", "fit s"),
)


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The results as a Markdown table, seeds averaged."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["protocol"], result["population"], result["model"]), []).append(result)
    for (protocol, population, model), some in groups.items():
        lines.append("| " + " | ".join([f"{protocol} {population}", f"{some[0]['rows']:,}", model, *_cells(some)]) + " |")
    return "\n".join(lines) + "\n"


def _cells(some: Sequence[Mapping[str, Any]]) -> list[str]:
    def mean(name: str, place: int | None = None) -> float:
        return float(np.mean([one[name] if place is None else one[name][place] for one in some]))

    def between(name: str) -> str:
        value, low, high = (mean(name, place) for place in range(3))
        return "" if some[0]["model"] == REFERENCE else f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"

    auc = f"{mean('auc', 0):.4f} [{mean('auc', 1):.3f}, {mean('auc', 2):.3f}]"
    rest = [f"{mean(name):.3f}" for name in ("pr_auc", "brier", "ece", "accuracy", "lift_10", "lift_15")]
    level = f"{mean('predicted'):.3f} ({mean('observed'):.3f})"
    return [
        auc,
        f"{mean('log_loss'):.4f}",
        between("auc_difference"),
        between("log_loss_difference"),
        *rest,
        level,
        f"{mean('fit_seconds'):.0f}",
    ]


def write(results: Sequence[Mapping[str, Any]], file: Path) -> None:
    """The results as a JSON list."""
    write_json(file, json.loads(json.dumps(list(results))))
