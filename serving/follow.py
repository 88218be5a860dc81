"""Follows an alias of the model registry for a running service: ``python -m serving.follow NAME ALIAS FOLDER [FEATURES]``.

A process of its own, beside the service's workers, so that MLflow's weight and a corrupt model's crash stay out of them. One follower
is at work for a folder; others wait for its lock. A new champion is fetched, its digests verified, tried (`check.py`) and only
then named in the pointer that the service looks at.
"""

import fcntl
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from features.errors import InputError, RefusedError
from features.files import read_json
from features.mlflow_client import NoAnswerError
from features.settings import ENVIRONMENT, Settings
from serving.champions import POINTER, publish, refuse

KEPT = 4
"""Fetched packages that stay on the disk."""


def follow(name: str, alias: str, folder: Path, features: Path | None) -> None:
    """Look at the alias every ``HOLDFAST_FOLLOW_SECONDS``, for ever."""
    settings = Settings()
    client = settings.mlflow()
    handled: Any = None
    while True:
        try:
            version = client.get_model_version_by_alias(name, alias)
            now = (version.version, version.tags.get("holdfast.digest"))
            if now != handled:
                _take_over(settings, name, alias, folder, features, str(version.version))
                handled = now
        except Exception as error:  # the registry may be away for a while; the service goes on
            print(f"follower: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", file=sys.stderr, flush=True)
        time.sleep(settings.follow_seconds)


def _take_over(settings: Settings, name: str, alias: str, folder: Path, features: Path | None, version: str) -> None:
    """Fetch, try and publish a version; one that fails is noted and never tried again while the alias stays on it.

    A registry that gives no answer says nothing of the version (NoAnswerError): it is tried again.
    """
    from serving.package import fetch

    package = folder / f"v{version}"
    try:
        if _in_force(folder) == version:
            return
        fetch(settings, name, alias, package, _policy(folder))
        publish(folder, package, settings.home, features)
        print(f"follower: version {version} is published", flush=True)
    except NoAnswerError:
        raise
    except (InputError, RefusedError) as error:
        refuse(folder, version, str(error).splitlines()[0])
        print(f"follower: version {version} must not serve: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        return
    for old in sorted(folder.glob("v*"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _in_force(folder: Path) -> str | None:
    pointer = folder / POINTER
    return read_json(pointer)["version"] if pointer.exists() else None


def _policy(folder: Path) -> Path | None:
    """The policy that the service was started with goes on."""
    found = folder / "policy.toml"
    return found if found.exists() else None


def main() -> None:
    """Wait for the folder's lock, then follow; ends with the process that started it."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    name, alias, folder, *features = sys.argv[1:]
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with (place / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        follow(name, alias, place, Path(features[0]) if features else None)


if __name__ == "__main__":
    main()
