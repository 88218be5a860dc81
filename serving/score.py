"""Champion + features -> scored customers; the batch and the service share it. What is done about them is in `decide.py`."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from typing import Any, Self
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import orjson
import pyarrow as pa

from features import reduce, sequences, table
from features.domain import TOUCHPOINTS, risk_band
from features.errors import InputError
from features.files import read_json
from features.lifecycle import STAGE_COLUMNS
from features.pseudonym import Pseudonyms
from features.table import Manifest
from serving import decide, histories
from serving.decide import REASONS, Bools, Floats
from serving.explain import Explainer
from serving.policy import TIERS, Policy
from serving.schemas import CustomerRequest, Sequences
from training.models.base import Rows
from training.models.scorer import Scorer

IDENTITY = "identity.json"
"""File beside the scorer's: registered name, version, run and digest of the champion."""
_LISTS = dict(zip((*table.WEEKLY, *table.EVENTS), (pa.int32(), pa.float32(), pa.int8(), pa.float32()), strict=True))
NEXT_ORDER = ("low", "median", "high")
"""The quantiles .1, .5 and .9 of the days to the next order."""
_MODELLED = ("p", "value", "segment", "silence_days")
RFMB = ("recency_days", "frequency_orders", "monetary_net", "r_score", "f_score", "m_score", "b_score", "rfmb_score")
EXPLAINED_AT_ONCE = 20_000
Why = tuple[list[dict[str, Any]], str]
"""Reasons, and the churn reason."""


@dataclass
class Scored:
    """n customers with their probability; what decisions need beside it is there unless the table lacks it (``segment`` is None then).

    ``days`` and ``why`` keep what somebody asked for, by position.
    """

    customer_id: list[str]
    snapshot: list[datetime]
    rows: Rows
    p: list[float]
    stages: dict[str, list[Any]]
    value: list[float]
    segment: list[int] | None
    touchpoints_NP: Bools
    silence_days: list[float]
    raw: Any = None
    """Uncalibrated probabilities (n,) where they were computed here."""
    days: dict[int, list[float]] = field(default_factory=dict)
    why: dict[int, Why] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.p)

    def fingerprint(self, place: int) -> str:
        """Digest of the numeric features of one customer."""
        return blake2b(self.rows.x_NF[place].tobytes(), digest_size=8).hexdigest()


One = tuple[Scored, int]
"""A scored customer: where it is, and its position there."""


@dataclass(frozen=True)
class Lookup:
    """The latest feature table, scored, for customers asked for by id."""

    scored: Scored
    index: dict[str, int]
    file: Path

    @classmethod
    def rows(cls, path: Path, manifest: Manifest) -> pa.Table | None:
        """The newest snapshot of a table with the model's own fitted edges.

        None when there is no table, or it is of another data set or definition than the model's.
        """
        if not path.exists():
            return None
        found = table.read_manifest(path)
        alike = ("dataset", "timezone", "horizon_days", "sources", "key_check", "columns")
        same = all(getattr(found, name) == getattr(manifest, name) for name in alike)
        latest = found.latest or (found.test if found.columns else None)
        if not same or latest is None:
            return None
        rows = table.read(path, [latest])
        return manifest.fitted.reapply(rows) if manifest.fitted is not None else rows


class Engine:
    """Scores feature rows and raw histories with one model and one policy."""

    def __init__(
        self, scorer: Scorer, policy: Policy, identity: dict[str, str], features: Path | None = None, warm: Path | None = None
    ) -> None:
        self.scorer, self.policy, self.identity = scorer, policy, identity
        self.manifest = scorer.manifest
        self.explainer = Explainer(self.manifest)
        self.pseudonyms = Pseudonyms.of(self.manifest.personal)
        if self.manifest.key_check and self.pseudonyms.check != self.manifest.key_check:
            raise InputError("HOLDFAST_ID_KEY", "is not the key that the model's data were pseudonymised with", "set the same key")
        self.statements = reduce.compiled(self.manifest.tables)
        self.zone = ZoneInfo(self.manifest.timezone)
        self.names = {name: place for place, name in enumerate(self.manifest.names)}
        self._name_list = tuple(self.manifest.names)
        self._pick = itemgetter(*self._name_list) if len(self._name_list) > 1 else lambda given: [given[self._name_list[0]]]
        flags = [self.names.get(f"tp_{touchpoint.name}", -1) for touchpoint in TOUCHPOINTS]
        self._flags, self._flagged = np.array(flags), np.array(flags) >= 0
        self._needs = np.array([self.names.get(name, 0) for name in decide.NEEDS])
        self._local = threading.local()
        self.lookup: Lookup | None = None
        self.ids = self.manifest
        """Says how ids of customers are read: the table's word where there is a table, else the model's."""
        rows = Lookup.rows(features, self.manifest) if features else None
        if rows is not None and features is not None:
            ids = rows["customer_id"].to_pylist()
            known = _warm(warm, features, identity["digest"]) if warm else None
            self.lookup = Lookup(self.of_table(rows, known), {customer: row for row, customer in enumerate(ids)}, features)
            self.ids = table.read_manifest(features)

    @classmethod
    def load(cls, folder: Path, policy: Policy, features: Path | None = None, warm: Path | None = None) -> Self:
        """Load a packaged champion, every digest verified, and score the latest snapshot of a feature table.

        Scores that `check.py` has left in ``warm`` for the very same model and table are taken over.
        """
        return cls(Scorer.load(folder), policy, read_json(folder.parent / IDENTITY), features, warm)

    def adopt(self, warm: Path) -> None:
        """Take over reasons that `check.py` has found meanwhile."""
        if self.lookup is not None and (found := _warm(warm, self.lookup.file, self.identity["digest"])):
            _recall(self.lookup.scored, found)

    @property
    def version(self) -> str:
        """Of the registered model."""
        return self.identity["model_version"]

    def of_table(self, rows: pa.Table, known: dict[str, Any] | None = None) -> Scored:
        """Score the rows of a feature table, in order; ``known`` holds what `check.py` found for the same rows."""
        arrays = Rows.of(rows, self._name_list, self.manifest.channels)
        stages = {name: rows[name].to_pylist() if name in rows.column_names else [None] * len(arrays) for name in STAGE_COLUMNS}
        return self._scored(rows["customer_id"].to_pylist(), rows["snapshot"].to_pylist(), arrays, stages, known)

    def of_rows(self, customers: Sequence[CustomerRequest], snapshot: datetime) -> Scored:
        """Score ready feature rows of a request. Raises InputError naming a feature that is missing or not the model's."""
        x_NF = np.array([self._numbers(customer.features or {}) for customer in customers], dtype=np.float64)
        for customer in customers:
            self._check_sequences(customer.sequences)
        told = [customer.stages for customer in customers]
        stages = {name: [getattr(one, name).value if one else None for one in told] for name in STAGE_COLUMNS}
        arrays = self._arrays(x_NF, [customer.sequences for customer in customers], snapshot)
        return self._scored([c.customer_id for c in customers], [snapshot] * len(customers), arrays, stages)

    def _numbers(self, given: Mapping[str, float | None]) -> Sequence[float | None]:
        """Features in the order of the model."""
        try:
            values = self._pick(given)
        except KeyError as error:
            raise InputError(f"features.{error.args[0]}", "is missing", "send every feature of the model (`GET /v1/model`)") from None
        if len(given) != len(values):
            raise InputError("features", "holds a name that is no feature of the model", "`GET /v1/model` names them")
        return values

    def _check_sequences(self, one: Sequences | None) -> None:
        if one is None:
            if self.scorer.model.reads_sequences:
                raise InputError("sequences", "are missing, and the model reads them", "send the four sequence columns of the row")
            return
        cells = len(self.manifest.channels) * sequences.WEEKS
        if len(one.week_cells) != len(one.week_values) or len(one.event_types) != len(one.event_gap_days):
            raise InputError("sequences", "have lists of different lengths", "cells and values, types and gaps go together")
        if one.week_cells and not 0 <= min(one.week_cells) <= max(one.week_cells) < cells:
            raise InputError("sequences.week_cells", f"must lie between 0 and {cells - 1}", "week x channels + channel")
        if one.event_types and not 0 < min(one.event_types) <= max(one.event_types) <= len(sequences.EVENT_KINDS):
            raise InputError("sequences.event_types", f"must lie between 1 and {len(sequences.EVENT_KINDS)}", "see features/sequences.py")

    def _arrays(self, x_NF: Any, given: Sequence[Sequences | None], snapshot: datetime) -> Rows:
        if len(given) == 1:
            lists = {name: getattr(given[0], name, ()) for name in _LISTS}
            return Rows.single(self._name_list, x_NF[0], lists, self.manifest.channels, snapshot)
        columns = {name: pa.array([getattr(one, name, []) for one in given], pa.list_(kind)) for name, kind in _LISTS.items()}
        unknown = np.full(len(given), np.nan)
        moments = np.array([snapshot] * len(given), dtype="M8[us]")
        channels = self.manifest.channels
        return Rows(self._name_list, x_NF, pa.table(columns if channels else {}), channels, unknown, moments, unknown)

    def _scored(self, ids: list[str], moments: list[datetime], rows: Rows, stages: Any, known: Any = None) -> Scored:
        raw = self.scorer.model.predict(rows) if known is None else None
        p = self.scorer.calibrated(raw, rows).tolist() if raw is not None else known["p"]
        value, silence, segment = np.zeros(len(rows)), np.zeros(len(rows)), None
        if not self.manifest.columns and None not in stages[STAGE_COLUMNS[0]]:
            needed_NF = rows.x_NF[:, self._needs]
            tenure, orders, worth, silence = np.where(np.isnan(needed_NF), 0.0, needed_NF).T
            value, segment = decide.values(self.policy, tenure, orders, worth), self._segments(rows, stages)
        touched_NP = (rows.x_NF[:, self._flags] > 0) & self._flagged
        found = Scored(ids, moments, rows, p, stages, value.tolist(), segment, touched_NP, silence.tolist(), raw)
        if known:
            _recall(found, known)
        return found

    def _segments(self, rows: Rows, stages: Mapping[str, Sequence[str]]) -> list[int]:
        place = self.names.get("price_sensitive")
        keen = (rows.x_NF[:, place] > 0).tolist() if place is not None else [False] * len(rows)
        columns = (stages[name] for name in ("value_segment", "lifecycle_stage", "plan_stage"))
        return [decide.segment(*row) for row in zip(*columns, keen, strict=True)]

    def foresee(self, scored: Scored, places: Sequence[int]) -> None:
        """Compute the days to the next order of some customers, where the model tells them."""
        missing = [place for place in places if place not in scored.days]
        if not missing:
            return
        if self.scorer.timing is None:
            scored.days.update(dict.fromkeys(missing, [np.inf] * len(NEXT_ORDER)))
            return
        some = _part(scored.rows, missing)
        scored.days.update(
            zip(missing, self.scorer.timing.quantiles(some, np.array([scored.p[place] for place in missing])).tolist(), strict=True)
        )

    def explain(self, scored: Scored, places: Sequence[int]) -> list[Why]:
        """Reasons and churn reason of some customers; computed once for each."""
        missing = [place for place in dict.fromkeys(places) if place not in scored.why]
        if missing:
            contributions, x_NF = self._contributions(scored, missing)
            told = self.explainer.reasons(contributions, x_NF), self.explainer.churn_reasons(contributions, x_NF)
            scored.why.update(zip(missing, zip(*told, strict=True), strict=True))
        return [scored.why[place] for place in places]

    def churn_reasons(self, scored: Scored, places: Sequence[int], progress: Callable[[int], None]) -> list[str]:
        """The churn reason alone, of many customers in parts; ``progress`` is told how many there are so far."""
        found = {place: scored.why[place][1] for place in places if place in scored.why}
        missing = [place for place in places if place not in found]
        for start in range(0, len(missing), EXPLAINED_AT_ONCE):
            some = missing[start : start + EXPLAINED_AT_ONCE]
            found.update(zip(some, self.explainer.churn_reasons(*self._contributions(scored, some)), strict=True))
            progress(len(found))
        return [found[place] for place in places]

    def _contributions(self, scored: Scored, places: Sequence[int]) -> tuple[Floats, Floats]:
        """What each feature adds for some customers, and the features, (n, f) both."""
        some = _part(scored.rows, places)
        raw = self.scorer.model.predict(some) if scored.raw is None else scored.raw[places]
        return self.scorer.explain(some, raw), some.x_NF

    def explain_all(self, ones: Sequence[One]) -> list[Why]:
        """The same for customers from several places."""
        for scored, places in _by_place(ones):
            self.explain(scored, places)
        return [scored.why[place] for scored, place in ones]

    def foresee_all(self, ones: Sequence[One]) -> None:
        """`foresee` for customers from several places."""
        for scored, places in _by_place(ones):
            self.foresee(scored, places)

    def situations(self, ones: Sequence[One], standings: Mapping[str, Any]) -> decide.Situation:
        """What a policy looks at; ``standings`` are the fields that the online store knows."""
        return decide.Situation(**self._modelled(ones), **standings)

    @staticmethod
    def _modelled(ones: Sequence[One]) -> dict[str, Any]:
        """What the model and the table tell of customers, as fields of a `decide.Situation`."""
        found = {name: np.array([getattr(scored, name)[place] for scored, place in ones]) for name in _MODELLED}
        return found | {"touchpoints_NP": np.array([scored.touchpoints_NP[place] for scored, place in ones])}

    def answer(self, one: One, name: str, pseudonym: str, why: Why | None) -> dict[str, Any]:
        """The fields of `schemas.Scored`, but for what is done about the customer; `foresee` comes first."""
        scored, place = one
        p, horizon = scored.p[place], self.manifest.horizon_days
        return {
            "status": "scored",
            "customer_id": name,
            "pseudonym": pseudonym,
            "snapshot": scored.snapshot[place].replace(tzinfo=self.zone),
            "churn_probability": p,
            "risk_band": risk_band(p).value,
            **{stage: values[place] for stage, values in scored.stages.items()},
            "next_order_days": {
                name: None if value >= horizon else round(value, 1) for name, value in zip(NEXT_ORDER, scored.days[place], strict=True)
            },
            "reasons": why and why[0],
            "churn_reason": why and why[1],
            "effects_source": self.policy.effects_source,
        }

    def recommendation(self, ones: Sequence[One], why: Sequence[Why | None]) -> list[dict[str, Any]]:
        """Tier of the highest expected gain before any constraint but the least risk, with its action; Nones where there is no segment."""
        if not ones:
            return []
        if any(scored.segment is None for scored, _ in ones):
            return [dict.fromkeys(("tier", "strategy", "channel", "expected_gain"))] * len(ones)
        reason = np.array([-1 if one is None else REASONS.index(one[1]) for one in why])  # type: ignore[arg-type]
        found = decide.recommended(self.policy, **self._modelled(ones), reason=reason)
        rows = zip(found.tiers.tolist(), found.rule.tolist(), found.channel.tolist(), strict=True)
        told = zip(rows, found.gains_NT.tolist(), strict=True)
        return [{**decide.action(self.policy, *row), "expected_gain": gains(amounts)} for row, amounts in told]

    def found(self, pseudonym: str) -> One | None:
        """A customer of the latest feature table."""
        place = self.lookup.index.get(pseudonym) if self.lookup else None
        return None if place is None or self.lookup is None else (self.lookup.scored, place)

    def not_scored(self, name: str, pseudonym: str, known: bool) -> dict[str, Any]:
        """Why there is no score."""
        detail = f"no counting order known at the snapshot within the look-back of {self.manifest.lookback_days:g} days"
        if not known:
            detail = "not in the latest feature table; send the raw history (`orders`)"
        return {"status": "not_eligible" if known else "unknown", "customer_id": name, "pseudonym": pseudonym, "detail": detail}

    def of_histories(self, customers: Mapping[str, CustomerRequest], moment: datetime) -> Scored:
        """Score raw histories at one local moment; who is not eligible is left out."""
        return self.of_tables(histories.canonical(customers, self.manifest.tables, self.zone), moment)

    def of_stored(self, stored: Iterable[Mapping[str, pa.Table]], moment: datetime) -> Scored:
        """Score customers of the online store, each given by its canonical tables."""
        parts = list(stored)
        whole = {name: pa.concat_tables([part[name] for part in parts]) for name in parts[0]}
        return self.of_tables(whole, moment)

    def of_tables(self, sources: Mapping[str, pa.Table], moment: datetime) -> Scored:
        """Score the customers of some canonical tables at one local moment: the batch's own SQL and fold."""
        found = table.online_rows(self._connection(), self.statements, sources, moment, self.manifest)
        unknown, moments = np.full(len(found), np.nan), np.array([moment] * len(found), dtype="M8[us]")
        arrays = Rows(self._name_list, found.x_NF, found.lists, self.manifest.channels, unknown, moments, unknown)
        stages = {name: found.texts[name] for name in STAGE_COLUMNS}
        return self._scored(found.customer_id, [moment] * len(found), arrays, stages)

    def features(self, sources: dict[str, pa.Table], moment: datetime) -> pa.Table:
        """Feature rows of canonical tables at one moment: the batch's own SQL and fold."""
        return table.online(self._connection(), self.statements, sources, moment, self.manifest)

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """One in-memory database a thread: requests never see each other's rows."""
        if not hasattr(self._local, "connection"):
            self._local.connection = reduce.request_engine()
        connection: duckdb.DuckDBPyConnection = self._local.connection
        return connection


def _by_place(ones: Sequence[One]) -> list[tuple[Scored, list[int]]]:
    """Positions by where they are."""
    groups: dict[int, tuple[Scored, list[int]]] = {}
    for scored, place in ones:
        groups.setdefault(id(scored), (scored, []))[1].append(place)
    return list(groups.values())


def _part(rows: Rows, places: Sequence[int]) -> Rows:
    """Some rows, without a copy where it is all of them."""
    return rows if list(places) == list(range(len(rows))) else rows.at(np.array(places))


def _recall(scored: Scored, known: Mapping[str, Any]) -> None:
    """Take over what `check.py` has found for the same rows."""
    scored.days.update(enumerate(known["days"]))
    scored.why.update((place, (one[0], one[1])) for place, one in enumerate(known["why"]) if one)


def warm_file(home: Path, digest: str) -> Path:
    """Where scores and reasons of the latest table by a model lie (see `check.py`)."""
    return home / "serving" / "warm" / f"{digest[:16]}.json"


def _warm(file: Path, features: Path, digest: str) -> dict[str, Any] | None:
    """What `check.py` has kept, if it was of this model and this state of the table."""
    if not file.exists():
        return None
    found: dict[str, Any] = orjson.loads(file.read_bytes())
    return found if (found["table"], found["digest"]) == (stamp(features), digest) else None


def stamp(file: Path) -> list[int]:
    """Tells one state of a file from another."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def gains(amounts: Sequence[float]) -> dict[str, float]:
    """Expected gain by tier, to a hundredth of a cent."""
    return {name: round(amount, 4) for name, amount in zip(TIERS, amounts, strict=True)}
