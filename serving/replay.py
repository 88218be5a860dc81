"""A logged decision made again from what was logged: the same inputs, policy and prices must give the same tier."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import InputError
from serving import day_file, decide
from serving.decide import Binding, Options, Situation
from serving.online import OnlineStore
from serving.policy import TIERS, Policy
from training.models.base import Rows
from training.models.scorer import Scorer

SAME = 1e-9
RAN_OUT = (Binding.BUDGET, Binding.CAPACITY)


@dataclass(frozen=True)
class Replay:
    """A decision, how it came about, and whether making it again gives the same."""

    body: dict[str, Any]
    situation: Situation
    priced: dict[str, float]
    """Gain less what the tier uses at the day's prices; forbidden tiers are left out."""
    blocked: dict[str, str]
    same_gains: bool
    same_tier: bool
    probability: float | None
    """What the named version of the model says of the logged features; None where the log refers to the table's row."""

    @property
    def exact(self) -> bool:
        """Whether everything came out the same, to the last bit; the probability, computed alone now and among others then, to `SAME`."""
        same = self.probability is None or abs(self.probability - self.body["churn_probability"]) <= SAME
        return self.same_gains and self.same_tier and same


def replay(id: str, store: OnlineStore, folder: Path, scorer: Callable[[str], Scorer]) -> Replay:
    """Make a decision again. ``folder`` holds the daily files; ``scorer`` loads a version of the model.

    Raises InputError when the decision or its policy is not known.
    """
    found = store.decision(id)
    if found is None:
        return _of_day(id, store, folder)
    _, body, row = found
    policy = _policy(store, body["policy_digest"])
    situation = Situation.from_json(body["situation"], policy)
    prices = [body["prices"]] if isinstance(body["prices"], dict) else body["prices"]  # of one day, before 2026-11-27
    ran_out = [TIERS.index(tier) for tier, why in body["blocked"].items() if why in [one.told for one in RAN_OUT]]
    probability = None if row is None else _probability(scorer(body["model_version"]), row, body)
    return _again(policy, situation, prices, body, ran_out, probability)


def _of_day(id: str, store: OnlineStore, folder: Path) -> Replay:
    for file in sorted(folder.glob("*.parquet"), reverse=True):
        if told := day_file.read(file, id):
            plain, row, prices = told
            policy = _policy(store, row["policy_digest"])
            situation = Situation.from_json(plain, policy)
            gains = {tier: round(row[f"expected_gain_{tier}"], 4) for tier in TIERS}
            body = {
                **row,
                "expected_gain": gains,
                "blocked": {tier: row[f"blocked_{tier}"] for tier in TIERS[1:] if row[f"blocked_{tier}"]},
            }
            return _again(policy, situation, prices, body, [], None)
    raise InputError(f"decision {id}", "is not in the log", f"it may have been erased; daily files lie in {folder}")


def _policy(store: OnlineStore, digest: str) -> Policy:
    told = store.meta(f"policy:{digest}")
    if told is None:
        raise InputError(f"policy {digest}", "is not kept in this store", "use the store that the decision was logged in")
    return Policy.model_validate(told, strict=False)


def _again(
    policy: Policy,
    situation: Situation,
    prices: list[dict[str, float]],
    body: dict[str, Any],
    ran_out: list[int],
    probability: float | None,
) -> Replay:
    """``marginal`` decisions of a batch are those where prices leave a tie of whole contacts, which the allocation has settled."""
    options = decide.options(policy, situation)
    for tier in ran_out:
        options.blocked_NT[:, tier] = Binding[str(body["blocked"][TIERS[tier]]).upper()]
    prices_DK = np.array([[of_day[name] for name in policy.resources] for of_day in prices]).reshape(len(prices), -1)
    priced = decide.priced(policy, options, prices_DK)[0]
    found, taken = int(priced.argmax()), TIERS.index(body["tier"])
    return Replay(
        body,
        situation,
        {name: float(value) for name, value in zip(TIERS, priced, strict=True) if np.isfinite(value)},
        body["blocked"],
        _same_figures(policy, options, prices_DK, taken, situation, body),
        (found == taken or (body["marginal"] and np.isfinite(priced[taken]))) and _said(policy, taken, body),
        probability,
    )


def _same_figures(policy: Policy, options: Options, prices_DK: Any, taken: int, situation: Situation, body: dict[str, Any]) -> bool:
    """Whether gains, what is blocked and what bound come out as they were logged."""
    why, given_up = decide.binding(policy, options, np.array([taken]), prices_DK, np.array([body.get("why") or 0]))
    gains = {name: round(gain, 4) for name, gain in zip(TIERS, options.gains_NT[0].tolist(), strict=True)}
    blocked = {TIERS[tier]: Binding(int(code)).told for tier, code in enumerate(options.blocked_NT[0]) if code}
    return (
        gains == body["expected_gain"]
        and blocked == body["blocked"]
        and Binding(int(why[0])).told == (body["binding"] or None)
        and round(float(given_up[0]), 4) == round(body["gain_given_up"], 4)
        and situation.p[0] == body["churn_probability"]
    )


def _said(policy: Policy, tier: int, body: dict[str, Any]) -> bool:
    """Whether the logged strategy and channel are an action of the policy for the tier."""
    if tier == 0:
        return not body["strategy"] and not body["channel"]
    actions = [getattr(rule, TIERS[tier]) for rule in policy.rules]
    rules = [actions[body["rule"]]] if "rule" in body else [one for one in actions if one]
    return any(one is not None and one.strategy == body["strategy"] and body["channel"] in one.channels for one in rules)


def _probability(scorer: Scorer, row: bytes, body: dict[str, Any]) -> float | None:
    """None where the model reads sequences and the row is of a time when they were not logged."""
    names, channels = tuple(scorer.manifest.names), scorer.manifest.channels
    if len(row) == 8 * len(names):
        if scorer.model.reads_sequences and channels:
            return None
        channels = ()
    return float(scorer.predict(Rows.unpacked(names, row, channels, np.datetime64(body["snapshot"], "us")))[0])
