"""champion -> Bento: the champion's verified files, the feature code, the policy and pinned requirements."""

import contextlib
import os
import shutil
from importlib import metadata, resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from features.errors import InputError, RefusedError
from features.files import read_json, write_json
from features.settings import Settings
from serving import policy as policies
from serving.score import IDENTITY
from training.models.scorer import Scorer, verify

CODE = ("features", "serving", "training/models")
NEEDED = (
    "bentoml",
    "duckdb",
    "ibis-framework",
    "numpy",
    "orjson",
    "pyarrow",
    "pydantic",
    "pydantic-settings",
    "scipy",
    "starlette",
    "uvloop",
)
SERVICE = "serving.service:Holdfast"


def fetch(settings: Settings, name: str, alias: str, into: Path, policy: Path | None) -> dict[str, Any]:
    """Put a registered model, its identity and the policy into a folder; returns the identity.

    Raises RefusedError when the alias names nothing or the version passed no gate, InputError when a digest is off.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)
    mlflow.set_tracking_uri(settings.tracking_uri)
    try:
        version = client.get_model_version_by_alias(name, alias)
    except MlflowException:
        raise RefusedError(f"models:/{name}@{alias} does not exist: train and promote first (`holdfast run`)") from None
    if alias == "champion" and version.tags.get("holdfast.gates") != "pass":
        raise RefusedError(f"models:/{name}@{alias} (v{version.version}) passed no promotion gate: use `holdfast promote`")
    shutil.rmtree(into, ignore_errors=True)
    copied = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version.version}", dst_path=str(into / "download")))
    found = next(iter(sorted(copied.rglob("digests.json"))), None)
    if found is None:
        raise InputError(f"models:/{name}/{version.version}", "holds no saved model", "train again: `holdfast train`")
    shutil.move(found.parent, into / "model")
    shutil.rmtree(into / "download")
    digest = verify(into / "model")
    if digest != version.tags.get("holdfast.digest"):
        raise InputError(f"models:/{name}/{version.version}", "its files do not have the registered digest", "train and promote again")
    shutil.copy(policy or policies.default_file(), into / "policy.toml")
    policies.read(into / "policy.toml")
    kind = version.tags["holdfast.model"]
    identity = {"model_name": name, "model_version": str(version.version), "model": kind, "digest": digest, "run_id": version.run_id}
    write_json(into / IDENTITY, identity)
    return identity


def build(settings: Settings, name: str, policy: Path | None = None) -> dict[str, Any]:
    """Build a Bento of the champion under ``HOLDFAST_HOME``; returns its tag, folder and the model's identity."""
    with TemporaryDirectory(prefix="holdfast-") as folder:  # BentoML reads nothing from hidden folders, such as .holdfast
        stage = Path(folder)
        identity = fetch(settings, name, "champion", stage / "package", policy)
        scorer = Scorer.load(stage / "package" / "model")
        for part in CODE:
            source = Path(str(resources.files(part.replace("/", "."))))
            shutil.copytree(source, stage / part, ignore=shutil.ignore_patterns("__pycache__", "*.parquet"))
        shutil.copy(Path(str(resources.files("training"))) / "__init__.py", stage / "training" / "__init__.py")
        needed = (*NEEDED, *scorer.model.requirements)
        bento = _bento(settings, stage, identity, [f"{p}=={metadata.version(p).split('+')[0]}" for p in needed])
    told = {"tag": str(bento.tag), "path": str(bento.path), **identity}
    write_json(settings.home / "package.json", told)
    return told


def _bento(settings: Settings, stage: Path, identity: dict[str, Any], needed: list[str]) -> Any:
    os.environ["BENTOML_HOME"] = str(settings.home.resolve() / "bentoml")
    from bentoml import bentos
    from bentoml.exceptions import NotFound

    version = f"v{identity['model_version']}-{identity['digest'][:12]}"
    with contextlib.suppress(NotFound):
        bentos.delete(f"holdfast:{version}")
    python = {"packages": needed, "lock_packages": False, "pack_git_packages": False}
    labels = {"model": identity["model"], "model_version": identity["model_version"]}
    return bentos.build(SERVICE, name="holdfast", version=version, include=["*"], labels=labels, python=python, build_ctx=str(stage))


def packaged(settings: Settings) -> dict[str, Any]:
    """What `build` wrote last."""
    file = settings.home / "package.json"
    if not file.exists() or not Path(read_json(file)["path"]).is_dir():
        raise InputError(str(file), "nothing is packaged", "run `holdfast package` first, or serve --from-registry champion")
    told: dict[str, Any] = read_json(file)
    return told
