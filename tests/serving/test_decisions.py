"""Decisions that are logged and spend: no thread, process or kill makes a day overspend, and the ledger is the sum of the log.

`Light` is a shop of the tests that decide: simulated, with every source, and a small model that is quickly made.
"""

import copy
import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from features import mapping
from features.files import write_json
from features.settings import Settings
from features.simulate import simulate
from serving import policy
from serving.champions import Champions
from serving.decisions import PLAN, Decider
from serving.desk import Desk
from serving.online import DAY_SECONDS
from serving.policy import TIERS, Policy
from serving.score import IDENTITY, Engine
from serving.sqlite_store import SqliteStore
from serving.standings import DecisionMoment
from tests.conftest import ROOT
from tests.serving.test_policy import TEXT
from training.dataset import TrainingData
from training.models.calibration import Calibration
from training.models.level import Forecast, Level
from training.models.lightgbm import LightGBM
from training.models.scorer import Scorer
from validation.stages import Places, build_features, validate

PARAMS = {"learning_rate": 0.1, "num_leaves": 15, "min_data_in_leaf": 20, "feature_fraction": 0.5, "rounds": 40}
NOW = datetime(2026, 1, 1, 9, tzinfo=UTC).timestamp()
"""Some hours after the latest snapshot of the simulated shop."""
FREELY = TEXT.replace("min_gap_days = 3.0", "min_gap_days = 0.0").replace("ladder_days = 90.0", "ladder_days = 1e-9")
FREELY = FREELY.replace("climb_after_days = 7.0", "climb_after_days = 1e-9")
FREELY = FREELY.replace("after_concierge = true", "after_concierge = false").replace("per_day = 1000.0", "per_day = 500.0")
"""The shipped policy, but a customer may be contacted again at once: only caps, capacity and budget are left to hold."""


@dataclass(frozen=True)
class Light:
    """A simulated shop with its state, and a small LightGBM of it, packaged as `holdfast package` does."""

    mapping: Path
    home: Path

    @property
    def package(self) -> Path:
        return self.home / "package"

    @cached_property
    def places(self) -> Places:
        return Places.of(Settings(home=self.home), mapping.read(self.mapping))

    @cached_property
    def engine(self) -> Engine:
        """Everybody scored and explained, under the shipped policy."""
        engine = Engine.load(self.package / "model", policy.read(), self.places.features)
        assert engine.lookup is not None
        engine.explain(engine.lookup.scored, range(len(engine.lookup.scored)))
        return engine

    def under(self, text: str) -> Engine:
        """The same engine under another policy of the same values."""
        engine = copy.copy(self.engine)
        engine.policy = policy.parse(text, "test.toml")
        assert engine.policy.value == self.engine.policy.value
        return engine

    def desk(self, file: Path, clock: Callable[[], float] = time.time) -> Desk:
        """A service's desk on a store of its own."""
        desk = Desk(Champions(self.package, self.home, self.places.features), SqliteStore(file))
        desk.decider.clock = clock
        return desk


_SHOPS: dict[int, Light] = {}


def light_shop(factory: pytest.TempPathFactory, customers: int = 1500) -> Light:
    """Made once a session for each number of customers; treat its state as read-only."""
    if customers not in _SHOPS:
        folder = factory.mktemp("light")
        shop = Light(simulate(folder / "shop", customers, seed=5, days=500), folder / "home")
        dataset = mapping.read(shop.mapping)
        validate(dataset, shop.places)
        build_features(dataset, shop.places)
        light_package(shop.places.features, shop.package)
        _SHOPS[customers] = shop
    return _SHOPS[customers]


def light_package(features: Path, folder: Path) -> None:
    """Fit a small model of a feature table and lay out what a service needs."""
    data = TrainingData.read(features)
    model = LightGBM.fit(PARAMS, data.before(data.split.test), 1)
    level = Level({data.split.test: Forecast(0.6, 0.5, 0.7, 0.6, None, 0, 0.1, -0.2)})
    digest = Scorer(model, Calibration("platt", [1.1]), level, data.manifest).save(folder / "model")
    (folder / "policy.toml").write_text(TEXT)
    write_json(folder / IDENTITY, {"model_name": "light", "model_version": "1", "model": "lightgbm", "digest": digest, "run_id": "x"})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Light:
    return light_shop(tmp_path_factory)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "online.db"


def at_risk(engine: Engine, number: int = 10**9) -> list[str]:
    """Customers of the table whom the policy may contact."""
    assert engine.lookup is not None
    scored, least = engine.lookup.scored, engine.policy.contact.min_churn_probability
    fine = [n for n, p, silence in zip(scored.customer_id, scored.p, scored.silence_days, strict=True) if p >= least and silence < 330]
    assert len(fine) >= min(number, 1)
    return fine[:number]


def decide(decider: Decider, engine: Engine, names: list[str], occasion: str | None = None) -> list[dict[str, Any]]:
    """Decisions about customers of the table."""
    ones = [engine.found(name) for name in names]
    return list(decider.decide(engine, ones, names, occasion, [False] * len(names)))  # type: ignore[arg-type]


def logged(file: Path) -> list[dict[str, Any]]:
    """Every decision of the log, read without the code under test."""
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = db.execute("SELECT number, id, customer, body FROM decision ORDER BY number").fetchall()
    return [{"number": number, "id": id, "customer": customer, **json.loads(body)} for number, id, customer, body in rows]


def millionths(text: str, decisions: list[dict[str, Any]]) -> dict[str, int]:
    """What decisions use of a day, from the policy's text alone: money and advisors' hours in whole millionths."""
    told = tomllib.loads(text)
    tiers = Counter(one["tier"] for one in decisions if one["tier"] != "none")
    budget = sum(round(told["costs"][tier] * 1_000_000) * number for tier, number in tiers.items())
    hours = {tier: round(one["hours_per_contact"] * 1_000_000) * tiers[tier] for tier, one in told["capacity"].items()}
    return {name: used for name, used in {"budget": budget, **hours}.items() if used}


def ledger(file: Path) -> dict[str, int]:
    with closing(sqlite3.connect(file)) as db:
        return dict(db.execute("SELECT resource, sum(used) FROM spend GROUP BY resource").fetchall())


def assert_sound(file: Path, text: str) -> list[dict[str, Any]]:
    """The ledger is the sum of the log, contacts are its contacts, and no limit or cap is broken; returns the log."""
    told, log = tomllib.loads(text), logged(file)
    used = millionths(text, log)
    assert ledger(file) == used
    assert used["budget"] <= told["budget"]["per_day"] * 1_000_000
    assert used.get("concierge", 0) <= told["capacity"]["concierge"]["hours_per_day"] * 1_000_000
    with closing(sqlite3.connect(file)) as db:
        contacts = db.execute("SELECT decision, customer, tier, channel FROM contact WHERE decision IS NOT NULL").fetchall()
    expected = {(one["id"], one["customer"], TIERS.index(one["tier"]), one["channel"]) for one in log if one["tier"] != "none"}
    assert len(contacts) == len(expected)
    assert set(contacts) == expected
    assert_capped(log)
    return log


def assert_capped(log: list[dict[str, Any]]) -> None:
    """The shipped caps, of contacts that all lie within a day."""
    contacts = [one for one in log if one["tier"] != "none"]
    everything = Counter(one["customer"] for one in contacts)
    by_channel = Counter((one["customer"], one["channel"]) for one in contacts)
    keen = {one["customer"] for one in contacts if one["situation"]["segment"] == 1}
    assert max(everything.values()) <= 4
    assert max((n for (_, channel), n in by_channel.items() if channel == "sms"), default=0) <= 3
    assert max((n for (name, channel), n in by_channel.items() if channel == "sms" and name in keen), default=0) <= 2
    assert max((n for (_, channel), n in by_channel.items() if channel == "call"), default=0) <= 1


# Many at once


def hammer(package: str, features: str, file: str, text_file: str, threads: int, each: int, seed: int) -> None:
    """Decide one customer at a time from several threads; a line when ready, then one with the number answered."""
    engine = Engine.load(Path(package) / "model", policy.read(Path(text_file)), Path(features))
    names = at_risk(engine, 60)
    assert engine.lookup is not None
    engine.explain(engine.lookup.scored, [engine.lookup.index[name] for name in names])
    begun = time.monotonic()
    decider = Decider(SqliteStore(Path(file)), lambda: NOW + time.monotonic() - begun)
    answered = []

    def work(number: int) -> None:
        draw = random.Random(seed * 100 + number)
        for _ in range(each):
            answered.extend(one["decision_id"] for one in decide(decider, engine, [draw.choice(names)]))

    print("ready", flush=True)
    sys.stdin.readline()
    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    print(json.dumps(answered), flush=True)


@dataclass
class Hammers:
    """Two processes that decide at the same time on one store."""

    processes: list[subprocess.Popen[str]]

    def start(self) -> None:
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    def answers(self, number: int) -> list[str]:
        """Ids of the decisions that a process has answered, once it is done."""
        out, _ = self.processes[number].communicate(timeout=300)
        assert self.processes[number].returncode == 0
        return list(json.loads(out))


@pytest.fixture
def hammers(shop: Light, file: Path, tmp_path: Path) -> Iterator[Hammers]:
    (tmp_path / "policy.toml").write_text(FREELY)
    places = [str(shop.package), str(shop.places.features), str(file), str(tmp_path / "policy.toml")]
    code = "import sys; from tests.serving.test_decisions import hammer; hammer(*sys.argv[1:5], *map(int, sys.argv[5:]))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *places, "4", "1250", str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for seed in (1, 2)
    ]
    yield Hammers(processes)
    for process in processes:
        process.kill()
        process.communicate()


def test_ten_thousand_decisions_of_two_processes_never_overspend(hammers: Hammers, file: Path) -> None:
    hammers.start()
    answered = [id for number in (0, 1) for id in hammers.answers(number)]
    log = assert_sound(file, FREELY)
    assert len(answered) == len(log) == 10_000
    assert set(answered) == {one["id"] for one in log}
    left = {name: limit - used for (name, used), limit in zip(ledger(file).items(), (500e6, 8e6), strict=True)}
    assert left["budget"] < 4e6  # not even an offer is left: it was the limits that held
    assert {"budget", "contact_cap"} <= {why for one in log for why in one["blocked"].values()}


def test_a_process_killed_in_the_middle_leaves_nothing_half_written(hammers: Hammers, file: Path) -> None:
    hammers.start()
    store = SqliteStore(file)
    while store.position() < 500:
        time.sleep(0.005)
    hammers.processes[0].send_signal(signal.SIGKILL)
    hammers.processes[0].wait()
    killed_at = store.position()
    answered = hammers.answers(1)
    log = assert_sound(file, FREELY)
    assert killed_at < 9_000
    assert len(answered) == 5000
    assert set(answered) <= {one["id"] for one in log}
    assert 5000 < len(log) < 10_000


# One after another


def test_a_batch_spends_what_its_customers_one_by_one_spend(shop: Light, tmp_path: Path) -> None:
    engine = shop.under(TEXT)
    names, clock = at_risk(engine, 400), lambda: NOW
    together = decide(Decider(SqliteStore(tmp_path / "a.db"), clock), engine, names)
    single = Decider(SqliteStore(tmp_path / "b.db"), clock)
    apart = [decide(single, engine, [name])[0] for name in names]
    for one in (*together, *apart):
        one.pop("decision_id")
    assert together == apart
    assert ledger(tmp_path / "a.db") == ledger(tmp_path / "b.db")
    assert {"budget", "capacity"} & {one["binding"] for one in together}


def test_what_is_left_pays_to_the_last_cent_and_no_further(shop: Light, file: Path) -> None:
    text = TEXT.replace("per_day = 1000.0", "per_day = 8.05")
    decider, engine = Decider(SqliteStore(file), lambda: NOW), shop.under(text)
    decide(decider, engine, at_risk(engine))
    assert ledger(file)["budget"] == 8_050_000
    assert_sound(file, text)


def test_a_budget_of_nothing_contacts_nobody(shop: Light, file: Path) -> None:
    engine = shop.under(TEXT.replace("per_day = 1000.0", "per_day = 0.0"))
    told = decide(Decider(SqliteStore(file), lambda: NOW), engine, at_risk(engine, 50))
    assert {(one["tier"], one["binding"]) for one in told} == {("none", "budget")}
    assert all(one["gain_given_up"] > 0 for one in told)
    assert ledger(file) == {}


def test_without_budget_and_capacity_everybody_gets_the_tier_of_the_highest_gain(shop: Light, file: Path) -> None:
    start, end = TEXT.index("[budget]"), TEXT.index("[[caps]]")
    engine = shop.under(TEXT[:start] + TEXT[end:])
    for one in decide(Decider(SqliteStore(file), lambda: NOW), engine, at_risk(engine, 100)):
        assert one["tier"] == max(one["expected_gain"], key=one["expected_gain"].__getitem__)
        assert (one["binding"], one["gain_given_up"]) == (None, 0.0)


def test_the_day_of_the_budget_is_the_shops_local_day(shop: Light, file: Path) -> None:
    text, moment = FREELY.replace("per_day = 500.0", "per_day = 4.0"), NOW
    decider = Decider(SqliteStore(file), lambda: moment)
    engine = shop.under(text)
    zone = ZoneInfo("Europe/Berlin")
    for at, day in (("2026-01-05T23:59:59", "2026-01-05"), ("2026-01-06T00:00:00", "2026-01-06")):
        moment = datetime.fromisoformat(at).replace(tzinfo=zone).timestamp()
        decide(decider, engine, at_risk(engine, 200))
        assert decider.store.spent(day)["budget"] == 4_000_000


def test_prices_of_the_day_hold_for_two_days_and_for_their_policy_only(shop: Light, file: Path) -> None:
    store, engine = SqliteStore(file), shop.under(TEXT)
    decider = Decider(store, lambda: NOW)

    def prices(engine: Engine, days: float) -> list[float]:
        moment = DecisionMoment(engine.policy, NOW + days * DAY_SECONDS, engine.zone, False)
        return list(decider.prices(moment, [moment.today])[0])

    assert prices(engine, 0) == [0.0, 0.0]
    store.set_meta(PLAN, {"at": NOW, "policy": engine.policy.digest, "day": "2026-01-01", "prices": [{"budget": 2.5, "concierge": 40.0}]})
    assert prices(engine, 1.9) == [2.5, 40.0]
    assert prices(engine, 2.1) == [0.0, 0.0]
    assert prices(shop.under(FREELY), 0) == [0.0, 0.0]


def test_a_second_decision_at_once_keeps_the_minimum_gap_and_a_consent_withdrawn_holds(shop: Light, file: Path) -> None:
    store, engine = SqliteStore(file), shop.under(TEXT)
    decider, (name, other) = Decider(store, lambda: NOW), at_risk(engine, 2)
    first, again = (decide(decider, engine, [name])[0] for _ in range(2))
    assert first["tier"] != "none"
    assert (again["tier"], again["binding"], again["consent"]) == ("none", "minimum_gap", "not_tracked")
    store.set_consents([(other, "marketing", "", False, NOW)])
    (denied,) = decide(decider, engine, [other])
    assert (denied["tier"], denied["binding"], denied["consent"]) == ("none", "no_consent", "denied")


def test_an_answer_takes_the_next_contact_a_tier_down_and_silence_one_up(shop: Light, file: Path) -> None:
    store, engine, moment = SqliteStore(file), shop.under(TEXT.replace("per_day = 1000.0", "per_day = 100000.0")), NOW
    decider = Decider(store, lambda: moment)
    first = {name: one["tier"] for name, one in zip(at_risk(engine), decide(decider, engine, at_risk(engine)), strict=True)}
    offers = [name for name, tier in first.items() if tier == "offer"]
    assert len(offers) >= 20
    for name in offers[::2]:
        store.answer(name, NOW)
    moment = NOW + 8 * DAY_SECONDS
    told = dict(zip(offers, decide(decider, engine, offers), strict=True))
    assert {told[name]["tier"] for name in offers[::2]} <= {"none", "nudge"}
    assert {told[name]["tier"] for name in offers[1::2]} <= {"none", "concierge"}
    assert "nudge" in {told[name]["tier"] for name in offers[::2]}
    assert "concierge" in {told[name]["tier"] for name in offers[1::2]}


def test_quiet_hours_are_those_of_the_customers_zone(shop: Light, file: Path) -> None:
    store, engine = SqliteStore(file), shop.under(TEXT)
    names = at_risk(engine, 300)
    for name in names[::2]:
        store.set_timezone(name, "America/Los_Angeles")
    told = decide(Decider(store, lambda: NOW), engine, names)  # ten in the morning in Berlin, one at night there
    quiet = {"push", "sms", "wechat", "call"}
    late = [one["send_after"] for one in told[::2] if one["channel"] in quiet]
    assert late
    assert set(late) == {"2026-01-01T08:00:00-08:00"}
    assert {one["send_after"] for one in told[1::2]} == {None}


def test_an_error_while_logging_spends_nothing(shop: Light, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, engine = SqliteStore(file), shop.under(TEXT)

    def fails(decisions: Any) -> None:
        next(iter(decisions))
        raise OSError("disk full")

    monkeypatch.setattr(store, "record", fails)
    with pytest.raises(OSError, match="disk full"):
        decide(Decider(store, lambda: NOW), engine, at_risk(engine, 10))
    assert (ledger(file), logged(file), store.known()) == ({}, [], set())


def test_units_are_whole_so_that_no_sum_is_ever_off() -> None:
    found: Policy = policy.parse(TEXT.replace("nudge = 0.05", "nudge = 0.1").replace("per_day = 1000.0", "per_day = 0.3"), "x")
    assert found.units_KT.tolist() == [[0, 100_000, 4_000_000, 20_000_000], [0, 0, 0, 250_000]]
    assert found.limits_units_K.tolist() == [300_000, 8_000_000]
    assert 0.1 + 0.1 + 0.1 > 0.3  # what floats would make of three contacts
