"""The columns of a day's file of decisions, and one decision of it read back, to be made again (`replay.py`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.domain import RISK_HIGH, RISK_MEDIUM, RiskBand
from serving import decide
from serving.decide import NO_OCCASION, OCCASIONS, SEGMENTS, Binding
from serving.decisions import Decided, runners_up
from serving.policy import CHANNELS, TIERS, Policy


def columns(decided: Decided, policy: Policy) -> dict[str, Any]:
    """What is told of n decisions, contacted or not, with the situation they were made in."""
    s, found = decided.situation, decided.options
    why, given_up = decide.binding(policy, found, decided.tiers, decided.prices_DK, decided.why_N)
    texts = ["", *(getattr(getattr(rule, tier), "strategy", "") for rule in policy.rules for tier in TIERS[1:])]
    said = np.where(decided.tiers > 0, decided.rule * 3 + decided.tiers, 0)
    bound = [binding.told or "" for binding in Binding]
    return {
        "churn_probability": s.p,
        "risk_band": _words(np.digitize(s.p, [RISK_MEDIUM, RISK_HIGH]), [RiskBand.LOW, RiskBand.MEDIUM, RiskBand.HIGH]),
        "segment": _words(s.segment, SEGMENTS),
        "customer_value": s.value,
        "tier": _words(decided.tiers, TIERS),
        "strategy": _words(said, texts),
        "channel": _words(decided.channel + 1, ("", *CHANNELS)),
        "runner_up": _words(runners_up(decided, policy) + 1, ("", *TIERS)),
        "binding": _words(why, bound),
        "gain_given_up": given_up,
        "propensity": decided.propensity_N,
        **{f"expected_gain_{tier}": found.gains_NT[:, place] for place, tier in enumerate(TIERS)},
        **{f"blocked_{tier}": _words(found.blocked_NT[:, place], bound) for place, tier in enumerate(TIERS) if place},
        "marginal": decide.choice(policy, found, decided.prices_DK) != decided.tiers,
        "why": decided.why_N,
        "touchpoint_bits": _bits(s.touchpoints_NP),
        "silence_days": s.silence_days,
        "open_bits": _bits(s.open_NC),
        "capped_bits": _bits(s.capped_NC),
        "near_bits": _bits(s.near_NC),
        "days": pa.FixedSizeListArray.from_arrays(pa.array(s.day_NC.ravel(), pa.int8()), len(CHANNELS)),
        "last_tier": s.last_tier,
        "last_age_days": s.last_age_days,
        "answered": s.answered,
    }


class ReadBack(NamedTuple):
    """A decision of a day's file: its situation (`Situation.from_json`), its row, and the prices of the day and those after it."""

    situation: dict[str, Any]
    row: dict[str, Any]
    prices: list[dict[str, float]]


def read(file: Path, id: str) -> ReadBack | None:
    """One decision of a day's file; None where it is not there."""
    rows = pq.read_table(file, filters=[("decision_id", "=", id)])
    if not rows.num_rows:
        return None
    (row,) = rows.to_pylist()
    flags = {name: [bool(row[f"{bits}_bits"] >> k & 1) for k in range(width)] for name, bits, width in _FLAGS if f"{bits}_bits" in row}
    flags |= {"day_NC": row["days"]} if "days" in row else {}
    plain = {
        "p": row["churn_probability"],
        "value": row["customer_value"],
        "segment": [segment.value for segment in SEGMENTS].index(row["segment"]),
        "occasion": [one.value for one in OCCASIONS].index(row["occasion"]) if row["occasion"] else NO_OCCASION,
    }
    plain |= {name: row[name] for name in ("silence_days", "last_tier", "last_age_days", "answered")}
    prices: dict[str, dict[str, float]] = {}
    for key, value in (rows.schema.metadata or {}).items():
        if key.startswith(b"price."):
            *day, name = key.decode().removeprefix("price.").split(".")  # before 2026-11-27 there was one day
            prices.setdefault("".join(day) or "0", {})[name] = float(value)
    return ReadBack(plain | flags, row, list(prices.values()) or [{}])


_FLAGS = (
    ("touchpoints_NP", "touchpoint", 8),
    ("open_NC", "open", len(CHANNELS)),
    ("near_NC", "near", len(CHANNELS)),
    ("capped_NC", "capped", len(CHANNELS)),
)


def _words(places: Any, words: Sequence[Any]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.asarray(places), pa.int32()), pa.array([str(word) for word in words], pa.string()))


def _bits(flags: Any) -> Any:
    return flags @ (1 << np.arange(flags.shape[1]))
