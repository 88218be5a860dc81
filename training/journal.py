"""What was decided on champions: one JSON line a decision, only ever appended, and on the disk before an alias moves.

A promotion is two lines: ``judged`` with outcome ``promote``, then, once the alias has moved, ``in force``. A kill between the two
leaves the first alone; the next promotion compares it with the alias and adds ``in force`` or ``not in force``.
"""

import json
import os
import pwd
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from features.errors import InputError

JUDGED, IN_FORCE, NOT_IN_FORCE = "judged", "in force", "not in force"
PROMOTE, REFUSE = "promote", "refuse"


def append(file: Path, event: str, facts: dict[str, Any]) -> None:
    """Append a dated line and bring it to the disk. Raises InputError when that fails: then nothing may be put in force."""
    line = json.dumps({"when": datetime.now(UTC).isoformat(timespec="seconds"), "who": _user(), "event": event, **facts}, allow_nan=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab+") as lines:
            torn = lines.tell() > 0 and _last_byte(lines) != b"\n"  # of a kill while writing
            lines.write(f"{chr(10) * torn}{line}\n".encode())
            lines.flush()
            os.fsync(lines.fileno())
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise InputError(
            str(file), f"cannot be written ({error}); nothing was changed", "make room or mend its rights, then try again"
        ) from None


def entries(file: Path) -> list[dict[str, Any]]:
    """Every whole line, oldest first. Raises InputError where the file cannot be read."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    except OSError as error:
        raise _refused(file, error) from None
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # torn by a kill: nothing was put in force on its strength
            continue
    return [entry for entry in found if isinstance(entry, dict)]


def last_in_force(file: Path) -> str | None:
    """The version that was put in force last, as far as this journal knows."""
    return next((entry["version"] for entry in reversed(entries(file)) if entry.get("event") == IN_FORCE), None)


def settle(file: Path, champion: str | None) -> None:
    """Close a promotion whose process was killed: did the alias move to the version that was to become champion?"""
    last = next(iter(entries(file)[-1:]), {})
    if last.get("event") != JUDGED or last.get("outcome") != PROMOTE:
        return
    version = last["challenger"]["version"]
    append(file, IN_FORCE if version == champion else NOT_IN_FORCE, {"version": version, "champion": champion, "told": "afterwards"})


def _refused(file: Path, error: OSError) -> InputError:
    return InputError(
        str(file), f"cannot be read or written ({error}): nothing was put in force", "make room or mend its rights, then try again"
    )


def _last_byte(lines: Any) -> bytes:
    lines.seek(-1, os.SEEK_END)
    last: bytes = lines.read(1)
    return last


def _user() -> str:
    """The account that the process runs as; not what the environment says."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"
