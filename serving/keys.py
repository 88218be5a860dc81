"""API keys: who may call what, how often. The file holds SHA-256 digests only; a key is shown once, when it is made.

The file is ``keys.json`` in the home, or ``HOLDFAST_KEYS``. A key is 256 random bits, so that a plain digest of it can neither be
guessed nor looked up in tables.
"""

import hashlib
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from features.errors import InputError
from features.files import read_json, write_json

SCOPES = ("score", "events", "admin")
"""score: scores, decisions, profiles; events: events, outcomes, consents; admin: erasure and metrics, and all of the others."""
FILE = "keys.json"
LOOK_SECONDS = 1.0
PREFIX = "hf_"
log = logging.getLogger("holdfast.keys")


@dataclass(frozen=True)
class Key:
    """What a caller is allowed."""

    id: str
    digest: str
    scopes: tuple[str, ...]
    per_second: float
    created: str

    def allows(self, scope: str) -> bool:
        """Whether the key is good for a scope."""
        return scope in self.scopes or "admin" in self.scopes


ANYBODY = Key("anybody", "", SCOPES, float("inf"), "")
"""Who calls a service on this machine that was told to ask for no key."""


class Keys:
    """The keys of a file; a changed file is read again within a second, so that a key can be withdrawn while the service runs."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._looked, self._stamp = 0.0, -1
        self._keys: dict[str, Key] = {}

    def find(self, token: str) -> Key | None:
        """The key that a caller shows."""
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            stamp = self.file.stat().st_mtime_ns if self.file.exists() else 0
            if stamp != self._stamp:
                self._stamp, self._keys = stamp, {}
                try:
                    self._keys = {key.digest: key for key in read(self.file)}
                except (ValueError, KeyError, TypeError):  # spoilt: nobody comes in until it is mended
                    log.error("%s is not a file of keys: every key is refused", self.file)
        return self._keys.get(digest(token))


def digest(token: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(token.encode()).hexdigest()


def read(file: Path) -> list[Key]:
    """All keys of a file; none where there is no file."""
    if not file.exists():
        return []
    return [Key(**{**found, "scopes": tuple(found["scopes"])}) for found in read_json(file)["keys"]]


def add(file: Path, id: str, scopes: Sequence[str], per_second: float) -> str:
    """Make a key and return it. Raises InputError for an id in use or a scope that does not exist."""
    known = read(file)
    if any(key.id == id for key in known):
        raise InputError(f"key {id!r}", "exists already", f"withdraw it first (`holdfast keys remove {id}`) or choose another name")
    if wrong := [scope for scope in scopes if scope not in SCOPES]:
        raise InputError(f"scope {wrong[0]!r}", "does not exist", f"choose among {', '.join(SCOPES)}")
    token = PREFIX + secrets.token_urlsafe(32)
    _write(file, [*known, Key(id, digest(token), tuple(scopes), per_second, datetime.now(UTC).isoformat(timespec="seconds"))])
    return token


def remove(file: Path, id: str) -> None:
    """Withdraw a key; a running service refuses it within a second."""
    known = read(file)
    kept = [key for key in known if key.id != id]
    if len(kept) == len(known):
        raise InputError(f"key {id!r}", "does not exist", "`holdfast keys list` names them")
    _write(file, kept)


def _write(file: Path, keys: Sequence[Key]) -> None:
    write_json(file, {"keys": [asdict(key) for key in keys]})
    file.chmod(0o600)
