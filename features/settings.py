"""Places and secrets, from the environment; nothing here is a choice of a run or a definition."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from features.errors import InputError

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "BENTOML_DO_NOT_TRACK": "True",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Set by the front door before anything heavy is imported, unless set already: no telemetry, no pickle, no noise."""


class Settings(BaseSettings):
    """Where Holdfast keeps its state.

    ``HOLDFAST_HOME`` is the one folder with everything that a run leaves behind;
    ``MLFLOW_TRACKING_URI`` moves tracking and registry elsewhere, the usual way.
    """

    model_config = SettingsConfigDict(env_prefix="HOLDFAST_", frozen=True, extra="ignore")

    home: Path = Field(default=Path(".holdfast"), description="folder that holds all state")
    id_key: SecretStr | None = Field(default=None, description="key of the pseudonyms, hexadecimal")
    engine: Literal["duckdb", "spark"] = Field(default="duckdb", description="what computes features")
    memory: str | None = Field(
        default=None,
        pattern=r"^[0-9.]+ ?[KMGT]i?B$",
        description="DuckDB's limit, e.g. 8GB; default: half of the machine's",
    )
    study_storage: SecretStr | None = Field(
        default=None, description="SQLAlchemy URL of the studies, for workers on several machines; default: SQLite in the home"
    )
    auth: Literal["on", "off"] = Field(default="on", description="whether the service asks for API keys; off only on 127.0.0.1")
    keys: Path | None = Field(default=None, description="file of the API keys' digests; default: keys.json in the home")
    online: Path | None = Field(default=None, description="file of the online store; default: online.db in the home")
    package: Path | None = Field(default=None, description="folder of the model to serve; default: the Bento's own")
    features: Path | None = Field(default=None, description="feature table for look-ups by id")
    follow: str | None = Field(default=None, description="registered model and alias that the service follows, NAME@ALIAS")
    follow_seconds: float = Field(default=5.0, gt=0, description="how often the follower looks at the registry")
    workers: int = Field(default=1, ge=1, le=64, description="processes of the service")
    mlflow_tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")

    def __init__(self, **given: Any) -> None:
        """Read the environment. Raises InputError naming the variable and the rule."""
        try:
            super().__init__(**given)
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            name = f"HOLDFAST_{str(found['loc'][0]).upper()}"
            meaning = type(self).model_fields[str(found["loc"][0])].description
            raise InputError(f"{name} = {found['input']!r}", found["msg"], f"set it as its meaning asks: {meaning}") from None

    @property
    def tracking_uri(self) -> str:
        """MLflow tracking and registry URI; default is SQLite in the home folder."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.home.resolve() / 'mlflow.db'}"

    @property
    def reports(self) -> Path:
        """Folder of the HTML report, ``run.json`` and Data Docs."""
        return self.home / "reports"

    def of(self, dataset: str) -> Path:
        """Folder of one data set: ``sources.json``, ``parts/``, ``features.parquet``, ``optuna.db``."""
        return self.home / "datasets" / dataset

    def mlflow(self) -> Any:
        """An `MlflowClient` of tracking and registry; also makes them the process's default, which ``models:/`` URIs are resolved by.

        MLflow exports what it is told to the environment; left there, it would take the place of the next home's own store.
        """
        import mlflow

        before = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(self.tracking_uri)
        mlflow.set_registry_uri(self.tracking_uri)
        if before is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        return mlflow.MlflowClient(self.tracking_uri, self.tracking_uri)
