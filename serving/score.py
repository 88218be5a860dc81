"""Champion + features + policy -> decisions; the batch and the service share it."""

import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Self
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa

from features import reduce, table
from features.domain import risk_band
from features.errors import InputError
from features.files import read_json
from features.pseudonym import Pseudonyms
from features.schema import EXACT, FLAG, SOURCES, TEXT, TIME, Source
from features.table import Manifest
from serving import policy as policies
from serving.explain import Explainer
from serving.schemas import CustomerRequest
from training.models.base import Rows
from training.models.scorer import Scorer

TIERS = ("none", "nudge", "offer", "concierge")
IDENTITY = "identity.json"
"""File beside the scorer's: registered name, version, run and digest of the champion."""


@dataclass(frozen=True)
class Lookup:
    """The latest feature table, for customers asked for by id."""

    rows: pa.Table
    index: dict[str, int]

    @classmethod
    def read(cls, path: Path, manifest: Manifest) -> "Lookup | None":
        """Read the newest snapshot of a table, scored with the model's own fitted edges.

        None when there is no table, or it is of another data set or definition than the model's.
        """
        if not path.exists():
            return None
        found = table.read_manifest(path)
        alike = ("dataset", "timezone", "horizon_days", "sources", "key_check")
        same = all(getattr(found, name) == getattr(manifest, name) for name in alike)
        if not same or found.latest is None or manifest.fitted is None:
            return None
        rows = manifest.fitted.reapply(table.read(path, [found.latest]))
        return cls(rows, {customer: row for row, customer in enumerate(rows["customer_id"].to_pylist())})


NEXT_ORDER = ("low", "median", "high")
"""The quantiles .1, .5 and .9 of the days to the next order."""


class Engine:
    """Scores feature rows and raw histories with one model and one policy."""

    def __init__(self, scorer: Scorer, policy: policies.Policy, identity: dict[str, str], lookup: Lookup | None = None) -> None:
        self.scorer, self.policy, self.identity, self.lookup = scorer, policy, identity, lookup
        self.manifest = scorer.manifest
        self.explainer = Explainer(self.manifest)
        self.pseudonyms = Pseudonyms.of(self.manifest.personal)
        if self.pseudonyms.check != self.manifest.key_check:
            raise InputError("HOLDFAST_ID_KEY", "is not the key that the model's data were pseudonymised with", "set the same key")
        self.statements = reduce.compiled(self.manifest.tables)
        self.zone = ZoneInfo(self.manifest.timezone)
        self._local = threading.local()

    @classmethod
    def load(cls, folder: Path, policy: policies.Policy, features: Path | None = None) -> Self:
        """Load a packaged champion, every digest verified."""
        scorer = Scorer.load(folder)
        lookup = Lookup.read(features, scorer.manifest) if features else None
        return cls(scorer, policy, read_json(folder.parent / IDENTITY), lookup)

    def decide(self, rows: pa.Table) -> list[dict[str, Any]]:
        """One decision for each row of a feature table, in order (the fields of `schemas.Scored`)."""
        arrays = Rows.of(rows, self.manifest.names, self.manifest.channels)
        p = self.scorer.predict(arrays)
        contributions = self.scorer.contributions(arrays)
        reasons = self.explainer.reasons(contributions, arrays.x_NF)
        told = zip(reasons, self.explainer.churn_reasons(contributions, arrays.x_NF), self._next_orders(arrays, p), strict=True)
        found = policies.situation(self.policy, rows)
        gains = self.policy.gains(p, found.value, found.segments)
        tiers = self.policy.tiers(p, gains)
        columns = (rows[name].to_pylist() for name in ("customer_id", "snapshot", "lifecycle_stage", "plan_stage", "value_segment"))
        return [
            self._answer(row, float(p[i]), why, gains[i].tolist(), tiers[i], found.segments[i])
            for i, (row, why) in enumerate(zip(zip(*columns, strict=True), told, strict=True))
        ]

    def _next_orders(self, rows: Rows, p: Any) -> list[dict[str, float | None]]:
        """Days to the next order with an 80 % interval; None where it is beyond the horizon."""
        if self.scorer.timing is None:
            return [dict.fromkeys(NEXT_ORDER)] * len(rows)
        days = self.scorer.timing.quantiles(rows, p)
        return [
            {name: None if value >= self.manifest.horizon_days else round(value, 1) for name, value in zip(NEXT_ORDER, row, strict=True)}
            for row in days.tolist()
        ]

    def _answer(self, row: tuple[Any, ...], p: float, why: tuple[Any, ...], gains: list[float], tier: Any, segment: Any) -> dict[str, Any]:
        customer, snapshot, stage, plan, value = row
        action = self.policy.action(segment, tier)
        reasons, churn_reason, next_order = why
        return {
            "status": "scored",
            "customer_id": customer,
            "snapshot": snapshot.replace(tzinfo=self.zone),
            "churn_probability": p,
            "risk_band": risk_band(p).value,
            "lifecycle_stage": stage,
            "plan_stage": plan,
            "value_segment": value,
            "reasons": reasons,
            "churn_reason": churn_reason,
            "next_order_days": next_order,
            "tier": TIERS[tier],
            "strategy": action and action.strategy,
            "channel": action and action.channel,
            "expected_gain": {name: round(gain, 4) for name, gain in zip(TIERS, gains, strict=True)},
            "effects_source": self.policy.effects_source,
            "decision_id": uuid.uuid4().hex,
        }

    def score(self, customers: list[CustomerRequest], snapshot: datetime | None) -> list[dict[str, Any]]:
        """Decisions in the order of the request; customers by id and by history may be mixed.

        Each answer names the customer as the request did; ``pseudonym`` is the name under which anything is stored.
        """
        names = [self._pseudonym(customer.customer_id) for customer in customers]
        known = [
            name for name, one in zip(names, customers, strict=True) if one.orders is None and self.lookup and name in self.lookup.index
        ]
        histories = {name: one for name, one in zip(names, customers, strict=True) if one.orders is not None}
        answers: dict[str, dict[str, Any]] = {}
        if known and self.lookup:
            rows = self.lookup.rows.take(pa.array([self.lookup.index[name] for name in dict.fromkeys(known)]))
            answers |= {answer["customer_id"]: answer for answer in self.decide(rows)}
        if histories:
            answers |= self._from_histories(histories, snapshot)
        found = [answers.get(name) or self._not_scored(one) for name, one in zip(names, customers, strict=True)]
        return [{**one, "pseudonym": name, "customer_id": c.customer_id} for one, name, c in zip(found, names, customers, strict=True)]

    def _pseudonym(self, customer_id: str) -> str:
        """The pseudonym of an id; a pseudonym of the table stands for itself."""
        return customer_id if self.lookup and customer_id in self.lookup.index else self.pseudonyms(customer_id)

    def _not_scored(self, customer: CustomerRequest) -> dict[str, Any]:
        if customer.orders is None:
            detail = "not in the latest feature table; send the raw history (`orders`)"
            return {"status": "unknown", "customer_id": customer.customer_id, "detail": detail}
        detail = f"no counting order known at the snapshot within the look-back of {self.manifest.lookback_days:g} days"
        return {"status": "not_eligible", "customer_id": customer.customer_id, "detail": detail}

    def _from_histories(self, customers: dict[str, CustomerRequest], snapshot: datetime | None) -> dict[str, dict[str, Any]]:
        moment = _local(snapshot or datetime.now(UTC), self.zone)
        rows = self.features(canonical(customers, self.manifest, self.zone), moment)
        return {answer["customer_id"]: answer for answer in self.decide(rows)} if rows.num_rows else {}

    def features(self, sources: dict[str, pa.Table], moment: datetime) -> pa.Table:
        """Feature rows of canonical tables at one moment: the batch's own SQL and fold."""
        return table.online(self._connection(), self.statements, sources, moment, self.manifest)

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """One in-memory database a thread: requests never see each other's rows."""
        if not hasattr(self._local, "connection"):
            self._local.connection = reduce.request_engine()
        connection: duckdb.DuckDBPyConnection = self._local.connection
        return connection


def canonical(customers: Mapping[str, CustomerRequest], manifest: Manifest, zone: ZoneInfo) -> dict[str, pa.Table]:
    """Canonical tables of raw histories by pseudonym: what `sources.load` would have made of them."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in manifest.tables if name != "identities"}
    for name, customer in customers.items():
        for source in rows.keys() - {"order_lines", "customers"}:
            for given in getattr(customer, source) or []:
                row = {**_plain(given, zone), "customer_id": name}
                if "order_id" in row:
                    row["order_id"] = f"{name}\x1f{row['order_id']}"  # ids of two customers may collide
                rows[source].append(row)
                if source == "orders" and "order_lines" in rows:
                    rows["order_lines"] += [{**_plain(line, zone), "order_id": row["order_id"]} for line in given.lines]
        if "customers" in rows and customer.attributes:
            rows["customers"].append({**_plain(customer.attributes, zone), "customer_id": name})
    return {name: _table(SOURCES[name], found) for name, found in rows.items()}


def _plain(value: Any, zone: ZoneInfo) -> dict[str, Any]:
    fields = {name: getattr(value, name) for name in type(value).model_fields if name != "lines"}
    return {name: _local(field, zone) if isinstance(field, datetime) else field for name, field in fields.items()}


def _table(source: Source, rows: list[dict[str, Any]]) -> pa.Table:
    names = {column.name for column in source.columns}
    columns = {}
    for column in source.columns:
        values = [row.get(column.name) for row in rows]
        if column.default in names:  # an arrival not given: known at once
            values = [row.get(column.default) if value is None else value for row, value in zip(rows, values, strict=True)]
        elif column.default != "NULL":
            values = [_DEFAULTS[column.default] if value is None else value for value in values]
        columns[column.name] = _array(column.type, values)
    return pa.table(columns)


_DEFAULTS: dict[str, Any] = {"0": 0, "false": False}


def _array(kind: str, values: list[Any]) -> pa.Array:
    if kind == EXACT:
        exact = [None if value is None else Decimal(round(value * 10_000)).scaleb(-4) for value in values]
        return pa.array(exact, pa.decimal128(18, 4))
    return pa.array(values, {TEXT: pa.string(), FLAG: pa.bool_(), TIME: pa.timestamp("us")}[kind])


def _local(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment if moment.tzinfo is None else moment.astimezone(zone).replace(tzinfo=None)
