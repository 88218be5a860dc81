"""The service as a downstream app sees it: answers equal the batch's, bad input is refused by field, nothing leaks."""

import json
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from features import store, table
from tests.conftest import Shop, cli
from tests.serving.raw import histories


@pytest.fixture(scope="module")
def batch(fake_run: Shop) -> dict[str, dict[str, object]]:
    """`holdfast score` of the fake shop, by customer."""
    out = fake_run.home / "batch.parquet"
    done = cli(fake_run.home, "score", "--dataset", str(fake_run.mapping), "--out", str(out))
    assert done.returncode == 0, done.stderr
    return {row["customer_id"]: row for row in pq.read_table(out).to_pylist()}


def score(client: httpx.Client, customers: list[dict[str, object]], **more: object) -> list[dict[str, object]]:
    answer = client.post("/v1/score", json={"customers": customers, **more})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["results"])


def test_an_id_gets_the_batchs_score_and_recommendation(client: httpx.Client, batch: dict[str, dict[str, object]]) -> None:
    ids = list(batch)[:50]
    for result in score(client, [{"customer_id": customer} for customer in ids]):
        expected = batch[str(result["customer_id"])]
        assert result["churn_probability"] == pytest.approx(expected["churn_probability"], abs=1e-12)
        assert result["tier"] == expected["tier"]
        assert [reason["text"] for reason in result["reasons"]] == expected["reasons"]  # type: ignore[attr-defined]
        assert set(result["expected_gain"]) == {"none", "nudge", "offer", "concierge"}  # type: ignore[arg-type]
        assert result["effects_source"] == "assumed"


def test_a_raw_history_gets_the_batchs_score(client: httpx.Client, fake_run: Shop, batch: dict[str, dict[str, object]]) -> None:
    latest = table.read_manifest(fake_run.places.features).latest
    assert latest is not None
    with store.opened(fake_run.places.sources) as connection:
        bodies = histories(connection, list(batch))
    for result in score(client, bodies, snapshot=latest.isoformat()):
        expected = batch[str(result["customer_id"])]
        assert result["churn_probability"] == pytest.approx(expected["churn_probability"], abs=1e-9)
        assert result["lifecycle_stage"] == expected["lifecycle_stage"]


def test_results_come_in_the_order_of_the_request(client: httpx.Client, batch: dict[str, dict[str, object]]) -> None:
    ids = [*list(batch)[:5][::-1], "nobody"]
    results = score(client, [{"customer_id": customer} for customer in ids])
    assert [result["customer_id"] for result in results] == ids
    assert results[-1]["status"] == "unknown"


def test_a_history_that_lies_after_the_snapshot_is_not_eligible(client: httpx.Client) -> None:
    order = {"order_id": "o", "ordered_at": "2024-03-01T00:00:00", "amount": 5.0}
    results = score(client, [{"customer_id": "c", "orders": [order]}], snapshot="2024-02-01T00:00:00")
    assert results[0]["status"] == "not_eligible"


GOOD = {"customers": [{"customer_id": "c", "orders": [{"order_id": "o", "ordered_at": "2024-01-01T00:00:00", "amount": 5.0}]}]}


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ("{", 400, None),
        (json.dumps({"customers": []}), 422, "customers"),
        (json.dumps({"customers": [{"customer_id": 7}]}), 422, "customers.0.customer_id"),
        (json.dumps({"customers": [{"customer_id": "c", "email": "planted@example.org"}]}), 422, "customers.0.(unknown)"),
        (json.dumps({"customers": [{"customer_id": "c"}, {"customer_id": "c"}]}), 422, "customers"),
        (json.dumps(GOOD).replace("5.0", "NaN"), 422, "customers.0.orders.0.amount"),
        (json.dumps(GOOD).replace("5.0", "-1"), 422, "customers.0.orders.0.amount"),
        (json.dumps(GOOD).replace("5.0", '"5"'), 422, "customers.0.orders.0.amount"),
        (json.dumps(GOOD).replace("2024-01-01T00:00:00", "yesterday"), 422, "customers.0.orders.0.ordered_at"),
        (json.dumps({"customers": [{"customer_id": str(n)} for n in range(1001)]}), 422, "customers"),
    ],
)
def test_a_bad_body_is_refused_by_field_without_its_value(client: httpx.Client, body: str, status: int, field: str | None) -> None:
    answer = client.post("/v1/score", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert field is None or field in [error["field"] for error in answer.json()["errors"]]
    assert "planted" not in answer.text


def test_other_media_and_huge_bodies_are_refused(client: httpx.Client) -> None:
    assert client.post("/v1/score", content=b"a=1", headers={"content-type": "text/plain"}).status_code == 415
    huge = b'{"customers": [' + b" " * (17 * 1024 * 1024) + b"]}"
    assert client.post("/v1/score", content=huge, headers={"content-type": "application/json"}).status_code == 413


def test_the_model_tells_what_is_served(client: httpx.Client, fake_run: Shop) -> None:
    told = client.get("/v1/model").json()
    facts = json.loads((fake_run.home / "reports/run.json").read_text())
    assert (told["model_version"], told["model"]) == (facts["champion"]["version"], facts["champion"]["model"])
    assert told["features"] == facts["features"]
    latest = table.read_manifest(fake_run.places.features).latest
    assert told["table_customers"] == table.read(fake_run.places.features, [latest] if latest else None).num_rows


@pytest.mark.slow  # `test_fuzz.py` does it for a small model
def test_the_openapi_document_is_true_to_the_answers(client: httpx.Client, tmp_path: Path) -> None:
    """Schemathesis sends generated requests, good and bad, and checks every answer against the document."""
    import subprocess
    import sys

    url = f"{client.base_url}/openapi.json"
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", url, "--checks", "all", "--max-examples", "40", "--seed", "1"]
    without = ["--exclude-checks", "unsupported_method,positive_data_acceptance,ignored_auth"]  # this service asks for no keys
    done = subprocess.run([*command, *without], capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]


def test_decisions_are_told_logged_and_found_again(client: httpx.Client, batch: dict[str, dict[str, object]]) -> None:
    answer = client.post("/v1/decisions", json={"customers": [{"customer_id": customer} for customer in list(batch)[:3]]}).json()
    feed = {one["decision_id"]: one for one in client.get("/v1/decisions", params={"limit": 1000}).json()["decisions"]}
    for result in answer["results"]:
        logged = feed[result["decision_id"]]
        assert {name: logged[name] for name in ("churn_probability", "tier", "binding", "pseudonym")} == {
            name: result[name] for name in ("churn_probability", "tier", "binding", "pseudonym")
        }
        assert client.get(f"/v1/decisions/{result['decision_id']}").json() == {**logged, "number": None}


def test_a_second_decision_keeps_the_minimum_gap_and_an_outcome_is_kept(client: httpx.Client, batch: dict[str, dict[str, object]]) -> None:
    asked = {"customers": [{"customer_id": customer} for customer in list(batch)[3:]]}
    first, second = (client.post("/v1/decisions", json=asked).json()["results"] for _ in range(2))
    contacted = [(one, again) for one, again in zip(first, second, strict=True) if one["tier"] != "none"]
    assert contacted
    assert {(again["tier"], again["binding"]) for _, again in contacted} == {("none", "minimum_gap")}
    outcome = {"decision_id": contacted[0][0]["decision_id"], "kind": "responded", "at": datetime.now(UTC).isoformat(), "value": 20.0}
    told = [client.post("/v1/outcomes", json={"outcomes": [outcome]}).json() for _ in range(2)]
    assert told == [{"accepted": 1, "known": 0, "unknown": 0}, {"accepted": 0, "known": 1, "unknown": 0}]


def test_the_service_binds_to_this_machine_only(fake_run: Shop) -> None:
    from serving import server

    line = server.command("x", "127.0.0.1", 3000)
    assert line[line.index("--host") + 1] == "127.0.0.1"
    assert "127.0.0.1" in cli(fake_run.home, "serve", "--help").stdout
