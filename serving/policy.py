"""The policy file: values, effects, costs, constraints and what to do, read and checked. Decisions are made in `decide.py`."""

import tomllib
from collections.abc import Iterator
from datetime import time
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError, model_validator

from features.domain import ChurnReason
from features.errors import InputError
from features.files import sha256_json
from features.schema import CONTACT_CHANNELS
from serving.online import UNITS
from serving.policy_rules import doubts as doubts
from serving.policy_rules import faults, shown

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SCHEMA = 2
TIERS = ("none", "nudge", "offer", "concierge")
CONTACTS = TIERS[1:]
CHANNELS = CONTACT_CHANNELS
REMEMBERED_DAYS = 366
"""Contacts are remembered for so long: no cap, ladder or gap may look back further."""
Channel = Literal["push", "e-mail", "sms", "wechat", "call"]
TierName = Literal["nudge", "offer", "concierge"]
TouchpointName = Literal[
    "no_review", "no_second_order", "no_campaign", "complaint_open", "silent", "cart_left", "refund_late", "delivery_late"
]
START = "start from `holdfast policy show > my_policy.toml`"
FIX = "correct the key; `holdfast policy show` prints the shipped file with every one"


class Segment(StrEnum):
    """Whom a strategy is for; the first that fits, from the top."""

    HIGH_VALUE = "high_value"
    PRICE_SENSITIVE = "price_sensitive"
    NEW = "new"
    SILENT = "silent"
    LOYAL = "loyal"
    STANDARD = "standard"


class Occasion(StrEnum):
    """A moment that asks for a decision [S 4]."""

    FIRST_ORDER = "first_order_24h"  # a day after the first order
    ANNIVERSARY = "anniversary"  # of the first order
    SILENT = "silent_90d"  # no order for 90 days
    CART_LEFT = "cart_left"  # added to the cart, not paid, and gone
    COMPLAINT = "complaint_open"  # a complaint was opened


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value,)


Word = TypeVar("Word")
Listed = Annotated[tuple[Word, ...], BeforeValidator(_listed)]
"""One word or a list of them."""
SegmentName = Annotated[Segment, Strict(False)]
ReasonName = Annotated[ChurnReason, Strict(False)]
OccasionName = Annotated[Occasion, Strict(False)]


class Value(_Part):
    """Customer value = order value x orders a year x ``lifetime_years`` x ``margin``."""

    margin: float = Field(gt=0, le=1)
    lifetime_years: float = Field(gt=0)


class Contact(_Part):
    """When a customer is contacted at all, and how contacts follow each other."""

    min_churn_probability: float = Field(ge=0, le=1)
    min_gap_days: float = Field(ge=0, le=REMEMBERED_DAYS)
    climb_after_days: float = Field(ge=0)
    ladder_days: float = Field(gt=0, le=REMEMBERED_DAYS)


class Unrecoverable(_Part):
    """Who is left alone because money is better spent elsewhere [L 2.5]."""

    silence_days: float = Field(gt=0)
    after_concierge: bool


class Consent(_Part):
    """What counts where the data do not tell."""

    purpose: str
    unknown: Literal["deny", "allow"]
    untracked: Literal["deny", "allow"]


def _clock(value: Any) -> Any:
    clock = time.fromisoformat(value) if isinstance(value, str) else value
    if isinstance(clock, time) and clock.tzinfo is not None:
        raise ValueError("quiet hours are in the customer's time zone: leave the offset out")
    return clock


Clock = Annotated[time, BeforeValidator(_clock)]


class QuietHours(_Part):
    """When a channel must be silent; the span may go over midnight."""

    start: Clock
    end: Clock
    channels: Listed[Channel]


class Failed(_Part):
    """What becomes of the charge of a contact that could not be made: ``returned`` to the day it was charged to, or ``spent``."""

    cost: Literal["returned", "spent"] = "returned"
    hours: Literal["returned", "spent"] = "spent"


class Budget(_Part):
    """Money for all contacts of a day."""

    per_day: float = Field(ge=0)


class Capacity(_Part):
    """Hours of a day, and what one contact takes of them."""

    hours_per_day: float = Field(ge=0)
    hours_per_contact: float = Field(gt=0)


class Cap(_Part):
    """At most so many contacts of one customer within so many days."""

    channel: Literal["any", "push", "e-mail", "sms", "wechat", "call"]
    segment: SegmentName | None = None
    contacts: int = Field(ge=0)
    days: float = Field(gt=0, le=REMEMBERED_DAYS)


class Tiers(_Part):
    """A number for each tier of contact."""

    nudge: float = Field(ge=0)
    offer: float = Field(ge=0)
    concierge: float = Field(ge=0)


class Effects(_Part):
    """Share of leaving customers that each tier wins back."""

    nudge: float = Field(ge=0, le=1)
    offer: float = Field(ge=0, le=1)
    concierge: float = Field(ge=0, le=1)


class Action(_Part):
    """What a contact says, and the channels in order of preference."""

    strategy: str = Field(min_length=1)
    channels: Listed[Channel] = Field(min_length=1)


class Rule(_Part):
    """For whom which action; what is not asked for may be anything."""

    segment: Listed[SegmentName] = ()
    touchpoint: Listed[TouchpointName] = ()
    reason: Listed[ReasonName] = ()
    occasion: Listed[OccasionName] = ()
    nudge: Action | None = None
    offer: Action | None = None
    concierge: Action | None = None

    @property
    def asked(self) -> dict[str, tuple[str, ...]]:
        """The words of each thing that a rule may ask for; none: it may be anything."""
        return {"segment": self.segment, "touchpoint": self.touchpoint, "reason": self.reason, "occasion": self.occasion}

    @property
    def asks(self) -> bool:
        """Whether it is not for everybody."""
        return any(self.asked.values())

    @property
    def actions(self) -> dict[str, Action]:
        """The action of each tier that it names."""
        return {tier: action for tier in CONTACTS if (action := getattr(self, tier))}

    def fits_all_of(self, later: "Rule") -> bool:
        """Whether it fits everybody whom a later rule fits."""
        pairs = zip(self.asked.values(), later.asked.values(), strict=True)
        return all(not mine or (len(other) > 0 and set(other) <= set(mine)) for mine, other in pairs)

    def hides(self, later: "Rule") -> bool:
        """Whether it fits everybody whom a later rule fits, and names every tier that this names."""
        return self.fits_all_of(later) and self.actions.keys() >= later.actions.keys()


class Policy(_Part):
    """A policy file, parsed."""

    schema_: Literal[2] = Field(alias="schema")
    version: str = Field(min_length=1, max_length=64)
    effects_source: Literal["assumed", "measured"]
    value: Value
    contact: Contact
    unrecoverable: Unrecoverable
    consent: Consent
    quiet_hours: QuietHours | None = None
    budget: Budget | None = None
    capacity: dict[TierName, Capacity] = {}
    failed: Failed = Failed()
    caps: tuple[Cap, ...] = Field((), strict=False)
    costs: Tiers
    effects: dict[SegmentName, Effects]
    rules: tuple[Rule, ...] = Field(min_length=1, strict=False)

    @model_validator(mode="after")
    def _whole(self) -> "Policy":
        if missing := [segment.value for segment in Segment if segment not in self.effects]:
            raise ValueError(f"effects lacks the segment(s) {', '.join(missing)}: add [effects.{missing[0]}]")
        for place, rule in enumerate(self.rules[:-1], 1):
            if not rule.asks:
                raise ValueError(f"rule {place} fits everybody, so that no later one is ever reached: move it to the end")
            if not (rule.nudge or rule.offer or rule.concierge):
                raise ValueError(f"rule {place} names no tier: give it a nudge, an offer or a concierge")
        for place, rule in enumerate(self.rules[1:], 2):
            if hiding := next((k for k, before in enumerate(self.rules[: place - 1], 1) if before.hides(rule)), None):
                raise ValueError(f"rule {place} is never reached: rule {hiding} fits all that it fits; put it before that one")
        last = self.rules[-1]
        if last.asks or not (last.nudge and last.offer and last.concierge):
            raise ValueError("the last rule must fit everybody and name all three tiers: somebody would be left without an action")
        return self

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self.digest == other.digest

    @cached_property
    def digest(self) -> str:
        """Digest of what the file says, whatever its comments and order: the key under which it is kept."""
        return sha256_json(self.model_dump(mode="json", by_alias=True))[:16]

    @cached_property
    def effect_SC(self) -> Floats:
        """Effects by segment and tier of contact, shape (segments, 3)."""
        return np.array([[getattr(self.effects[segment], tier) for tier in CONTACTS] for segment in Segment])

    @cached_property
    def cost_T(self) -> Floats:
        """Cost of each tier, shape (4,); none costs nothing."""
        return np.array([0.0, *(getattr(self.costs, tier) for tier in CONTACTS)])

    @cached_property
    def resources(self) -> tuple[str, ...]:
        """What a day's contacts use up: ``budget``, then the tiers with a capacity."""
        return (*(("budget",) if self.budget else ()), *self.capacity)

    @cached_property
    def use_KT(self) -> Floats:
        """What a contact of each tier uses of each resource, shape (resources, 4)."""
        rows = [self.cost_T] if self.budget else []
        for tier, capacity in self.capacity.items():
            rows.append(np.where(np.arange(len(TIERS)) == TIERS.index(tier), capacity.hours_per_contact, 0.0))
        return np.array(rows).reshape(len(self.resources), len(TIERS))

    @cached_property
    def limits_K(self) -> Floats:
        """What there is of each resource in a day, shape (resources,)."""
        hours = [capacity.hours_per_day for capacity in self.capacity.values()]
        return np.array([*([self.budget.per_day] if self.budget else []), *hours])

    @cached_property
    def cost_units_T(self) -> Ints:
        """``cost_T`` in whole millionths, exact."""
        return np.array([in_units(cost) for cost in self.cost_T.tolist()], dtype=np.int64)

    @cached_property
    def units_KT(self) -> Ints:
        """``use_KT`` in whole millionths, exact."""
        return np.array([[in_units(use) for use in row] for row in self.use_KT.tolist()], dtype=np.int64).reshape(self.use_KT.shape)

    @cached_property
    def limits_units_K(self) -> Ints:
        """``limits_K`` in whole millionths, exact."""
        return np.array([in_units(limit) for limit in self.limits_K.tolist()], dtype=np.int64)


def in_units(amount: float) -> int:
    """Money or hours in whole millionths, of the decimal that was written: 9000000000.1 is no binary number."""
    return round(Decimal(repr(amount)) * UNITS)


def default_file() -> Path:
    """The shipped policy."""
    return Path(__file__).with_name("policy.toml")


def read(file: Path | None = None) -> Policy:
    """Parse a policy file (default: the shipped one). Raises InputError naming file, key, value and fix."""
    file = file or default_file()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(file), f"cannot be read: {error}", START) from None
    return parse(text, str(file))


def parse(text: str, name: str) -> Policy:
    """Parse the text of a policy file called ``name``."""
    try:
        told = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(name, f"is not TOML: {error}", START) from None
    except (ValueError, RecursionError):
        raise InputError(name, "holds a number of thousands of digits, or hundreds of brackets in each other", START) from None
    try:
        policy = Policy(**told)
    except ValidationError as error:
        wrong = [_told(one) for one in error.errors(include_url=False)]
    else:
        wrong = [str(fault) for fault in faults(policy)]
    if wrong:
        raise InputError(name, "\n  ".join(wrong), FIX)
    return policy


def _told(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{place}: is no key of a policy"
    if error["type"] == "missing":
        return f"{place}: is missing"
    given = f" = {shown(error['input'])}" if place and not isinstance(error["input"], dict) else ""
    larger = type(error["input"]) is int and error["type"] in ("float_type", "int_parsing_size")
    rule = "larger than any number that is counted here" if larger else error["msg"].removeprefix("Value error, ")
    return f"{place}{given}: {rule}".removeprefix(": ")


def differences(before: Policy, after: Policy) -> Iterator[tuple[str, Any, Any]]:
    """(key, before, after) of every value that differs, in the order of the file; what is not there is None."""
    left, right = (dict(_flat(policy.model_dump(mode="json", by_alias=True))) for policy in (before, after))
    for key in dict.fromkeys([*left, *right]):
        if left.get(key) != right.get(key):
            yield key, left.get(key), right.get(key)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for place, inner in enumerate(value, 1):
            yield from _flat(inner, f"{key}[{place}]")
    elif value not in (None, []):
        yield key, value
