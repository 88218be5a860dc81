"""Requests and answers of the API: strict types, unknown fields refused, no NaN, nothing echoed in errors."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_CUSTOMERS = 1000
Id = Annotated[str, Field(min_length=1, max_length=128)]
Money = Annotated[float, Field(ge=0, le=1e12, description="in the shop's currency, four decimals count")]


def _unique_orders(orders: "list[Order] | None") -> "list[Order] | None":
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


class Line(Strict):
    """One line of an order."""

    product_id: Id | None = None
    quantity: float = Field(gt=0, le=1e9)
    amount: Money = Field(description="net value of the line after discount, in the shop's currency")
    discount: Money = 0.0


class Order(Strict):
    """One order with its lines. Times without a zone are the shop's local time."""

    order_id: Id
    ordered_at: datetime
    arrived_at: datetime | None = Field(None, description="when the shop learnt of it, if later")
    cancelled_at: datetime | None = None
    amount: Money | None = Field(None, description="only where the order has no lines")
    lines: list[Line] = Field(default=[], max_length=5000)


class Return(Strict):
    """One return, refund or cancelled line."""

    return_id: Id
    returned_at: datetime
    arrived_at: datetime | None = None
    quantity: float = Field(gt=0, le=1e9)
    amount: Money


class Attributes(Strict):
    """What hardly changes about a customer."""

    registered_at: datetime
    arrived_at: datetime | None = None
    country: Id | None = None


class CustomerRequest(Strict):
    """A customer by id alone (looked up in the latest feature table) or with the raw history."""

    customer_id: Id
    orders: Annotated[list[Order] | None, AfterValidator(_unique_orders)] = Field(None, min_length=1, max_length=10_000)
    returns: list[Return] = Field(default=[], max_length=10_000)
    attributes: Attributes | None = None


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
    snapshot: datetime | None = Field(None, description="moment of the prediction for raw histories; default: now")


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


class Scored(BaseModel):
    """One customer's score and recommended decision."""

    status: Literal["scored"]
    customer_id: str
    snapshot: datetime
    churn_probability: float
    risk_band: Literal["high", "medium", "low"]
    lifecycle_stage: Literal["new", "active", "loyal", "churned"]
    plan_stage: Literal["new", "growing", "mature", "silent", "churned"]
    value_segment: Literal["high", "standard"]
    reasons: list[Reason]
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
