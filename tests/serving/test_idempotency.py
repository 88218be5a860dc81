"""A decision asked for again with its key: the first answer to the byte, one charge, and nothing left of who is erased."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from features.files import read_json, write_json
from serving import app, idempotency
from serving.score import IDENTITY
from serving.sqlite_store import SqliteStore
from tests.serving.test_decisions import Light, at_risk, ledger, light_shop, logged
from tests.serving.test_online import on_disk
from tests.serving.test_policy import TEXT

KEY, REPLAYED = "Idempotency-Key", "idempotent-replayed"
SNAPSHOT = "2025-12-01T00:00:00"
RAW = {
    "customer_id": "jane.doe@example.org",
    "orders": [{"order_id": f"o{n}", "ordered_at": f"2025-{n + 1:02d}-03T10:00:00", "amount": 20.0 + n} for n in range(11)],
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Light:
    return light_shop(tmp_path_factory)


class Worker:
    """The application over a store's file; several stand for workers of one service, one after another for restarts."""

    def __init__(self, shop: Light, home: Path, package: Path | None = None) -> None:
        self.file, self.stack = home / "online.db", ExitStack()
        setup = app.Setup(home, package or shop.package, shop.places.features, None, "0")
        self.client = self.stack.enter_context(TestClient(app.create(setup, lambda: SqliteStore(self.file)), "http://holdfast"))

    def decide(self, *customers: Any, key: str | None = "k-1", **more: Any) -> httpx.Response:
        rows = [{"customer_id": one} if isinstance(one, str) else one for one in customers]
        return self.client.post("/v1/decisions", json={"customers": rows, **more}, headers={KEY: key} if key else {})


@pytest.fixture
def worker(shop: Light, tmp_path: Path) -> Iterator[Worker]:
    found = Worker(shop, tmp_path)
    with found.stack:
        yield found


def results(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return list(answer.json()["results"])


def test_the_same_key_and_request_get_the_same_bytes_and_are_charged_once(shop: Light, worker: Worker) -> None:
    asked = (*at_risk(shop.engine, 20), "nobody knows me", RAW)
    first = worker.decide(*asked, reasons=True, snapshot=SNAPSHOT)
    spent, again = ledger(worker.file), worker.decide(*asked, reasons=True, snapshot=SNAPSHOT)
    assert spent["budget"] > 0
    assert (again.content, again.headers[REPLAYED]) == (first.content, "true")
    assert REPLAYED not in first.headers
    assert (ledger(worker.file), len(logged(worker.file))) == (spent, 21)
    assert results(first)[0]["reasons"]


def test_without_a_key_or_with_another_it_is_another_decision(shop: Light, worker: Worker) -> None:
    (name,) = at_risk(shop.engine, 1)
    told = [results(worker.decide(name, key=key))[0] for key in ("a", "b", None, None)]
    assert len({one["decision_id"] for one in told}) == 4
    assert [one["binding"] for one in told[1:]] == ["minimum_gap"] * 3


def test_spaces_and_order_in_the_body_do_not_count_and_anything_else_does(shop: Light, worker: Worker) -> None:
    name, other = at_risk(shop.engine, 2)
    headers = {KEY: "k", "Content-Type": "application/json"}
    bodies = [f'{{"customers":[{{"customer_id":"{name}"}}],"reasons":false}}', f'{{ "customers": [{{"customer_id": "{name}"}}] }}']
    first, again = (worker.client.post("/v1/decisions", content=body, headers=headers) for body in bodies)
    assert again.content == first.content
    for wrong in ([other], [name, other]):
        refused = worker.decide(*wrong, key="k")
        assert (refused.status_code, refused.json()["title"]) == (422, "Key used before")
    assert worker.decide(name, key="k", reasons=True).status_code == 422
    assert len(logged(worker.file)) == 1


def test_asked_at_the_same_moment_of_two_workers_it_is_made_once(shop: Light, worker: Worker, tmp_path: Path) -> None:
    other, names = Worker(shop, tmp_path), at_risk(shop.engine, 40)
    with other.stack, ThreadPoolExecutor(8) as pool:
        for name in names:
            asked = [pool.submit((worker, other)[n % 2].decide, name, key=f"k-{name}") for n in range(4)]
            assert len({one.result().content for one in asked}) == 1
    log = logged(worker.file)
    assert sorted(one["customer"] for one in log) == sorted(names)


def test_after_a_restart_with_another_model_and_policy_the_first_answer_stands(shop: Light, tmp_path: Path) -> None:
    names = at_risk(shop.engine, 3)
    before = Worker(shop, tmp_path)
    with before.stack:
        first = before.decide(*names, model_version="1")
    package = Path(shutil.copytree(shop.package, tmp_path / "package"))
    write_json(package / IDENTITY, read_json(package / IDENTITY) | {"model_version": "2"})
    (package / "policy.toml").write_text(TEXT.replace("per_day = 1000.0", "per_day = 0.0"))
    after = Worker(shop, tmp_path, package)
    with after.stack:
        again = after.decide(*names, model_version="1")
        assert again.content == first.content
        assert after.decide(names[0], key="new", model_version="1").status_code == 409
        assert results(after.decide(names[0], key="new"))[0]["tier"] == "none"


def test_who_is_erased_meanwhile_is_unknown_and_of_nobody_is_a_byte_kept(shop: Light, worker: Worker) -> None:
    gone, stays = at_risk(shop.engine, 2)
    first = results(worker.decide(gone, stays, RAW, snapshot=SNAPSHOT))
    assert RAW["customer_id"].encode() not in on_disk(worker.file)
    for text in (gone, RAW["customer_id"]):
        assert worker.client.post("/v1/customers/erasure", json={"customer_id": text}).status_code == 200
    again = results(worker.decide(gone, stays, RAW, snapshot=SNAPSHOT))
    assert again[1] == first[1]
    assert [(one["status"], one["customer_id"]) for one in (again[0], again[2])] == [("unknown", gone), ("unknown", RAW["customer_id"])]
    assert [one["pseudonym"] for one in again] == [one["pseudonym"] for one in first]
    assert gone.encode() not in on_disk(worker.file)
    assert first[2]["pseudonym"].encode() not in on_disk(worker.file)


def test_an_answer_about_nobody_known_makes_nobody_known(worker: Worker) -> None:
    first, again = (worker.decide("a stranger") for _ in range(2))
    assert first.content == again.content
    assert worker.client.get("/v1/customers/a%20stranger").status_code == 404
    assert results(first)[0]["pseudonym"].encode() not in on_disk(worker.file)


@pytest.mark.parametrize("key", ["", " ", "a b", "ä", "x" * 129, "a\tb"])
def test_what_is_no_key_is_refused(shop: Light, worker: Worker, key: str) -> None:
    headers = [(KEY.encode(), key.encode("latin-1")), (b"Content-Type", b"application/json")]
    body = {"customers": [{"customer_id": at_risk(shop.engine, 1)[0]}]}
    refused = worker.client.post("/v1/decisions", content=json.dumps(body), headers=headers)
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, KEY)
    assert logged(worker.file) == []


def test_a_refusal_is_not_kept_and_the_longest_key_is_one(shop: Light, worker: Worker) -> None:
    (name,), key = at_risk(shop.engine, 1), "x" * 128
    assert worker.decide(name, key=key, model_version="99").status_code == 409
    assert worker.decide(name, key=key).status_code == 200


def test_answers_are_kept_for_two_days_and_then_dropped_in_small_steps(tmp_path: Path) -> None:
    store, hour = SqliteStore(tmp_path / "online.db"), 3600.0
    for number in range(6):
        store.keep_answer(f"k{number}", "b", number * hour, "{}", [("c", "{}")] * 10)
    assert store.kept_answer("k1", 1.0 * hour) is None
    assert len(store.kept_answer("k2", 1.0 * hour).rows) == 10  # type: ignore[union-attr]
    steps = []
    while gone := store.forget_answers(3.5 * hour, 15):
        steps.append(gone)
    assert max(steps) <= 2 * 15
    with closing(sqlite3.connect(store.file)) as db:
        assert db.execute("SELECT key FROM asked ORDER BY key").fetchall() == [("k4",), ("k5",)]
        assert db.execute("SELECT count(*) FROM answered").fetchone() == (20,)
    assert 48 * hour == idempotency.KEPT_SECONDS


def test_a_key_that_is_too_old_is_new_again(shop: Light, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = at_risk(shop.engine, 1)
    first = results(worker.decide(name))[0]
    monkeypatch.setattr(idempotency, "KEPT_SECONDS", 0.0)
    second = worker.decide(name)
    assert REPLAYED not in second.headers
    assert results(second)[0]["decision_id"] != first["decision_id"]
