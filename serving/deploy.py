"""A packaged Bento -> a folder to deploy: the Bento, a Dockerfile, a Compose file and a Kubernetes manifest.

The folder is all that a build machine needs: ``docker build FOLDER``, ``docker compose up``, ``kubectl apply``.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from features.errors import InputError
from features.files import read_json, write_text
from features.settings import Settings
from serving.package import check
from serving.server import QUIET

PYTHON = "python:3.11.14-slim-trixie"
"""Base image. A build may name another, or the same by digest: ``--build-arg PYTHON=python@sha256:...``."""
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
USER = 10001
"""User and group in the container: a number that no user of the host has."""
STATE, BENTO, PORT = "/var/lib/holdfast", "/opt/holdfast/bento", 3000
FILES = ("Dockerfile", ".dockerignore", "docker-compose.yaml", "kubernetes.yaml")
IMAGE = re.compile(r"[a-z0-9][a-z0-9._-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?")
MAKE_KEY = (
    "from features.settings import Settings; from serving import keys; "
    'print(keys.add(Settings().home / keys.FILE, "shop", ["score", "events"], 100.0))'
)
"""Makes an API key inside the container, where there is no `holdfast` command."""
SIZES = {"cpus": 2, "memory_mb": 2048, "storage": "10Gi"}
"""Limits of one container and size of its state volume."""


def write(folder: Path, settings: Settings, told: dict[str, Any], image: str | None = None) -> list[Path]:
    """Write the manifests and a copy of the Bento into a folder; returns the manifests' paths.

    ``told`` is what `package.build` or `package.packaged` returned; ``image`` names the container image, by default
    ``holdfast:<version of the Bento>``. Raises InputError when the Bento is altered, the name is none, or the folder
    holds something else.
    """
    bento, image = Path(told["path"]), image or told["tag"]
    check(bento)
    if not IMAGE.fullmatch(image):
        raise InputError(image, "is not the name of a container image", "write [registry/]name[:tag], in lower case")
    _refuse(folder, settings)
    facts = _facts(bento, told, image)
    shutil.rmtree(folder / "bento", ignore_errors=True)
    shutil.copytree(bento, folder / "bento", ignore=shutil.ignore_patterns("__pycache__"))
    return [write_text(folder / name, text) for name, text in _rendered(facts).items()]


def environment() -> dict[str, str]:
    """What the service's environment is in a container, but for secrets; BentoML's scratch is not kept."""
    places = {"HOLDFAST_HOME": STATE, "HOLDFAST_FEATURES": f"{STATE}/features.parquet", "BENTOML_HOME": "/tmp/bentoml"}
    return {**places, **QUIET}


def _refuse(folder: Path, settings: Settings) -> None:
    """Never delete what is not ours: a folder is empty, new, or holds what an earlier call wrote."""
    fix = "name an empty or new folder, or one that `holdfast package --deploy` wrote"
    if settings.home.resolve().is_relative_to(folder.resolve()):
        raise InputError(str(folder), "holds HOLDFAST_HOME", fix)
    if folder.exists() and not folder.is_dir():
        raise InputError(str(folder), "is not a folder", fix)
    strange = sorted({file.name for file in folder.iterdir()} - {*FILES, "bento"}) if folder.exists() else []
    if strange:
        raise InputError(str(folder), f"holds {strange[0]}", fix)


def _facts(bento: Path, told: dict[str, Any], image: str) -> dict[str, Any]:
    """What the templates ask for."""
    needed = (bento / "env" / "python" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return {
        **{name: told[name] for name in ("tag", "model", "model_version", "model_name")},
        **SIZES,
        "version": bento.name,
        "image": image,
        "personal": read_json(bento / "src" / "package" / "model" / "manifest.json")["personal"],
        "torch_index": TORCH_INDEX if any(line.startswith("torch==") for line in needed) else None,
        "env": environment(),
        "make_key": f"env PYTHONPATH={BENTO}/src python -c '{MAKE_KEY}'",
        "python": PYTHON,
        "user": USER,
        "state": STATE,
        "bento": BENTO,
        "port": PORT,
    }


def _rendered(facts: dict[str, Any]) -> dict[str, str]:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("serving", "templates"),
        undefined=StrictUndefined,
        autoescape=False,  # no HTML: what goes in are names, versions and digests
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return {name: templates.get_template(f"{name.removeprefix('.')}.j2").render(facts) for name in FILES}
