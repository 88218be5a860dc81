"""Promotion gates: each answers pass, fail or unknown, and unknown blocks.

The home of every rule that a challenger must meet before it may become champion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np

from features.mapping import Promotion
from validation.metrics import Floats, auc, difference, log_loss, with_intervals

Outcome = Literal["pass", "fail", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """What one gate found."""

    gate: str
    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class Holdout:
    """The test that all are judged on: labels (n,) of one snapshot, how many are enough, and the bootstrap."""

    y: Floats
    snapshot: datetime
    floor: Promotion
    draws: int
    seed: int


@dataclass(frozen=True)
class Judged:
    """A model's test probabilities (n,), and the end of the last label window that it learnt from."""

    name: str
    p: Floats
    learnt_until: datetime | None


def promotion(test: Holdout, challenger: Judged, rivals: Sequence[Judged]) -> list[Verdict]:
    """Verdicts on a challenger against each rival, all on the same rows."""
    verdicts = [sound(test, challenger)]
    if not passed(verdicts) or not passed(verdicts := [*verdicts, enough(test)]):
        return verdicts
    verdicts += [unseen(test, [challenger, *rivals]), informative(test, challenger)]
    if not rivals:
        return [*verdicts, Verdict("rivals", "unknown", "there is nothing to compare with")]
    for rival in rivals:
        verdicts += [better_log_loss(test, challenger, rival), no_worse_auc(test, challenger, rival)]
    return verdicts


def passed(verdicts: list[Verdict]) -> bool:
    """Whether every gate passed; no gate at all does not pass."""
    return bool(verdicts) and all(verdict.outcome == "pass" for verdict in verdicts)


def sound(test: Holdout, one: Judged) -> Verdict:
    """Probabilities are finite, within [0, 1] and not constant; labels are known."""
    y, p = test.y, one.p
    if not y.size or not np.isin(y, (0, 1)).all():
        return Verdict("sound", "unknown", f"the test snapshot has {y.size:,} rows, {int((~np.isin(y, (0, 1))).sum()):,} without a label")
    if p.shape != y.shape or not np.isfinite(p).all() or p.min() < 0 or p.max() > 1:
        return Verdict("sound", "fail", "a probability is missing, not finite or outside [0, 1]")
    if p.min() == p.max():
        return Verdict("sound", "fail", "every customer gets the same probability")
    return Verdict("sound", "pass", f"{y.size:,} probabilities, all within [0, 1]")


def enough(test: Holdout) -> Verdict:
    """The test has enough rows, and enough of each class, for a difference to be more than luck."""
    rows, churned = test.y.size, int(test.y.sum())
    floor, usual = test.floor, Promotion()
    found = f"{rows:,} test rows, {churned:,} churned and {rows - churned:,} not"
    if rows < floor.min_rows or min(churned, rows - churned) < floor.min_class:
        wanted = f"asked are {floor.min_rows:,} and {floor.min_class:,} of each class"
        step = "bring more customers, or set a floor of your own ([promotion] in the mapping file; --min-rows and --min-class of a table)"
        return Verdict("enough", "unknown", f"{found}; {wanted}: {step}")
    if rows < usual.min_rows or min(churned, rows - churned) < usual.min_class:
        meaning = "with so few, luck may decide between models that are close: look at the intervals"
        return Verdict("enough", "pass", f"{found}; fewer than the usual {usual.min_rows} and {usual.min_class} of each class: {meaning}")
    return Verdict("enough", "pass", found)


def unseen(test: Holdout, models: Sequence[Judged]) -> Verdict:
    """All label windows that any of the models learnt from have ended when the test snapshot begins."""
    begins = f"the test begins at {test.snapshot:%Y-%m-%d}"
    for one in models:
        if one.learnt_until is None:
            return Verdict("unseen", "unknown", f"{one.name} does not tell which snapshots it learnt from: train again")
        if one.learnt_until > test.snapshot:
            learnt = f"{one.name} learnt from labels up to {one.learnt_until:%Y-%m-%d}"
            return Verdict("unseen", "unknown", f"{learnt}, {begins}: test on a later snapshot")
    last = max(one.learnt_until for one in models if one.learnt_until)
    return Verdict("unseen", "pass", f"no model learnt from a label window that ends after {last:%Y-%m-%d}, {begins}")


def informative(test: Holdout, one: Judged) -> Verdict:
    """The AUC lies above that of a coin, with its whole interval."""
    value, low, high = with_intervals(test.y, one.p, test.draws, test.seed, {"auc": auc})["auc"]
    found = f"AUC {value:.4f} [{low:.4f}, {high:.4f}]"
    if value <= 0.5:
        return Verdict("auc>0.5", "fail", f"{found} is not above 0.5")
    if not low > 0.5:
        return Verdict("auc>0.5", "unknown", f"{found}: the interval does not lie above 0.5; bring more customers, or features that tell")
    return Verdict("auc>0.5", "pass", f"{found} lies above 0.5")


def better_log_loss(test: Holdout, one: Judged, rival: Judged) -> Verdict:
    """The challenger's log loss is lower than the rival's."""
    value, low, high = difference(log_loss, test.y, one.p, rival.p, test.draws, test.seed)
    ours, theirs = log_loss(test.y, one.p), log_loss(test.y, rival.p)
    found = f"log loss {ours:.4f} against {theirs:.4f} of {rival.name}: {value:+.4f} [{low:+.4f}, {high:+.4f}]"
    return Verdict(f"log_loss<{rival.name}", "pass" if value < 0 else "fail", found)


def no_worse_auc(test: Holdout, one: Judged, rival: Judged) -> Verdict:
    """The challenger's AUC is not lower than the rival's outside the interval."""
    value, low, high = difference(auc, test.y, one.p, rival.p, test.draws, test.seed)
    ours, theirs = auc(test.y, one.p), auc(test.y, rival.p)
    found = f"AUC {ours:.4f} against {theirs:.4f} of {rival.name}: {value:+.4f} [{low:+.4f}, {high:+.4f}]"
    return Verdict(f"auc>={rival.name}", "pass" if high >= 0 else "fail", found)
