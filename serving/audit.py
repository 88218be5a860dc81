"""Who read, decided, changed or erased what: append-only JSON lines, one file a day; customers as a one-way digest of the pseudonym."""

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path

import orjson


class Audit:
    """The audit log of one folder; lines of several processes never mix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._day, self._file = "", -1

    def write(self, key: str, action: str, status: int, customers: int, pseudonym: str | None = None) -> None:
        """One line: which key did what, how it ended, about how many customers, or about which one."""
        now = datetime.now(UTC)
        if f"{now:%Y-%m-%d}" != self._day:
            self._open(f"{now:%Y-%m-%d}")
        line = {"at": now, "key": key, "action": action, "status": status, "customers": customers}
        os.write(self._file, orjson.dumps(line | ({"subject": subject(pseudonym)} if pseudonym else {})) + b"\n")

    def _open(self, day: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._file >= 0:
            os.close(self._file)
        self._day, self._file = day, os.open(self.folder / f"{day}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def subject(pseudonym: str) -> str:
    """Stands for a customer after the pseudonym itself is gone from everywhere."""
    return hashlib.sha256(f"audit:{pseudonym}".encode()).hexdigest()[:32]
