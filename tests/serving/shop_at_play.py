"""A small shop to play with: some customers of the light shop, policies to change between, and what the shop's own tables hold."""

import copy
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq

from features.domain import TOUCHPOINTS
from features.store import Store, folder_of
from serving import histories, policy
from serving.champions import Champions
from serving.policy import Segment
from serving.score import Engine, Lookup
from tests.serving.books import Told
from tests.serving.referee import DAY, Customer
from tests.serving.test_decisions import TEXT, Light

PEOPLE = 25
ZONE = ZoneInfo("Europe/Berlin")


def changed(*changes: tuple[str, str]) -> str:
    text = TEXT
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    return text


def without(text: str, section: str, end: str) -> str:
    return text[: text.index(section)] + text[text.index(end) :]


def only(tier: str, *changes: tuple[str, str]) -> str:
    """A policy under which no other tier wins anybody back, and this one everybody."""
    before, effects = changed(*changes).split("[effects.high_value]")
    for one in ("nudge", "offer", "concierge"):
        effects = re.sub(rf"^{one} = 0\.\d\d$", f"{one} = {1.0 if one == tier else 0.0}", effects, flags=re.MULTILINE)
    return f"{before}[effects.high_value]{effects}"


GAP, CLIMB, LADDER = "min_gap_days = 3.0", "climb_after_days = 7.0", "ladder_days = 90.0"
KEEN = ('segment = "price_sensitive"\ncontacts = 2\ndays = 7.0', 'segment = "price_sensitive"\ncontacts = 1\ndays = 30.0')
EAGER = ((GAP, "min_gap_days = 0.5"), (CLIMB, "climb_after_days = 1.0"), (LADDER, "ladder_days = 20.0"), KEEN)
POLICIES = {
    "shipped": TEXT,
    "little money": changed(("per_day = 1000.0", "per_day = 45.0"), *EAGER),
    "lowered": changed(("per_day = 1000.0", "per_day = 8.05"), *EAGER),
    "no channel but a few": changed(('channel = "any"\ncontacts = 4', 'channel = "e-mail"\ncontacts = 0'), *EAGER),
    "few contacts": changed(('channel = "any"\ncontacts = 4', 'channel = "any"\ncontacts = 2'), *EAGER),
    "nobody": changed(('channel = "any"\ncontacts = 4', 'channel = "any"\ncontacts = 0')),
    "quiet at two": changed(('start = "21:00"', 'start = "22:30"'), ('end = "08:00"', 'end = "02:30"'), *EAGER),
    "quiet at noon": changed(('start = "21:00"', 'start = "11:15"'), ('end = "08:00"', 'end = "13:00"'), (GAP, "min_gap_days = 0.0")),
    "no limits": without(changed(('untracked = "allow"', 'untracked = "deny"'), *EAGER), "[budget]", "[failed]"),
    "few hours": changed(
        ("hours_per_day = 8.0", "hours_per_day = 0.25"),
        *EAGER,
        ('cost = "returned"', 'cost = "spent"'),
        ('hours = "spent"', 'hours = "returned"'),
    ),
    "two calls": only(
        "concierge", ("hours_per_day = 8.0", "hours_per_day = 0.5"), ("after_concierge = true", "after_concierge = false"), *EAGER[:3]
    ),
    "no sms for some": only(
        "offer",
        ('segment = "price_sensitive"\ncontacts = 2\ndays = 7.0', 'segment = "price_sensitive"\ncontacts = 0\ndays = 7.0'),
        *EAGER[:3],
    ),
    "no quiet": without(
        changed(('unknown = "deny"', 'unknown = "allow"'), ("after_concierge = true", "after_concierge = false"), *EAGER),
        "[quiet_hours]",
        "[budget]",
    ),
    "cheap": changed(("nudge = 0.05", "nudge = 0.0"), ("offer = 4.00", "offer = 0.1"), ("per_day = 1000.0", "per_day = 0.3"), *EAGER)
    + "[capacity.offer]\nhours_per_day = 0.3\nhours_per_contact = 0.1\n",
}


@dataclass(frozen=True)
class Cast:
    """The light shop's model, and some of its customers, of every segment and risk."""

    shop: Light

    @cached_property
    def engine(self) -> Engine:
        engine = copy.copy(self.shop.engine)
        rows = Lookup.rows(self.shop.places.features, engine.manifest)
        assert rows is not None
        scored = engine.of_table(rows.take(self._places))
        engine.lookup = Lookup(scored, {name: place for place, name in enumerate(scored.customer_id)}, self.shop.places.features)
        engine.explain(scored, range(len(scored)))
        return engine

    @property
    def _places(self) -> list[int]:
        """Of each segment the likeliest to leave, and some between; then those with a touchpoint or long silent."""
        assert self.shop.engine.lookup is not None
        scored = self.shop.engine.lookup.scored
        assert scored.segment is not None
        by_risk = sorted(range(len(scored)), key=lambda place: -scored.p[place])
        found = []
        for segment in range(len(Segment)):
            own = [place for place in by_risk if scored.segment[place] == segment]
            found += own[:2] + own[len(own) // 3 : len(own) // 3 + 1] + own[-1:]
        found += [place for place in by_risk if scored.silence_days[place] > 330][:1]
        found += [place for place in by_risk if scored.touchpoints_NP[place].any()][5:6]
        return list(dict.fromkeys(found))[:PEOPLE]

    @cached_property
    def engines(self) -> dict[str, Engine]:
        """The same engine under every policy."""
        found = {}
        for name, text in POLICIES.items():
            found[name] = copy.copy(self.engine)
            found[name].policy = policy.parse(text, name)
        return found

    @cached_property
    def champions(self) -> Champions:
        return Champions(self.shop.package, self.shop.home, self.shop.places.features)

    @cached_property
    def people(self) -> list[Customer]:
        """What the model says of each, for the referee."""
        assert self.engine.lookup is not None
        scored = self.engine.lookup.scored
        assert scored.segment is not None
        return [
            Customer(
                scored.customer_id[place],
                scored.p[place],
                scored.value[place],
                list(Segment)[scored.segment[place]].value,
                scored.silence_days[place],
                frozenset(t.name for t, holds in zip(TOUCHPOINTS, scored.touchpoints_NP[place], strict=True) if holds),
                scored.why[place][1],
            )
            for place in range(len(scored))
        ]


@dataclass
class World:
    """What the shop's own tables hold."""

    orders: list[tuple[str, float, float]] = field(default_factory=list)
    """(person, ordered, came)"""
    sent: list[Told] = field(default_factory=list)
    consents: list[tuple[str, str, bool, float]] | None = None


def written(folder: Path, world: World, begin: float, until: float) -> Path:
    """Canonical tables of a shop as they were known at a moment; somebody else orders every day."""
    days = [begin - 5 * DAY + DAY * number for number in range(int((until - begin) / DAY) + 6)]
    orders = [("filler", at, at) for at in (*days, until)] + [one for one in world.orders if one[2] <= until]
    tables = {
        "orders": [
            {"order_id": f"o{number}", "customer_id": who, "ordered_at": moment(at), "arrived_at": moment(came)}
            for number, (who, at, came) in enumerate(orders)
        ],
        "contacts": [
            {"contact_id": one.id, "customer_id": one.person, "sent_at": moment(one.at), "arrived_at": moment(one.came)}
            | {"channel": one.channel, "tier": one.tier, "decision_id": one.decision}
            for one in world.sent
            if one.came <= until
        ],
    }
    if world.consents is not None:
        tables["consents"] = [
            {"customer_id": who, "changed_at": moment(at), "arrived_at": moment(at), "purpose": "marketing"}
            | {"channel": channel or None, "granted": granted}
            for who, channel, granted, at in world.consents
            if at <= until
        ]
    return stored(folder, tables)


def stored(folder: Path, tables: dict[str, list[dict[str, Any]]]) -> Path:
    """Canonical tables with these rows, in force."""
    file = folder / "sources.json"
    for name, rows in tables.items():
        part = folder_of(file) / name / "part.parquet"
        part.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, histories.schema(name)), part)
    parts = {name: [f"{name}/part.parquet"] for name in tables}
    Store(parts, sorted(tables), "", str(ZONE), [], {}).counted(file).write(file)
    return file


def moment(at: float) -> datetime:
    """As canonical tables hold it."""
    return datetime.fromtimestamp(at, UTC).replace(tzinfo=None)
