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
from features.mlflow_client import aliased, answering
from features.table import KEYS
from training.models.base import Rows
from training.models.scorer import DIGESTS, Scorer, verify

CHALLENGER, CHAMPION = "challenger", "champion"
DIGEST, MODEL, DATASET, RUN = "holdfast.digest", "holdfast.model", "holdfast.dataset", "holdfast.run"
TABLE = "holdfast.table"
"""Tag with the SHA-256 of the feature table that a version learnt from and was tested on."""
GATES = "holdfast.gates"
"""Tag that says `pass` of a version that passed every gate; packaging asks for it."""
EXAMPLE_ROWS = 3
PAGE = 1000


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
        given = {DIGEST: digest, MODEL: scorer.model.name, DATASET: scorer.manifest.dataset, RUN: run_id, **tags}
        for version in self.versions():
            if version.tags.get(DIGEST) == digest and version.run_id == run_id:
                self.note(str(version.version), {key: value for key, value in given.items() if key not in version.tags})
                return version
        with answering(self._where()):
            info = _log_pyfunc(scorer, folder, run_id, example)
        if info.signature is None:
            raise InputError(
                "registry", "MLflow stored the model without a signature", "check the feature table for nullable integer columns"
            )
        with answering(self._where()):
            self._ensure()
            version = self.client.create_model_version(self.name, info.model_uri, run_id=run_id, tags=given, model_id=info.model_id)
        self.load(str(version.version))
        return version

    def load(self, version: str) -> Scorer:
        """The scorer of a version: its files are those that were registered, to the last bit, and no others.

        Raises InputError when they are not.
        """
        from tempfile import TemporaryDirectory

        with answering(self._where(version)):
            registered = self.client.get_model_version(self.name, version).tags.get(DIGEST)
        with TemporaryDirectory() as temporary:
            folder = self.download(version, Path(temporary))
            if verify(folder) != registered:
                problem = f"its files do not have the registered digest (tag {DIGEST})"
                raise InputError(self._where(version), problem, "train again: `holdfast train`")
            return Scorer.load(folder)

    def download(self, version: str, into: Path) -> Path:
        """Copy a version's files into a folder; returns the folder that holds the scorer."""
        import mlflow

        with answering(self._where(version)):
            root = Path(mlflow.artifacts.download_artifacts(self._where(version), dst_path=str(into)))
        found = sorted(root.rglob(DIGESTS))
        if len(found) != 1:
            raise InputError(self._where(version), f"holds {len(found)} saved models, not one", "train again: `holdfast train`")
        return found[0].parent

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first."""
        found: list[ModelVersion] = []
        token: str | None = None
        with answering(self._where()):
            while token != "":
                page = self.client.search_model_versions(f"name = '{self.name}'", max_results=PAGE, page_token=token)
                found += page
                token = page.token or ""
        return sorted(found, key=lambda version: int(version.version))

    def version(self, number: str) -> ModelVersion:
        """One version. Raises NoAnswerError where there is none, or the registry is away."""
        with answering(self._where(number)):
            return self.client.get_model_version(self.name, number)

    def aliased(self, alias: str) -> ModelVersion | None:
        """The version that an alias names, or None; see `mlflow_client.aliased`."""
        found: ModelVersion | None = aliased(self.client, self.name, alias)
        return found

    def point(self, alias: str, version: str) -> None:
        """Move an alias."""
        with answering(self._where(alias=alias)):
            self.client.set_registered_model_alias(self.name, alias, version)

    def note(self, version: str, tags: dict[str, Any]) -> None:
        """Tag a version."""
        with answering(self._where(version)):
            for key, value in tags.items():
                self.client.set_model_version_tag(self.name, version, key, str(value))

    def _where(self, version: str = "", alias: str = "") -> str:
        return f"models:/{self.name}" + (f"/{version}" if version else f"@{alias}" if alias else "")

    def _ensure(self) -> None:
        try:
            self.client.create_registered_model(self.name, description="Churn probability within the horizon (Holdfast)")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _log_pyfunc(scorer: Scorer, folder: Path, run_id: str, example: Rows) -> Any:
    import mlflow
    from mlflow.types.schema import AnyType, ColSpec, Schema

    from training.models.pyfunc import Predictor

    frame = _frame(scorer, example)
    signature = mlflow.models.infer_signature(frame, Predictor(scorer).predict(frame))
    given = scorer.manifest.columns  # of any numeric type, and MLflow would not make int64 or bool a double: `Predictor` does
    columns = [ColSpec(AnyType() if given else one.type, one.name, required=one.name != KEYS[1]) for one in signature.inputs.inputs]
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
