"""The daily decisions: whole or not at all, within the day beside the service, and the same as the service's at the day's prices."""

import dataclasses
import sqlite3
import tomllib
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from features import table
from serving import daily, occasions
from serving.daily import Round
from serving.decisions import PLAN, Decider
from serving.online import DAY_SECONDS, Charge, OnlineStore
from serving.policy import Occasion
from serving.replay import replay
from serving.sqlite_store import SqliteStore
from serving.strategies import STRATEGIES, NoContact, Randomised, Strategy, TopRisk
from tests.serving.test_decisions import FREELY, NOW, TEXT, Light, at_risk, decide, ledger, light_shop, logged, millionths


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Light:
    return light_shop(tmp_path_factory)


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore(tmp_path / "online.db")


def round_of(shop: Light, store: OnlineStore, text: str = TEXT, now: float = NOW, **more: Any) -> Round:
    return Round(shop.under(text), Decider(store, lambda: now), shop.places.features, **more)


def dump(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as db:
        return list(db.iterdump())


def rows(out: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(out).to_pylist())


def contacted(out: Path) -> dict[str, dict[str, Any]]:
    return {row["customer_id"]: row for row in rows(out) if row["tier"] != "none"}


def test_the_file_has_everybody_the_log_the_contacted_and_the_ledger_their_sum(shop: Light, store: SqliteStore, tmp_path: Path) -> None:
    day, engine = round_of(shop, store).run(tmp_path / "day.parquet"), shop.engine
    found, log = rows(tmp_path / "day.parquet"), logged(store.file)
    assert engine.lookup is not None
    assert [row["customer_id"] for row in found] == engine.lookup.scored.customer_id
    assert day.contacts == Counter(row["tier"] for row in found)
    told = {(row["decision_id"], row["customer_id"], row["tier"], row["channel"]) for row in contacted(tmp_path / "day.parquet").values()}
    assert told == {(one["id"], one["customer"], one["tier"], one["channel"]) for one in log}
    assert ledger(store.file) == millionths(TEXT, log)
    assert 0 < ledger(store.file)["budget"] <= 1_000_000_000


def test_the_days_figures_are_those_of_the_file(shop: Light, store: SqliteStore, tmp_path: Path) -> None:
    day = round_of(shop, store).run(tmp_path / "day.parquet")
    found = rows(tmp_path / "day.parquet")
    assert day.expected_gain == pytest.approx(sum(row[f"expected_gain_{row['tier']}"] for row in found))
    for binding, amount in day.given_up.items():
        assert amount == pytest.approx(sum(row["gain_given_up"] for row in found if row["binding"] == binding))
    assert day.expected_gain <= day.bound
    assert day.gap <= 1e-3
    assert {"budget", "low_risk"} <= day.given_up.keys()


@pytest.mark.parametrize("broken", ["record", "add_contacts", "charge", "set_meta", "set_planned"])
def test_an_exception_in_the_middle_leaves_no_file_and_the_store_as_it_was(
    shop: Light, store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    decide(Decider(store, lambda: NOW), shop.under(TEXT), at_risk(shop.engine, 5))
    before = dump(store.file)
    whole = getattr(store, broken)

    def fails(*given: Any) -> None:
        whole(*given)
        raise OSError("disk full")

    monkeypatch.setattr(store, broken, fails)
    with pytest.raises(OSError, match="disk full"):
        round_of(shop, store).run(tmp_path / "days" / "day.parquet")
    assert dump(store.file) == before
    assert not list(tmp_path.glob("days/*"))


@pytest.mark.parametrize("strategy", [NoContact(), TopRisk(), Randomised(0.5, "a test")], ids=lambda one: one.name)
def test_what_a_strategy_decides_is_not_laid_to_a_budget_that_never_binds(
    shop: Light, store: SqliteStore, tmp_path: Path, strategy: Strategy
) -> None:
    rich = TEXT.replace("per_day = 1000.0", "per_day = 100000.0").replace("hours_per_day = 8.0", "hours_per_day = 1000.0")
    day = round_of(shop, store, rich, strategy=strategy).run(tmp_path / "day.parquet")
    told = Counter(row["binding"] for row in rows(tmp_path / "day.parquet"))
    assert strategy.own in told
    assert not {"budget", "capacity"} & (told.keys() | day.given_up.keys())
    for row in rows(tmp_path / "day.parquet"):
        best = max(("none", "nudge", "offer", "concierge"), key=lambda tier: row[f"expected_gain_{tier}"])
        why = row[f"blocked_{best}"] if best != "none" else ""
        assert row["binding"] == ("" if best == row["tier"] else why or strategy.own)


def test_contacts_that_the_shop_tells_of_meanwhile_make_the_round_start_over(shop: Light, store: SqliteStore, tmp_path: Path) -> None:
    names, told = at_risk(shop.engine), []

    def tell(text: str) -> None:
        if text.startswith("allocated") and not told:  # four contacts of the last days: the cap is reached
            told.extend((name, NOW - day * DAY_SECONDS, 1, "e-mail", True, None) for name in names for day in (4, 5, 6, 7))
            store.add_contacts(told)

    day = round_of(shop, store, progress=tell).run(tmp_path / "day.parquet")
    assert not {row["customer_id"] for row in contacted(tmp_path / "day.parquet").values()} & set(names)
    assert day.given_up["contact_cap"] > 0


def test_the_expected_gains_of_the_file_are_those_of_the_formula(shop: Light, store: SqliteStore, tmp_path: Path) -> None:
    round_of(shop, store).run(tmp_path / "day.parquet")
    told = tomllib.loads(TEXT)
    found = rows(tmp_path / "day.parquet")
    for row in found[:: len(found) // 200]:
        for tier, cost in told["costs"].items():
            gain = row["churn_probability"] * told["effects"][row["segment"]][tier] * row["customer_value"] - cost
            assert row[f"expected_gain_{tier}"] == pytest.approx(gain, rel=1e-9, abs=1e-9)
        assert row["expected_gain_none"] == 0.0


def test_a_strategy_that_runs_out_says_of_what(shop: Light, store: SqliteStore, tmp_path: Path) -> None:
    short = TEXT.replace("per_day = 1000.0", "per_day = 60.0").replace("hours_per_day = 8.0", "hours_per_day = 0.5")
    round_of(shop, store, short, strategy=TopRisk()).run(tmp_path / "day.parquet")
    told = Counter(row["binding"] for row in rows(tmp_path / "day.parquet"))
    assert told["budget"] > 100
    assert told["capacity"] + told["budget"] + told["strategy"] > 200


def test_every_decision_of_a_strategy_is_made_again_from_the_log(shop: Light, store: SqliteStore, tmp_path: Path) -> None:
    engine = shop.under(TEXT)
    store.set_meta(f"policy:{engine.policy.digest}", engine.policy.model_dump(mode="json", by_alias=True))
    round_of(shop, store, strategy=Randomised(0.5, "a test")).run(tmp_path / "day.parquet")
    for row in rows(tmp_path / "day.parquet")[::40]:
        assert replay(row["decision_id"], store, tmp_path, lambda version: shop.engine.scorer).exact


def test_a_file_that_cannot_be_written_reserves_nothing_and_the_one_before_stays(
    shop: Light, store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "day.parquet").write_bytes(b"of yesterday")
    before = dump(store.file)

    def half(rows: Any, file: Path, **more: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(daily.pq, "write_table", half)
    with pytest.raises(OSError, match="disk full"):
        round_of(shop, store).run(tmp_path / "day.parquet")
    assert dump(store.file) == before
    assert [file.read_bytes() for file in tmp_path.glob("day*")] == [b"of yesterday"]


def test_prices_only_reserves_nothing_and_the_service_then_decides_alike_within_the_budget(
    shop: Light, store: SqliteStore, tmp_path: Path
) -> None:
    day = round_of(shop, store, prices_only=True).run(tmp_path / "day.parquet")
    assert (ledger(store.file), logged(store.file), store.known()) == ({}, [], set())
    assert store.meta(PLAN)["prices"] == [day.prices]
    assert day.prices["budget"] > 0
    planned = {row["customer_id"]: row["tier"] for row in rows(tmp_path / "day.parquet")}
    names = list(np.random.default_rng(1).permutation(list(planned)))
    told = decide(Decider(store, lambda: NOW), shop.under(TEXT), names)
    alike = [one["tier"] == planned[name] for name, one in zip(names, told, strict=True)]
    assert np.mean(alike) >= 0.99
    assert day.agreement >= 0.99
    assert ledger(store.file) == millionths(TEXT, logged(store.file))
    assert 0.95e9 <= ledger(store.file)["budget"] <= 1e9


def once(action: Callable[[], Any], said: list[str]) -> Callable[[str], None]:
    """Progress that acts the first time that tiers are allocated."""

    def progress(text: str) -> None:
        said.append(text)
        if text.startswith("allocated") and sum(one.startswith("allocated") for one in said) == 1:
            action()

    return progress


def test_a_decision_made_meanwhile_makes_the_round_start_over(shop: Light, store: SqliteStore, tmp_path: Path) -> None:
    round_of(shop, SqliteStore(tmp_path / "other.db")).run(tmp_path / "alone.parquet")
    name, engine, said = next(iter(contacted(tmp_path / "alone.parquet"))), shop.under(TEXT), list[str]()
    service = Decider(SqliteStore(store.file), lambda: NOW + 1)
    meanwhile: list[Any] = []
    progress = once(lambda: meanwhile.extend(decide(service, engine, [name])), said)
    round_of(shop, store, progress=progress).run(tmp_path / "day.parquet")
    assert meanwhile[0]["tier"] != "none"
    assert "the service decided meanwhile: once more, alone" in said
    (row,) = (row for row in rows(tmp_path / "day.parquet") if row["customer_id"] == name)
    assert (row["tier"], row["binding"]) == ("none", "minimum_gap")
    log = logged(store.file)
    assert [one["customer"] for one in log].count(name) == 1
    assert ledger(store.file) == millionths(TEXT, log)
    assert ledger(store.file)["budget"] <= 1_000_000_000


def test_a_consent_withdrawn_meanwhile_is_kept(shop: Light, store: SqliteStore, tmp_path: Path) -> None:
    round_of(shop, SqliteStore(tmp_path / "other.db")).run(tmp_path / "alone.parquet")
    name, service = next(iter(contacted(tmp_path / "alone.parquet"))), SqliteStore(store.file)
    progress = once(lambda: service.set_consents([(name, "marketing", "", False, NOW)]), [])
    round_of(shop, store, progress=progress).run(tmp_path / "day.parquet")
    assert name not in contacted(tmp_path / "day.parquet")


def test_a_second_round_on_the_same_day_keeps_the_gap_and_the_days_budget(shop: Light, store: SqliteStore, tmp_path: Path) -> None:
    round_of(shop, store).run(tmp_path / "first.parquet")
    round_of(shop, store, now=NOW + 3600).run(tmp_path / "second.parquet")
    first, second = contacted(tmp_path / "first.parquet"), contacted(tmp_path / "second.parquet")
    assert not first.keys() & second.keys()
    again = {
        row["binding"] for row in rows(tmp_path / "second.parquet") if first.get(row["customer_id"], {}).get("tier") in ("nudge", "offer")
    }
    assert again == {"minimum_gap"}
    assert ledger(store.file) == millionths(TEXT, logged(store.file))
    assert ledger(store.file)["budget"] <= 1_000_000_000
    assert ledger(store.file)["concierge"] <= 8_000_000


def test_the_next_day_has_a_budget_of_its_own(shop: Light, store: SqliteStore, tmp_path: Path) -> None:
    for day in range(2):
        round_of(shop, store, FREELY, NOW + day * DAY_SECONDS).run(tmp_path / f"{day}.parquet")
    spent = [store.spent(f"2026-01-0{day}")["budget"] for day in (1, 2)]
    assert all(0.49e9 <= used <= 0.5e9 for used in spent)


def test_what_the_service_has_spent_is_not_spent_again(shop: Light, store: SqliteStore, tmp_path: Path) -> None:
    store.charge([Charge(None, "2026-01-01", "budget", 900_000_000), Charge(None, "2026-01-01", "concierge", 8_000_000)])
    day = round_of(shop, store).run(tmp_path / "day.parquet")
    assert day.cost <= 100
    assert day.contacts["concierge"] == 0
    assert ledger(store.file)["budget"] <= 1_000_000_000


@pytest.mark.parametrize("occasion", [Occasion.CART_LEFT, Occasion.COMPLAINT])
def test_an_occasions_round_is_about_those_who_have_it_whatever_their_risk(
    shop: Light, store: SqliteStore, tmp_path: Path, occasion: Occasion
) -> None:
    latest = table.read_manifest(shop.places.features).latest
    found = table.read(shop.places.features, [latest])
    column = {Occasion.CART_LEFT: "tp_cart_left", Occasion.COMPLAINT: "complaints_open"}[occasion]
    expected = [name for name, flag in zip(found["customer_id"].to_pylist(), found[column].to_pylist(), strict=True) if flag > 0]
    round_of(shop, store, occasion=occasion).run(tmp_path / "day.parquet")
    assert expected
    assert [row["customer_id"] for row in rows(tmp_path / "day.parquet")] == expected
    assert {row["occasion"] for row in rows(tmp_path / "day.parquet")} == {occasion.value}
    assert "low_risk" not in {row["binding"] for row in rows(tmp_path / "day.parquet")}
    assert store.meta(PLAN) is None  # the prices of few are not the day's


def test_an_occasion_nobody_has_makes_an_empty_file(
    shop: Light, store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(occasions, "today", lambda occasion, rows: np.zeros(rows.num_rows, dtype=bool))
    day = round_of(shop, store, occasion=Occasion.ANNIVERSARY).run(tmp_path / "day.parquet")
    assert (day.customers, rows(tmp_path / "day.parquet"), ledger(store.file)) == (0, [], {})


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_every_strategy_keeps_the_day_and_touches_nobody_who_is_blocked(shop: Light, store: SqliteStore, tmp_path: Path, name: str) -> None:
    day = round_of(shop, store, strategy=STRATEGIES[name]()).run(tmp_path / "day.parquet")
    found = contacted(tmp_path / "day.parquet").values()
    assert bool(found) == (name != "no_contact")
    assert all(row[f"blocked_{row['tier']}"] == "" for row in found)
    assert ledger(store.file) == millionths(TEXT, logged(store.file))
    assert ledger(store.file).get("budget", 0) <= 1_000_000_000
    assert ledger(store.file).get("concierge", 0) <= 8_000_000
    assert all(0 < row["propensity"] <= 1 or name == "randomised" for row in found)
    assert day.cost == pytest.approx(ledger(store.file).get("budget", 0) / 1e6)


def test_who_was_erased_is_not_decided_about(shop: Light, store: SqliteStore, tmp_path: Path) -> None:
    name = at_risk(shop.engine, 1)[0]
    store.erase(name)
    round_of(shop, store).run(tmp_path / "day.parquet")
    assert name not in {row["customer_id"] for row in rows(tmp_path / "day.parquet")}


def test_rounds_are_frozen_so_that_a_moment_is_one_moment(shop: Light, store: SqliteStore) -> None:
    one = Round(shop.engine, Decider(store), shop.places.features)
    assert one.now == one.now
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.prices_only = True  # type: ignore[misc]
