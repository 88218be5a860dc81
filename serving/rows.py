"""Rows of the canonical tables as a request has them: strict types, made from `features/schema.py`, which the batch's contract uses too."""

from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired, Union

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, create_model
from pydantic_core import core_schema
from typing_extensions import TypedDict

from features.ids import WHITE, canonical_id
from features.schema import EXACT, FLAG, SOURCES, TEXT, TIME, Column

NOT_BLANK = f"[^{WHITE}]"
Id = Annotated[str, Field(min_length=1, max_length=128, pattern=NOT_BLANK)]
"""Something is left of it when white space is cut off (`ids.canonical_id`)."""
Text = Annotated[str, Field(max_length=128)]
"""May be blank, and is unknown then."""


class _Written:
    """A time as ISO 8601 writes it; a bare number might be seconds, a day or a year, and is refused."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        written = core_schema.str_schema(pattern=r"^\d{4}-\d\d-\d\d[Tt _]")
        told = core_schema.custom_error_schema(
            written, custom_error_type="moment", custom_error_message="Input should be a valid datetime: 2024-01-31T09:30:00"
        )
        json = core_schema.chain_schema([told, core_schema.datetime_schema(strict=False)])
        return core_schema.json_or_python_schema(json, core_schema.datetime_schema(strict=True))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "format": "date-time"}


Moment = Annotated[datetime, _Written]
_TYPED: Any = TypedDict
LARGEST = 1e12
"""Largest amount or quantity; four decimals count."""
HALF_STEP = 0.00005
"""What is not more above 0 than this is 0 once it is kept, as in a file."""


def _unique_orders(orders: Any) -> Any:
    if orders and len({canonical_id(order["order_id"]) for order in orders}) < len(orders):
        raise ValueError("order_id must be unique within a customer")
    return orders


class Strict(BaseModel):
    """Base of everything that comes in."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


def _field(column: Column) -> Any:
    """The field of a canonical column: type, range and meaning."""
    given: dict[str, Any] = {"description": column.meaning}
    kind: Any = {TEXT: Id if column.required else Text, TIME: Moment, FLAG: bool, EXACT: float}[column.type]
    if column.choices:
        kind = Literal[column.choices]
    if column.type == EXACT:
        given |= (
            {"gt": (column.low or 0.0) + HALF_STEP} if column.above else {"ge": column.low} if column.low is not None else {"ge": -LARGEST}
        )
        given |= {"le": LARGEST if column.high is None else column.high}
    return Annotated[kind, Field(**given)] if column.required else NotRequired[Annotated[kind | None, Field(**given)]]


def _part(name: str, source: str, without: tuple[str, ...], **more: Any) -> Any:
    """The request's form of one canonical table (`features/schema.py`); times without a zone are the shop's local time.

    A typed dictionary: a list of histories has hundreds of thousands of rows, and models would take five times as long to make.
    """
    fields = {column.name: _field(column) for column in SOURCES[source].columns if column.name not in without}
    made = _TYPED(name, fields | more)
    made.__pydantic_config__, made.__module__ = Strict.model_config, __name__
    made.__doc__ = f"{SOURCES[source].meaning[0].upper()}{SOURCES[source].meaning[1:]}."
    return made


_OWNER = ("customer_id",)
Line = _part("Line", "order_lines", ("order_id",))
Order = _part("Order", "orders", _OWNER, lines=NotRequired[Annotated[list[Line], Field(max_length=5000, fail_fast=True)]])  # type: ignore[valid-type]
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


ROWS = {
    "orders": Order,
    "returns": Return,
    "customers": Attributes,
    "events": Event,
    "contacts": Contact,
    "coupons": Coupon,
    "tickets": Ticket,
    "reviews": Review,
    "deliveries": Delivery,
    "memberships": Membership,
    "points": Points,
}


def _event_of(table: str, row: Any) -> Any:
    fields: dict[str, Any] = {
        "event_id": (Annotated[Id, AfterValidator(canonical_id)], Field(description="told again under the same id, it changes nothing")),
        "customer_id": (Id, ...),
        "table": (Literal[table], ...),
        "row": (row, ...),
    }
    model = create_model(f"NewEvent_{table}", __base__=Strict, __module__=__name__, **fields)
    model.__doc__ = f"A new row of {table}; one with the key of an earlier row takes its place."
    return model


NewEvent = Annotated[Union[tuple(_event_of(table, row) for table, row in ROWS.items())], Field(discriminator="table")]  # type: ignore[misc, valid-type]  # noqa: UP007
