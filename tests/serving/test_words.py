"""What is told last holds, in whatever spelling; what is told twice counts once."""

import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from features import mapping, sources
from features.pseudonym import Pseudonyms
from serving import histories, schemas
from serving.champions import Champions
from serving.desk import Desk
from serving.load import load
from serving.sqlite_store import SqliteStore
from tests.conftest import Shop
from tests.features.ways import ROWS, Written, rendered, texts
from tests.serving.conftest import Served
from tests.serving.test_guard import packed

SOURCES = ["orders", "order_lines", "returns"]


def consents(served: Served, name: str, *given: dict[str, Any]) -> Any:
    return served.client.put(f"/v1/customers/{name}/consents", json={"consents": list(given)})


def test_a_word_told_now_is_later_than_one_that_another_clock_dates_later(served: Served) -> None:
    served.store.set_consents([(served.pseudonym("late"), "marketing", "", True, time.time() + 1800)])
    first = consents(served, "late", {"granted": False}).json()
    assert (first["known"], first["consents"]) == (True, {"": False})
    assert consents(served, "late", {"granted": True}).json()["consents"] == {"": True}
    assert consents(served, "late", {"granted": False}).json()["consents"] == {"": False}


def test_an_id_that_nobody_knows_is_kept_and_said_to_be_unknown(served: Served) -> None:
    assert consents(served, "never seen", {"granted": False}).json()["known"] is False
    assert consents(served, "never seen", {"granted": False}).json()["known"] is True


def test_a_consent_without_a_purpose_is_for_what_the_policy_contacts_for(sample_features: Shop, tmp_path: Path) -> None:
    package = packed(sample_features, tmp_path / "package", "1")
    policy = package / "policy.toml"
    policy.write_text(policy.read_text().replace('purpose = "marketing"', 'purpose = "newsletter"'))
    desk = Desk(Champions(package, tmp_path, None), SqliteStore(tmp_path / "online.db"))
    asked = schemas.ConsentRequest.model_validate({"consents": [{"granted": False}]})
    found = desk.set_consents(schemas.OneCustomer(customer_id="reader"), asked)
    assert found["consents"] == {"": False}
    assert desk.store.standing([found["pseudonym"]], "newsletter", 0.0)[0].consents == {"": False}


@pytest.mark.parametrize("spelling", [str.upper, lambda text: str(uuid.UUID(text)), lambda text: str(uuid.UUID(text)).upper()])
def test_a_known_pseudonym_is_known_in_capitals_and_as_a_uuid(served: Served, spelling: Any) -> None:
    own = served.pseudonym(f"spelt {spelling('a' * 32)}")
    served.store.set_consents([(own, "marketing", "", True, time.time() - 60)])
    answer = consents(served, spelling(own), {"granted": False}).json()
    assert answer["pseudonym"] == own
    assert answer["consents"] == {"": False}
    assert served.client.delete(f"/v1/customers/{spelling(own)}").status_code == 200
    assert consents(served, spelling(own), {"granted": True}).status_code == 404


def order(id: str, *amounts: float, **more: Any) -> tuple[str, dict[str, Any]]:
    lines = [{"product_id": "p", "quantity": 1.0, "amount": amount} for amount in amounts]
    return "orders", {"order_id": id, "ordered_at": "2024-01-02T10:00:00", **({"lines": lines} if lines else {}), **more}


def test_an_order_told_twice_has_its_lines_once() -> None:
    since = [order("o1", 100.0, 20.0), order("o2", 5.0), order("o1", 100.0), order("o2", cancelled_at="2024-01-03T10:00:00")]
    found = histories.together({}, since, "c", SOURCES)
    assert found["orders"].num_rows == 2
    assert sorted(map(float, found["order_lines"]["amount"].to_pylist())) == [5.0, 100.0]


def test_a_return_told_and_then_loaded_is_one() -> None:
    row = {"return_id": "r", "returned_at": "2024-01-02T10:00:00", "quantity": 1.0, "amount": 5.0}
    told = histories.together({}, [("returns", row)], "c", SOURCES)["returns"]
    stored = {"returns": told.combine_chunks().to_batches()[0].serialize().to_pybytes()}
    assert histories.together(stored, [("returns", row)], "c", SOURCES)["returns"].num_rows == 1
    assert histories.together(stored, [("returns", row), ("returns", row)], "c", SOURCES)["returns"].num_rows == 2
    assert histories.together(stored, [("returns", {**row, "amount": 6.0})], "c", SOURCES)["returns"].num_rows == 2


def test_a_return_without_an_order_is_of_none() -> None:
    row = {"return_id": "r", "returned_at": "2024-01-02T10:00:00", "quantity": 1.0, "amount": 5.0, "order_id": None}
    assert histories.together({}, [("returns", row)], "c", SOURCES)["returns"]["order_id"].to_pylist() == [None]


def test_what_was_told_of_an_id_before_its_case_was_folded_holds_after(tmp_path: Path) -> None:
    pseudonyms, store = Pseudonyms(b""), SqliteStore(tmp_path / "online.db")
    rows = [{**row, "customer_id": f"K{row['customer_id']}"} for row in texts(ROWS[:60])]
    (tmp_path / "orders.csv").write_text(rendered(rows), encoding="utf-8")
    out, gone = (rows[k]["customer_id"] for k in (0, -1))
    for more in ("", "[identity]\nfold_case = true\n"):
        file = Written('path = "orders.csv"').mapping(tmp_path, more)
        sources.load(mapping.read(file), tmp_path / "sources.json", pseudonyms).write(tmp_path / "sources.json")
        load(store, tmp_path / "sources.json", "Europe/Berlin")
        if not more:
            store.set_consents([(pseudonyms(out), "marketing", "", False, 1.0)])
            store.erase(pseudonyms(gone))
    assert store.standing([pseudonyms(out.lower())], "marketing", 0.0)[0].consents == {"": False}
    assert store.erased([pseudonyms(gone.lower())]) == {pseudonyms(gone.lower())}
    assert store.history(pseudonyms(gone.lower())) == {}
