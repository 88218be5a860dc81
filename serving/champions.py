"""Which model answers: the champion in force, the versions before it that a request may still ask for, and the switch to a new one.

A new champion is named by a small file, the *pointer*, which only `publish` writes, after the package was tried in a process of its own
(`check.py`). The service looks at it a few times a second, loads beside the old one, and switches by one assignment.
On any failure the old one stays.
"""

import logging
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from features.errors import InputError
from features.files import read_json, write_json
from serving import policy
from serving.check import like
from serving.score import IDENTITY, Engine, warm_file

KEPT = 3
"""Versions held in memory."""
POINTER, FAILED = "live.json", "failed.json"
CHECK_SECONDS = 600
log = logging.getLogger("holdfast.champions")


class Champions:
    """The engines of one service."""

    def __init__(self, package: Path, home: Path, features: Path | None, follow: Path | None = None) -> None:
        self.package, self.home, self.features, self.follow = package, home, features, follow
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._seen: Any = None
        self.failures = 0
        self.reloads = 0
        self.current = self._load(package)
        self._remember(self.current)
        self._lock = threading.Lock()

    def _load(self, package: Path) -> Engine:
        warm = warm_file(self.home, read_json(package / IDENTITY)["digest"])
        return Engine.load(package / "model", policy.read(package / "policy.toml"), self.features, warm)

    def _remember(self, engine: Engine) -> None:
        self._engines[engine.version] = engine
        self._engines.move_to_end(engine.version)
        while len(self._engines) > KEPT:
            self._engines.popitem(last=False)

    @property
    def versions(self) -> list[str]:
        """Versions in memory, the latest used last."""
        return list(self._engines)

    def engine(self, version: str | None) -> Engine | None:
        """The champion, or the version asked for; None where that is not in memory."""
        return self.current if version is None else self._engines.get(version)

    def changed(self) -> bool:
        """Whether the pointer names something new; cheap."""
        if self.follow is None:
            return False
        try:
            found = (self.follow / POINTER).stat().st_mtime_ns
        except OSError:
            return False
        return found != self._seen

    def switch(self) -> bool:
        """Load what the pointer names and put it in force; False, counted and logged, where that fails. The old one stays then."""
        if self.follow is None:
            return False
        with self._lock:
            pointer = self.follow / POINTER
            try:
                self._seen = pointer.stat().st_mtime_ns
                told = read_json(pointer)
                engine = self._engines.get(told["version"])
                if engine is None or engine.identity["digest"] != told["digest"]:
                    engine = self._load(Path(told["package"]))
                    like(engine.manifest, self.current.manifest)
                    if engine.identity["digest"] != told["digest"]:
                        raise InputError(str(pointer), "names another digest than its package has", "promote again")
            except Exception as error:
                self.failures += 1
                log.error("the new champion could not be loaded, version %s stays: %s", self.current.version, _brief(error))
                return False
            engine.adopt(warm_file(self.home, told["digest"]))
            self._remember(engine)
            self.current = engine
            self.reloads += 1
            log.info("champion is now version %s", engine.version)
            return True

    def failed(self) -> int:
        """Champions that were refused before they came here, and those that failed here."""
        refused = self.follow / FAILED if self.follow else None
        return self.failures + (len(read_json(refused)) if refused and refused.exists() else 0)


def publish(folder: Path, package: Path, home: Path, features: Path | None) -> None:
    """Try a package in a process of its own, then name it in the pointer of ``folder``. Raises InputError when it must not serve."""
    tried(package, home, features)
    identity = read_json(package / IDENTITY)
    write_json(folder / POINTER, {"package": str(package), "version": identity["model_version"], "digest": identity["digest"]})


def trial(package: Path, home: Path, features: Path | None) -> list[str]:
    """The command that runs `check.py` on a package."""
    return [sys.executable, "-m", "serving.check", str(package), str(home), *([str(features)] if features else [])]


def tried(package: Path, home: Path, features: Path | None) -> None:
    """Run `check.py` on a package. Raises InputError with what it found."""
    try:
        done = subprocess.run(trial(package, home, features), capture_output=True, text=True, errors="replace", timeout=CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        raise InputError(str(package), f"was not loaded within {CHECK_SECONDS} s", "look at the machine's load and try again") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()[-3:] or [f"its process ended with {done.returncode}: a corrupt file"]
        raise InputError(str(package), " ".join(said)[-500:], "train and promote again")


def refuse(folder: Path, version: str, why: str) -> None:
    """Note a champion that must not serve."""
    file = folder / FAILED
    before = read_json(file) if file.exists() else []
    write_json(file, [*before, {"version": version, "why": why}][-1000:])


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
