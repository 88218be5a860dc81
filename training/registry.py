"""The only writer of the model registry: versions, and the aliases `challenger` and `champion`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from features.errors import InputError
from features.table import KEYS
from training.models.base import Rows
from training.models.scorer import Scorer, verify

CHALLENGER, CHAMPION = "challenger", "champion"
DIGEST, MODEL, DATASET, RUN = "holdfast.digest", "holdfast.model", "holdfast.dataset", "holdfast.run"
EXAMPLE_ROWS = 3


@dataclass(frozen=True)
class Registry:
    """The versions of one registered model."""

    client: MlflowClient
    name: str

    def register(self, scorer: Scorer, folder: Path, run_id: str, example: Rows, tags: dict[str, str]) -> ModelVersion:
        """Log a saved scorer as a pyfunc model and register it; the same digest is registered once.

        Raises InputError when the stored copy does not verify (a registry takes any source unseen).
        """
        digest = verify(folder)
        for version in self.versions():
            if version.tags.get(DIGEST) == digest and version.run_id == run_id:
                return version
        info = _log_pyfunc(scorer, folder, run_id, example)
        if info.signature is None:
            raise InputError(
                "registry", "MLflow stored the model without a signature", "check the feature table for nullable integer columns"
            )
        self._ensure()
        given = {DIGEST: digest, MODEL: scorer.model.name, DATASET: scorer.manifest.dataset, RUN: run_id, **tags}
        version = self.client.create_model_version(self.name, info.model_uri, run_id=run_id, tags=given)
        self.load(str(version.version))
        return version

    def load(self, version: str) -> Scorer:
        """The scorer of a version, every digest verified."""
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
            return Scorer.load(self.download(version, Path(folder)))

    def download(self, version: str, into: Path) -> Path:
        """Copy a version's files into a folder; returns the folder that holds the scorer."""
        import mlflow

        root = Path(mlflow.artifacts.download_artifacts(f"models:/{self.name}/{version}", dst_path=str(into)))
        found = sorted(root.rglob("digests.json"))
        if not found:
            raise InputError(f"models:/{self.name}/{version}", "holds no saved model", "train again: `holdfast train`")
        return found[0].parent

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first."""
        found = self.client.search_model_versions(f"name = '{self.name}'", max_results=1000)
        return sorted(found, key=lambda version: int(version.version))

    def aliased(self, alias: str) -> ModelVersion | None:
        """The version that an alias names, if any."""
        try:
            return self.client.get_model_version_by_alias(self.name, alias)
        except MlflowException:
            return None

    def point(self, alias: str, version: str) -> None:
        """Move an alias."""
        self.client.set_registered_model_alias(self.name, alias, version)

    def note(self, version: str, tags: dict[str, Any]) -> None:
        """Tag a version."""
        for key, value in tags.items():
            self.client.set_model_version_tag(self.name, version, key, str(value))

    def _ensure(self) -> None:
        try:
            self.client.create_registered_model(self.name, description="Churn probability within the horizon (Holdfast)")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _log_pyfunc(scorer: Scorer, folder: Path, run_id: str, example: Rows) -> Any:
    import mlflow
    from mlflow.types.schema import ColSpec, Schema

    from training.models.pyfunc import Predictor

    frame = _frame(scorer, example)
    signature = mlflow.models.infer_signature(frame, Predictor(scorer).predict(frame))
    columns = [ColSpec(one.type, one.name, required=one.name != KEYS[1]) for one in signature.inputs.inputs]
    signature.inputs = Schema(columns)  # without a snapshot the latest level is taken
    with mlflow.start_run(run_id=run_id):
        return mlflow.pyfunc.log_model(
            name="model",
            loader_module="training.models.pyfunc",
            data_path=str(folder),
            signature=signature,
            input_example=frame,
            pip_requirements=["holdfast", *scorer.model.requirements],
        )


def _frame(scorer: Scorer, rows: Rows) -> Any:
    import pandas as pd

    whole = np.ones(len(rows), dtype=bool)  # MLflow cannot tell the type of empty lists
    for lists in rows.sequence_table().columns:
        whole &= pc.list_value_length(lists).to_numpy() > 0
    few = rows.at(np.flatnonzero(whole)[:EXAMPLE_ROWS])
    frame = pd.DataFrame(few.x_NF, columns=list(few.names)).fillna(0.0)
    frame[KEYS[1]] = few.snapshot
    if scorer.model.reads_sequences:
        told = few.sequence_table()
        for name in told.column_names:
            lists = told[name]  # MLflow knows no int8
            small = pa.types.is_int8(lists.type.value_type)
            frame[name] = (lists.cast(pa.list_(pa.int32())) if small else lists).to_pandas().to_numpy()
    return frame
