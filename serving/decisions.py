"""The decision log: append-only JSON lines, one file a day, by pseudonymous customer id."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

LOGGED = ("decision_id", "snapshot", "churn_probability", "tier", "expected_gain", "effects_source")


def append(folder: Path, identity: dict[str, str], results: list[dict[str, Any]]) -> None:
    """Write one line for each scored customer, all in one append, so that a kill leaves no half line behind others.

    ``propensity`` is 1: the policy is deterministic. It is logged so that later, randomised decisions can be
    evaluated against these.
    """
    now = datetime.now(UTC)
    lines = [
        orjson.dumps(
            {"at": now, "propensity": 1.0, **identity, "customer_id": result["pseudonym"], **{name: result[name] for name in LOGGED}}
        )
        for result in results
        if result["status"] == "scored"
    ]
    if not lines:
        return
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / f"{now:%Y-%m-%d}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, b"\n".join(lines) + b"\n")
    finally:
        os.close(descriptor)
