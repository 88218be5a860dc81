"""Promotion gates: each answers pass, fail or unknown, and unknown blocks.

The home of every rule that a challenger must meet before it may become champion.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from validation.metrics import Floats, auc, difference, log_loss

Outcome = Literal["pass", "fail", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """What one gate found."""

    gate: str
    outcome: Outcome
    reason: str


def promotion(y: Floats, challenger: Floats, rivals: Mapping[str, Floats], draws: int, seed: int) -> list[Verdict]:
    """Verdicts on a challenger's test probabilities against each rival's, all on the same rows."""
    verdicts = [sound(y, challenger)]
    if verdicts[0].outcome != "pass":
        return verdicts
    if not rivals:
        return [*verdicts, Verdict("rivals", "unknown", "there is nothing to compare with")]
    for name, p in rivals.items():
        verdicts += [better_log_loss(y, challenger, name, p, draws, seed), no_worse_auc(y, challenger, name, p, draws, seed)]
    return verdicts


def passed(verdicts: list[Verdict]) -> bool:
    """Whether every gate passed; no gate at all does not pass."""
    return bool(verdicts) and all(verdict.outcome == "pass" for verdict in verdicts)


def sound(y: Floats, p: Floats) -> Verdict:
    """Probabilities are finite, within [0, 1] and not constant; the test has both classes."""
    if not y.size or len(np.unique(y)) < 2:
        return Verdict("sound", "unknown", f"the test snapshot has {y.size} rows and {len(np.unique(y))} class(es)")
    if p.shape != y.shape or not np.isfinite(p).all() or p.min() < 0 or p.max() > 1:
        return Verdict("sound", "fail", "a probability is missing, not finite or outside [0, 1]")
    if p.min() == p.max():
        return Verdict("sound", "fail", "every customer gets the same probability")
    return Verdict("sound", "pass", f"{y.size:,} probabilities, all within [0, 1]")


def better_log_loss(y: Floats, p: Floats, name: str, rival: Floats, draws: int, seed: int) -> Verdict:
    """The challenger's log loss is lower than the rival's."""
    value, low, high = difference(log_loss, y, p, rival, draws, seed)
    found = f"log loss {log_loss(y, p):.4f} against {log_loss(y, rival):.4f} of {name}: {value:+.4f} [{low:+.4f}, {high:+.4f}]"
    return Verdict(f"log_loss<{name}", "pass" if value < 0 else "fail", found)


def no_worse_auc(y: Floats, p: Floats, name: str, rival: Floats, draws: int, seed: int) -> Verdict:
    """The challenger's AUC is not lower than the rival's outside the interval."""
    value, low, high = difference(auc, y, p, rival, draws, seed)
    found = f"AUC {auc(y, p):.4f} against {auc(y, rival):.4f} of {name}: {value:+.4f} [{low:+.4f}, {high:+.4f}]"
    return Verdict(f"auc>={name}", "pass" if high >= 0 else "fail", found)
