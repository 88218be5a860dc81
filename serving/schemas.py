"""Requests and answers of the API: strict types, unknown fields refused, no NaN, nothing echoed in errors."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from features.schema import EXACT, FLAG, SOURCES, TEXT, TIME, Column

MAX_CUSTOMERS = 1000
Id = Annotated[str, Field(min_length=1, max_length=128)]
FIRST_YEAR, LAST_YEAR = 1970, 2200


def _plausible(moment: datetime) -> datetime:
    if not FIRST_YEAR < moment.year < LAST_YEAR:
        raise ValueError(f"the year must lie between {FIRST_YEAR} and {LAST_YEAR}")
    return moment


Moment = Annotated[datetime, AfterValidator(_plausible)]
LARGEST = 1e12
"""Largest amount or quantity; four decimals count."""


def _unique_orders(orders: Any) -> Any:
    if orders and len({order.order_id for order in orders}) < len(orders):
        raise ValueError("order_id must be unique within a customer")
    return orders


def _unique_customers(customers: "list[CustomerRequest]") -> "list[CustomerRequest]":
    if len({customer.customer_id for customer in customers}) < len(customers):
        raise ValueError("customer_id must be unique within a request")
    return customers


class Strict(BaseModel):
    """Base of everything that comes in."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


def _field(column: Column) -> Any:
    """The pydantic field of a canonical column: type, range and meaning."""
    given: dict[str, Any] = {"description": column.meaning}
    kind: Any = {TEXT: Id, TIME: Moment, FLAG: bool, EXACT: float}[column.type]
    if column.choices:
        kind = Literal[column.choices]
    if column.type == EXACT:
        given |= {"gt" if column.above else "ge": column.low} if column.low is not None else {"ge": -LARGEST}
        given |= {"le": LARGEST if column.high is None else column.high}
    return (kind, Field(**given)) if column.required else (kind | None, Field(None, **given))


def _part(name: str, source: str, without: tuple[str, ...], **more: Any) -> Any:
    """The request's form of one canonical table (`features/schema.py`); times without a zone are the shop's local time."""
    fields = {column.name: _field(column) for column in SOURCES[source].columns if column.name not in without}
    model = create_model(name, __base__=Strict, __module__=__name__, **fields, **more)  # type: ignore[call-overload]
    model.__doc__ = f"{SOURCES[source].meaning[0].upper()}{SOURCES[source].meaning[1:]}."
    return model


_OWNER = ("customer_id",)
Line = _part("Line", "order_lines", ("order_id",))
Order = _part("Order", "orders", _OWNER, lines=(list[Line], Field([], max_length=5000)))  # type: ignore[valid-type]
Return = _part("Return", "returns", _OWNER)
Attributes = _part("Attributes", "customers", _OWNER)
Event = _part("Event", "events", _OWNER)
Contact = _part("Contact", "contacts", _OWNER)
Coupon = _part("Coupon", "coupons", _OWNER)
Ticket = _part("Ticket", "tickets", _OWNER)
Review = _part("Review", "reviews", _OWNER)
Delivery = _part("Delivery", "deliveries", ())
Membership = _part("Membership", "memberships", _OWNER)
Points = _part("Points", "points", _OWNER)
Consent = _part("Consent", "consents", _OWNER)


class CustomerRequest(Strict):
    """A customer by id or pseudonym alone (looked up in the latest feature table) or with the raw history.

    A history holds every source that the model knows (`GET /v1/model`, `sources`): what is left out counts as nothing happened.
    """

    customer_id: Id
    orders: Annotated[list[Order] | None, AfterValidator(_unique_orders)] = Field(None, min_length=1, max_length=10_000)  # type: ignore[valid-type]
    returns: list[Return] = Field(default=[], max_length=10_000)  # type: ignore[valid-type]
    events: list[Event] = Field(default=[], max_length=100_000)  # type: ignore[valid-type]
    contacts: list[Contact] = Field(default=[], max_length=10_000)  # type: ignore[valid-type]
    coupons: list[Coupon] = Field(default=[], max_length=10_000)  # type: ignore[valid-type]
    tickets: list[Ticket] = Field(default=[], max_length=10_000)  # type: ignore[valid-type]
    reviews: list[Review] = Field(default=[], max_length=10_000)  # type: ignore[valid-type]
    deliveries: list[Delivery] = Field(default=[], max_length=10_000)  # type: ignore[valid-type]
    memberships: list[Membership] = Field(default=[], max_length=1000)  # type: ignore[valid-type]
    points: list[Points] = Field(default=[], max_length=10_000)  # type: ignore[valid-type]
    consents: list[Consent] = Field(default=[], max_length=1000)  # type: ignore[valid-type]
    attributes: Attributes | None = None  # type: ignore[valid-type]


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
    customers: Annotated[list[CustomerRequest], AfterValidator(_unique_customers)] = Field(min_length=1, max_length=MAX_CUSTOMERS)
    snapshot: Moment | None = Field(None, description="moment of the prediction for raw histories; default: now")


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


class Scored(BaseModel):
    """One customer's score and recommended decision."""

    status: Literal["scored"]
    customer_id: str = Field(description="as the request named the customer")
    pseudonym: str = Field(description="the name under which anything about the customer is stored")
    snapshot: datetime
    churn_probability: float
    risk_band: Literal["high", "medium", "low"]
    lifecycle_stage: Literal["new", "active", "loyal", "churned"]
    plan_stage: Literal["new", "growing", "mature", "silent", "churned"]
    value_segment: Literal["high", "standard"]
    reasons: list[Reason]
    churn_reason: Literal["price", "service", "need_changed", "unknown"]
    next_order_days: NextOrder
    tier: Literal["none", "nudge", "offer", "concierge"]
    strategy: str | None
    channel: Literal["push", "e-mail", "sms", "call"] | None
    expected_gain: Gains
    effects_source: Literal["assumed", "measured"]
    decision_id: str


class NotScored(BaseModel):
    """A customer that cannot be scored, and why."""

    status: Literal["unknown", "not_eligible"]
    customer_id: str
    pseudonym: str
    detail: str


class ScoreAnswer(BaseModel):
    """Answers in the order of the request."""

    model_version: str
    policy_version: str
    currency: str
    results: list[Annotated[Scored | NotScored, Field(discriminator="status")]]


class ModelAnswer(BaseModel):
    """What is served."""

    model_config = ConfigDict(protected_namespaces=())
    model_name: str
    model_version: str
    model: str
    digest: str
    run_id: str
    dataset: str
    horizon_days: int
    features: int
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
