"""Customers with several ids, in a simulated shop with every source: their histories, consents, events and erasure are one person's."""

import asyncio
import json
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from features import mapping, table
from features.mapping import Identity
from features.simulate import simulate
from features.store import opened
from serving import histories, policy, schemas
from serving.answers import Refusal
from serving.champions import Champions
from serving.daily import Round
from serving.decisions import Decider
from serving.desk import Desk
from serving.erase import ask, asked
from serving.load import LOADED, load
from serving.score import Engine
from serving.sqlite_store import SqliteStore
from tests.conftest import Shop
from tests.serving.test_guard import packed
from validation.stages import build_features, validate

MANY = 10_000


def shop_of(folder: Path, customers: int) -> Shop:
    """A simulated shop, validated and featured."""
    shop = Shop(simulate(folder / "shop", customers, days=800), folder / "home")
    dataset = mapping.read(shop.mapping)
    validate(dataset, shop.places)
    build_features(dataset, shop.places)
    return shop


def store_of(shop: Shop) -> Any:
    return opened(shop.places.sources)


def loaded(shop: Shop, file: Path) -> SqliteStore:
    store, dataset = SqliteStore(file), mapping.read(shop.mapping)
    load(store, shop.places.sources, dataset.timezone, guards=dataset.identity)
    return store


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return shop_of(tmp_path_factory.mktemp("persons"), 500)


@pytest.fixture(scope="module")
def package(shop: Shop) -> Path:
    return packed(shop, shop.home / "package")


@pytest.fixture
def desk(shop: Shop, package: Path, tmp_path: Path) -> Desk:
    return Desk(Champions(package, tmp_path, shop.places.features), loaded(shop, tmp_path / "online.db"))


def worst(store: SqliteStore, engine: Engine) -> float:
    """The largest difference between a feature or probability of the store's history and of the batch, scaled by values above 1."""
    assert engine.lookup is not None
    batch, moment = engine.lookup.scored, table.read_manifest(engine.lookup.file).latest
    assert moment is not None
    off = 0.0
    for start in range(0, len(batch), 200):
        names = batch.customer_id[start : start + 200]
        found = engine.of_stored([histories.of_person(store, name, engine.manifest.tables) for name in names], moment)
        assert found.customer_id == names
        expected = batch.rows.x_NF[start : start + 200]
        assert (np.isnan(found.rows.x_NF) == np.isnan(expected)).all()
        scale = np.maximum(np.abs(np.nan_to_num(expected)), 1)
        off = max(off, float(np.max(np.abs(np.nan_to_num(found.rows.x_NF - expected)) / scale)))
        off = max(off, float(np.max(np.abs(np.array(found.p) - batch.p[start : start + 200]))))
    return off


@pytest.fixture
def two(desk: Desk, shop: Shop) -> tuple[str, str]:
    """Another id, as the shop has it, of a person who would be contacted, and the person's pseudonym."""
    engine = desk.champions.current
    assert engine.lookup is not None
    files = sorted((shop.mapping.parent / "customers").glob("*.parquet"))
    own = {engine.pseudonyms(one): one for file in files for one in pq.read_table(file)["customer_id"].to_pylist()}
    for person, p in zip(engine.lookup.scored.customer_id, engine.lookup.scored.p, strict=True):
        ids = desk.store.ids_of(person)
        if len(ids) > 1 and p >= engine.policy.contact.min_churn_probability:
            return own[ids[1]], person
    raise AssertionError("nobody has two ids")


def decided(desk: Desk, *customers: str) -> list[dict[str, Any]]:
    asked = schemas.DecisionRequest(customers=[schemas.DecisionCustomer(customer_id=one) for one in customers])
    results: list[dict[str, Any]] = asyncio.run(desk.decide(asked))["results"]
    return results


def withdrawn(desk: Desk, customer: str) -> None:
    desk.set_consents(schemas.OneCustomer(customer_id=customer), schemas.ConsentRequest(consents=[schemas.ConsentChange(granted=False)]))


def test_every_source_gives_the_batchs_features_joined_or_not(desk: Desk) -> None:
    engine = desk.champions.current
    assert len(engine.manifest.tables) > 10
    assert worst(desk.store, engine) <= 1e-9  # type: ignore[arg-type]


@pytest.mark.slow
def test_ten_thousand_customers_with_every_source_agree(tmp_path: Path) -> None:
    shop = shop_of(tmp_path, 20_000)
    engine = Engine.load(packed(shop, tmp_path / "package") / "model", policy.read(), shop.places.features)
    assert engine.lookup is not None
    assert len(engine.lookup.scored) >= MANY
    assert worst(loaded(shop, tmp_path / "online.db"), engine) <= 1e-9


def test_both_ids_are_one_person(desk: Desk, two: tuple[str, str]) -> None:
    other, person = two
    (by_other,), (by_own,) = (asyncio.run(desk.score(scoring(one)))["results"] for one in (other, person))
    assert (by_other["pseudonym"], by_other["customer_id"]) == (person, other)
    assert by_other["churn_probability"] == by_own["churn_probability"]
    with pytest.raises(Refusal, match="one person"):
        decided(desk, other, person)


def scoring(customer: str) -> schemas.ScoreRequest:
    return schemas.ScoreRequest(customers=[schemas.CustomerRequest(customer_id=customer)])


def test_an_opt_out_by_one_id_keeps_the_person_from_every_contact(desk: Desk, shop: Shop, two: tuple[str, str], tmp_path: Path) -> None:
    other, person = two
    withdrawn(desk, other)
    (found,) = decided(desk, person)
    assert (found["tier"], found["consent"]) == ("none", "denied")
    round = Round(desk.champions.current, Decider(desk.store), shop.places.features)
    round.run(tmp_path / "day.parquet")
    rows = pq.read_table(tmp_path / "day.parquet", filters=[("customer_id", "=", person)]).to_pylist()
    assert [(row["tier"], row["blocked_nudge"]) for row in rows] == [("none", "no_consent")]


def test_an_event_of_one_id_counts_for_the_person(desk: Desk, two: tuple[str, str]) -> None:
    other, person = two
    before = asyncio.run(desk.profile(schemas.OneCustomer(customer_id=person)))
    row = {"order_id": "told", "ordered_at": "2025-12-31T12:00:00", "amount": 20.0}
    body = {"events": [{"event_id": "e", "customer_id": other, "table": "orders", "row": row}]}
    assert asyncio.run(desk.add_events(schemas.EventsRequest.model_validate_json(json.dumps(body)).events))["accepted"] == 1
    after = asyncio.run(desk.profile(schemas.OneCustomer(customer_id=person)))
    assert after["events_since_load"] == 1
    assert after["rfmb"]["frequency_orders"] == before["rfmb"]["frequency_orders"] + 1


def test_a_link_learnt_later_brings_what_was_told_by_the_other_id_and_one_that_goes_takes_it_back(
    desk: Desk, shop: Shop, two: tuple[str, str], tmp_path: Path
) -> None:
    other, person = two
    hidden, now = desk.champions.current.pseudonyms(other), 2_000_000_000.0  # after everything that the batch knows
    fresh = SqliteStore(tmp_path / "fresh.db")
    fresh.set_consents([(hidden, "marketing", "", False, now), (person, "marketing", "", True, now - 1)])
    fresh.add_events(hidden, [("e", "orders", {"order_id": "told"})], now)
    assert (fresh.standing([person], "marketing", 0)[0].consents, fresh.fresh([person])) == ({"": True}, set())
    dataset = mapping.read(shop.mapping)
    load(fresh, shop.places.sources, dataset.timezone, guards=dataset.identity)
    assert (fresh.standing([person], "marketing", 0)[0].consents[""], fresh.fresh([person])) == (False, {person})
    load(fresh, shop.places.sources, dataset.timezone, guards=Identity(max_customers=1, max_component=1))  # now too many: nobody is joined
    assert fresh.ids_of(person) == [person]
    assert [fresh.standing([one], "marketing", 0)[0].consents[""] for one in (person, hidden)] == [True, False]


def test_an_outcome_of_a_decision_from_before_the_link_is_the_persons(desk: Desk, two: tuple[str, str]) -> None:
    other, person = two
    engine, pairs = desk.champions.current, [(one, person) for one in desk.store.ids_of(person)[1:]]
    hidden = engine.pseudonyms(other)
    desk.store.set_persons([])
    (alone,) = desk.decider.decide(engine, [engine.found(person)], [hidden], None, [False])  # type: ignore[list-item]
    desk.store.set_persons(pairs)
    told = [{"decision_id": alone["decision_id"], "kind": "unsubscribed", "at": datetime.now(UTC).isoformat()}]
    desk.add_outcomes(schemas.OutcomesRequest.model_validate_json(json.dumps({"outcomes": told})).outcomes)
    (standing,) = desk.store.standing([person], "marketing", 0)
    assert standing.consents[alone["channel"] or ""] is False
    assert alone["decision_id"] in {
        one["decision_id"] for one in asyncio.run(desk.profile(schemas.OneCustomer(customer_id=person)))["decisions"]
    }


def test_a_new_account_of_an_erased_person_is_a_new_person(desk: Desk, shop: Shop, two: tuple[str, str], tmp_path: Path) -> None:
    """The identities of the shop's files still join them."""
    other, person = two
    hidden, dataset = desk.champions.current.pseudonyms(other), mapping.read(shop.mapping)
    fresh = SqliteStore(tmp_path / "fresh.db")
    fresh.erase(hidden)  # alone, before the link was known
    load(fresh, shop.places.sources, dataset.timezone, guards=dataset.identity)
    assert (fresh.ids_of(person), fresh.erased([person, hidden])) == ([person], {hidden})
    own = histories.together(fresh.history(person), [], person, ["orders"])["orders"]["order_id"].to_pylist()
    with store_of(shop) as connection:
        expected = [one for (one,) in connection.execute("SELECT order_id FROM orders WHERE customer_id = $1", [person]).fetchall()]
    assert sorted(own) == sorted(expected)
    assert fresh.history(hidden) == {}


def test_an_erasure_by_one_id_removes_the_person_under_all(desk: Desk, shop: Shop, two: tuple[str, str], tmp_path: Path) -> None:
    other, person = two
    hidden = desk.champions.current.pseudonyms(other)
    erased = desk.erase(schemas.OneCustomer(customer_id=other), partial(ask, tmp_path), lambda names: False)
    assert asyncio.run(erased) == [person, hidden]
    assert list(asked(tmp_path).values()) == [[person, hidden]]
    for name in (other, person):
        with pytest.raises(Refusal):
            asyncio.run(desk.profile(schemas.OneCustomer(pseudonym=name) if name == person else schemas.OneCustomer(customer_id=name)))
    dataset = mapping.read(shop.mapping)
    desk.store.set_meta(LOADED, None)
    load(desk.store, shop.places.sources, dataset.timezone, guards=dataset.identity)  # the shop's files still hold the person
    assert (desk.store.history(person), desk.store.ids_of(person)) == ({}, [person])
    assert desk.store.erased([person, hidden]) == {person, hidden}
