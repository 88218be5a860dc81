"""champion -> Bento: the champion's verified files, the feature code, the policy and exact requirements.

A Bento is *reproducible*: the same champion, policy, code, lock file, Python and BentoML give the same files with the
same bytes, modes and times, whenever and wherever it is built. BentoML stamps the moment of building into
``bento.yaml``; here it is the moment at which the champion was registered. ``holdfast.json`` beside it holds a SHA-256
digest of every other file and one over all. ``bento.yaml`` also records the ``HOLDFAST_WORKERS`` of the builder's
environment, though a service reads its own. Not covered: what pip downloads for the requirements (versions are exact,
archives have no digests), and compiled bytecode that Python may leave beside the code.
"""

import os
import re
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from features.errors import InputError, RefusedError
from features.files import read_json, sha256, sha256_json, write_json, write_text
from features.mlflow_client import aliased, answering
from features.settings import Settings
from serving import policy as policies
from serving.score import IDENTITY
from serving.server import QUIET
from training.models.scorer import Scorer, verify

CODE = ("features", "serving", "training/models")
NEEDED = (
    "bentoml",
    "duckdb",
    "ibis-framework[duckdb]",
    "numpy",
    "orjson",
    "psutil",
    "pyarrow",
    "pydantic",
    "pydantic-settings",
    "scipy",
    "starlette",
    "uvloop",
)
"""What the served code imports; a model adds its own. `pinned` adds what these need."""
SERVICE = "serving.service:Holdfast"
SEAL = "holdfast.json"
"""File in the Bento with ``files`` (path -> SHA-256) and ``digest`` over all of them."""
ABOUT = """# Holdfast

Churn probability and recommended intervention tier: {model}, version {model_version} of {model_name}.

`src/package/` holds the champion's files, its identity and the policy; `env/python/requirements.txt` every
distribution that serving needs, with its exact version; `holdfast.json` the SHA-256 digest of each file.

`bentoml serve FOLDER` needs no right to write here: `HOLDFAST_HOME` (state) and `BENTOML_HOME` (BentoML's own
scratch) name folders that it may write to, `HOLDFAST_FEATURES` a feature table, `HOLDFAST_ID_KEY` the key of the
pseudonyms where ids are personal.
"""


def fetch(settings: Settings, name: str, alias: str, into: Path, policy: Path | None) -> dict[str, Any]:
    """Put a registered model, its identity and the policy into a folder; returns the identity.

    Raises RefusedError when the alias names nothing or the version passed no gate, InputError when a digest is off, NoAnswerError
    when the registry is away.
    """
    import mlflow

    with answering(f"models:/{name}@{alias}"):
        client = settings.mlflow()
    version = aliased(client, name, alias)
    if version is None:
        raise RefusedError(f"models:/{name}@{alias} does not exist: train and promote first (`holdfast run`)")
    if alias == "champion" and version.tags.get("holdfast.gates") != "pass":
        raise RefusedError(f"models:/{name}@{alias} (v{version.version}) passed no promotion gate: use `holdfast promote`")
    shutil.rmtree(into, ignore_errors=True)
    model = f"models:/{name}/{version.version}"
    with answering(model):
        copied = Path(mlflow.artifacts.download_artifacts(model, dst_path=str(into / "download")))
    found = next(iter(sorted(copied.rglob("digests.json"))), None)
    if found is None:
        raise InputError(model, "holds no saved model", "train again: `holdfast train`")
    shutil.move(found.parent, into / "model")
    shutil.rmtree(into / "download")
    digest = verify(into / "model")
    if digest != version.tags.get("holdfast.digest"):
        raise InputError(model, "its files do not have the registered digest", "train and promote again")
    shutil.copy(policy or policies.default_file(), into / "policy.toml")
    policies.read(into / "policy.toml")
    kind = version.tags["holdfast.model"]
    identity = {"model_name": name, "model_version": str(version.version), "model": kind, "digest": digest, "run_id": version.run_id}
    write_json(into / IDENTITY, identity)
    return identity


def build(settings: Settings, name: str, policy: Path | None = None) -> dict[str, Any]:
    """Build a Bento of the champion under ``HOLDFAST_HOME``, without a network.

    Returns its tag, folder (``path``), the digest over its files (``bento_digest``) and the model's identity.
    A Bento with the same digest that is there already stays untouched: a service may run from it.
    """
    with TemporaryDirectory(prefix="holdfast-") as folder:  # BentoML reads nothing from hidden folders, such as .holdfast
        stage = Path(folder) / "stage"
        identity = fetch(settings, name, "champion", stage / "package", policy)
        scorer = Scorer.load(stage / "package" / "model")
        _copy_code(stage)
        bento = _bento(settings, stage, identity, pinned((*NEEDED, *scorer.model.requirements)))
        digest = seal(Path(bento.path), _registered(settings, identity))
        path = _place(Path(bento.path), digest, settings.home.resolve() / "bentoml")
    told = {"tag": str(bento.tag), "path": str(path), "bento_digest": digest, **identity}
    write_json(settings.home / "package.json", told)
    return told


def packaged(settings: Settings) -> dict[str, Any]:
    """What `build` wrote last. Raises InputError when there is none, or its files are not those that were built."""
    file = settings.home / "package.json"
    fix = "run `holdfast package` first, or serve --from-registry champion"
    if not file.exists() or not Path(read_json(file)["path"]).is_dir():
        raise InputError(str(file), "nothing is packaged", fix)
    told: dict[str, Any] = read_json(file)
    if check(Path(told["path"])) != told.get("bento_digest"):
        raise InputError(told["path"], "is not the Bento that was packaged", fix)
    return told


def pinned(needed: Iterable[str]) -> list[str]:
    """Sorted ``name==version`` of the given requirements and all that they need here, extras and markers observed.

    The version is that of ``requirements.lock`` where the code runs from a checkout, else the installed one; a
    local build tag (``+cpu``) is no part of it. Raises InputError when something needed is not installed.
    """
    locked = _locked(Path(str(resources.files("serving"))).parent / "requirements.lock")
    versions = {name: locked.get(name) or _distribution(name).version.split("+")[0] for name in _closure(needed)}
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _closure(needed: Iterable[str]) -> set[str]:
    """Names of the distributions that requirements ask for, and those that these ask for, and so on."""
    from packaging.requirements import Requirement

    todo = [Requirement(text) for text in needed]
    seen: set[tuple[str, str]] = set()
    while todo:
        asked = todo.pop()
        for name, extra in {(_canonical(asked.name), extra) for extra in ("", *asked.extras)} - seen:
            seen.add((name, extra))
            wanted = [Requirement(text) for text in _distribution(name).requires or []]
            todo += [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise InputError(name, "is needed for serving and not installed", "install Holdfast with all its dependencies") from None


def _locked(file: Path) -> dict[str, str]:
    """Versions by canonical name; none where there is no lock file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    pairs = (line.split("#")[0].strip().split("==") for line in lines if "==" in line.split("#")[0])
    return {_canonical(name): version for name, version in pairs}


def seal(bento: Path, moment: datetime) -> str:
    """Take out of a Bento folder what differs from build to build, and write `SEAL`; returns the digest over its files.

    ``moment`` takes the place of the moment of building. Everybody may read the folder: a service need not run as its owner.
    """
    text, stamps = re.subn(r"(?m)^creation_time: .*$", f"creation_time: '{moment.isoformat()}'", (bento / "bento.yaml").read_text())
    if stamps != 1:
        fix = "install the version of BentoML that requirements.lock names"
        raise InputError(str(bento / "bento.yaml"), f"tells its creation_time {stamps} times, not once: it cannot be sealed", fix)
    write_text(bento / "bento.yaml", text)
    for cache in list(bento.rglob("__pycache__")):
        shutil.rmtree(cache)
    files = _digests(bento)
    write_json(bento / SEAL, {"digest": sha256_json(files), "files": files})
    for path in [bento, *bento.rglob("*")]:
        runs = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if runs else 0o644)
        os.utime(path, (moment.timestamp(), moment.timestamp()))
    return sha256_json(files)


def check(bento: Path) -> str:
    """Compare a Bento's files with its `SEAL`; returns the digest over them.

    Raises InputError naming the first file that is missing, altered or was not there when it was packaged.
    """
    fix = "package again: `holdfast package`"
    if not (bento / SEAL).is_file():
        raise InputError(str(bento), f"holds no {SEAL}: not a Bento of Holdfast", fix)
    told, there = read_json(bento / SEAL), _digests(bento)
    for name in sorted(told["files"].keys() | there.keys()):
        if told["files"].get(name) != there.get(name):
            problem = "is missing" if name not in there else "is altered" if name in told["files"] else "was not packaged"
            raise InputError(str(bento / name), problem, fix)
    return sha256_json(there)


def _digests(bento: Path) -> dict[str, str]:
    """SHA-256 of each file but the seal and compiled bytecode, by its path in the Bento."""
    files = (file for file in bento.rglob("*") if file.is_file() and "__pycache__" not in file.parts and file != bento / SEAL)
    return {file.relative_to(bento).as_posix(): sha256(file) for file in sorted(files)}


def _copy_code(stage: Path) -> None:
    for part in CODE:
        source = Path(str(resources.files(part.replace("/", "."))))
        shutil.copytree(source, stage / part, ignore=shutil.ignore_patterns("__pycache__", "*.parquet", ".*"))
    shutil.copy(Path(str(resources.files("training"))) / "__init__.py", stage / "training" / "__init__.py")


def _registered(settings: Settings, identity: dict[str, Any]) -> datetime:
    """When the registry got the model: a time that is the champion's own, to the second."""
    version = settings.mlflow().get_model_version(identity["model_name"], identity["model_version"])
    return datetime.fromtimestamp(version.creation_timestamp // 1000, UTC)


def _bento(settings: Settings, stage: Path, identity: dict[str, Any], needed: list[str]) -> Any:
    """BentoML's own build, into a store beside the stage."""
    os.environ["BENTOML_HOME"] = str(settings.home.resolve() / "bentoml")
    from bentoml import bentos
    from bentoml._internal.bento import BentoStore
    from bentoml._internal.bento.build_config import BentoEnvSchema

    store = stage.with_name("store")
    store.mkdir()
    return bentos.build(
        SERVICE,
        name="holdfast",
        version=f"v{identity['model_version']}-{identity['digest'][:12]}",
        description=ABOUT.format(**identity),
        include=["*"],
        labels={"model": identity["model"], "model_version": identity["model_version"]},
        envs=[BentoEnvSchema(name, value) for name, value in sorted(QUIET.items())],
        python={"packages": needed, "lock_packages": False, "pack_git_packages": False},
        build_ctx=str(stage),
        _bento_store=BentoStore(store),
    )


def _place(bento: Path, digest: str, home: Path) -> Path:
    """Move a finished Bento into the store under ``home``; whoever looks finds the old one or the new one, whole."""
    target = home / "bentos" / bento.parent.name / bento.name
    fresh, old = (home / "tmp" / f"{bento.name}.{word}" for word in ("new", "old"))
    for left in (fresh, old):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    if not _is(target, digest):
        shutil.copytree(bento, fresh)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    write_text(target.parent / "latest", target.name)
    return target


def _is(bento: Path, digest: str) -> bool:
    try:
        return check(bento) == digest
    except InputError:
        return False
