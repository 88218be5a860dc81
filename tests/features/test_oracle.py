"""A naive oracle, event by event in plain Python, agrees with the features of random histories from every source."""

import itertools
import math
import statistics
from datetime import datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings

from tests.features.histories import SNAPSHOT, TIMES, features, known, shop
from tests.features.test_leakage import with_a_known_order

DAY = timedelta(days=1)
Row = dict[str, float | None]


def age(moment: datetime) -> float:
    return (SNAPSHOT - moment) / DAY


def day_age(moment: datetime) -> float:
    """Behaviour counts by day: the age is that of the day's end."""
    return age(datetime(moment.year, moment.month, moment.day) + DAY)


def seen(one: dict[str, Any], state: str, arrival: str | None = None) -> datetime | None:
    """A later state, if it was known at the snapshot."""
    at = one.get(state)
    times = [at, one.get(arrival) if arrival else None]
    return at if at and all(time is None or time <= SNAPSHOT for time in times) else None


def expected(customer: dict[str, Any]) -> Row:
    past = {source: [one for one in customer[source] if known(one, source)] for source in TIMES}
    orders = [one for one in past["orders"] if not (one.get("cancelled_at") and one["cancelled_at"] <= SNAPSHOT)]
    found: Row = _orders(orders) | _returns(past["returns"]) | _events(past["events"], orders) | _contacts(past["contacts"])
    found |= _coupons(past["coupons"]) | _tickets(past["tickets"], orders) | _reviews(past["reviews"])
    mine = {one["order_id"] for one in past["orders"]} | {one["order_id"] for one in customer["orders"]}
    found |= _deliveries([one for one in past["deliveries"] if one["order_id"] in mine])
    return found | _loyalty(past)


def _orders(orders: list[dict[str, Any]]) -> Row:
    ages = sorted(age(one["ordered_at"]) for one in orders)
    spends = {one["order_id"]: sum(line["amount"] for line in one["lines"]) for one in orders}
    recent = [one for one in orders if age(one["ordered_at"]) < 90]
    lines = [line for one in orders for line in one["lines"]]
    gaps = [b - a for a, b in itertools.pairwise(ages)]
    per_order = {(one["order_id"], line["product_id"]) for one in orders for line in one["lines"]}
    return {
        "recency_days": ages[0],
        "tenure_days": ages[-1],
        "frequency_orders": len(orders),
        "orders_90d": len(recent),
        "spend_90d": sum(spends[one["order_id"]] for one in recent),
        "units_365d": sum(line["quantity"] for one in orders if age(one["ordered_at"]) < 365 for line in one["lines"]),
        "order_value_max": max(spends.values()),
        "order_value_mean": statistics.fmean(spends.values()),
        "order_value_median": statistics.median(spends.values()),
        "gap_mean_days": statistics.fmean(gaps) if gaps else None,
        "gap_max_days": max(gaps) if gaps else None,
        "gap_median_days": statistics.median(gaps) if gaps else None,
        "gap_std_days": statistics.stdev(gaps) if len(gaps) > 1 else None,
        "products_total": len({product for _, product in per_order}),
        "categories_total": len({line.get("category") for line in lines} - {None}),
        "brands_total": len({line.get("brand") for line in lines} - {None}),
        "tp_no_second_order": float(len(orders) == 1 and ages[0] > 7),
        "tp_silent": float(ages[0] > 90),
    }


def _returns(returns: list[dict[str, Any]]) -> Row:
    done = {one["return_id"]: seen(one, "completed_at", "completed_arrived_at") for one in returns}
    open_ = [one for one in returns if done[one["return_id"]] is None]
    return {
        "returns_total": len(returns),
        "returns_value": sum(one["amount"] for one in returns),
        "refunds_open": len(open_),
        "refund_open_days": max((age(one["returned_at"]) for one in open_), default=0.0),
        "tp_refund_late": float(any(one["due_at"] < SNAPSHOT for one in open_)),
    }


def _events(events: list[dict[str, Any]], orders: list[dict[str, Any]]) -> Row:
    recent = [one for one in events if day_age(one["happened_at"]) < 90]
    days = {one["happened_at"].date() for one in events}
    visits = {(one["happened_at"].date(), one["session_id"]) for one in recent if one["session_id"]}
    adds = [one["happened_at"] for one in events if one["kind"] == "add_to_cart"]
    last_order = max(one["ordered_at"] for one in orders)
    return {
        "views_90d": sum(one["kind"] == "view" for one in recent),
        "searches_90d": sum(one["kind"] == "search" for one in recent),
        "cart_adds_90d": sum(one["kind"] == "add_to_cart" for one in recent),
        "browse_minutes_90d": sum(one["seconds"] for one in recent) / 60,
        "sessions_90d": len(visits),
        "browse_days_total": len(days),
        "browse_recency_days": min((max(day_age(one["happened_at"]), 0.0) for one in events), default=None),
        "night_adds_90d": sum(one["kind"] == "add_to_cart" and one["happened_at"].hour < 5 for one in recent),
        "cart_age_days": age(max(adds)) if adds and max(adds) > last_order else None,
    }


def _contacts(contacts: list[dict[str, Any]]) -> Row:
    opened = [one["opened_at"] for one in contacts if one["opened_at"] and one["opened_at"] <= SNAPSHOT]
    return {
        "contacts_sent_365d": sum(age(one["sent_at"]) < 365 for one in contacts),
        "contacts_opened_365d": sum(age(at) < 365 for at in opened),
        "contact_cost_365d": sum(one["cost"] for one in contacts if age(one["sent_at"]) < 365),
        "sms_sent_90d": sum(one["channel"] == "sms" and age(one["sent_at"]) < 90 for one in contacts),
        "open_recency_days": min(map(age, opened), default=None),
    }


def _coupons(coupons: list[dict[str, Any]]) -> Row:
    used = [one for one in coupons if seen(one, "redeemed_at", "redeemed_arrived_at")]
    unused = [one for one in coupons if one not in used]
    return {
        "coupons_total": len(coupons),
        "coupons_claimed_365d": sum(age(one["claimed_at"]) < 365 for one in coupons),
        "coupon_redemption_share": len(used) / len(coupons) if coupons else None,
        "coupons_expired": sum(bool(one["expires_at"] and one["expires_at"] < SNAPSHOT) for one in unused),
        "coupon_value_redeemed": sum(one["value"] for one in used),
    }


def _tickets(tickets: list[dict[str, Any]], orders: list[dict[str, Any]]) -> Row:
    solved = {one["ticket_id"]: seen(one, "resolved_at", "resolved_arrived_at") for one in tickets}
    took = [(solved[one["ticket_id"]] - one["opened_at"]) / DAY for one in tickets if solved[one["ticket_id"]]]
    angry = [one for one in tickets if one["complaint"] and not solved[one["ticket_id"]]]
    return {
        "tickets_total": len(tickets),
        "complaints_open": len(angry),
        "complaint_open_days": max((age(one["opened_at"]) for one in angry), default=0.0),
        "resolve_days_mean": statistics.fmean(took) if took else None,
        "tickets_per_order": len(tickets) / len(orders),
        "tp_complaint_open": float(any(age(one["opened_at"]) > 30 for one in angry)),
    }


def _reviews(reviews: list[dict[str, Any]]) -> Row:
    stars = [one["rating"] for one in reviews if one["rating"] is not None]
    return {
        "reviews_total": len(reviews),
        "rating_mean": statistics.fmean(stars) if stars else None,
        "rating_min": min(stars, default=None),
        "low_ratings_365d": sum(one["rating"] is not None and one["rating"] <= 2 and age(one["reviewed_at"]) < 365 for one in reviews),
    }


def _deliveries(deliveries: list[dict[str, Any]]) -> Row:
    there = {one["delivery_id"]: seen(one, "delivered_at", "delivered_arrived_at") for one in deliveries}
    late = [one for one in deliveries if one["due_at"] < (there[one["delivery_id"]] or SNAPSHOT)]
    overdue = [one for one in deliveries if there[one["delivery_id"]] is None and one["due_at"] < SNAPSHOT]
    return {"deliveries_total": len(deliveries), "deliveries_late": len(late), "deliveries_overdue": len(overdue)}


def _loyalty(past: dict[str, list[dict[str, Any]]]) -> Row:
    points = [one["points"] for one in past["points"]]
    return {
        "points_balance": float(sum(points)),
        "points_earned_365d": sum(max(one["points"], 0) for one in past["points"] if age(one["booked_at"]) < 365),
        "consents_withdrawn": _withdrawn(past["consents"]),
    }


def _withdrawn(consents: list[dict[str, Any]]) -> float:
    """Of two changes at one moment the withdrawal is the last."""
    last = {one["channel"]: one["granted"] for one in sorted(consents, key=lambda one: (one["changed_at"], not one["granted"]))}
    return float(sum(not granted for granted in last.values()))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(shop())
def test_features_agree_with_a_naive_oracle(customers: list[dict[str, Any]]) -> None:
    customers = with_a_known_order(customers)
    rows = {row["customer_id"]: row for row in features(customers).to_pylist()}
    for customer in customers:
        row, truth = rows[customer["customer_id"]], expected(customer)
        assert len(truth) >= 40
        wrong = {name: (row[name], value) for name, value in truth.items() if not _same(row[name], value)}
        assert wrong == {}


def test_of_two_consents_at_one_moment_the_withdrawal_is_in_force() -> None:
    at = SNAPSHOT - DAY
    for words in ((True, False), (False, True)):
        consents = [{"purpose": "marketing", "channel": "sms", "granted": granted, "changed_at": at} for granted in words]
        shop = [{"customer_id": "c", "orders": [{"order_id": "o", "ordered_at": at, "amount": 5.0}], "consents": consents}]
        (row,) = features(shop).to_pylist()
        assert (row["consents_granted"], row["consents_withdrawn"]) == (0, 1)


def _same(got: float, wanted: float | None) -> bool:
    return math.isnan(got) if wanted is None else math.isclose(got, wanted, rel_tol=1e-9, abs_tol=1e-9)
