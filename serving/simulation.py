"""Strategies against each other on customers of the past, over a range of budgets, before money is spent on one.

Everybody of the test snapshot, which no model learnt from, is decided about by every strategy under the constraints as they stood
that day (`decide.py`, `strategies.py`); capacities stay the policy's, the budget goes from nothing to more than any strategy can spend.
What the contacts come to, of each customer contacted, less the cost:

    expected   churn probability of the model x effect assumed by the policy x value: what the strategies themselves believe
    observed   1 or 0 for left or not by the label x effect assumed x value: churn as it came, effects still assumed
    true       true churn probability without a contact x true effect x value: of a simulated shop only, nothing assumed but the value
    orders     true effect x value of one order x margin: of a simulated shop only, the money that comes in there

*True* is the goal of the policy with the truth put in: the value of customers who would have stayed away for the whole horizon, and
whom the contact brings to an order. The two are independent in a simulated shop, where a contact brings its order whatever the
state of the customer, so that the product is exact. The value is the policy's own definition: no truth tells what a customer is
worth after he was won back. *Orders* is the strict reading of such a shop: a contact brings one order, also of somebody who would
have come anyway, and nothing after it. That asks for other decisions than the policy's, and is told beside.
Intervals are bootstraps over customers with the decisions as they are: how far chance among customers goes, no more.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features import store, table
from features.errors import InputError
from features.files import replacing, write_json
from features.simulate import EFFECT_TIERS, true_churn_probability
from serving import decide
from serving.decide import Floats, Ints, Options, Situation
from serving.policy import CHANNELS, REMEMBERED_DAYS, TIERS, Policy, in_units
from serving.score import Engine
from serving.sqlite_store import SqliteStore
from serving.standings import DecisionMoment, standings
from serving.strategies import STRATEGIES, Budgeted, Randomised, Strategy

SHARES = (0.0, 0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Budgets, as shares of the most that any strategy spends without one."""
DRAWS, LOW, HIGH = 1000, 0.025, 0.975
"""Of the bootstrap, and the quantiles of its intervals."""
ON_TRUTH = "budgeted_on_truth"
"""Budgeted, with the true probabilities and effects: what no shop can do, and the most that can be had."""
SIZE, DPI = (8.4, 4.8), 120
COLOURS = {
    "no_contact": "#8a8a8a",
    "top_risk": "#b4572c",
    "expected_gain": "#7a5ca8",
    "budgeted": "#1b6e53",
    "randomised": "#2f7fb5",
    ON_TRUTH: "#111111",
}
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Outcome:
    """What one strategy comes to at one budget.

    ``gains`` (net of the cost, in the shop's currency) and ``returns`` (gross over cost; None without a cost) by what they are
    judged by: expected, observed and, of a simulated shop, true and orders. ``left_share``: of those contacted, who left by the label.
    """

    strategy: str
    budget: float
    cost: float
    contacts: dict[str, int]
    gains: dict[str, Estimate]
    returns: dict[str, Estimate | None]
    left_share: Estimate | None


@dataclass(frozen=True)
class Comparison:
    """How much more budgeted gains than another strategy at one budget, in the shop's currency, judged as ``Simulation.judged_by``."""

    budget: float
    other: str
    difference: Estimate


@dataclass(frozen=True)
class Simulation:
    """Everything that was found; written as JSON with a figure beside it.

    ``means``: over all customers, what the policy believes and what is so: churn probability, and effect of each tier.
    """

    dataset: str
    synthetic: bool
    currency: str
    snapshot: datetime
    customers: int
    model_version: str
    policy_version: str
    judged_by: str
    assumed: tuple[str, ...]
    means: dict[str, dict[str, float]]
    outcomes: tuple[Outcome, ...]
    comparisons: tuple[Comparison, ...]
    seed: int
    file: str
    figure: str


@dataclass(frozen=True)
class _Truth:
    """Of n customers: probability (n,) of no order without a contact, effect of each tier (n, 4), value (n,) of an order."""

    p_N: Floats
    effect_NT: Floats
    order_value_N: Floats


@dataclass(frozen=True)
class _Past:
    """n customers of the snapshot as they stood, by pseudonym, and whether they left (n,)."""

    policy: Policy
    ids: Sequence[str]
    situation: Situation
    options: Options
    left_N: Floats
    truth: _Truth | None

    @property
    def effect_NT(self) -> Floats:
        """Effects that the policy assumes, shape (n, 4)."""
        assumed_SC = self.policy.effect_SC[self.situation.segment]
        return np.column_stack([np.zeros(len(assumed_SC)), assumed_SC])

    def gross(self) -> dict[str, Floats]:
        """What a contact of each tier brings before its cost, (n, 4), by what it is judged by."""
        s, effect_NT = self.situation, self.effect_NT
        found = {"expected": (s.p * s.value)[:, None] * effect_NT, "observed": (self.left_N * s.value)[:, None] * effect_NT}
        if self.truth is not None:
            found["true"] = (self.truth.p_N * s.value)[:, None] * self.truth.effect_NT
            found["orders"] = (self.truth.order_value_N * self.policy.value.margin)[:, None] * self.truth.effect_NT
        return found


def simulate_policy(
    engine: Engine,
    features: Path,
    policy: Policy,
    out_folder: Path,
    truth: Path | None = None,
    budgets: Sequence[float] | None = None,
    seed: int = 1,
    progress: Progress = lambda text: None,
    sources: Path | None = None,
) -> Simulation:
    """Let every strategy decide about everybody of the model's test snapshot at each budget; write policy.json and policy.png.

    ``features`` is the table that the model was trained from, ``truth`` the folder of `holdfast simulate` that made the data
    set, ``sources`` the file of the canonical tables: without it nobody's consents and former contacts are known. ``budgets`` in the
    shop's currency; without them a grid from 0 to where the budget binds no strategy.
    Raises InputError for a table of another data set or without the test snapshot, a truth of other customers, or a bad budget.
    """
    past, snapshot = _past(engine, features, policy, truth, sources)
    progress(f"{len(past.left_N):,} customers of {snapshot:%Y-%m-%d}, {np.mean(past.left_N):.1%} of whom left")
    judged_by = "observed" if truth is None else "true"
    outcomes, comparisons = [], []
    for budget in _budgets(past, budgets, seed):
        draws = _Draws.of(past, _tiers(past, budget, seed), seed)
        outcomes += [_outcome(past, draws, name, budget) for name in draws.tiers]
        comparisons += [Comparison(budget, name, draws.more(name, judged_by)) for name in draws.tiers if name != Budgeted.name]
        progress(f"budget {budget:,.2f}: decided")
    found = Simulation(
        dataset=engine.manifest.dataset,
        synthetic=engine.manifest.synthetic,
        currency=engine.manifest.currency,
        snapshot=snapshot,
        customers=len(past.left_N),
        model_version=engine.version,
        policy_version=policy.version,
        judged_by=judged_by,
        assumed=_assumed(past, engine.manifest.horizon_days, sources),
        means=_means(past),
        outcomes=tuple(outcomes),
        comparisons=tuple(comparisons),
        seed=seed,
        file=str(out_folder / "policy.json"),
        figure=str(out_folder / "policy.png"),
    )
    write_json(Path(found.file), asdict(found))
    draw(found, Path(found.figure))
    return found


def outcomes_of(outcomes: Sequence[Outcome], strategy: str) -> list[Outcome]:
    """The outcomes of one strategy, by budget."""
    return [one for one in outcomes if one.strategy == strategy]


def _past(engine: Engine, features: Path, policy: Policy, truth: Path | None, sources: Path | None) -> tuple[_Past, datetime]:
    rows, snapshot = _rows(engine, features)
    scored = engine.of_table(rows)
    segment = np.array(scored.segment)
    tenure, orders, order_value, silence = (np.nan_to_num(rows[name].to_numpy()) for name in decide.NEEDS)
    value = decide.values(policy, tenure, orders, order_value)
    standing = _standings(policy, sources, scored.customer_id, segment, snapshot, engine.zone)
    s = Situation(np.array(scored.p), value, segment, scored.touchpoints_NP, silence, **standing)
    known = None if truth is None else _truth(engine, truth, scored.customer_id, snapshot, orders, order_value)
    return _Past(policy, scored.customer_id, s, decide.options(policy, s), rows[table.LABEL].to_numpy(), known), snapshot


def _rows(engine: Engine, features: Path) -> tuple[pa.Table, datetime]:
    """Everybody of the model's test snapshot, with the model's own score edges."""
    manifest, found = engine.manifest, table.read_manifest(features)
    if manifest.columns or manifest.fitted is None:
        raise InputError(
            str(features), "was built by another feature store: its rows have no segments", "simulate on a table of `holdfast features`"
        )
    if found.dataset != manifest.dataset or manifest.test not in found.snapshots:
        fix = "give the features.parquet that the champion was trained from"
        raise InputError(str(features), f"holds no snapshot {manifest.test} of {manifest.dataset}, which the champion was tested on", fix)
    rows = table.read(features, [manifest.test])
    return manifest.fitted.reapply(rows.filter(pc.is_valid(rows[table.LABEL]))), manifest.test


def _standings(policy: Policy, sources: Path | None, ids: list[str], segment: Ints, snapshot: datetime, zone: ZoneInfo) -> dict[str, Any]:
    """Consents and former contacts as the shop knew them at the snapshot, as fields of a `Situation`.

    They go through an online store of their own, so that consent, caps and ladder are read as the service reads them.
    """
    with TemporaryDirectory() as folder:
        kept = SqliteStore(Path(folder) / "online.db")
        tracked = sources is not None and _load(kept, sources, snapshot, zone)
        moment = DecisionMoment(policy, snapshot.replace(tzinfo=zone).timestamp(), zone, tracked)
        known = kept.standing(ids, policy.consent.purpose, moment.since)
    return standings(moment, known, segment.tolist(), None)


def _load(kept: SqliteStore, sources: Path, snapshot: datetime, zone: ZoneInfo) -> bool:
    """Fill a store with what was known at the snapshot; returns whether the shop keeps consents."""
    with store.opened(sources) as connection, kept.transaction():
        there = store.Store.read(sources).parts
        if "consents" in there:
            rows = connection.execute(_CONSENTS, [snapshot]).fetchall()
            kept.set_consents((*who, granted, at.replace(tzinfo=zone).timestamp()) for *who, granted, at in rows)
        if "contacts" in there:
            rows = connection.execute(_CONTACTS, [snapshot, snapshot - timedelta(days=REMEMBERED_DAYS), list(CHANNELS)]).fetchall()
            kept.add_contacts((who, at.replace(tzinfo=zone).timestamp(), *what, None) for who, at, *what in rows)
    return "consents" in there


_CONSENTS = """SELECT customer_id, purpose, coalesce(channel, ''), arg_max(granted, (changed_at, NOT granted)), max(changed_at)
    FROM consents WHERE greatest(changed_at, arrived_at) <= $1 GROUP BY 1, 2, 3"""
_CONTACTS = """
    WITH ordered AS (SELECT customer_id, max(ordered_at) AS latest FROM orders WHERE greatest(ordered_at, arrived_at) <= $1 GROUP BY 1)
    SELECT c.customer_id, c.sent_at, coalesce(c.tier, 1)::INT, coalesce(c.channel, ''), coalesce(o.latest > c.sent_at, false)
           OR coalesce(least(c.clicked_at, c.converted_at) <= $1 AND coalesce(c.response_arrived_at, $1) <= $1, false)
    FROM contacts AS c LEFT JOIN ordered AS o USING (customer_id)
    WHERE greatest(c.sent_at, c.arrived_at) <= $1 AND c.sent_at > $2 AND coalesce(c.tier, 1) > 0
          AND (c.channel IS NULL OR list_contains($3, c.channel)) ORDER BY c.sent_at"""


def _truth(engine: Engine, folder: Path, ids: list[str], snapshot: datetime, orders: Floats, order_value: Floats) -> _Truth:
    """What the simulator knows of the customers with these ids; values of orders are means over customers alike in what decides them."""
    if not (folder / "truth").is_dir():
        raise InputError(
            str(folder), "holds no truth of a simulated shop", "give the folder that `holdfast simulate` wrote, or leave it out"
        )
    rows = pq.read_table(folder / "truth")
    place = {engine.pseudonyms(id): row for row, id in enumerate(rows["customer_id"].to_pylist())}
    if missing := sum(one not in place for one in ids):
        raise InputError(str(folder), f"does not know {missing:,} of {len(ids):,} customers", "give the folder that made this data set")
    rows = rows.take([place[one] for one in ids])
    p_N = true_churn_probability(rows, snapshot, engine.manifest.horizon_days)
    effects = [rows[f"effect_{tier}"].to_numpy() for tier in EFFECT_TIERS]
    alike = rows["value_level"].to_numpy().astype(np.int64) * 2 + rows["price_sensitive"].to_numpy().astype(np.int64)
    mean = np.bincount(alike, orders * order_value) / np.maximum(np.bincount(alike, orders), 1)
    return _Truth(p_N, np.column_stack([np.zeros(len(ids)), *effects]), mean[alike])


def _strategies(seed: int) -> list[Strategy]:
    """All strategies, the experiment named after the seed."""
    return [Randomised(experiment=f"simulation {seed}") if kind is Randomised else kind() for kind in STRATEGIES.values()]


def _limited(policy: Policy, budget: float) -> tuple[Ints, Floats]:
    """Use (k, 4) and limits (k,) in millionths of the policy's resources with another budget, which comes first."""
    others = [place for place, name in enumerate(policy.resources) if name != "budget"]
    money = budget if math.isinf(budget) else in_units(budget)
    return np.vstack([policy.cost_units_T, policy.units_KT[others]]), np.array([money, *policy.limits_units_K[others]])


def _tiers(past: _Past, budget: float, seed: int) -> dict[str, Ints]:
    """Tiers (n,) that each strategy chooses at a budget."""
    allowed_NT, limited = past.options.allowed_NT, _limited(past.policy, budget)
    found = {one.name: one.choose(allowed_NT, past.situation.p, *limited, past.ids).tiers for one in _strategies(seed)}
    if past.truth is not None:
        true_NT = past.gross()["true"] - past.policy.cost_T
        true_NT = np.where(np.isfinite(allowed_NT), true_NT, -np.inf)
        found[ON_TRUTH] = Budgeted().choose(true_NT, past.truth.p_N, *limited, past.ids).tiers
    return found


def _budgets(past: _Past, given: Sequence[float] | None, seed: int) -> list[float]:
    if given is None:
        most = max(float(past.policy.cost_T[tiers].sum()) for tiers in _tiers(past, math.inf, seed).values())
        return sorted({float(math.ceil(most * share)) for share in SHARES})  # whole units, which no rounding makes less
    for budget in given:
        if not (math.isfinite(budget) and budget >= 0):
            raise InputError(f"budget {budget}", "must be a number of 0 or more", "leave budgets out for a grid up to where nothing binds")
    return sorted(set(given))


@dataclass(frozen=True)
class _Draws:
    """Sums over customers of what each strategy's contacts come to: first as it is, then in each resample.

    ``total_SMB``: (strategies, measures, 1 + draws); the measures are cost, contacts, contacts of those who left, and the gross by judge.
    """

    tiers: Mapping[str, Ints]
    measures: tuple[str, ...]
    total_SMB: Floats

    @classmethod
    def of(cls, past: _Past, tiers: Mapping[str, Ints], seed: int) -> "_Draws":
        """Resample customers with replacement; the same resamples for all strategies and, by the seed, for all budgets."""
        gross, rows = past.gross(), np.arange(len(past.left_N))
        columns = []
        for chosen in tiers.values():
            contacted = chosen > 0
            columns += [past.policy.cost_T[chosen], contacted, contacted * past.left_N]
            columns += [brought_NT[rows, chosen] for brought_NT in gross.values()]
        total_BQ = _resampled(np.column_stack(columns), seed)
        return cls(tiers, ("cost", "contacts", "left", *gross), total_BQ.T.reshape(len(tiers), -1, len(total_BQ)))

    def sums(self, name: str, measure: str) -> Floats:
        """Of one strategy, (1 + draws,)."""
        return np.asarray(self.total_SMB[list(self.tiers).index(name), self.measures.index(measure)])

    def gain(self, name: str, judge: str) -> Floats:
        """Gross less cost, (1 + draws,)."""
        return self.sums(name, judge) - self.sums(name, "cost")

    def more(self, other: str, judge: str) -> Estimate:
        """What budgeted gains beyond another strategy, in the same resamples."""
        return _estimate(self.gain(Budgeted.name, judge) - self.gain(other, judge))


def _resampled(values_NQ: Floats, seed: int) -> Floats:
    """Sums of the columns over the customers as they are, and over each resample of them, shape (1 + draws, q)."""
    random, n = np.random.default_rng(seed), len(values_NQ)
    counts = (np.bincount(random.integers(0, n, n), minlength=n) for _ in range(DRAWS))
    return np.stack([values_NQ.sum(axis=0), *(count @ values_NQ for count in counts)])


def _estimate(found_B: Floats) -> Estimate:
    """The first with the interval of the others; resamples without a value do not count."""
    low, high = np.nanquantile(found_B[1:], [LOW, HIGH])
    return Estimate(float(found_B[0]), float(low), float(high))


def _ratio(above_B: Floats, below_B: Floats) -> Estimate | None:
    if below_B[0] == 0:
        return None
    return _estimate(np.divide(above_B, below_B, out=np.full(len(below_B), np.nan), where=below_B > 0))


def _outcome(past: _Past, draws: _Draws, name: str, budget: float) -> Outcome:
    tiers, judges, cost_B = draws.tiers[name], draws.measures[3:], draws.sums(name, "cost")
    return Outcome(
        name,
        budget,
        float(cost_B[0]),
        {tier: int(np.sum(tiers == place)) for place, tier in enumerate(TIERS)},
        {judge: _estimate(draws.gain(name, judge)) for judge in judges},
        {judge: _ratio(draws.sums(name, judge), cost_B) for judge in judges},
        _ratio(draws.sums(name, "left"), draws.sums(name, "contacts")),
    )


def _means(past: _Past) -> dict[str, dict[str, float]]:
    believed, truth = past.effect_NT.mean(axis=0), past.truth
    churn = {"believed": float(past.situation.p.mean()), "observed": float(past.left_N.mean())}
    found = {"churn_probability": churn | ({} if truth is None else {"true": float(truth.p_N.mean())})}
    for place, tier in enumerate(TIERS[1:], 1):
        true = {} if truth is None else {"true": float(truth.effect_NT[:, place].mean())}
        found[f"effect_{tier}"] = {"believed": float(believed[place])} | true
    return found


def _assumed(past: _Past, horizon_days: int, sources: Path | None) -> tuple[str, ...]:
    """What the figures rest on, in sentences."""
    worth, whose = past.policy.value, past.policy.effects_source
    without = "what would have happened to whom is not known here"
    there = () if sources is None else store.Store.read(sources).parts
    lacking = " and ".join(name for name in ("consents", "contacts") if name not in there)
    found = (
        f"Value is the policy's: order value x orders a year x {worth.lifetime_years:g} years x margin {worth.margin:g}.",
        f"Effects are {whose} by the policy; " + (without if past.truth is None else "true and orders take the simulator's own") + ".",
        f"Left: no order in the {horizon_days} days after the snapshot, by the label, with whatever contacts the shop made then.",
        "One day's decisions: everybody at once, without an occasion; capacities as the policy has them.",
        "Intervals resample customers; decisions, model and effects stay as they are.",
    )
    return (*found, f"Not known here, so that only the policy's word for it counts: {lacking}.") if lacking else found


# What a person sees


def shown(found: Simulation) -> Any:
    """The outcomes at every budget above 0 as a table for the terminal (rich)."""
    from rich.table import Table

    judges = list(found.outcomes[0].gains)
    title = f"{found.dataset}: {found.customers:,} customers of {found.snapshot:%Y-%m-%d}, gains net of cost in {found.currency}"
    shown = Table("budget", "strategy", title=title, title_justify="left", padding=(0, 0))
    for name in ("cost", "nudge/offer/conc.", "left", *judges, f"95 % of {found.judged_by}", "return"):
        shown.add_column(name, justify="right", no_wrap=True)
    for one in found.outcomes:
        if one.budget:
            shown.add_row(*_row(one, found.judged_by), end_section=one.strategy == found.outcomes[-1].strategy)
    return shown


def _row(one: Outcome, judged_by: str) -> list[str]:
    gain, back, left = one.gains[judged_by], one.returns[judged_by], one.left_share
    return [
        f"{one.budget:,.0f}",
        one.strategy,
        f"{one.cost:,.0f}",
        "/".join(f"{one.contacts[tier]:,}" for tier in TIERS[1:]),
        "" if left is None else f"{left.value:.1%}",
        *(f"{judged.value:,.0f}" for judged in one.gains.values()),
        f"{gain.low:,.0f} to {gain.high:,.0f}",
        "" if back is None else f"{back.value:.2f}",
    ]


def told(found: Simulation) -> list[str]:
    """The comparison with top risk in sentences, then what all of it rests on."""
    lines = [
        f"budget {one.budget:,.0f}: budgeted gains {one.difference.value:+,.0f} {found.currency} against {one.other} "
        f"(95 %: {one.difference.low:+,.0f} to {one.difference.high:+,.0f}), judged by {found.judged_by}"
        for one in found.comparisons
        if one.other == "top_risk" and one.budget > 0
    ]
    return lines + list(found.assumed)


def draw(found: Simulation, file: Path) -> Path:
    """Plot net gain against budget, a labelled line and a 95 % band for each strategy; a PNG, the same for the same input."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=SIZE, dpi=DPI)
    ends = {}
    for name in dict.fromkeys(one.strategy for one in found.outcomes):
        some, colour = outcomes_of(found.outcomes, name), COLOURS.get(name, "#555555")
        x, y = [one.budget for one in some], [one.gains[found.judged_by] for one in some]
        axes.fill_between(x, [one.low for one in y], [one.high for one in y], color=colour, alpha=0.1, linewidth=0)
        axes.plot(x, [one.value for one in y], color=colour, linewidth=1.8, marker="o", markersize=3)
        ends[name] = y[-1].value
    _label(axes, ends, found.outcomes[-1].budget)
    whose = "simulated shop" if found.judged_by == "true" else "churn as observed, effects assumed"
    title = f"{found.dataset}: net gain of a day's contacts against its budget ({whose})"
    axes.set_title(title, loc="left", fontsize=10)
    axes.set(xlabel=f"budget of the day ({found.currency})", ylabel=f"net gain, {found.judged_by} ({found.currency})")
    axes.spines[["top", "right"]].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    figure.tight_layout()
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    plt.close(figure)
    return file


def _label(axes: Any, ends: Mapping[str, float], x: float) -> None:
    """Name each line at its right end, the names pushed apart where ends lie close."""
    low, high = axes.get_ylim()
    least, place = (high - low) * 0.05, -math.inf
    for name, y in sorted(ends.items(), key=lambda item: item[1]):
        place = max(y, place + least)
        axes.text(1.02 * x, place, name.replace("_", " "), color=COLOURS.get(name), fontsize=9, va="center")
