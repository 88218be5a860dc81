"""From churn probability, customer value and segment to a tier: expected gain under stated effects.

gain(tier) = churn probability x effect(segment, tier) x value - cost(tier)      [P 9.1, S FAQ 2]
"""

import tomllib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from features.domain import PlanStage, Stage, Tier, ValueSegment
from features.errors import InputError

Floats = npt.NDArray[np.float64]
CONTACTS = ("nudge", "offer", "concierge")


class Segment(StrEnum):
    """Whom a strategy is for; the first that fits, from the top."""

    HIGH_VALUE = "high_value"
    NEW = "new"
    SILENT = "silent"
    LOYAL = "loyal"
    STANDARD = "standard"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Value(_Part):
    """Customer value = order value x orders a year x ``lifetime_years`` x ``margin``."""

    margin: float = Field(gt=0, le=1)
    lifetime_years: float = Field(gt=0)


class Contact(_Part):
    """When a customer is contacted at all."""

    min_churn_probability: float = Field(ge=0, le=1)


class Costs(_Part):
    """Cost of one contact of each tier."""

    nudge: float = Field(ge=0)
    offer: float = Field(ge=0)
    concierge: float = Field(ge=0)


class Effects(_Part):
    """Share of leaving customers that each tier wins back."""

    nudge: float = Field(ge=0, le=1)
    offer: float = Field(ge=0, le=1)
    concierge: float = Field(ge=0, le=1)


class Action(_Part):
    """What a contact says and by which channel."""

    strategy: str
    channel: Literal["push", "e-mail", "sms", "call"]


class Strategies(_Part):
    """The action of each tier."""

    nudge: Action
    offer: Action
    concierge: Action


class Policy(_Part):
    """A policy file, parsed."""

    version: str
    effects_source: Literal["assumed", "measured"]
    value: Value
    contact: Contact
    costs: Costs
    effects: dict[Segment, Effects]
    strategies: dict[Segment, Strategies]

    def gains(self, p: Floats, value: Floats, segments: list[Segment]) -> Floats:
        """Expected gain of tiers 0..3, shape (n, 4); tier 0 gains nothing."""
        effect_N3 = np.array([[getattr(self.effects[s], tier) for tier in CONTACTS] for s in segments]).reshape(-1, 3)
        cost_3 = np.array([getattr(self.costs, tier) for tier in CONTACTS])
        gains_N4 = np.zeros((len(p), 4))
        gains_N4[:, 1:] = p[:, None] * effect_N3 * value[:, None] - cost_3
        return gains_N4

    def tiers(self, p: Floats, gains_N4: Floats) -> list[Tier]:
        """The tier with the highest gain; none when no tier gains or the risk is low."""
        best = np.where(p >= self.contact.min_churn_probability, gains_N4.argmax(axis=1), Tier.NONE)
        return [Tier(tier) for tier in best.tolist()]

    def action(self, segment: Segment, tier: Tier) -> Action | None:
        """What to do; None for tier 0."""
        return None if tier is Tier.NONE else getattr(self.strategies[segment], tier.name.lower())


@dataclass(frozen=True)
class Situation:
    """What a policy looks at: value (n,) in the shop's currency, and segments."""

    value: Floats
    segments: list[Segment]


def situation(policy: Policy, table: pa.Table) -> Situation:
    """Value and segment of each row of a feature table.

    Orders a year are counted over at least a year, so that a first order is not taken for a habit.
    """
    years = np.maximum(table["tenure_days"].to_numpy(), 365) / 365
    a_year = table["frequency_orders"].to_numpy() / years
    value = table["order_value_mean"].to_numpy() * a_year * policy.value.lifetime_years * policy.value.margin
    columns = (table[name].to_pylist() for name in ("value_segment", "lifecycle_stage", "plan_stage"))
    return Situation(value, [_segment(*row) for row in zip(*columns, strict=True)])


def _segment(value: str, stage: str, plan: str) -> Segment:
    if value == ValueSegment.HIGH:
        return Segment.HIGH_VALUE
    if stage == Stage.NEW:
        return Segment.NEW
    if plan in (PlanStage.SILENT, PlanStage.CHURNED):
        return Segment.SILENT
    return Segment.LOYAL if stage == Stage.LOYAL else Segment.STANDARD


def default_file() -> Path:
    """The shipped policy."""
    return Path(__file__).with_name("policy.toml")


def read(file: Path | None = None) -> Policy:
    """Parse a policy file (default: the shipped one). Raises InputError naming file, key, value and fix."""
    file = file or default_file()
    try:
        policy = Policy(**tomllib.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(str(file), f"cannot be read as TOML: {error}", "start from a copy of serving/policy.toml") from None
    except ValidationError as error:
        told = "\n  ".join(f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors())
        raise InputError(str(file), told, "correct the key; serving/policy.toml shows every one") from None
    for part in ("effects", "strategies"):
        if missing := [segment for segment in Segment if segment not in getattr(policy, part)]:
            raise InputError(f"{file}: {part}", f"lacks the segment(s) {', '.join(missing)}", f"add [{part}.{missing[0]}]")
    return policy
