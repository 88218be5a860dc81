"""Strategies compared on a simulated shop, where the truth is known, and on the embedded sample, where it is not."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import mapping, table
from features.errors import InputError
from features.simulate import simulate, true_churn_probability
from serving import decide
from serving import policy as policies
from serving.policy import TIERS, Policy
from serving.score import Engine
from serving.simulation import ON_TRUTH, SHARES, Outcome, Simulation, outcomes_of, shown, simulate_policy, told
from serving.strategies import STRATEGIES, Budgeted
from tests.conftest import Shop
from training.dataset import TrainingData
from training.models.calibration import Calibration
from training.models.level import Forecast, Level
from training.models.lightgbm import LightGBM
from training.models.scorer import Scorer
from validation.stages import build_features, validate

CUSTOMERS, SEED = 1500, 5
PARAMS = {"learning_rate": 0.08, "num_leaves": 15, "min_data_in_leaf": 60, "feature_fraction": 0.5, "rounds": 60}
POLICY = policies.read()


def engine(shop: Shop) -> Engine:
    """A small LightGBM that learnt from what was known before the test snapshot, as a service has it."""
    data = TrainingData.read(shop.places.features)
    model = LightGBM.fit(PARAMS, data.before(data.split.test), 1)
    level = Level({data.split.test: Forecast(0.6, 0.5, 0.7, 0.6, None, 0, 0.1, -0.2)})
    scorer = Scorer(model, Calibration("platt", [1.1]), level, data.manifest, None)
    return Engine(scorer, POLICY, {"model_name": "x", "model_version": "1", "model": "lightgbm", "digest": "x", "run_id": "x"})


@dataclass(frozen=True)
class World:
    shop: Shop
    truth: Path
    engine: Engine

    def run(self, out: Path, policy: Policy = POLICY, truth: bool = True, sources: bool = True, **more: object) -> Simulation:
        known = self.shop.places.sources if sources else None
        place = self.truth if truth else None
        return simulate_policy(self.engine, self.shop.places.features, policy, out, place, sources=known, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("simulated")
    shop = Shop(simulate(folder / "files", CUSTOMERS, SEED), folder / "home")
    validate(mapping.read(shop.mapping), shop.places)
    build_features(mapping.read(shop.mapping), shop.places)
    return World(shop, folder / "files", engine(shop))


@pytest.fixture(scope="module")
def found(world: World, tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    return world.run(tmp_path_factory.mktemp("found"))


@pytest.fixture(scope="module")
def history(sample_features: Shop, tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """The embedded sample: real customers, no truth."""
    model, out = engine(sample_features), tmp_path_factory.mktemp("history")
    return simulate_policy(model, sample_features.places.features, POLICY, out, sources=sample_features.places.sources)


def at(found: Simulation, budget: float) -> dict[str, Outcome]:
    return {one.strategy: one for one in found.outcomes if one.budget == budget}


def budgets(found: Simulation) -> list[float]:
    return sorted({one.budget for one in found.outcomes})


def test_every_strategy_is_there_at_every_budget_from_0_up_and_with_a_truth_one_that_knows_it(found: Simulation) -> None:
    assert len(budgets(found)) == len(SHARES) >= 6
    assert budgets(found)[0] == 0
    for budget in budgets(found):
        assert list(at(found, budget)) == [*STRATEGIES, ON_TRUTH]


def test_nobody_spends_more_than_the_budget_or_the_advisors_hours(found: Simulation) -> None:
    advisors = POLICY.capacity["concierge"].hours_per_day / POLICY.capacity["concierge"].hours_per_contact
    for one in found.outcomes:
        assert one.cost <= one.budget + 1e-9
        assert one.cost == pytest.approx(sum(POLICY.cost_T * list(one.contacts.values())))
        assert one.contacts["concierge"] <= advisors
        assert sum(one.contacts.values()) == found.customers


def test_without_contacts_or_without_money_nothing_is_gained(found: Simulation) -> None:
    for one in [*outcomes_of(found.outcomes, "no_contact"), *at(found, 0).values()]:
        assert one.contacts == {"none": found.customers, "nudge": 0, "offer": 0, "concierge": 0}
        assert all((gain.value, gain.low, gain.high) == (0, 0, 0) for gain in one.gains.values())
        assert one.left_share is None
        assert set(one.returns.values()) == {None}


def test_budgeted_expects_most_of_all_and_knowing_the_truth_gains_most(found: Simulation) -> None:
    for budget in budgets(found):
        here = at(found, budget)
        assert here["budgeted"].gains["expected"].value >= max(one.gains["expected"].value for one in here.values()) - 1e-6
        assert here[ON_TRUTH].gains["true"].value >= max(one.gains["true"].value for one in here.values()) - 1e-6


def test_on_the_truth_budgeted_beats_the_riskiest_first_where_money_is_short(found: Simulation) -> None:
    (short,) = [one for one in found.comparisons if one.budget == budgets(found)[3] and one.other == "top_risk"]
    assert short.difference.low > 0


def test_beyond_the_largest_budget_nothing_changes(world: World, found: Simulation, tmp_path: Path) -> None:
    most = budgets(found)[-1]
    twice = at(world.run(tmp_path, budgets=[2 * most]), 2 * most)
    assert {name: one.contacts for name, one in twice.items()} == {name: one.contacts for name, one in at(found, most).items()}


def truth_of(world: World, ids: list[str]) -> pa.Table:
    rows = pq.read_table(world.truth / "truth")
    place = {world.engine.pseudonyms(id): row for row, id in enumerate(rows["customer_id"].to_pylist())}
    return rows.take([place[id] for id in ids])


def test_the_figures_are_those_of_the_customers_chosen_added_up_by_hand(world: World, tmp_path: Path) -> None:
    budget, manifest = 300.0, world.engine.manifest
    rows = manifest.fitted.reapply(table.read(world.shop.places.features, [manifest.test]))  # type: ignore[union-attr]
    scored = world.engine.of_table(rows)
    s = world.engine.situations([(scored, place) for place in range(len(scored))], decide.open_standings(len(scored)))
    options = decide.options(POLICY, s)
    limits_K = np.array([300_000_000, *POLICY.limits_units_K[1:]])  # millionths
    tiers = Budgeted().choose(options.allowed_NT, s.p, POLICY.units_KT, limits_K, scored.customer_id).tiers
    contacts, truth = np.flatnonzero(tiers), truth_of(world, scored.customer_id)
    cost = sum(POLICY.cost_T[tiers[row]] for row in contacts)
    left, p_N = rows["churned"].to_numpy(), true_churn_probability(truth, manifest.test, manifest.horizon_days)  # type: ignore[arg-type]
    assumed = {row: POLICY.effect_SC[s.segment[row], tiers[row] - 1] for row in contacts}
    true = {row: truth[f"effect_{TIERS[tiers[row]]}"][int(row)].as_py() for row in contacts}
    here = at(world.run(tmp_path, budgets=[budget], sources=False), budget)["budgeted"]
    assert here.gains["expected"].value == pytest.approx(sum(options.gains_NT[row, tiers[row]] for row in contacts))
    assert here.gains["observed"].value == pytest.approx(sum(left[row] * assumed[row] * s.value[row] for row in contacts) - cost)
    assert here.gains["true"].value == pytest.approx(sum(p_N[row] * true[row] * s.value[row] for row in contacts) - cost)
    assert here.returns["true"].value == pytest.approx(here.gains["true"].value / cost + 1)  # type: ignore[union-attr]
    assert here.left_share.value == pytest.approx(np.mean(left[contacts]))  # type: ignore[union-attr]


def test_the_true_effect_of_offers_to_everybody_is_the_share_of_such_contacts_that_brought_an_order(world: World, tmp_path: Path) -> None:
    """Against all offers that the shop itself has made, at random, and what came of each."""
    free = {"min_churn_probability": 0.0, "min_gap_days": 0.0, "climb_after_days": 7.0, "ladder_days": 90.0}
    changed = POLICY.model_dump(mode="json", by_alias=True) | {
        "contact": free,
        "unrecoverable": {"silence_days": 1e6, "after_concierge": False},
    }
    changed |= {"capacity": {"concierge": {"hours_per_day": 0.0, "hours_per_contact": 1.0}}}
    found = world.run(tmp_path, Policy(**changed), sources=False, budgets=[1e6])
    one = outcomes_of(found.outcomes, "top_risk")[0]
    assert one.contacts["offer"] == found.customers
    made = pq.read_table(world.truth / "truth_assignments").to_pandas()
    offers = made[made.tier == 2]
    share = offers.converted.mean()
    assert found.means["effect_offer"]["true"] == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / len(offers)))


def test_who_gave_no_consent_by_then_is_left_alone(world: World, found: Simulation, tmp_path: Path) -> None:
    rows = table.read(world.shop.places.features, [world.engine.manifest.test])
    agreed = int(np.sum(rows["consents_granted"].to_numpy() > 0))
    most = budgets(found)[-1]
    contacted = found.customers - at(found, most)["top_risk"].contacts["none"]
    anyway = world.run(tmp_path, sources=False, budgets=[10 * most])
    assert 0 < contacted <= agreed < found.customers
    assert contacted < anyway.customers - at(anyway, 10 * most)["top_risk"].contacts["none"]
    assert "consents and contacts" in anyway.assumed[-1]
    assert "Not known" not in " ".join(found.assumed)


def test_a_policy_without_a_budget_of_its_own_is_compared_alike(world: World, found: Simulation, tmp_path: Path) -> None:
    endless = Policy(**POLICY.model_dump(mode="json", by_alias=True) | {"budget": None})
    assert "budget" not in endless.resources
    assert world.run(tmp_path, endless).outcomes == found.outcomes


def test_the_same_seed_writes_the_same_bytes(world: World, tmp_path: Path) -> None:
    first, again = (world.run(tmp_path / name, budgets=[0, 200], seed=3) for name in ("first", "again"))
    for one, other in ((first.figure, again.figure), (first.file, again.file)):
        assert Path(one).read_bytes() == Path(other).read_bytes().replace(b"/again/", b"/first/")


def test_intervals_are_as_wide_as_chance_among_customers_makes_them(found: Simulation) -> None:
    one = at(found, budgets(found)[-1])["top_risk"]
    contacts, share = found.customers - one.contacts["none"], one.left_share
    assert share is not None
    width = 2 * 1.96 * np.sqrt(share.value * (1 - share.value) / contacts)
    assert share.high - share.low == pytest.approx(width, rel=0.15)
    for outcome in found.outcomes:
        assert all(gain.low <= gain.value <= gain.high for gain in outcome.gains.values())


def test_the_file_holds_what_was_returned_and_the_figure_is_there(found: Simulation) -> None:
    written = json.loads(Path(found.file).read_text(), parse_constant=pytest.fail)
    assert [one["gains"]["true"]["value"] for one in written["outcomes"]] == [one.gains["true"].value for one in found.outcomes]
    assert written["snapshot"] == str(found.snapshot)
    assert Path(found.figure).read_bytes().startswith(b"\x89PNG")


def test_the_terminal_shows_every_budget_but_nothing(found: Simulation) -> None:
    assert shown(found).row_count == len(found.outcomes) - len(at(found, 0))
    assert sum("against top_risk" in line for line in told(found)) == len(budgets(found)) - 1


def test_history_tells_who_left_and_assumes_effects_which_it_says(history: Simulation) -> None:
    assert history.judged_by == "observed"
    assert set(history.outcomes[0].gains) == {"expected", "observed"}
    assert list(at(history, budgets(history)[1])) == [*STRATEGIES]
    assert any("what would have happened to whom is not known" in line for line in history.assumed)


def test_in_history_the_riskiest_leave_more_often_than_the_rest(history: Simulation) -> None:
    share = at(history, budgets(history)[3])["top_risk"].left_share
    assert share is not None
    assert share.low > history.means["churn_probability"]["observed"]


def test_a_truth_of_other_customers_is_refused(world: World, tmp_path: Path) -> None:
    simulate(tmp_path / "other", 100, SEED)
    with pytest.raises(InputError, match=r"does not know .* customers"):
        simulate_policy(world.engine, world.shop.places.features, POLICY, tmp_path, tmp_path / "other")
    with pytest.raises(InputError, match="holds no truth"):
        simulate_policy(world.engine, world.shop.places.features, POLICY, tmp_path, tmp_path)


def test_a_table_of_another_data_set_is_refused(world: World, sample_features: Shop, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no snapshot"):
        simulate_policy(world.engine, sample_features.places.features, POLICY, tmp_path)


@pytest.mark.parametrize("budget", [-1.0, float("nan"), float("inf")])
def test_a_budget_that_is_none_is_refused(world: World, tmp_path: Path, budget: float) -> None:
    with pytest.raises(InputError, match="must be a number of 0 or more"):
        world.run(tmp_path, budgets=[budget])
