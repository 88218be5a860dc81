"""What the API does not take, or takes as a file is taken: rules of rows, ids, keys told twice, compressed bodies."""

import asyncio
import gzip
import json
import threading
import time
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from serving import app, inbox, schemas, work
from serving.answers import Refusal
from serving.champions import Champions
from serving.desk import Desk
from serving.guard import LIST_BYTES, SINGLE_BYTES
from serving.sqlite_store import SqliteStore
from serving.writer import Writer
from tests.conftest import Shop
from tests.serving.conftest import Served
from tests.serving.test_guard import packed

ORDER = {"order_id": "o", "ordered_at": "2024-01-02T10:00:00", "lines": [{"product_id": "p", "quantity": 1.0, "amount": 5.0}]}
JSON = {"Content-Type": "application/json"}


def score(served: Served, *orders: dict[str, Any], snapshot: str = "2024-02-01T00:00:00", **more: Any) -> Any:
    body = {"customers": [{"customer_id": "c", "orders": list(orders), **more}], "snapshot": snapshot}
    return served.client.post("/v1/score", json=body)


def event(table: str, row: dict[str, Any], customer: str = "c", id: str = "e") -> dict[str, Any]:
    return {"event_id": id, "customer_id": customer, "table": table, "row": row}


def told(answer: Any) -> list[tuple[str, str]]:
    assert answer.status_code == 422, answer.text
    return [(one["field"], one["rule"]) for one in answer.json()["errors"]]


FUTURE, BEFORE = "does not lie in the future", "does not lie before "


@pytest.mark.parametrize(
    ("change", "field", "rule"),
    [
        ({"ordered_at": "2199-01-01T00:00:00"}, "ordered_at", FUTURE),
        ({"ordered_at": "1969-01-01T00:00:00Z"}, "ordered_at", BEFORE + "1970"),
        ({"cancelled_at": "2024-01-02T09:59:59"}, "cancelled_at", BEFORE + "ordered_at"),
        ({"arrived_at": "2024-01-02T09:00:00Z", "ordered_at": "2024-01-02T08:30:00-01:00"}, "arrived_at", BEFORE + "ordered_at"),
    ],
)
def test_a_row_that_a_file_may_not_have_is_refused_by_field_and_rule(served: Served, change: Any, field: str, rule: str) -> None:
    assert told(score(served, ORDER, ORDER | {"order_id": "o2"} | change)) == [(f"customers.0.orders.1.{field}", rule)]
    assert told(served.client.post("/v1/events", json={"events": [event("orders", ORDER | change)]})) == [(f"events.0.row.{field}", rule)]


def test_a_review_known_before_it_was_given_is_refused_and_one_of_this_hour_is_not(served: Served) -> None:
    soon = (datetime.now(UTC) + timedelta(minutes=50)).isoformat()
    row = {"review_id": "r", "reviewed_at": soon}
    assert served.client.post("/v1/events", json={"events": [event("reviews", row)]}).status_code == 200
    assert told(served.client.post("/v1/events", json={"events": [event("reviews", row | {"arrived_at": "2024-01-01T00:00:00Z"})]}))


@pytest.mark.parametrize("snapshot", ["2199-01-01T00:00:00", "1960-01-01T00:00:00"])
def test_a_snapshot_is_historic_or_now(served: Served, snapshot: str) -> None:
    ((field, _),) = told(score(served, ORDER, snapshot=snapshot))
    assert field == "snapshot"


@pytest.mark.parametrize("text", ["1700000000", "20240102", "2024", "1704190000.5", "-1"])
def test_a_bare_number_is_no_time(served: Served, text: str) -> None:
    assert told(score(served, ORDER | {"ordered_at": text}))[0][0] == "customers.0.orders.0.ordered_at"


def test_an_outcome_lies_between_its_decision_and_now(served: Served) -> None:
    customer = {"customer_id": "outcomes", "orders": [ORDER]}
    decided = served.client.post("/v1/decisions", json={"customers": [customer], "snapshot": "2024-02-01T00:00:00"}).json()["results"][0]
    now = datetime.now(UTC)
    for moment, rule in ((now + timedelta(hours=2), FUTURE), (now - timedelta(hours=2), BEFORE + "its decision")):
        outcome = {"decision_id": decided["decision_id"], "kind": "opened", "at": moment.isoformat()}
        assert told(served.client.post("/v1/outcomes", json={"outcomes": [outcome]})) == [("outcomes.0.at", rule)]
    for moment in (now + timedelta(minutes=50), now - timedelta(minutes=50)):
        outcome = {"decision_id": decided["decision_id"], "kind": "opened", "at": moment.isoformat()}
        assert served.client.post("/v1/outcomes", json={"outcomes": [outcome]}).json()["accepted"] == 1


def test_ids_and_texts_of_rows_are_read_as_those_of_a_file(served: Served) -> None:
    orders = [ORDER | {"order_id": f"{n}"} for n in range(3)]
    untidy = [
        order | {"order_id": f" {order['order_id']}.0", "lines": [{**order["lines"][0], "product_id": "\u200bp\n"}]} for order in orders
    ]  # type: ignore[index]
    blank = [order | {"lines": [{**order["lines"][0], "product_id": " "}]} for order in orders]  # type: ignore[index]
    without = [order | {"lines": [{"quantity": 1.0, "amount": 5.0}]} for order in orders]
    for one, other in ((orders, untidy), (blank, without)):
        first, second = (score(served, *some).json()["results"][0]["churn_probability"] for some in (one, other))
        assert first == second
    assert told(score(served, ORDER | {"order_id": "12"}, ORDER | {"order_id": "12.0"}))[0][0] == "customers.0.orders"
    assert told(score(served, ORDER | {"order_id": "\u200b"}))[0][0] == "customers.0.orders.0.order_id"


TWICE = [
    '{"customers": [{"customer_id": "a", "customer_id": "b"}]}',
    '{"customers": [{"customer_id": "a"}], "customers": [{"customer_id": "b"}]}',
    '{"customers": [{"customer_id": "a"}], "reasons": true, "re\\u0061sons": false}',
    '{"customers": [{"customer_id": "a"}], "reasons" : true, "reasons": false}',
    '{"customers": [{"customer_id": "a:b"}, {"customer_id": ":\\":", "customer_id": "c"}]}',
    json.dumps({"customers": [{"customer_id": "a", "orders": [ORDER]}]}).replace('"amount": 5.0', '"amount": 25.5, "amount": 9999'),
    json.dumps({"customers": [{"customer_id": "a", "features": {"x": 1.0}}]}).replace('"x": 1.0', '"x": 1.0, "x": 2.0'),
]


@pytest.mark.parametrize("body", TWICE)
def test_a_key_twice_in_an_object_is_refused_at_any_depth(served: Served, body: str) -> None:
    answer = served.client.post("/v1/score", content=body, headers=JSON)
    assert told(answer) == [("(a key)", "once in an object")]


@pytest.mark.parametrize("text", [":", '":', '\\": ', "a : b", '": "', "\t:"])
def test_texts_that_look_like_keys_are_texts(served: Served, text: str) -> None:
    for separators in ((",", ":"), (", ", " : "), (",\n", "\t:")):
        body = json.dumps({"customers": [{"customer_id": text}, {"customer_id": "b"}]}, separators=separators)
        assert served.client.post("/v1/score", content=body, headers=JSON).status_code == 200


def test_a_key_twice_in_an_event_is_refused(served: Served) -> None:
    body = json.dumps({"events": [event("orders", ORDER)]}).replace('"quantity": 1.0', '"quantity": 1.0, "quantity": 2')
    assert served.client.post("/v1/events", content=body, headers=JSON).status_code == 422


def packed_body(body: bytes, coding: str = "gzip") -> dict[str, Any]:
    return {"content": body, "headers": JSON | {"Content-Encoding": coding}}


def test_a_compressed_body_is_read_and_a_bomb_is_not_inflated(served: Served) -> None:
    body = json.dumps({"customers": [{"customer_id": "a"}]}).encode()
    for some in (gzip.compress(body), gzip.compress(body + b" " * 200_000)):
        assert served.client.post("/v1/score", **packed_body(some)).json()["results"][0]["customer_id"] == "a"
    bomb = gzip.compress(b" " * (LIST_BYTES * 20))
    assert len(bomb) < LIST_BYTES
    assert served.client.post("/v1/score", **packed_body(bomb)).status_code == 413
    assert served.client.put("/v1/customers/a/consents", **packed_body(gzip.compress(b" " * 2_000_000))).status_code == 413


def sent(body: bytes, **headers: str) -> Request:
    """A request as the server hands it over."""
    told = [(name.replace("_", "-").encode(), value.encode()) for name, value in (JSON | headers).items()]
    scope = {"type": "http", "method": "PUT", "path": "/", "headers": [(name.lower(), value) for name, value in told]}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(scope, receive)


@pytest.mark.parametrize("headers", [{"content_encoding": "gzip", "content_length": "99"}, {}, {"content_length": "90000"}])
def test_an_opt_out_waits_for_no_list_however_it_is_sent(tmp_path: Path, headers: dict[str, str]) -> None:
    """Compressed, in chunks without a length, or with more white space than others have."""
    body = json.dumps({"consents": [{"granted": False}]}).encode() + b" " * 90_000
    api = app.Api(app.Setup(tmp_path, tmp_path, None, None, "0"), lambda: SqliteStore(tmp_path / "online.db"))
    request = sent(gzip.compress(body) if "content_encoding" in headers else body, **headers)

    async def asked() -> schemas.ConsentRequest:
        api.small, api.first, api.reading, api.large = (work.Gate(1, 9) for _ in range(4))
        told = api._asked(request, schemas.ConsentRequest, SINGLE_BYTES, first=True)
        async with asyncio.timeout(10), api.small, api.reading, api.large, told as (found, size):
            assert size == len(body)
            return found

    assert asyncio.run(asked()).consents[0].granted is False


@pytest.mark.parametrize(
    ("body", "coding", "status"),
    [
        pytest.param(gzip.compress(b"{}")[:-4], "gzip", 400, id="cut short"),
        pytest.param(b"{}", "gzip", 400, id="plain"),
        pytest.param(gzip.compress(b"{}") + b"more", "gzip", 400, id="more behind it"),
        pytest.param(gzip.compress(b"{") + gzip.compress(b"}"), "gzip", 400, id="two members"),
        pytest.param(gzip.compress(b"") * 200_000, "gzip", 400, id="many empty members"),
        pytest.param(b"", "gzip", 400, id="empty"),
        pytest.param(zlib.compress(b"{}"), "deflate", 415, id="deflate"),
        pytest.param(b"{}", "br", 415, id="brotli"),
        pytest.param(gzip.compress(gzip.compress(b"{}")), "gzip, gzip", 415, id="twice"),
    ],
)
def test_what_is_not_gzip_is_refused(served: Served, body: bytes, coding: str, status: int) -> None:
    answer = served.client.post("/v1/score", **packed_body(body, coding))
    assert answer.status_code == status
    assert status != 415 or answer.headers["accept-encoding"] == "gzip"


def test_a_quantity_that_is_kept_as_nothing_is_refused(served: Served) -> None:
    lines = [{"quantity": 0.00004, "amount": 5.0}]
    assert told(score(served, ORDER | {"lines": lines}))[0][0] == "customers.0.orders.0.lines.0.quantity"
    assert score(served, ORDER | {"lines": [{"quantity": 0.0001, "amount": 5.0}]}).status_code == 200


def test_a_number_told_twice_in_the_query_is_refused(served: Served) -> None:
    assert told(served.client.get("/v1/decisions?after=1&after=0"))[0][0] == "after"


def test_pages_name_places_relative_to_themselves(served: Served) -> None:
    """A path prefix before the service changes nothing."""
    page = served.client.get("/try").text
    assert "fetch(place.slice(1)" in page
    assert not any(f'{attribute}="/' in page for attribute in ("href", "src", "action"))
    assert not any(place.startswith("/") for place in served.client.get("/").json().values())
    assert served.client.get("/openapi.json").json()["servers"] == [{"url": "./"}]


@pytest.fixture(scope="module")
def one_desk(sample_features: Shop, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    package = packed(sample_features, tmp_path_factory.getbasetemp() / "package-1")
    folder = tmp_path_factory.mktemp("desk")
    return Desk(Champions(package, folder, sample_features.places.features), SqliteStore(folder / "online.db"))


@pytest.fixture
def desk(one_desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A desk with an empty store, whose word on ids may be changed."""
    store = SqliteStore(tmp_path / "online.db")
    monkeypatch.setattr(one_desk, "store", store)
    monkeypatch.setattr(one_desk.decider, "store", store)
    monkeypatch.setattr(one_desk.champions.current, "ids", one_desk.champions.current.ids)
    return one_desk


def by(customer_id: str) -> schemas.OneCustomer:
    return schemas.OneCustomer(customer_id=customer_id)


def no(customer_id: str = "", **more: Any) -> schemas.ConsentRequest:
    return schemas.ConsentRequest(consents=[schemas.ConsentChange(granted=False)])


def add(desk: Desk, *events: dict[str, Any]) -> dict[str, int]:
    found = asyncio.run(desk.add_events(schemas.EventsRequest.model_validate_json(json.dumps({"events": events})).events))
    return {name: count for name, count in found.items() if count}


def decided(desk: Desk, *customers: str) -> list[dict[str, Any]]:
    asked = schemas.DecisionRequest(customers=[schemas.DecisionCustomer(customer_id=one) for one in customers])
    results: list[dict[str, Any]] = asyncio.run(desk.decide(asked))["results"]
    return results


def test_where_ids_of_the_shop_look_like_pseudonyms_only_those_known_are(desk: Desk) -> None:
    engine = desk.champions.current
    engine.ids = replace(engine.ids, hex_ids=True)
    own = "f" * 32
    assert desk.set_consents(by(own), no())["pseudonym"] == engine.pseudonyms(own)
    assert desk.set_consents(by(engine.pseudonyms(own)), no())["pseudonym"] == engine.pseudonyms(own)
    assert desk.store.knows([engine.pseudonyms(engine.pseudonyms(own))]) == set()
    with pytest.raises(Refusal):
        desk.set_consents(schemas.OneCustomer(pseudonym=own), no())


def test_an_id_that_stands_for_nobody_is_nobodys(desk: Desk) -> None:
    engine = desk.champions.current
    engine.ids = replace(engine.ids, not_customers=(engine.pseudonyms("guest"),))
    assert add(desk, event("orders", ORDER, " guest"), event("orders", ORDER, "other")) == {"accepted": 1, "nobody": 1}
    (guest,) = decided(desk, "guest")
    assert (guest["status"], "nobody" in guest["detail"]) == ("not_eligible", True)
    for call in (lambda: desk.set_consents(by("guest"), no()), lambda: asyncio.run(desk.profile(by("guest")))):
        with pytest.raises(Refusal, match="nobody"):
            call()
    assert desk.store.knows([engine.pseudonyms("guest")]) == set()


def test_case_counts_unless_the_shop_says_otherwise(desk: Desk) -> None:
    engine = desk.champions.current
    assert desk.set_consents(by("Ab"), no())["pseudonym"] != desk.set_consents(by("aB"), no())["pseudonym"]
    engine.ids = replace(engine.ids, fold_case=True)
    assert desk.set_consents(by("Ab"), no())["pseudonym"] == desk.set_consents(by("aB "), no())["pseudonym"]


def test_a_pseudonym_made_of_another_id_of_the_request_is_known(desk: Desk) -> None:
    hidden = desk.champions.current.pseudonyms("k")
    assert add(desk, event("orders", ORDER, "k", "1"), event("orders", ORDER, hidden, "2"), event("orders", ORDER, "0" * 32, "3")) == {
        "accepted": 2,
        "unknown": 1,
    }


def many(customer: str, number: int) -> list[dict[str, Any]]:
    return [event("orders", ORDER | {"order_id": f"o{n}"}, customer, f"e{n}") for n in range(number)]


def test_events_that_failed_half_way_may_be_told_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    keep, parts = inbox.keep, []

    def failing(*given: Any) -> Any:
        parts.append(len(given[2]))
        if len(parts) == 3:
            raise OSError("disk full")
        return keep(*given)

    monkeypatch.setattr(inbox, "keep", failing)
    with pytest.raises(OSError, match="disk full"):
        add(desk, *many("k", 300))
    done = sum(parts[:2])
    assert max(parts) <= inbox.ROWS_AT_ONCE
    assert add(desk, *many("k", 300)) == {"accepted": 300 - done, "known": done}
    looks = [name for (name,) in desk.store._db.execute("SELECT occasion FROM due ORDER BY 1")]  # type: ignore[attr-defined]
    assert looks == ["anniversary"]  # an order of long ago: its day and its 90 days have passed


def test_the_first_order_of_a_request_says_when_to_look_for_what_follows_a_first_order(desk: Desk) -> None:
    """However many are told at once, and though one is told again."""
    zone = desk.champions.current.zone
    now = datetime.now(zone).replace(microsecond=0, tzinfo=None)
    moments = [(now - timedelta(hours=hours)).isoformat() for hours in (9, 5, 2)]
    orders = [ORDER | {"order_id": f"o{n}", "ordered_at": moment} for n, moment in enumerate([*moments, moments[0]])]
    add(desk, *(event("orders", row, "k", f"e{n}") for n, row in enumerate(orders)))
    ((at,),) = desk.store._db.execute("SELECT at FROM due WHERE occasion = 'first_order_24h'").fetchall()  # type: ignore[attr-defined]
    assert at == datetime.fromisoformat(moments[0]).replace(tzinfo=zone).timestamp() + 86_400


def test_the_writer_takes_what_is_urgent_first_and_the_rest_in_its_order() -> None:
    done: list[Any] = []

    async def all_at_once() -> None:
        write = Writer()
        tasks = [asyncio.create_task(write(lambda: time.sleep(0.2)))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(write(lambda n=n: done.append(n))) for n in range(5)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(write(lambda n=n: done.append(n), urgent=True)) for n in ("a", "b")]
        await asyncio.gather(*tasks)
        with pytest.raises(ZeroDivisionError):
            await write(lambda: 1 / 0)

    asyncio.run(all_at_once())
    assert done == ["a", "b", 0, 1, 2, 3, 4]


def test_of_several_writers_of_one_file_whoever_is_urgent_comes_next(tmp_path: Path) -> None:
    """Each thread stands for a worker: one writes on and on, a second has an opt-out."""
    file, end, order = tmp_path / "online.db", threading.Event(), list[str]()
    SqliteStore(file)

    def pour() -> None:
        store = SqliteStore(file)
        while not end.is_set():
            with store.transaction():
                order.append("events")
                time.sleep(0.03)

    threads = [threading.Thread(target=pour) for _ in range(3)]
    [thread.start() for thread in threads]
    time.sleep(0.3)
    store, passed = SqliteStore(file), []
    for _ in range(10):
        before = len(order)
        with store.transaction(urgent=True):
            passed.append(len(order) - before)
    end.set()
    [thread.join() for thread in threads]
    assert sorted(passed)[5] <= 2  # those already on their way


def test_reasons_are_found_before_the_writers_turn_and_consents_kept_are_asked_for_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, asked, threads = desk.champions.current, [], []
    assert engine.lookup is not None
    meta, contributions = desk.store.meta, engine._contributions
    monkeypatch.setattr(desk.store, "meta", lambda key: [asked.append(key), meta(key)][1])
    monkeypatch.setattr(
        engine, "_contributions", lambda *given: [threads.append(threading.current_thread().name), contributions(*given)][1]
    )
    engine.lookup.scored.why.clear()
    assert len(decided(desk, *engine.lookup.scored.customer_id[:200])) == 200
    assert asked.count("loaded") == 1
    assert threads
    assert "writer" not in threads
