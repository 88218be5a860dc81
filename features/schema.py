"""Canonical source tables: what a mapping file maps to. One place for columns, types, keys, times and ranges.

Times are moments in UTC, without saying so (`moments.py`); who needs a calendar (habits by hour and weekday, snapshots at
midnight) sees them in the shop's own time zone. Money (in the shop's currency) and quantities are ``DECIMAL(18,4)``, so that sums
are exact in any order. Every event has an event time and an arrival time (when the shop learnt of it); without
a column for the latter the event is taken to be known at once. A later state of the same row (a refund
completed, a ticket resolved) has its own time, and its own arrival time with the same rule.
"""

from dataclasses import dataclass

TEXT, TIME, EXACT, FLAG = "VARCHAR", "TIMESTAMP", "DECIMAL(18,4)", "BOOLEAN"


@dataclass(frozen=True)
class Column:
    """One canonical column; an optional one that is not mapped is filled by ``default`` (SQL).

    Values lie in [``low``, ``high``], or above ``low`` if ``above``, or are one of ``choices``; an ``id`` of a
    person is pseudonymised while it is loaded; a time with ``after`` never lies before that other time.
    """

    name: str
    type: str
    meaning: str
    required: bool = True
    default: str = "NULL"
    low: float | None = None
    above: bool = False
    high: float | None = None
    choices: tuple[str, ...] = ()
    after: str | None = None
    id: bool = False


@dataclass(frozen=True)
class Source:
    """One canonical table: its columns, unique key (empty: none), event-time column and parents."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    event_time: str | None = None
    parent: tuple[str, str] | None = None
    """(column here, "table.column" there) that each row must find."""
    required: bool = False

    def column(self, name: str) -> Column:
        """The column called ``name``; KeyError when there is none."""
        return {column.name: column for column in self.columns}[name]


BEHAVIOUR = ("view", "search", "favourite", "add_to_cart", "remove_from_cart", "checkout", "pay")
"""Kinds of behaviour event."""
IDENTITY_KINDS = ("customer", "device", "phone", "email", "social", "card")
"""Kinds of identity; `customer` is the customer_id of the other tables."""
CONTACT_CHANNELS = ("push", "e-mail", "sms", "wechat", "call")

_CUSTOMER = Column("customer_id", TEXT, "the customer's key in this table; stored as a keyed pseudonym only", id=True)


def _time(name: str, meaning: str) -> tuple[Column, Column]:
    """The event's time and its arrival."""
    arrived = Column("arrived_at", TIME, "when the shop learnt of it", False, name, after=name)
    return Column(name, TIME, meaning), arrived


def _state(name: str, meaning: str, after: str) -> tuple[Column, Column]:
    """A later state of the row and its arrival."""
    arrived = Column(f"{name.removesuffix('_at')}_arrived_at", TIME, f"when the shop learnt of {name}", False, name, after=name)
    return Column(name, TIME, meaning, False, after=after), arrived


def _amount(name: str, meaning: str, required: bool = True, default: str = "NULL") -> Column:
    return Column(name, EXACT, meaning, required, default, low=0)


def _quantity(name: str, meaning: str) -> Column:
    return Column(name, EXACT, meaning, low=0, above=True)


_ORDERS = Source(
    "orders",
    "one row per order placed",
    (
        Column("order_id", TEXT, "unique id of the order"),
        _CUSTOMER,
        *_time("ordered_at", "when it was placed"),
        Column("cancelled_at", TIME, "when the whole order was cancelled; from then on it does not count", False, after="ordered_at"),
        _amount("amount", "net value, used where order_lines has no row for the order", False),
    ),
    key=("order_id",),
    event_time="ordered_at",
    required=True,
)
_ORDER_LINES = Source(
    "order_lines",
    "one row per line of an order",
    (
        Column("order_id", TEXT, "the order it belongs to"),
        Column("product_id", TEXT, "what was bought", False),
        Column("category", TEXT, "category of the product", False),
        Column("brand", TEXT, "brand of the product", False),
        _quantity("quantity", "units, above 0"),
        _amount("amount", "net value of the line after discount"),
        _amount("discount", "value taken off by discounts and coupons", False, "0"),
        _amount("product_age_days", "days the product had been on sale when it was ordered", False, "0"),
        Column("line_id", TEXT, "unique id of the line; identical copies are then dropped", False),
    ),
    key=("line_id",),
    parent=("order_id", "orders.order_id"),
)
_RETURNS = Source(
    "returns",
    "one row per return, refund or cancelled line",
    (
        Column("return_id", TEXT, "id of the return (may repeat: one row per line)"),
        _CUSTOMER,
        Column("order_id", TEXT, "the order that came back; where that order was cancelled too, its value counts once", False),
        *_time("returned_at", "when it was asked for"),
        _quantity("quantity", "units, above 0"),
        _amount("amount", "value given back, 0 or more"),
        Column("due_at", TIME, "when the refund was promised for", False),
        *_state("completed_at", "when the money was back", "returned_at"),
    ),
    event_time="returned_at",
)
_CUSTOMERS = Source(
    "customers",
    "one row per customer with what hardly changes",
    (
        _CUSTOMER,
        *_time("registered_at", "when the shop first knew the customer"),
        Column("country", TEXT, "country or region", False),
    ),
    key=("customer_id",),
    event_time="registered_at",
)
_EVENTS = Source(
    "events",
    "behaviour: one row per action on site or in the app",
    (
        Column("event_id", TEXT, "unique id of the event; identical copies are then dropped", False),
        _CUSTOMER,
        Column("kind", TEXT, "what was done", choices=BEHAVIOUR),
        *_time("happened_at", "when it happened"),
        Column("session_id", TEXT, "the visit it belongs to", False),
        _amount("seconds", "seconds spent", False, "0"),
        Column("channel", TEXT, "web, app, ...", False),
        Column("product_id", TEXT, "what it was about", False),
    ),
    key=("event_id",),
    event_time="happened_at",
)
_CONTACTS = Source(
    "contacts",
    "one row per marketing contact, with the customer's responses",
    (
        Column("contact_id", TEXT, "unique id of the contact"),
        _CUSTOMER,
        *_time("sent_at", "when it was sent"),
        Column("delivered_at", TIME, "when it was delivered", False, after="sent_at"),
        Column("opened_at", TIME, "when it was opened", False, after="sent_at"),
        Column("clicked_at", TIME, "when it was clicked or answered", False, after="sent_at"),
        Column("converted_at", TIME, "when it led to an order", False, after="sent_at"),
        Column("response_arrived_at", TIME, "when the shop learnt of these responses, if later", False),
        Column("channel", TEXT, "how it was sent", False, choices=CONTACT_CHANNELS),
        Column("campaign_id", TEXT, "the campaign it belongs to", False),
        Column("tier", EXACT, "strength: 1 nudge, 2 offer, 3 concierge", False, low=0, high=3),
        Column("strategy", TEXT, "what it said", False),
        _amount("cost", "what it cost", False, "0"),
        Column("decision_id", TEXT, "the decision of Holdfast that asked for it, so that it counts once", False),
    ),
    key=("contact_id",),
    event_time="sent_at",
)
_COUPONS = Source(
    "coupons",
    "one row per coupon claimed by a customer",
    (
        Column("coupon_id", TEXT, "unique id of the claimed coupon"),
        _CUSTOMER,
        *_time("claimed_at", "when it was claimed"),
        *_state("redeemed_at", "when it was redeemed", "claimed_at"),
        Column("expires_at", TIME, "when it expires or expired", False),
        _amount("value", "what it takes off", False),
    ),
    key=("coupon_id",),
    event_time="claimed_at",
)
_TICKETS = Source(
    "tickets",
    "one row per service ticket",
    (
        Column("ticket_id", TEXT, "unique id of the ticket"),
        _CUSTOMER,
        *_time("opened_at", "when it was opened"),
        *_state("resolved_at", "when it was resolved", "opened_at"),
        Column("complaint", FLAG, "whether it is a complaint", False, "false"),
    ),
    key=("ticket_id",),
    event_time="opened_at",
)
_REVIEWS = Source(
    "reviews",
    "one row per review, rating or NPS answer",
    (
        Column("review_id", TEXT, "unique id of the review"),
        _CUSTOMER,
        *_time("reviewed_at", "when it was given"),
        Column("rating", EXACT, "stars, 1 to 5", False, low=1, high=5),
        Column("nps", EXACT, "likelihood to recommend, 0 to 10", False, low=0, high=10),
    ),
    key=("review_id",),
    event_time="reviewed_at",
)
_DELIVERIES = Source(
    "deliveries",
    "one row per delivery of an order",
    (
        Column("delivery_id", TEXT, "unique id of the delivery"),
        Column("order_id", TEXT, "the order it belongs to"),
        *_time("shipped_at", "when it was sent off, with its promise"),
        Column("due_at", TIME, "when it was promised for"),
        *_state("delivered_at", "when it was delivered", "shipped_at"),
    ),
    key=("delivery_id",),
    event_time="shipped_at",
    parent=("order_id", "orders.order_id"),
)
_MEMBERSHIPS = Source(
    "memberships",
    "one row per change of a customer's membership level",
    (_CUSTOMER, *_time("changed_at", "from when the level holds"), Column("level", EXACT, "level, 0 the lowest", low=0, high=100)),
    event_time="changed_at",
)
_POINTS = Source(
    "points",
    "one row per booking of loyalty points",
    (_CUSTOMER, *_time("booked_at", "when it was booked"), Column("points", EXACT, "earned above 0, spent or expired below 0")),
    event_time="booked_at",
)
_IDENTITIES = Source(
    "identities",
    "one row per pair of identities seen together",
    (
        Column("left_kind", TEXT, "kind of the one identity", choices=IDENTITY_KINDS),
        Column("left_id", TEXT, "the one identity; stored as a keyed pseudonym only", id=True),
        Column("right_kind", TEXT, "kind of the other", choices=IDENTITY_KINDS),
        Column("right_id", TEXT, "the other; stored as a keyed pseudonym only", id=True),
        *_time("seen_at", "when they were seen together"),
    ),
    event_time="seen_at",
)
_CONSENTS = Source(
    "consents",
    "one row per consent given or withdrawn",
    (
        _CUSTOMER,
        *_time("changed_at", "from when it holds"),
        Column("purpose", TEXT, "what for: marketing, profiling, ..."),
        Column("channel", TEXT, "by which channel; empty: any", False),
        Column("granted", FLAG, "given (true) or withdrawn (false)"),
    ),
    event_time="changed_at",
)

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        _ORDERS,
        _ORDER_LINES,
        _RETURNS,
        _CUSTOMERS,
        _EVENTS,
        _CONTACTS,
        _COUPONS,
        _TICKETS,
        _REVIEWS,
        _DELIVERIES,
        _MEMBERSHIPS,
        _POINTS,
        _IDENTITIES,
        _CONSENTS,
    )
}
