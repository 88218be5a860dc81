"""A training run: tune, blend, calibrate, refit, test once, track, register, name the challenger."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.trial import FrozenTrial

from features.errors import InputError
from features.files import read_json, replacing, write_json
from features.mlflow_client import answering
from features.settings import Settings
from training import evaluate, fit, tracking
from training.config import TrainConfig
from training.dataset import TrainingData
from training.fit import Fitted
from training.models.base import Floats, Rows
from training.models.scorer import Scorer, verify
from training.models.timing import Timing
from training.plots import draw
from training.registry import CHALLENGER, DIGEST, TABLE, Registry
from validation.metrics import estimated, log_loss
from validation.stages import Places

EXPLAINED_ROWS = 200
UNREGISTERED = ("logistic",)
"""Members of the blend that are no candidates by themselves unless they are the only one."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """All that a run made."""

    models: dict[str, Fitted]
    """Every calibrated model by name, baselines first."""
    scorers: dict[str, Scorer]
    """Those to be registered."""
    test: Rows
    probabilities: dict[str, Floats]
    """Of every model on the test rows."""
    timing: Timing | None
    """None for a table that does not tell when the next order came."""


@answering("MLflow")
def train(
    model_name: str, places: Places, settings: Settings, config: TrainConfig, progress: Progress = lambda line: None
) -> dict[str, Any]:
    """Train the candidates on the validated feature table and register them under a name; returns the run's facts.

    A run that finished before with the same data and choices is returned as it is; one that was killed
    continues: finished trials, runs and versions are found again, the rest is recomputed with fixed seeds.
    """
    data = TrainingData.read(places.features)
    _both_classes(data)
    fingerprint = config.fingerprint(data.fingerprint)
    client = tracking.connect(settings)
    registry = Registry(client, model_name)
    if (finished := _finished(places, fingerprint, data, registry)) is not None:
        _point(registry, finished)
        progress(f"nothing new to learn: run {fingerprint} is registered already")
        return finished
    experiment = tracking.experiment_id(client, settings)
    runs: dict[str, tracking.StudyRun] = {}

    def run_of(name: str) -> tracking.StudyRun:
        if name not in runs:
            runs[name] = tracking.StudyRun(client, experiment, name, fingerprint)
        return runs[name]

    def told(name: str, number: int, trial: FrozenTrial) -> None:
        run_of(name).trial(number, trial)

    trained = _trained(data, fit.candidates(data, config, storage_of(places, settings), progress, told), config, progress)
    facts = _facts(data, config, fingerprint, trained)
    _write_predictions(places, trained.test, trained.probabilities)
    importance = {name: _importance(scorer, trained.test) for name, scorer in trained.scorers.items()}
    plots = draw(places.reports / "plots", trained.test.y, trained.probabilities, importance)
    for name, scorer in trained.scorers.items():
        progress(f"registering {name}")
        logged = _Logged(data, places, facts, config, plots)
        facts["versions"][name] = logged.record(registry, run_of(name), scorer, trained.models[name])
    for name in runs.keys() - trained.scorers.keys():
        runs[name].finish()
    _point(registry, facts)
    write_json(places.folder / "training.json", facts)
    return facts


def _point(registry: Registry, facts: dict[str, Any]) -> None:
    """Name the challenger, unless it is named already."""
    version, named = facts["versions"][facts["challenger"]]["version"], registry.aliased(CHALLENGER)
    if named is None or str(named.version) != version:
        registry.point(CHALLENGER, version)


def storage_of(places: Places, settings: Settings) -> str:
    """URL of the studies: HOLDFAST_STUDY_STORAGE, else SQLite in the data set's folder."""
    given = settings.study_storage
    return given.get_secret_value() if given else f"sqlite:///{places.folder / 'optuna.db'}"


def _both_classes(data: TrainingData) -> None:
    for moment in data.split.labelled:
        rates = data.at([moment]).y
        if not rates.size or rates.min() == rates.max():
            raise InputError(
                f"label at {moment:%Y-%m-%d}",
                f"{rates.size} customers, one class only",
                "choose other snapshots, another horizon, or check the orders",
            )


def _finished(places: Places, fingerprint: str, data: TrainingData, registry: Registry) -> dict[str, Any] | None:
    file = places.folder / "training.json"
    if not file.exists() or not (places.folder / "test_predictions.parquet").exists():
        return None
    facts: dict[str, Any] = read_json(file)
    trained = [version for version in registry.versions() if version.tags.get(TABLE) == data.fingerprint]
    known = {(str(version.version), version.tags.get(DIGEST)) for version in trained}
    there = all((v["version"], v["digest"]) in known for v in facts["versions"].values())
    return facts if facts["fingerprint"] == fingerprint and there else None


def _trained(data: TrainingData, candidates: dict[str, Fitted], config: TrainConfig, progress: Progress) -> Trained:
    known = data.before(data.split.test)
    timing = None
    if not np.isnan(known.days).all():
        progress("learning when the next order comes")
        timing = Timing.fit(known, data.manifest.horizon_days, config.seed)
    progress("testing all models on the test snapshot")
    models = fit.baselines(data) | candidates
    registered = [name for name in candidates if len(candidates) == 1 or name not in UNREGISTERED]
    test = data.at([data.split.test])
    probabilities = {name: model.predict(test) for name, model in models.items()}
    return Trained(models, {name: models[name].scorer(data, timing) for name in registered}, test, probabilities, timing)


def _facts(data: TrainingData, config: TrainConfig, fingerprint: str, trained: Trained) -> dict[str, Any]:
    split, test, models = data.split, trained.test, trained.models
    selection = {name: models[name].selection_log_loss for name in trained.scorers}
    challenger = min(selection, key=lambda name: selection[name])
    found = evaluate.tested(data, test, trained.probabilities, config)
    found["uncalibrated_log_loss"] = {name: log_loss(test.y, model.model.predict(test)) for name, model in models.items()}
    latest = trained.scorers[challenger].predict(data.latest) if len(data.latest) else None
    return {
        "fingerprint": fingerprint,
        "data_fingerprint": data.manifest.data_fingerprint,
        "config": {name: value for name, value in asdict(config).items() if name != "workers"},
        "split": {
            "base": [str(t.date()) for t in split.base],
            "validation": [str(t.date()) for t in split.validation],
            "calibration": [str(t.date()) for t in split.calibration],
            "final": [str(t.date()) for t in split.before(split.test)],
            "test": str(split.test.date()),
        },
        "test": found,
        "details": {name: evaluate.details(data, test, trained.probabilities[name], config) for name in trained.scorers},
        "level": {name: models[name].level.to_json() for name in trained.scorers},
        "calibration": {name: models[name].calibration.to_json() for name in trained.scorers},
        "timing": trained.timing and evaluate.timing(trained.timing, data.before(split.test), test, trained.probabilities[challenger]),
        "estimated_latest": latest if latest is None else {"snapshot": str(data.latest.snapshot[0].item().date()), **estimated(latest)},
        "calibration_log_loss": selection,
        "challenger": challenger,
        "versions": {},
    }


def _write_predictions(places: Places, test: Rows, probabilities: Mapping[str, Floats]) -> None:
    """Label and probabilities of the test rows in the table's order, without ids: beside the run in MLflow."""
    with replacing(places.folder / "test_predictions.parquet") as temporary:
        pq.write_table(pa.table({"y": test.y, **probabilities}), temporary)


def _importance(scorer: Scorer, test: Rows) -> dict[str, float]:
    """Mean absolute contribution of each feature family."""
    some = test.at(np.linspace(0, len(test) - 1, min(EXPLAINED_ROWS, len(test))).astype(int))
    by_family: dict[str, Floats] = {}
    for feature, column in zip(test.names, scorer.contributions(some).T, strict=True):
        family = scorer.manifest.family_of(feature)
        by_family[family] = by_family.get(family, np.zeros(len(some))) + column
    return {family: float(np.abs(values).mean()) for family, values in by_family.items()}


@dataclass(frozen=True)
class _Logged:
    """Everything that a candidate rests on."""

    data: TrainingData
    places: Places
    facts: dict[str, Any]
    config: TrainConfig
    plots: list[Path]

    def record(self, registry: Registry, run: tracking.StudyRun, scorer: Scorer, fitted: Fitted) -> dict[str, str]:
        """Log it, then register the candidate."""
        name = scorer.model.name
        folder = self.places.folder / "models" / name
        shutil.rmtree(folder, ignore_errors=True)
        scorer.save(folder)
        run.log({**fitted.params, **{f"run.{k}": v for k, v in asdict(self.config).items()}}, self._metrics(name, fitted), self._tags(name))
        run.inputs(self.data)
        for file in (
            folder / "manifest.json",
            self.places.folder / "test_predictions.parquet",
            *map(self.places.contract, ("sources", "features")),
        ):
            if file.exists():
                run.artifact(file, "run")
        for plot in self.plots:
            run.artifact(plot, "plots")
        for docs in map(self.places.data_docs, ("sources", "features")):
            if docs.exists():
                run.artifact(docs, f"data_docs/{docs.name}")
        estimated = str(self.facts["details"][name]["estimated"])
        tags = {"holdfast.fingerprint": self.facts["fingerprint"], "holdfast.estimated": estimated, TABLE: self.data.fingerprint}
        version = registry.register(scorer, folder, run.id, self.data.at([self.data.split.test]), tags)
        run.finish()
        return {"version": str(version.version), "digest": verify(folder), "run_id": run.id}

    def _metrics(self, name: str, fitted: Fitted) -> dict[str, float]:
        tested = self.facts["test"]["models"][name]
        sides = {f"test_{metric}{side}": values[i] for metric, values in tested.items() for i, side in enumerate(("", "_low", "_high"))}
        expected = {f"estimated_{metric}": value for metric, value in self.facts["details"][name]["estimated"].items()}
        return {**sides, **expected, "calibration_log_loss": fitted.selection_log_loss}

    def _tags(self, name: str) -> dict[str, str]:
        split = self.facts["split"]
        return {
            "holdfast.dataset": self.data.manifest.dataset,
            "holdfast.data": self.data.manifest.data_fingerprint,
            "holdfast.family": name,
            "holdfast.protocol": f"test {split['test']}, horizon {self.data.manifest.horizon_days} d, {len(split['final'])} snapshots",
            "holdfast.git": tracking.git_revision(),
        }
