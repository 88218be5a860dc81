"""Every logged decision, made again from the log alone, comes out the same to the last bit; a changed log does not."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from features import store as sources
from features.errors import InputError
from serving import schemas
from serving.daily import Round
from serving.decisions import Decider
from serving.desk import Desk
from serving.replay import Replay, replay
from serving.score import Engine
from serving.sqlite_store import SqliteStore
from tests.serving.raw import histories
from tests.serving.test_decisions import FREELY, NOW, TEXT, Light, at_risk, decide, light_shop
from training.models.scorer import Scorer


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Light:
    return light_shop(tmp_path_factory)


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore(tmp_path / "online.db")


def again(shop: Light, store: SqliteStore, id: str) -> Replay:
    return replay(id, store, store.file.parent, lambda version: Scorer.load(shop.package / "model"))


def keep_policy(store: SqliteStore, engine: Engine) -> None:
    """As the service and `holdfast decide` do."""
    store.set_meta(f"policy:{engine.policy.digest}", engine.policy.model_dump(mode="json", by_alias=True))


def decided(shop: Light, store: SqliteStore, text: str = TEXT, number: int = 200) -> list[str]:
    """Ids of online decisions about customers by id, some of them twice."""
    engine, decider = shop.under(text), Decider(store, lambda: NOW)
    keep_policy(store, engine)
    names = at_risk(engine, number)
    return [one["decision_id"] for some in (names, names[:50]) for one in decide(decider, engine, some)]


@pytest.mark.parametrize("text", [TEXT, FREELY, TEXT.replace("per_day = 1000.0", "per_day = 50.0")])
def test_online_decisions_by_id_are_exact(shop: Light, store: SqliteStore, text: str) -> None:
    found = [again(shop, store, id) for id in decided(shop, store, text)]
    assert all(one.exact for one in found)
    assert len({one.body["tier"] for one in found}) >= 3


def history_decisions(shop: Light, desk: Desk, number: int = 20) -> list[dict[str, Any]]:
    """Answers of the desk to raw histories."""
    latest = shop.engine.manifest.latest
    assert latest is not None
    with sources.opened(shop.places.sources) as connection:
        bodies = histories(connection, at_risk(shop.engine, number))
    text = json.dumps({"snapshot": latest.isoformat(), "customers": bodies})
    found = asyncio.run(desk.decide(schemas.DecisionRequest.model_validate_json(text)))["results"]
    return [one for one in found if one["status"] == "scored"]  # a person's orders may be those of a second account


def test_online_decisions_about_histories_are_exact_and_their_probability_is_computed_again(shop: Light, tmp_path: Path) -> None:
    desk = shop.desk(tmp_path / "online.db", lambda: NOW)
    keep_policy(desk.store, desk.champions.current)  # type: ignore[arg-type]
    told = history_decisions(shop, desk)
    found = [again(shop, desk.store, one["decision_id"]) for one in told if one["status"] == "scored"]  # type: ignore[arg-type]
    assert [one.probability for one in found] == [one["churn_probability"] for one in told if one["status"] == "scored"]
    assert all(one.exact for one in found)


def day_of(shop: Light, store: SqliteStore, text: str = TEXT) -> list[dict[str, Any]]:
    """Rows of a daily file beside the store."""
    engine = shop.under(text)
    keep_policy(store, engine)
    out = store.file.parent / "day.parquet"
    Round(engine, Decider(store, lambda: NOW), shop.places.features).run(out)
    return list(pq.read_table(out).to_pylist())


def test_batch_decisions_contacted_are_exact(shop: Light, store: SqliteStore) -> None:
    ids = [row["decision_id"] for row in day_of(shop, store) if row["tier"] != "none"]
    assert len(ids) >= 50
    assert [id for id in ids if not again(shop, store, id).exact] == []


def test_batch_decisions_not_contacted_are_exact(shop: Light, store: SqliteStore) -> None:
    left = [row for row in day_of(shop, store) if row["tier"] == "none"]
    assert {"low_risk", "budget", "no_consent"} & {row["binding"] for row in left}
    assert [row["decision_id"] for row in left if not again(shop, store, row["decision_id"]).exact] == []


def tampered(store: SqliteStore, id: str, **changes: Any) -> None:
    """Change a logged body past the trigger, as somebody with the file could."""
    with closing(sqlite3.connect(store.file)) as db:
        db.execute("DROP TRIGGER decisions_stay")
        (body,) = db.execute("SELECT body FROM decision WHERE id = ?", (id,)).fetchone()
        found = json.loads(body)
        for key, value in changes.items():
            part = found if key in found else found["situation"]
            assert part[key] != value
            part[key] = value
        db.execute("UPDATE decision SET body = ? WHERE id = ?", (json.dumps(found), id))
        db.commit()


@pytest.mark.parametrize(
    "change",
    [
        {"tier": "none"},
        {"expected_gain": {"none": 0.0, "nudge": 1.0, "offer": 2.0, "concierge": 3.0}},
        {"p": 0.9999},
        {"value": 1.0},
        {"segment": 0},
        {"last_tier": 3, "last_age_days": 1.0},
        {"prices": {"budget": 1e6, "concierge": 0.0}},
    ],
)
def test_a_tampered_entry_is_found(shop: Light, store: SqliteStore, change: dict[str, Any]) -> None:
    contacted = next(id for id in decided(shop, store) if store.decision(id)[1]["tier"] == "offer")  # type: ignore[index]
    assert again(shop, store, contacted).exact
    tampered(store, contacted, **change)
    assert not again(shop, store, contacted).exact


@pytest.mark.parametrize(
    "change",
    [
        {"churn_probability": 0.9999},
        {"strategy": "another"},
        {"channel": "call"},
        {"blocked": {"nudge": "no_consent"}},
        {"binding": "ladder"},
        {"gain_given_up": 123.0},
    ],
)
def test_what_else_an_entry_says_is_compared_too(shop: Light, store: SqliteStore, change: dict[str, Any]) -> None:
    contacted = next(id for id in decided(shop, store) if store.decision(id)[1]["tier"] == "offer")  # type: ignore[index]
    tampered(store, contacted, **change)
    assert not again(shop, store, contacted).exact


def test_a_tampered_row_of_features_is_found(shop: Light, tmp_path: Path) -> None:
    desk = shop.desk(tmp_path / "online.db", lambda: NOW)
    keep_policy(desk.store, desk.champions.current)  # type: ignore[arg-type]
    ids = [one["decision_id"] for one in history_decisions(shop, desk, 8) if one["status"] == "scored"]
    with closing(sqlite3.connect(tmp_path / "online.db")) as db:
        db.execute("DROP TRIGGER decisions_stay")
        first, second = (db.execute("SELECT row FROM decision WHERE id = ?", (id,)).fetchone()[0] for id in ids[:2])
        assert first != second
        db.execute("UPDATE decision SET row = ? WHERE id = ?", (second, ids[0]))
        db.commit()
    assert not again(shop, desk.store, ids[0]).exact  # type: ignore[arg-type]
    assert again(shop, desk.store, ids[1]).exact  # type: ignore[arg-type]


def test_an_unknown_decision_and_a_lost_policy_are_told(shop: Light, store: SqliteStore) -> None:
    with pytest.raises(InputError, match="is not in the log"):
        again(shop, store, "0" * 32)
    (id, *_) = (one["decision_id"] for one in decide(Decider(store, lambda: NOW), shop.under(FREELY), at_risk(shop.engine, 1)))
    with pytest.raises(InputError, match="is not kept in this store"):
        again(shop, store, id)
