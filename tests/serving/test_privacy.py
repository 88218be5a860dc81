"""What a hostile or careless caller sends is found nowhere afterwards; who opts out is left alone; who is erased is gone from everywhere."""

import http.client
import io
import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import mapping
from features.pseudonym import Pseudonyms
from features.settings import Settings
from serving import erase, server
from serving import package as packaging
from serving.package import SERVICE
from tests import fake_shop
from tests.conftest import HOLDFAST, ROOT, Shop, clean_environment
from tests.serving.test_fuzz import workers
from tests.serving.test_guard import NAME, trained
from training import tracking
from training.dataset import TrainingData
from training.registry import CHAMPION, Registry
from validation.stages import build_features, validate

KEY = "5eedc0de" * 8
EMAIL, PHONE, RAW_ID = "planted.person@example.org", "4915123456789", "Kunde-Plant-4711"
PLANTS = (EMAIL, PHONE, RAW_ID, EMAIL.replace("@", "%40"), KEY)
OWN_ID = re.compile(rb"(?<![0-9a-z])k0\d{4}(?![0-9a-z])")
"""The shop's own names of its customers, in the files that only the shop may have."""
ERASED_SECONDS = 60


@dataclass(frozen=True)
class Private(Shop):
    """A shop whose ids are personal, with a registered champion; its service has two workers."""

    address: str

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=60)

    @property
    def online(self) -> Path:
        return self.home / "online.db"

    def cli(self, *words: str) -> str:
        """Run `holdfast WORDS` with the key and the service's store; returns where it wrote, as it told."""
        import subprocess

        env = clean_environment(self.home) | {"HOLDFAST_ID_KEY": KEY, "HOLDFAST_ONLINE": str(self.online)}
        done = subprocess.run([HOLDFAST, *words], env=env, capture_output=True, text=True, timeout=280, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


def pseudonym(customer_id: str) -> str:
    return Pseudonyms(bytes.fromhex(KEY))(customer_id)


def private_files(folder: Path) -> Path:
    """The fake shop with personal ids; returns the mapping file."""
    file = fake_shop.write(folder, customers=300)
    file.write_text(file.read_text().replace("personal = false", "personal = true"))
    return file


def register(shop: Shop) -> None:
    """A small LightGBM as the champion of the home's registry, as `holdfast train` and `holdfast promote` register one."""
    settings, scorer, data = Settings(home=shop.home), trained(shop.places.features, 7), TrainingData.read(shop.places.features)
    client = tracking.connect(settings)
    run = client.create_run(tracking.experiment_id(client, settings)).info.run_id
    scorer.save(shop.home / "small")
    registry = Registry(client, NAME)
    version = registry.register(scorer, shop.home / "small", run, data.at([data.split.test]), {"holdfast.gates": "pass"})
    registry.point(CHAMPION, str(version.version))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Private]:
    """The shop, validated, featured, registered and served by two workers; its source files lie outside of its home."""
    found = Shop(private_files(tmp_path_factory.mktemp("private_shop")), tmp_path_factory.mktemp("private"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLDFAST_ID_KEY", KEY)
        validate(mapping.read(found.mapping), found.places)
        build_features(mapping.read(found.mapping), found.places)
        register(found)
        settings, folder = Settings(home=found.home), found.home / "serving" / "champion"
        packaging.fetch(settings, NAME, CHAMPION, folder, None)
        env = server.environment(settings, found.places.features, folder, auth="off", workers="2")
        with server.running(SERVICE, env, found.home / "service.log") as address:
            yield Private(found.mapping, found.home, address)


def each_worker(shop: Private) -> list[http.client.HTTPConnection]:
    """One open connection to each of the two workers."""
    found: dict[int, http.client.HTTPConnection] = {}
    for _ in range(200):
        one = http.client.HTTPConnection(httpx.URL(shop.address).host, httpx.URL(shop.address).port, timeout=60)
        ask(one, "GET", "/livez")
        port = one.sock.getsockname()[1]
        for worker in workers(shop.home):
            if any(other.raddr and other.raddr.port == port for other in worker.net_connections("tcp")):
                found.setdefault(worker.pid, one)
        if len(found) == 2:
            return list(found.values())
    raise AssertionError("one worker takes all connections")


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of an answer on a connection that stays open."""
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    told = answer.read()
    return answer.status, json.loads(told) if "json" in (answer.headers["content-type"] or "") else told


def contents(home: Path) -> Iterator[tuple[Path, bytes]]:
    """The bytes of every file of a home, and the columns of Parquet and the batches of the online store in plain."""
    for file in (one for one in home.rglob("*") if one.is_file()):
        try:
            data = file.read_bytes()  # at once: an erasure may put another file in its place
            yield file, data
            if file.suffix == ".parquet":
                rows = pq.read_table(pa.BufferReader(data))
                texts = [name for name in rows.column_names if pa.types.is_string(rows.schema.field(name).type)]
                yield file, "\n".join(str(one) for name in texts for one in rows[name].unique().to_pylist()).encode()
        except FileNotFoundError:  # replaced or removed meanwhile
            continue


def places_of(home: Path, *plants: str) -> dict[str, set[str]]:
    """Which files of a home hold any of some texts."""
    found: dict[str, set[str]] = {}
    for file, text in contents(home):
        for plant in plants:
            if plant.encode() in text:
                found.setdefault(plant, set()).add(str(file.relative_to(home)))
    return found


HISTORY = [{"order_id": "o-1", "ordered_at": "2024-01-02T10:00:00", "amount": 5.0}]


def valid(client: httpx.Client, plant: str) -> Iterator[httpx.Response]:
    """Good requests about a customer whom the caller names by a plant."""
    yield client.post("/v1/score", json={"customers": [{"customer_id": plant, "orders": HISTORY}], "snapshot": "2024-02-01T00:00:00"})
    yield client.post("/v1/decisions", json={"customers": [{"customer_id": plant, "orders": HISTORY}], "snapshot": "2024-02-01T00:00:00"})
    row = {"order_id": "o-2", "ordered_at": "2024-02-03T10:00:00", "amount": 7.5}
    yield client.post("/v1/events", json={"events": [{"event_id": "e", "customer_id": plant, "table": "orders", "row": row}]})
    yield client.put(f"/v1/customers/{plant}/consents", json={"consents": [{"channel": "sms", "granted": False}]})
    yield client.post("/v1/decisions", json={"customers": [{"customer_id": plant}], "snapshot": "2024-02-10T00:00:00"})
    yield client.get(f"/v1/customers/{plant}")


def invalid(client: httpx.Client, plant: str) -> Iterator[httpx.Response]:
    """Bad requests with a plant as a field's name, as a value, in headers, in the path, in the query, and in broken JSON."""
    for body in (
        {"customers": [{"customer_id": "c", plant: 1}]},
        {plant: plant},
        {"customers": [{"customer_id": plant * 10}]},
        {"customers": [{"customer_id": "c", "orders": [{"order_id": "o", "ordered_at": plant, "amount": plant}]}]},
        {"customers": [{"customer_id": "c", "orders": HISTORY, "attributes": plant}]},
        {"customers": [{"customer_id": plant}, {"customer_id": plant}]},
        {"customers": [{"customer_id": "c", "features": {plant: 1.0}}]},
        {"customers": [{"customer_id": "c"}], "model_version": plant},
        plant,
    ):
        yield client.post("/v1/score", json=body)
        yield client.post("/v1/decisions", json=body)
    yield client.post("/v1/decisions", json={"customers": [{"customer_id": "c"}], "occasion": plant})
    yield client.post("/v1/events", json={"events": [{"event_id": "e", "customer_id": "c", "table": plant, "row": {plant: plant}}]})
    yield client.post("/v1/outcomes", json={"outcomes": [{"decision_id": plant, "kind": plant, "at": plant}]})
    yield client.put("/v1/customers/c/consents", json={"consents": [{"purpose": plant, "channel": "sms", "granted": False}]})
    yield client.put("/v1/customers/c/consents", json={"timezone": plant})
    yield client.put("/v1/customers/c/consents", json={"consents": [{"channel": plant, "granted": plant}]})
    yield client.post("/v1/score", content=f'{{"{plant}": "{plant}', headers={"Content-Type": "application/json"})
    yield client.post("/v1/score", content=plant, headers={"Content-Type": plant})
    for path in (f"/v1/{plant}", f"/{plant}", f"/v1/decisions/{plant}", f"/v1/decisions?limit={plant}", f"/v1/customers/{plant}/{plant}"):
        yield client.get(path)
    yield client.request(f"X{re.sub('[^A-Za-z0-9]', '', plant)}", "/v1/score")
    yield client.post(
        "/v1/score", json={}, headers={name: plant for name in ("User-Agent", "X-Request-Id", "Referer", "X-API-Key", plant[:5])}
    )


def raw(address: str, wire: bytes) -> bytes:
    """The answer to bytes that are no HTTP."""
    import socket

    with socket.create_connection((httpx.URL(address).host, httpx.URL(address).port or 80), 10) as one:
        one.sendall(wire)
        return one.recv(65536)


@pytest.mark.parametrize("plant", [EMAIL, PHONE, RAW_ID])
def test_an_error_repeats_nothing_that_it_was_sent(shop: Private, plant: str) -> None:
    with shop.client as client:
        for answer in invalid(client, plant):
            assert 400 <= answer.status_code < 500, answer.request.content
            assert plant not in answer.text
            assert not any(plant in value for value in answer.headers.values())
    assert plant.encode() not in raw(shop.address, f"GET /{plant} HTTP/9.9\r\n{plant}\r\n\r\n".encode())


@pytest.mark.parametrize("plant", [EMAIL, PHONE, RAW_ID])
def test_an_answer_names_the_customer_as_the_caller_did_and_nowhere_else(shop: Private, plant: str) -> None:
    with shop.client as client:
        for answer in valid(client, plant):
            assert answer.status_code == 200, answer.text
            assert plant not in re.sub(f'"customer_id":"{re.escape(plant)}"', "", answer.text)


def test_a_crash_tells_nothing_of_the_request(shop: Private) -> None:
    database = sqlite3.connect(shop.online, isolation_level=None)
    database.execute("ALTER TABLE consent RENAME TO consent_away")
    try:
        body = {"consents": [{"granted": True}], "timezone": "Europe/Berlin"}
        answers = [httpx.put(f"{shop.address}/v1/customers/{one}/consents", json=body) for one in (EMAIL, PHONE, RAW_ID)]
    finally:
        database.execute("ALTER TABLE consent_away RENAME TO consent")
        database.close()
    assert [answer.status_code for answer in answers] == [500] * 3
    assert all(answer.headers["content-type"] == "application/problem+json" for answer in answers)
    assert not any(plant in answer.text for answer in answers for plant in PLANTS)


def test_an_error_whose_message_holds_a_value_is_logged_without_it(shop: Private) -> None:
    customer, secret = "k00005", "Value-That-Leaks"
    with shop.client as client:
        list(valid(client, customer))
    spoilt = json.dumps({"order_id": "o", "ordered_at": secret})
    with sqlite3.connect(shop.online) as database:
        database.execute("UPDATE event SET row = ? WHERE customer = ?", (spoilt, pseudonym(customer)))
    answer = httpx.post(f"{shop.address}/v1/score", json={"customers": [{"customer_id": customer}]})
    with sqlite3.connect(shop.online) as database:
        database.execute("DELETE FROM event WHERE customer = ?", (pseudonym(customer),))
    assert (answer.status_code, secret in answer.text) == (500, False)
    log = (shop.home / "service.log").read_text()
    assert "ValueError" in log
    assert secret not in log


def test_nothing_that_was_sent_is_found_anywhere(shop: Private) -> None:
    """After all of the above: log, audit, metrics, online store, registry, artefacts, validation results and reports."""
    with shop.client as client:
        for plant in (EMAIL, PHONE, RAW_ID, "k00007"):
            answers = [*invalid(client, plant), *valid(client, plant)]
            assert len(answers) > 30
        assert not any(plant in client.get("/metrics").text for plant in PLANTS)
    shop.cli("decide", "--dataset", str(shop.mapping), "--strategy", "no_contact")
    there = {file.relative_to(shop.home).parts[0] for file, _ in contents(shop.home)}
    assert {"service.log", "online.db", "audit", "mlflow.db", "mlartifacts", "reports", "datasets"} <= there
    assert places_of(shop.home, *PLANTS) == {}
    assert {str(file.relative_to(shop.home)) for file, text in contents(shop.home) if OWN_ID.search(text)} == set()


def test_the_search_finds_what_is_there(shop: Private, tmp_path: Path) -> None:
    pq.write_table(pa.table({"note": ["written by " + EMAIL]}), tmp_path / "a.parquet", compression="zstd")
    (tmp_path / "b").write_bytes(b"\0" + RAW_ID.encode())
    assert places_of(tmp_path, *PLANTS) == {EMAIL: {"a.parquet"}, RAW_ID: {"b"}}
    known = places_of(shop.home, pseudonym("k00007"))
    assert any("features.parquet" in file for file in known[pseudonym("k00007")])


def test_a_stored_history_holds_its_own_customer_only(shop: Private) -> None:
    with sqlite3.connect(shop.online) as database:
        owners = [one for (one,) in database.execute("SELECT DISTINCT customer FROM history ORDER BY customer")]
        histories = dict(database.execute("SELECT customer, rows FROM history WHERE source = 'orders'").fetchall())
    assert len(histories) > 100
    neighbours = dict(pairwise(owners))
    assert [one for one in histories if one in neighbours and neighbours[one].encode() in histories[one]] == []


def test_the_audit_names_no_customer(shop: Private) -> None:
    with shop.client as client:
        assert client.put("/v1/customers/k00011/consents", json={"consents": [{"granted": True}]}).status_code == 200
    lines = [json.loads(line) for file in (shop.home / "audit").iterdir() for line in io.StringIO(file.read_text())]
    assert {"consents", "decide", "score"} & {line["action"] for line in lines}
    assert set().union(*lines) <= {"at", "key", "action", "status", "customers", "subject"}
    assert pseudonym("k00011") not in json.dumps(lines)
    assert all(oct(file.stat().st_mode)[-3:] == "600" for file in (shop.home / "audit").iterdir())


def keen(shop: Private, number: int) -> list[str]:
    """The shop's own names of some customers who would be contacted now, if nothing forbade it."""
    names = [f"k{n:05d}" for n in range(20, 300)]
    with shop.client as client:
        told = client.post("/v1/score", json={"customers": [{"customer_id": one} for one in names], "reasons": False}).json()["results"]
        found = [one["customer_id"] for one in told if one["status"] == "scored" and one["tier"] != "none"]
        return [one for one in found if not client.get(f"/v1/customers/{one}").json()["decisions"]][:number]


def scored(shop: Private) -> list[str]:
    """The shop's own names of some customers of the latest table."""
    names = [f"k{n:05d}" for n in range(20, 300)]
    told = httpx.post(f"{shop.address}/v1/score", json={"customers": [{"customer_id": one} for one in names], "reasons": False}).json()
    return [one["customer_id"] for one in told["results"] if one["status"] == "scored"]


def test_who_opts_out_gets_no_contact_of_any_worker(shop: Private) -> None:
    names, both = keen(shop, 12), each_worker(shop)
    assert len(names) == 12
    for customer in names[:6]:
        assert ask(both[0], "PUT", f"/v1/customers/{customer}/consents", {"consents": [{"granted": False}]})[0] == 200
        for worker in both:
            (decided,) = ask(worker, "POST", "/v1/decisions", {"customers": [{"customer_id": customer}]})[1]["results"]
            assert (decided["tier"], decided["binding"], decided["channel"]) == ("none", "no_consent", None)
    others = ask(both[1], "POST", "/v1/decisions", {"customers": [{"customer_id": one} for one in names[6:]]})[1]["results"]
    assert any(one["tier"] != "none" for one in others)


def test_who_opts_out_gets_no_contact_of_the_daily_round(shop: Private) -> None:
    (customer,) = keen(shop, 1)
    with shop.client as client:
        client.put(f"/v1/customers/{customer}/consents", json={"consents": [{"granted": False}]})
    out = shop.home / "opted_out.parquet"
    shop.cli("decide", "--dataset", str(shop.mapping), "--out", str(out))
    (row,) = pq.read_table(out, filters=[("customer_id", "=", pseudonym(customer))]).to_pylist()
    assert (row["tier"], row["channel"]) == ("none", "")


@pytest.fixture(scope="module")
def erased(shop: Private) -> str:
    """A customer of the batch, with an event, a consent, decisions and an outcome, erased by one worker while the other looks on."""
    customer = scored(shop)[0]
    with shop.client as client:
        list(valid(client, customer))
    shop.cli("decide", "--dataset", str(shop.mapping))
    assert len(places_of(shop.home, pseudonym(customer))[pseudonym(customer)]) >= 5
    one, _ = each_worker(shop)
    assert ask(one, "DELETE", f"/v1/customers/{customer}")[0] == 200
    return customer


def test_an_erased_customer_is_unknown_to_every_worker_at_once(shop: Private, erased: str) -> None:
    event = {"event_id": "x", "customer_id": erased, "table": "orders", "row": HISTORY[0]}
    for worker in each_worker(shop):
        for name in (erased, pseudonym(erased)):
            assert ask(worker, "GET", f"/v1/customers/{name}")[0] == 404
            assert ask(worker, "PUT", f"/v1/customers/{name}/consents", {"consents": []})[0] == 404
            assert ask(worker, "DELETE", f"/v1/customers/{name}")[0] == 404
            for path in ("/v1/score", "/v1/decisions"):
                (told,) = ask(worker, "POST", path, {"customers": [{"customer_id": name, "orders": HISTORY}]})[1]["results"]
                assert told["status"] == "unknown"
                (told,) = ask(worker, "POST", path, {"customers": [{"customer_id": name}]})[1]["results"]
                assert told["status"] == "unknown"
        assert ask(worker, "POST", "/v1/events", {"events": [event]})[1] == {
            "accepted": 0,
            "known": 0,
            "erased": 1,
            "unknown": 0,
            "nobody": 0,
        }


def test_an_erased_customer_is_in_no_file_a_minute_later(shop: Private, erased: str) -> None:
    end = time.monotonic() + ERASED_SECONDS
    while (left := places_of(shop.home, pseudonym(erased), erased)) and time.monotonic() < end:
        time.sleep(1)
    assert left == {}
    digests = sqlite3.connect(shop.online).execute("SELECT digest FROM erased").fetchall()
    assert digests
    assert pseudonym(erased) not in {one for (one,) in digests}


def test_an_erased_customer_is_left_out_of_the_daily_round(shop: Private, erased: str) -> None:
    test_an_erased_customer_is_in_no_file_a_minute_later(shop, erased)
    out = shop.home / "without.parquet"
    shop.cli("decide", "--dataset", str(shop.mapping), "--out", str(out))
    found = pq.read_table(out)["customer_id"].to_pylist()
    assert len(found) > 100
    assert pseudonym(erased) not in found
    assert places_of(shop.home, pseudonym(erased)) == {}


def test_an_erased_customer_stays_away_when_the_shops_files_are_read_again(shop: Private, erased: str) -> None:
    """The shop's own files still hold the customer: what is made of them again is no contact, and is gone again a minute after."""
    for stage in ("validate", "features"):
        shop.cli(stage, "--dataset", str(shop.mapping))
    out = shop.home / "again.parquet"
    shop.cli("decide", "--dataset", str(shop.mapping), "--out", str(out))
    assert pseudonym(erased) not in pq.read_table(out)["customer_id"].to_pylist()
    assert pseudonym(erased).encode() not in shop.online.read_bytes()
    with shop.client as client:
        assert client.get(f"/v1/customers/{erased}").status_code == 404


def test_an_erasure_during_decisions_leaves_nothing_behind(shop: Private) -> None:
    names, seen = [f"racer-{n}" for n in range(6)], []
    body = {"snapshot": "2024-02-01T00:00:00"}

    def decide(name: str) -> None:
        with shop.client as client:
            for _ in range(25):
                told = client.post("/v1/decisions", json=body | {"customers": [{"customer_id": name, "orders": HISTORY}]}).json()
                seen.append(told["results"][0]["status"])

    with ThreadPoolExecutor(12) as pool:
        tasks = [pool.submit(decide, name) for name in names for _ in range(2)]
        time.sleep(0.4)
        with shop.client as client:
            assert [client.delete(f"/v1/customers/{name}").status_code for name in names] == [200] * len(names)
        for task in tasks:
            task.result()
    assert {"scored", "unknown"} == set(seen)
    rows = sqlite3.connect(shop.online).execute("SELECT DISTINCT customer FROM decision UNION SELECT customer FROM contact").fetchall()
    assert not {pseudonym(name) for name in names} & {one for (one,) in rows}


def gone(shop: Private, *customers: str) -> bool:
    """Whether some customers are in no file of the home, at the latest after the time an erasure may take."""
    end = time.monotonic() + ERASED_SECONDS
    while (left := places_of(shop.home, *map(pseudonym, customers))) and time.monotonic() < end:
        time.sleep(1)
    return left == {}


def test_erasures_asked_for_at_once_undo_none_of_each_other(shop: Private) -> None:
    """Each rewrites the same files."""
    customers = scored(shop)[20:28]
    assert len(places_of(shop.home, *map(pseudonym, customers))) == len(customers)
    with ThreadPoolExecutor(8) as pool, shop.client as client:
        assert {answer.status_code for answer in pool.map(lambda one: client.delete(f"/v1/customers/{one}"), customers)} == {200}
    assert gone(shop, *customers)


def test_an_erasure_cut_short_by_a_kill_is_finished_at_the_next_start(shop: Private, tmp_path: Path) -> None:
    customer, folder = scored(shop)[-2], shop.home / "serving" / "champion"
    erase.ask(shop.home, [pseudonym(customer)])
    given = server.environment(Settings(home=shop.home), shop.places.features, folder, auth="off", online=str(shop.online))
    with server.running(SERVICE, {**os.environ, **given, "HOLDFAST_ID_KEY": KEY}, tmp_path / "third.log") as address:
        assert httpx.get(f"{address}/v1/customers/{customer}", timeout=60).status_code == 404
        assert gone(shop, customer)
    assert erase.asked(shop.home) == {}


def test_an_erasure_is_finished_though_the_service_stops_right_after(shop: Private, tmp_path: Path) -> None:
    env = {**os.environ, "HOLDFAST_ID_KEY": KEY}
    customer, folder = scored(shop)[-1], shop.home / "serving" / "champion"
    given = server.environment(Settings(home=shop.home), shop.places.features, folder, auth="off", online=str(shop.online))
    with server.running(SERVICE, env | given | {"HOLDFAST_ID_KEY": KEY}, tmp_path / "second.log") as address:
        assert httpx.delete(f"{address}/v1/customers/{customer}", timeout=60).status_code == 200
    assert gone(shop, customer)


@pytest.mark.slow
def test_a_whole_run_writes_no_raw_id_and_no_key(tmp_path: Path) -> None:
    """Every stage with its MLflow artefacts, validation results, data docs and reports."""
    import subprocess

    home, files = tmp_path / "home", private_files(tmp_path / "shop")
    env = clean_environment(home) | {"HOLDFAST_ID_KEY": KEY}
    done = subprocess.run(
        [HOLDFAST, "run", "--dataset", str(files), "--trials", "2"], env=env, capture_output=True, text=True, timeout=900, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not OWN_ID.search((done.stdout + done.stderr).encode())
    assert {str(file.relative_to(home)) for file, text in contents(home) if OWN_ID.search(text) or KEY.encode() in text} == set()
