"""Requests and answers of the API: strict types, unknown fields refused, no NaN, nothing echoed in errors."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic import Strict as Strict_

from features.domain import PlanStage, Stage, ValueSegment
from serving.policy import CHANNELS, TIERS, Occasion
from serving.policy_rules import PURPOSE
from serving.rows import (
    LARGEST,
    ROWS,
    Attributes,
    Consent,
    Contact,
    Coupon,
    Delivery,
    Event,
    Id,
    Line,
    Membership,
    Moment,
    NewEvent,
    Order,
    Points,
    Return,
    Review,
    Strict,
    Ticket,
    _unique_orders,
)

__all__ = ["ROWS", "Line"]

MAX_CUSTOMERS = 1000


def _unique_customers(customers: Any) -> Any:
    if len({customer.customer_id for customer in customers}) < len(customers):
        raise ValueError("customer_id must be unique within a request")
    return customers


class Sequences(Strict):
    """The sequence columns of a feature row (`features/sequences.py`), for models that read them."""

    week_cells: list[int] = Field(max_length=5000, fail_fast=True)
    week_values: list[float] = Field(max_length=5000, fail_fast=True)
    event_types: list[int] = Field(max_length=1000, fail_fast=True)
    event_gap_days: list[float] = Field(max_length=1000, fail_fast=True)


class Stages(Strict):
    """The text columns of a feature row, which decide the segment; without them there is a probability but no tier."""

    lifecycle_stage: Annotated[Stage, Strict_(False)]
    plan_stage: Annotated[PlanStage, Strict_(False)]
    value_segment: Annotated[ValueSegment, Strict_(False)]


class _History(Strict):
    """A customer by id or pseudonym alone, or with the raw history.

    By id: the latest feature row, or fresh features where events came since. A history holds every source that the model
    knows (`GET /v1/model`, `sources`): what is left out counts as nothing happened.
    """

    customer_id: Id
    orders: Annotated[list[Order] | None, AfterValidator(_unique_orders)] = Field(None, min_length=1, max_length=10_000, fail_fast=True)  # type: ignore[valid-type]
    returns: list[Return] = Field(default_factory=list, max_length=10_000, fail_fast=True)  # type: ignore[valid-type]
    events: list[Event] = Field(default_factory=list, max_length=100_000, fail_fast=True)  # type: ignore[valid-type]
    contacts: list[Contact] = Field(default_factory=list, max_length=10_000, fail_fast=True)  # type: ignore[valid-type]
    coupons: list[Coupon] = Field(default_factory=list, max_length=10_000, fail_fast=True)  # type: ignore[valid-type]
    tickets: list[Ticket] = Field(default_factory=list, max_length=10_000, fail_fast=True)  # type: ignore[valid-type]
    reviews: list[Review] = Field(default_factory=list, max_length=10_000, fail_fast=True)  # type: ignore[valid-type]
    deliveries: list[Delivery] = Field(default_factory=list, max_length=10_000, fail_fast=True)  # type: ignore[valid-type]
    memberships: list[Membership] = Field(default_factory=list, max_length=1000, fail_fast=True)  # type: ignore[valid-type]
    points: list[Points] = Field(default_factory=list, max_length=10_000, fail_fast=True)  # type: ignore[valid-type]
    consents: list[Consent] = Field(default_factory=list, max_length=1000, fail_fast=True)  # type: ignore[valid-type]


class DecisionCustomer(_History):
    """A customer by id or pseudonym alone, or with the raw history."""

    attributes: Attributes | None = None  # type: ignore[valid-type]


class CustomerRequest(_History):
    """A customer by id alone, with the raw history, or with a ready feature row (`features`)."""

    attributes: Attributes | None = None  # type: ignore[valid-type]
    features: dict[str, float | None] | None = Field(
        None, description="every feature of the model by name (`GET /v1/model`, `feature_names`), null where unknown", max_length=2000
    )
    sequences: Sequences | None = Field(None, description="needed where the model reads sequences (`GET /v1/model`)")
    stages: Stages | None = None


Version = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
VERSION_TEXT = "answer by this version of the model, which must be loaded (`GET /v1/model`); default: the champion"


class ScoreRequest(Strict):
    """Customers to score."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"customers": [{"customer_id": "12347"}]},
                {
                    "snapshot": "2011-12-10T00:00:00",
                    "customers": [
                        {
                            "customer_id": "c-1",
                            "orders": [
                                {
                                    "order_id": "o-1",
                                    "ordered_at": "2011-10-02T10:15:00",
                                    "lines": [{"product_id": "22423", "quantity": 2, "amount": 25.5}],
                                }
                            ],
                        }
                    ],
                },
            ]
        }
    )
    customers: Annotated[list[CustomerRequest], AfterValidator(_unique_customers)] = Field(
        min_length=1, max_length=MAX_CUSTOMERS, fail_fast=True
    )
    snapshot: Moment | None = Field(None, description="moment of the prediction for raw histories and feature rows; default: now")
    reasons: bool = Field(True, description="say why; costs some milliseconds a customer")
    model_version: Version | None = Field(None, description=VERSION_TEXT)


class DecisionRequest(Strict):
    """Customers to decide about: the tier under consent, caps, capacities and budget, logged."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"customers": [{"customer_id": "12347"}]}, {"customers": [{"customer_id": "12347"}], "reasons": True}]
        }
    )
    customers: Annotated[list[DecisionCustomer], AfterValidator(_unique_customers)] = Field(
        min_length=1, max_length=MAX_CUSTOMERS, fail_fast=True
    )
    snapshot: Moment | None = Field(None, description="moment of the features of raw histories; default: now. Contacts are decided now")
    occasion: Annotated[Occasion, Strict_(False)] | None = Field(None, description="what asks for the decision, if not the daily round")
    reasons: bool = Field(False, description="say why; costs some milliseconds a customer")
    model_version: Version | None = Field(None, description=VERSION_TEXT)


class EventsRequest(Strict):
    """What happened to customers since the last load; the next score sees it.

    A long list is kept in parts. After any error send the same again: what was kept is then known already.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "events": [
                        {
                            "event_id": "e-1",
                            "customer_id": "12347",
                            "table": "orders",
                            "row": {
                                "order_id": "o-9",
                                "ordered_at": "2011-12-10T12:00:00",
                                "lines": [{"product_id": "22423", "quantity": 1, "amount": 12.75}],
                            },
                        }
                    ]
                }
            ]
        }
    )
    events: list[NewEvent] = Field(min_length=1, max_length=MAX_CUSTOMERS, fail_fast=True)  # type: ignore[valid-type]


OUTCOMES = ("delivered", "opened", "responded", "converted", "recovered", "refused", "unsubscribed", "failed")


class Outcome(Strict):
    """What happened to a decision's contact."""

    decision_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    kind: Literal[OUTCOMES]  # type: ignore[valid-type]
    at: Moment
    value: float | None = Field(None, ge=0, le=LARGEST, description="money it brought, in the shop's currency")


class OutcomesRequest(Strict):
    """Outcomes of decisions; `responded`, `converted` and `recovered` end the ladder, `unsubscribed` withdraws the channel's consent."""

    outcomes: list[Outcome] = Field(min_length=1, max_length=MAX_CUSTOMERS, fail_fast=True)


class ConsentChange(Strict):
    """A consent given or withdrawn from now on."""

    purpose: str | None = Field(None, pattern=PURPOSE, description="null: the purpose that the policy contacts for")
    channel: Literal[CHANNELS] | None = Field(None, description="null: every channel without a word of its own")  # type: ignore[valid-type]
    granted: bool


class ConsentRequest(Strict):
    """Consents of one customer, and where the customer lives."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"consents": [{"channel": "sms", "granted": False}]}]})
    consents: list[ConsentChange] = Field(default_factory=list, max_length=100, fail_fast=True)
    timezone: str | None = Field(None, max_length=64, description="IANA name, for quiet hours", examples=["Europe/Berlin"])


class OneCustomer(Strict):
    """A customer by the shop's id or by pseudonym, exactly one; in a body, where an id needs no encoding."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["customer_id"]}, {"required": ["pseudonym"]}]})
    customer_id: Id = Field(None, description="the shop's id, or a pseudonym where no id of the shop looks like one")  # type: ignore[assignment]
    pseudonym: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] = Field(None, description="as answers give it")  # type: ignore[assignment]

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set & {"customer_id", "pseudonym"}) != 1:
            raise ValueError("exactly one of customer_id and pseudonym is needed")
        return self

    @property
    def text(self) -> str:
        """What the customer was called by."""
        return self.pseudonym or self.customer_id


class ProfileRequest(OneCustomer):
    """Whom to tell about."""


class ErasureRequest(OneCustomer):
    """Whom to erase."""


class CustomerConsents(ConsentRequest, OneCustomer):
    """Consents of one customer, and where the customer lives."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"customer_id": "EU/123", "consents": [{"channel": "sms", "granted": False}]}],
            "oneOf": [{"required": ["customer_id"]}, {"required": ["pseudonym"]}],
        }
    )


class Reason(BaseModel):
    """Why the probability is what it is."""

    family: str
    feature: str
    effect: Literal["raises", "lowers"]
    log_odds: float = Field(description="what the family adds to the log odds of churn")
    text: str


class Gains(BaseModel):
    """Expected gain of each tier in the shop's currency."""

    none: float
    nudge: float
    offer: float
    concierge: float


class NextOrder(BaseModel):
    """Days to the next order: median and 80 % interval; null where it lies beyond the horizon."""

    low: float | None
    median: float | None
    high: float | None


TierName = Literal[TIERS]  # type: ignore[valid-type]
ChannelName = Literal[CHANNELS]  # type: ignore[valid-type]
BindingName = Literal[
    "no_consent", "unrecoverable", "minimum_gap", "ladder", "contact_cap", "low_risk", "budget", "capacity", "strategy", "randomised"
]


class _Scored(BaseModel):
    """A score."""

    status: Literal["scored"]
    customer_id: str = Field(description="as the request named the customer")
    pseudonym: str = Field(description="the name under which anything about the customer is stored")
    snapshot: datetime = Field(description="moment of the features")
    churn_probability: float
    risk_band: Literal["high", "medium", "low"]
    lifecycle_stage: Literal["new", "active", "loyal", "churned"] | None
    plan_stage: Literal["new", "growing", "mature", "silent", "churned"] | None
    value_segment: Literal["high", "standard"] | None
    next_order_days: NextOrder
    reasons: list[Reason] | None = Field(description="null unless asked for")
    churn_reason: Literal["price", "service", "need_changed", "unknown"] | None
    tier: TierName | None  # type: ignore[valid-type]
    strategy: str | None
    channel: ChannelName | None  # type: ignore[valid-type]
    expected_gain: Gains | None
    effects_source: Literal["assumed", "measured"]


class Scored(_Scored):
    """A score and the tier with the highest expected gain, before consent, caps and budget (`POST /v1/decisions` minds them)."""


class Decided(_Scored):
    """A score and a decision under all constraints, logged."""

    decision_id: str
    send_after: datetime | None = Field(description="end of the quiet hours; null: at once")
    runner_up: TierName | None = Field(description="the tier next in line")  # type: ignore[valid-type]
    binding: BindingName | None = Field(description="what kept the customer from the tier of the highest gain")
    gain_given_up: float = Field(description="expected gain that the binding constraint costs")
    blocked: dict[TierName, BindingName] = Field(description="tiers that are out of the question, and why")  # type: ignore[valid-type]
    consent: Literal["granted", "denied", "not_tracked"]
    propensity: float
    occasion: Occasion | None


class NotScored(BaseModel):
    """A customer that cannot be scored, and why."""

    status: Literal["unknown", "not_eligible"]
    customer_id: str
    pseudonym: str
    detail: str


class _Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())
    model_version: str
    policy_version: str
    currency: str


class ScoreAnswer(_Answer):
    """Answers in the order of the request."""

    results: list[Annotated[Scored | NotScored, Field(discriminator="status")]]


class DecisionAnswer(_Answer):
    """Decisions in the order of the request."""

    results: list[Annotated[Decided | NotScored, Field(discriminator="status")]]


class LoggedDecision(BaseModel):
    """A decision as the log has it."""

    model_config = ConfigDict(protected_namespaces=())
    number: int | None = Field(None, description="position in the log")
    decision_id: str
    pseudonym: str
    at: datetime
    churn_probability: float
    tier: TierName  # type: ignore[valid-type]
    runner_up: TierName | None  # type: ignore[valid-type]
    strategy: str | None
    channel: ChannelName | None  # type: ignore[valid-type]
    send_after: datetime | None
    binding: BindingName | None
    gain_given_up: float
    expected_gain: Gains
    propensity: float
    occasion: Occasion | None
    fingerprint: str = Field(description="of the model's inputs")
    model_version: str
    policy_version: str
    policy_digest: str
    outcomes: list[dict[str, Any]] = []


class DecisionFeed(BaseModel):
    """Decisions in the order of the log; ask again with `after` = `next`."""

    decisions: list[LoggedDecision]
    next: int


class EventsAnswer(BaseModel):
    """How many events were new or known already; those of others are not kept."""

    accepted: int
    known: int
    erased: int = Field(description="of customers who were erased")
    unknown: int = Field(0, description="of pseudonyms that nobody knows")
    nobody: int = Field(0, description="of ids that stand for nobody (`identity.not_customers`)")


class OutcomesAnswer(BaseModel):
    """How many outcomes were new, known already, or of a decision that the log does not have."""

    accepted: int
    known: int
    unknown: int


class Profile(BaseModel):
    """What is known of a customer."""

    customer_id: str
    pseudonym: str
    score: Annotated[Scored | NotScored, Field(discriminator="status")]
    rfmb: dict[str, float | None] = Field(description="recency, frequency, monetary and behaviour, and their scores")
    touchpoints: list[str]
    consents: dict[str, bool] = Field(description="by channel; '' is every other")
    consent: Literal["granted", "denied", "not_tracked"]
    timezone: str | None
    events_since_load: int
    decisions: list[LoggedDecision]


class Erased(BaseModel):
    """The customer is gone from the online store at once; files of the batch follow within a minute."""

    status: Literal["erased"]
    pseudonym: str


class Consented(BaseModel):
    """The consents in force."""

    pseudonym: str
    known: bool = Field(description="false: nobody knew the id before; the words are kept for when it comes. Check its spelling")
    consents: dict[str, bool]
    timezone: str | None


class ModelAnswer(BaseModel):
    """What is served."""

    model_config = ConfigDict(protected_namespaces=())
    model_name: str
    model_version: str
    model: str
    digest: str
    run_id: str
    loaded_versions: list[str] = Field(description="versions that a request may ask for")
    dataset: str
    horizon_days: int
    features: int
    feature_names: list[str]
    reads_sequences: bool
    sources: list[str]
    policy_version: str
    effects_source: Literal["assumed", "measured"]
    table_snapshot: datetime | None = Field(description="snapshot of the feature table that ids are looked up in")
    table_customers: int


class Problem(BaseModel):
    """RFC 9457 problem; ``errors`` names the fields, never their values."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] = []
