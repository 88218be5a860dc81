"""A training run: tune, calibrate, refit, test once, track, register, name the challenger."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import InputError
from features.files import read_json, replacing, write_json
from features.mapping import Dataset
from features.settings import Settings
from training import tracking, tune
from training.config import TrainConfig
from training.dataset import TrainingData
from training.models.base import Candidate, Floats, Model, Rows
from training.models.bgnbd import BgNbd
from training.models.calibration import Calibration
from training.models.logistic import Logistic
from training.models.recency import Recency
from training.models.scorer import Scorer, families, verify
from training.plots import draw
from training.registry import CHALLENGER, Registry
from validation.metrics import log_loss, with_intervals
from validation.stages import Places

BASELINES = (Recency, Logistic, BgNbd)
EXPLAINED_ROWS = 200
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """One candidate after its run."""

    scorer: Scorer
    params: dict[str, Any]
    calibration_log_loss: float
    """On the last calibration snapshot, calibrated on the one before: picks the challenger."""


def train(
    dataset: Dataset, places: Places, settings: Settings, config: TrainConfig, progress: Progress = lambda line: None
) -> dict[str, Any]:
    """Train both candidates on the validated feature table and register them; returns the run's facts.

    A run that finished before with the same data and choices is returned as it is; one that was killed
    continues: finished trials, runs and versions are found again, the rest is recomputed with fixed seeds.
    """
    data = TrainingData.read(places.features)
    _both_classes(data)
    fingerprint = config.fingerprint(data.fingerprint)
    client = tracking.connect(settings)
    registry = Registry(client, dataset.model_name)
    if (finished := _finished(places, fingerprint, registry)) is not None:
        progress(f"nothing new to learn: run {fingerprint} is registered already")
        return finished
    experiment = tracking.experiment_id(client, settings)
    runs, candidates = {}, {}
    for name, kind in families().items():
        runs[name] = tracking.StudyRun(client, experiment, name, fingerprint)
        candidates[name] = _candidate(kind, data, config, places, runs[name], progress)
    progress("testing all models on the test snapshot")
    test = data.at([data.split.test])
    probabilities, raw = _test_probabilities(data, test, candidates)
    facts = _facts(data, config, fingerprint, test, probabilities, candidates)
    facts["test"]["uncalibrated_log_loss"] = {name: log_loss(test.y, p) for name, p in raw.items()}
    _write_predictions(places, test, probabilities)
    importance = {name: _importance(trained.scorer, test) for name, trained in candidates.items()}
    plots = draw(places.reports / "plots", test.y, probabilities, importance)
    for name, trained in candidates.items():
        progress(f"registering {name}")
        facts["versions"][name] = _record(registry, runs[name], trained, data, places, facts, config, plots)
    registry.point(CHALLENGER, facts["versions"][facts["challenger"]]["version"])
    write_json(places.folder / "training.json", facts)
    return facts


def _both_classes(data: TrainingData) -> None:
    for moment in data.split.labelled:
        rates = data.at([moment]).y
        if not rates.size or rates.min() == rates.max():
            raise InputError(
                f"label at {moment:%Y-%m-%d}",
                f"{rates.size} customers, one class only",
                "choose other snapshots, another horizon, or check the orders",
            )


def _finished(places: Places, fingerprint: str, registry: Registry) -> dict[str, Any] | None:
    file = places.folder / "training.json"
    if not file.exists() or not (places.folder / "test_predictions.parquet").exists():
        return None
    facts: dict[str, Any] = read_json(file)
    known = {(str(version.version), version.tags.get("holdfast.digest")) for version in registry.versions()}
    there = all((v["version"], v["digest"]) in known for v in facts["versions"].values())
    return facts if facts["fingerprint"] == fingerprint and there else None


def _candidate(
    kind: type[Candidate], data: TrainingData, config: TrainConfig, places: Places, run: tracking.StudyRun, progress: Progress
) -> Trained:
    asked = config.trials_of(kind.name)

    def told(number: int, trial: optuna.trial.FrozenTrial) -> None:
        run.trial(number, trial)
        value = f"log loss {trial.value:.4f}" if trial.state == optuna.trial.TrialState.COMPLETE else "pruned"
        progress(f"{kind.name}: trial {number + 1} of {asked}, {value}")

    study = tune.tune(kind, data, config, places.folder / "optuna.db", told)
    params = tune.best_params(study, asked)
    model, calibration, loss = _calibrated(
        lambda rows: kind.fit(params, rows, config.seed), data, lambda what: progress(f"{kind.name}: {what}")
    )
    assert isinstance(model, kind)
    return Trained(Scorer(model, calibration, data.manifest), params, loss)


def _calibrated(
    fit: Callable[[Rows], Model], data: TrainingData, progress: Progress = lambda line: None
) -> tuple[Model, Calibration, float]:
    """The final model, its calibration from the last calibration snapshot, and its honest log loss there.

    Baselines pass through it too: whatever calibration gives or takes, it gives and takes from every model.
    """
    predicted = []
    for origin in data.split.calibration:
        progress(f"predicting {origin:%Y-%m-%d} out of time")
        rows = data.at([origin])
        predicted.append((fit(data.before(origin)).predict(rows), rows.y))
    progress(f"refit on {len(data.split.before(data.split.test))} snapshots")
    p, y = predicted[-1]
    judged = Calibration.fit(*predicted[0]).apply(p) if len(predicted) > 1 else p
    return fit(data.before(data.split.test)), Calibration.fit(p, y), log_loss(y, judged)


def _test_probabilities(data: TrainingData, test: Rows, candidates: Mapping[str, Trained]) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Calibrated and uncalibrated probabilities of every model on the test rows."""
    fitted: dict[str, tuple[Model, Calibration]] = {}
    for kind in BASELINES:
        model, calibration, _ = _calibrated(lambda rows, kind=kind: kind.fit(rows, data.manifest.horizon_days), data)  # type: ignore[misc]
        fitted[kind.name] = model, calibration
    fitted |= {name: (trained.scorer.model, trained.scorer.calibration) for name, trained in candidates.items()}
    raw = {name: model.predict(test) for name, (model, _) in fitted.items()}
    return {name: fitted[name][1].apply(p) for name, p in raw.items()}, raw


def _facts(
    data: TrainingData,
    config: TrainConfig,
    fingerprint: str,
    test: Rows,
    probabilities: Mapping[str, Floats],
    candidates: Mapping[str, Trained],
) -> dict[str, Any]:
    split = data.split
    return {
        "fingerprint": fingerprint,
        "data_fingerprint": data.manifest.data_fingerprint,
        "config": asdict(config),
        "split": {
            "base": [str(t.date()) for t in split.base],
            "validation": [str(t.date()) for t in split.validation],
            "calibration": [str(t.date()) for t in split.calibration],
            "final": [str(t.date()) for t in split.before(split.test)],
        },
        "test": {
            "snapshot": str(split.test.date()),
            "rows": len(test),
            "churn_rate": float(test.y.mean()),
            "models": {name: with_intervals(test.y, p, config.bootstrap_draws, config.seed) for name, p in probabilities.items()},
        },
        "calibration_log_loss": {name: trained.calibration_log_loss for name, trained in candidates.items()},
        "challenger": min(candidates, key=lambda name: candidates[name].calibration_log_loss),
        "versions": {},
    }


def _write_predictions(places: Places, test: Rows, probabilities: Mapping[str, Floats]) -> None:
    """Label and probabilities of the test rows in the table's order, without ids: what promotion compares."""
    with replacing(places.folder / "test_predictions.parquet") as temporary:
        pq.write_table(pa.table({"y": test.y, **probabilities}), temporary)


def _importance(scorer: Scorer, test: Rows) -> dict[str, float]:
    some = test.at(np.linspace(0, len(test) - 1, min(EXPLAINED_ROWS, len(test))).astype(int))
    return dict(zip(test.names, np.abs(scorer.contributions(some)).mean(axis=0).tolist(), strict=True))


def _record(
    registry: Registry,
    run: tracking.StudyRun,
    trained: Trained,
    data: TrainingData,
    places: Places,
    facts: dict[str, Any],
    config: TrainConfig,
    plots: list[Path],
) -> dict[str, str]:
    """Log everything a candidate rests on, then register it."""
    name = trained.scorer.model.name
    folder = places.folder / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    trained.scorer.save(folder)
    metrics = {f"test_{metric}": values[0] for metric, values in facts["test"]["models"][name].items()}
    metrics |= {
        f"test_{metric}_{side}": values[i]
        for metric, values in facts["test"]["models"][name].items()
        for i, side in ((1, "low"), (2, "high"))
    }
    metrics["calibration_log_loss"] = trained.calibration_log_loss
    tags = {
        "holdfast.dataset": data.manifest.dataset,
        "holdfast.data": data.manifest.data_fingerprint,
        "holdfast.git": tracking.git_revision(),
    }
    run.log({**trained.params, **{f"run.{k}": v for k, v in asdict(config).items()}}, metrics, tags)
    for file in (
        folder / "manifest.json",
        places.contract("sources"),
        places.contract("features"),
        places.folder / "test_predictions.parquet",
    ):
        run.artifact(file, "run")
    for plot in plots:
        run.artifact(plot, "plots")
    for docs in ("sources", "features"):
        run.artifact(places.data_docs(docs), f"data_docs/{docs}")
    version = registry.register(trained.scorer, folder, run.id, data.at([data.split.test]), {"holdfast.fingerprint": facts["fingerprint"]})
    run.finish()
    return {"version": str(version.version), "digest": verify(folder), "run_id": run.id}
