"""What a run leaves in MLflow: one parent run per study, a nested run per trial; a resumed run adds nothing twice."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from mlflow.utils.time import get_current_time_millis
from optuna.trial import FrozenTrial, TrialState

from features.mlflow_client import answering
from features.settings import Settings
from training.dataset import TrainingData

EXPERIMENT = "holdfast"
SAMPLING_SECONDS = 15
FINGERPRINT, TRIAL = "holdfast.fingerprint", "holdfast.trial"


def connect(settings: Settings) -> MlflowClient:
    """A client of the tracking server; also makes it the process's default, for pyfunc logging."""
    import logging

    settings.home.mkdir(parents=True, exist_ok=True)
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # `answering` tells its errors, without the SQL
    with answering("MLflow"):
        client: MlflowClient = settings.mlflow()
    return client


def experiment_id(client: MlflowClient, settings: Settings) -> str:
    """The experiment's id; its artefacts lie under ``HOLDFAST_HOME`` when the store is the embedded one."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    embedded = settings.mlflow_tracking_uri is None
    place = (settings.home.resolve() / "mlartifacts").as_uri() if embedded else None
    try:
        return str(client.create_experiment(EXPERIMENT, artifact_location=place))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(client.get_experiment_by_name(EXPERIMENT).experiment_id)  # created by another process meanwhile


class StudyRun:
    """The parent run of one study; found again by its fingerprint after a kill."""

    def __init__(self, client: MlflowClient, experiment: str, name: str, fingerprint: str) -> None:
        self.client, self.experiment = client, experiment
        found = self._search(f"tags.`{FINGERPRINT}` = '{fingerprint}' AND tags.`{MLFLOW_RUN_NAME}` = '{name}'")
        tags = {FINGERPRINT: fingerprint, MLFLOW_RUN_NAME: name, "mlflow.source.name": "holdfast train"}
        if parent := os.environ.get("MLFLOW_RUN_ID"):  # started by `mlflow run`
            tags[MLFLOW_PARENT_RUN_ID] = parent
        self.id: str = (found[0] if found else client.create_run(experiment, run_name=name, tags=tags)).info.run_id
        client.update_run(self.id, status="RUNNING")
        self.monitor = SystemMetricsMonitor(self.id, sampling_interval=SAMPLING_SECONDS, samples_before_logging=1, resume_logging=True)
        self.monitor.start()
        trials = self._search(f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.id}'")
        self.trials = {run.data.tags[TRIAL] for run in trials if TRIAL in run.data.tags and run.info.status == "FINISHED"}
        for run in trials:
            if run.info.status != "FINISHED":  # a kill came between its creation and its end
                client.delete_run(run.info.run_id)

    def _search(self, condition: str) -> list[Run]:
        return list(self.client.search_runs([self.experiment], condition, max_results=1000))

    def trial(self, number: int, trial: FrozenTrial) -> None:
        """Log a finished trial as a nested run, once."""
        if str(number) in self.trials:
            return
        tags = {MLFLOW_PARENT_RUN_ID: self.id, TRIAL: str(number), "holdfast.state": trial.state.name.lower()}
        run = self.client.create_run(self.experiment, run_name=f"trial-{number}", tags=tags)
        curve = {step: value for step, value in trial.intermediate_values.items()}
        metrics = [Metric("validation_log_loss", value, get_current_time_millis(), step) for step, value in curve.items()]
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            metrics.append(Metric("log_loss", trial.value, get_current_time_millis(), 0))
        params = [Param(name, str(value)) for name, value in {**trial.params, **trial.user_attrs}.items()]
        self.client.log_batch(run.info.run_id, metrics=metrics, params=params)
        self.client.set_terminated(run.info.run_id)
        self.trials.add(str(number))

    def log(self, params: Mapping[str, Any], metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Log parameters, metrics and tags of the parent run; the same ones again do no harm."""
        now = get_current_time_millis()
        known = set(self.client.get_run(self.id).data.metrics)
        self.client.log_batch(
            self.id,
            metrics=[Metric(name, value, now, 0) for name, value in metrics.items() if name not in known],
            params=[Param(name, str(value)) for name, value in params.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )

    def inputs(self, data: TrainingData) -> None:
        """Log the feature table as the run's dataset, by digest, for training and for testing."""
        if self.client.get_run(self.id).inputs.dataset_inputs:
            return
        profile = json.dumps({"rows": len(data.rows), "features": len(data.manifest.names), "snapshots": len(data.split.labelled)})
        source, inputs = json.dumps({"uri": data.path.name}), []
        for context in ("training", "testing"):  # two digests: of one MLflow keeps one context only
            dataset = Dataset(data.manifest.dataset, f"{data.fingerprint[:24]}-{context}", "local", source, profile=profile)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        self.client.log_inputs(self.id, datasets=inputs)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file or folder."""
        (self.client.log_artifacts if path.is_dir() else self.client.log_artifact)(self.id, str(path), folder)

    def finish(self) -> None:
        """Close the run."""
        self.monitor.finish()
        self.client.set_terminated(self.id)


def git_revision() -> str:
    """Commit of the working tree, with ``-dirty`` when it has changes; ``unknown`` outside a checkout."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
