"""What the API does, without HTTP: finds customers by id, history or feature row, scores them, decides, and keeps what it is told."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from features.domain import TOUCHPOINTS
from features.errors import InputError
from serving import histories, metrics, occasions, schemas
from serving.answers import Refusal
from serving.champions import Champions
from serving.decide import NEEDS
from serving.decisions import Decider, Gone, consent
from serving.online import DAY_SECONDS, OnlineStore
from serving.policy import Occasion
from serving.score import RFMB, Engine, One, Scored, Why
from serving.work import Together

FEW = 8
"""So many customers are answered in the event loop; more go to a thread, so that others are not kept waiting."""
MOST_TOGETHER = 64
DUE_AT_ONCE, LEASE_SECONDS = 100, 30.0
ENDS_LADDER = ("responded", "converted", "recovered")
Result = TypeVar("Result")
log = logging.getLogger("holdfast.desk")
Asked = schemas.ScoreRequest | schemas.DecisionRequest
Found = list[tuple[str, str, One | None, bool, bool]]
"""Name in the request, pseudonym, the scored customer, whether features were computed anew, whether anything is known of the customer."""


class Desk:
    """One service's engines, store and decisions."""

    def __init__(self, champions: Champions, store: OnlineStore) -> None:
        self.champions, self.store, self.decider = champions, store, Decider(store)
        self._writer = ThreadPoolExecutor(1, "writer")
        self._histories: Together[Any, dict[str, One]] = Together(self._score_histories, MOST_TOGETHER)
        self._live: Together[Any, dict[str, One]] = Together(self._score_live, MOST_TOGETHER)

    def engine(self, version: str | None) -> Engine:
        """The champion, or the version asked for."""
        engine = self.champions.engine(version)
        if engine is None:
            there = ", ".join(self.champions.versions)
            raise Refusal(409, "Version not loaded", f"loaded versions: {there}; leave model_version out for the champion")
        return engine

    async def score(self, asked: schemas.ScoreRequest) -> dict[str, Any]:
        """The answer to ``POST /v1/score``."""
        engine = self.engine(asked.model_version)
        found = await self._find(engine, asked)
        results = await self._do(len(found), lambda: self._scores(engine, found, asked.reasons))
        return self._answer(engine, results)

    def _scores(self, engine: Engine, found: Found, reasons: bool) -> list[dict[str, Any]]:
        ones = [one for _, _, one, _, _ in found if one]
        engine.foresee_all(ones)
        why: Sequence[Why | None] = engine.explain_all(ones) if reasons else [None] * len(ones)
        told = iter(zip(why, engine.recommendation(ones, why), strict=True))
        return [self._one(engine, *row, *next(told)) if row[2] else engine.not_scored(row[0], row[1], row[4]) for row in found]

    @staticmethod
    def _one(engine: Engine, name: str, pseudonym: str, one: One | None, live: bool, known: bool, why: Any, more: Any) -> dict[str, Any]:
        assert one is not None
        metrics.probability.observe(one[0].p[one[1]])
        return {**engine.answer(one, name, pseudonym, why), **more}

    async def decide(self, asked: schemas.DecisionRequest) -> dict[str, Any]:
        """The answer to ``POST /v1/decisions``."""
        engine = self.engine(asked.model_version)
        if any(need not in engine.names for need in NEEDS):
            raise Refusal(409, "No decisions", "the model's feature table tells neither value nor silence; ask /v1/score")
        occasion = asked.occasion.value if asked.occasion else None
        while True:
            found = await self._find(engine, asked)
            if len(set(self.store.persons([pseudonym for _, pseudonym, *_ in found]))) < len(found):
                raise Refusal(422, "Invalid request", "two of the customers are one person", [{"field": "customers", "rule": "unique"}])
            with contextlib.suppress(Gone):  # erased meanwhile: now nobody knows the customer
                return self._answer(engine, await self.write(partial(self.decisions, engine, found, occasion, asked.reasons)))

    async def write(self, function: Callable[[], Result]) -> Result:
        """Do something that writes, in the one thread that does: waiting for another worker's transaction must not stop the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, function)

    def decisions(self, engine: Engine, found: Found, occasion: str | None, reasons: bool) -> list[dict[str, Any]]:
        """Decide about customers, log it, and tell."""
        there = [row for row in found if row[2]]
        ones = [row[2] for row in there if row[2]]
        told = iter(self.decider.decide(engine, ones, [row[1] for row in there], occasion, [row[3] for row in there]))
        engine.foresee_all(ones)
        why = iter(engine.explain_all(ones) if reasons else [_reason_only(scored.why.get(place)) for scored, place in ones])
        return [
            self._decided(self._one(engine, *row, next(why), next(told))) if row[2] else engine.not_scored(row[0], row[1], row[4])
            for row in found
        ]

    @staticmethod
    def _decided(answer: dict[str, Any]) -> dict[str, Any]:
        metrics.decisions.labels(answer["tier"], answer["binding"] or "").inc()
        return answer

    def _answer(self, engine: Engine, results: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "model_version": engine.version,
            "policy_version": engine.policy.version,
            "currency": engine.manifest.currency,
            "results": results,
        }

    async def _do(self, customers: int, function: Callable[[], Result]) -> Result:
        return function() if customers <= FEW else await asyncio.to_thread(function)

    async def _find(self, engine: Engine, asked: Asked, pseudonyms: Sequence[str] | None = None) -> Found:
        """Every customer of a request, scored as far as anything is known."""
        customers = asked.customers
        own = pseudonyms or [engine.pseudonym(customer.customer_id) for customer in customers]
        persons, erased = self.store.who(own)
        brought = [c.orders is not None or getattr(c, "features", None) is not None for c in customers]
        if len({id for id, brings in zip(own, brought, strict=True) if brings}) < sum(brought):
            raise Refusal(422, "Invalid request", "two of the customers are one person", [{"field": "customers", "rule": "unique"}])
        names = [id if brings else person for id, person, brings in zip(own, persons, brought, strict=True)]
        gone = {name for name, id in zip(names, own, strict=True) if id in erased}
        rows = {n: c for n, c in zip(names, customers, strict=True) if getattr(c, "features", None) is not None}
        told = {n: c for n, c in zip(names, customers, strict=True) if c.orders is not None and n not in gone}
        by_id = [n for n, brings in zip(names, brought, strict=True) if not brings and n not in gone]
        fresh = self.store.fresh(by_id)
        snapshot = histories.local(asked.snapshot, engine.zone) if asked.snapshot else None
        scored: dict[str, One] = {}
        if rows:
            moment = snapshot or datetime.now(engine.zone).replace(tzinfo=None)
            found = await self._rows(engine, list(rows.values()), moment)
            scored |= {name: (found, place) for place, name in enumerate(rows)}
        if told:
            scored |= await self._histories((engine, snapshot), told)
        if fresh:
            scored |= await self._live((engine, snapshot), sorted(fresh))
        for name in by_id:
            if name not in fresh and (one := self._of_table(engine, name)):
                scored[name] = one
        live = {*told, *fresh, *rows}
        return [
            (customer.customer_id, name, scored.get(name), name in live, name in live)
            for customer, name in zip(customers, names, strict=True)
        ]

    def _of_table(self, engine: Engine, person: str) -> One | None:
        """A person in the latest feature table, which may be older than the link of the ids."""
        found = engine.found(person)
        return found or next((one for id in self.store.ids_of(person) if (one := engine.found(id))), None)

    async def _rows(self, engine: Engine, rows: Sequence[Any], moment: datetime) -> Scored:
        try:
            return await self._do(len(rows), lambda: engine.of_rows(rows, moment))
        except InputError as error:
            raise Refusal(
                422, "Invalid request", f"{error.problem}; {error.fix}", [{"field": _field(error.where), "rule": error.problem}]
            ) from None

    def _score_histories(self, kind: Any, items: Sequence[Mapping[str, Any]]) -> list[dict[str, One] | Exception]:
        """Raw histories of several requests, folded together; nobody sees another's rows."""
        engine, snapshot = kind
        everybody = {f"{number}\x1f{name}": one for number, item in enumerate(items) for name, one in item.items()}
        scored = engine.of_histories(everybody, snapshot or _now(engine.zone))
        place = {name: row for row, name in enumerate(scored.customer_id)}
        return [
            {name: (scored, place[key]) for name in item if (key := f"{number}\x1f{name}") in place} for number, item in enumerate(items)
        ]

    def _score_live(self, kind: Any, items: Sequence[Sequence[str]]) -> list[dict[str, One] | Exception]:
        """Customers of the store with events since the last load, their features computed anew."""
        engine, snapshot = kind
        names = list(dict.fromkeys(name for item in items for name in item))
        stored = [histories.of_person(self.store, name, engine.manifest.tables) for name in names]
        scored = engine.of_stored(stored, snapshot or _now(engine.zone))
        place = {name: row for row, name in enumerate(scored.customer_id)}
        return [{name: (scored, place[name]) for name in item if name in place} for item in items]

    def add_events(self, events: Sequence[Any]) -> dict[str, int]:
        """Keep new events; plan and call off the occasions that they are about."""
        engine, now, counts = self.champions.current, self.decider.clock(), {"accepted": 0, "known": 0, "erased": 0}
        names = {event.customer_id: engine.pseudonym(event.customer_id) for event in events}
        with self.store.transaction():
            gone = self.store.erased(list(set(names.values())))
            for event in events:
                name = names[event.customer_id]
                if name in gone:
                    counts["erased"] += 1
                    continue
                row = histories.plain(event.table, event.row, engine.zone)
                first = event.table == "orders" and self._first_order(name, row)
                new = self.store.add_events(name, [(event.event_id, event.table, row)], now)
                counts["accepted" if new else "known"] += 1
                if new:
                    self._mind(engine, name, event.table, row, first, now)
        return counts

    def _first_order(self, name: str, row: Mapping[str, Any]) -> bool:
        """Whether neither the batch nor an event before knows another order of the customer."""
        ids, engine = self.store.ids_of(name), self.champions.current
        orders = (
            told for id in ids for source, told in self.store.events(id) if source == "orders" and told["order_id"] != row["order_id"]
        )
        known = any(engine.found(id) is not None or "orders" in self.store.history(id) for id in ids)
        return not known and next(orders, None) is None

    def _mind(self, engine: Engine, name: str, table: str, row: dict[str, Any], first: bool, now: float) -> None:
        at = next((row[key] for key in ("ordered_at", "happened_at", "opened_at") if key in row), None)
        moment = datetime.fromisoformat(at).replace(tzinfo=engine.zone).timestamp() if at else now
        if table == "orders" and not row.get("cancelled_at"):
            self.store.answer(name, moment)
        (name,) = self.store.persons([name])
        for occasion, after in occasions.of_event(table, row, first).items():
            if after is None:
                self.store.cancel_occasion(name, occasion.value)
            else:
                self.store.plan_occasion(name, occasion.value, moment + after.total_seconds())

    async def decide_due(self) -> int:
        """Decide about customers whose occasion is due; returns how many. One that fails is due again later, the others go on."""
        due = await self.write(lambda: self.store.take_due(self.decider.clock(), DUE_AT_ONCE, LEASE_SECONDS))
        for name, occasion in due:
            try:
                await self._decide_one(name, occasion)
            except Exception as error:
                log.error("a decision about an occasion failed: %s", type(error).__name__)
        return len(due)

    async def _decide_one(self, name: str, occasion: str) -> None:
        asked = schemas.DecisionRequest(customers=[schemas.DecisionCustomer(customer_id=name)], occasion=Occasion(occasion))
        engine = self.champions.current
        found = await self._find(engine, asked, [name])
        await self.write(partial(self._decided_due, engine, found, name, occasion))
        metrics.occasions.labels(occasion).inc()

    def _decided_due(self, engine: Engine, found: Found, name: str, occasion: str) -> None:
        self.decisions(engine, found, occasion, False)
        self.store.cancel_occasion(name, occasion)

    def add_outcomes(self, outcomes: Sequence[schemas.Outcome]) -> dict[str, int]:
        """Keep what happened to decisions."""
        engine, counts = self.champions.current, {"accepted": 0, "known": 0, "unknown": 0}
        with self.store.transaction():
            for outcome in outcomes:
                found = self.store.decision(outcome.decision_id)
                if found is None:
                    counts["unknown"] += 1
                    continue
                at = histories.local(outcome.at, engine.zone).replace(tzinfo=engine.zone).timestamp()
                new = self.store.add_outcome(outcome.decision_id, outcome.kind, at, outcome.value)
                counts["accepted" if new else "known"] += 1
                if outcome.kind in ENDS_LADDER:
                    self.store.answer(found[0], at)
                if outcome.kind == "unsubscribed":
                    channel = found[1]["channel"] or ""
                    self.store.set_consents([(found[0], engine.policy.consent.purpose, channel, False, self.decider.clock())])
        return counts

    def set_consents(self, customer_id: str, asked: schemas.ConsentRequest) -> dict[str, Any]:
        """Change consents from now on, in force for the very next decision."""
        if asked.timezone is not None:
            try:
                ZoneInfo(asked.timezone)
            except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder of zones
                raise Refusal(422, "Invalid request", "no such time zone", [{"field": "timezone", "rule": "an IANA name"}]) from None
        now = self.decider.clock()
        with self.store.transaction():
            name = self._name(customer_id)
            self.store.set_consents((name, one.purpose, one.channel or "", one.granted, now) for one in asked.consents)
            if asked.timezone is not None:
                self.store.set_timezone(name, asked.timezone)
            (standing,) = self.store.standing([name], self.champions.current.policy.consent.purpose, now)
        return {"pseudonym": name, "consents": standing.consents, "timezone": standing.timezone}

    async def profile(self, customer_id: str) -> dict[str, Any]:
        """The answer to ``GET /v1/customers/{id}``."""
        engine, name = self.champions.current, self._name(customer_id)
        asked = schemas.DecisionRequest(customers=[schemas.DecisionCustomer(customer_id=customer_id)])
        found = await self._find(engine, asked)
        (standing,) = self.store.standing([name], engine.policy.consent.purpose, self.decider.clock() - DAY_SECONDS)
        ((_, person, one, _, _),) = found
        if one is None and not standing.consents and not self.store.decisions_of(name, 1):
            raise Refusal(404, "Unknown customer", "neither the feature table nor the online store knows the customer")
        score = self._scores(engine, found, True)[0]
        return {
            "customer_id": customer_id,
            "pseudonym": person,
            "score": score,
            "rfmb": _rfmb(one) if one else {},
            "touchpoints": [t.name for t, holds in zip(TOUCHPOINTS, one[0].touchpoints_NP[one[1]], strict=True) if holds] if one else [],
            "consents": standing.consents,
            "consent": consent(engine.policy, standing, self.decider.tracked),
            "timezone": standing.timezone,
            "events_since_load": sum(len(self.store.events(id)) for id in self.store.ids_of(name)),
            "decisions": [logged(body, person) for body in self.store.decisions_of(name, 10)],
        }

    def erase(self, customer_id: str, ask: Callable[[Sequence[str]], Path]) -> list[str]:
        """Remove a person from the online store; returns the pseudonyms of all ids, the person's own first.

        ``ask`` leaves word, before anything is removed, that the files of the batch are to follow.
        """
        names = self.store.ids_of(self._name(customer_id))
        word = ask(names)
        try:
            erased = self.store.erase(names[0])
        except BaseException:  # not erased, and the caller is told so
            word.unlink(missing_ok=True)
            raise
        if more := [name for name in erased if name not in names]:  # joined meanwhile
            ask(more)
        return erased

    def _name(self, customer_id: str) -> str:
        if not 1 <= len(customer_id) <= 128:
            raise Refusal(
                422, "Invalid request", "an id has 1 to 128 characters", [{"field": "customer_id", "rule": "1 to 128 characters"}]
            )
        name = self.champions.current.pseudonym(customer_id)
        if self.store.erased([name]):
            raise Refusal(404, "Unknown customer", "neither the feature table nor the online store knows the customer")
        return name

    def logged(self, id: str) -> dict[str, Any] | None:
        """A decision of the log with its outcomes."""
        found = self.store.decision(id)
        return found and {**logged(found[1], found[0]), "outcomes": _times(self.store.outcomes_of(id))}

    def feed(self, after: int, limit: int) -> dict[str, Any]:
        """Decisions after a position of the log."""
        found = self.store.feed(after, limit)
        return {
            "decisions": [{**logged(body, name), "number": number} for number, name, body in found],
            "next": found[-1][0] if found else after,
        }


def logged(body: Mapping[str, Any], pseudonym: str) -> dict[str, Any]:
    """A logged decision as `schemas.LoggedDecision` tells it."""
    names = schemas.LoggedDecision.model_fields.keys() - {"number", "pseudonym", "outcomes"}
    return {"number": None, "pseudonym": pseudonym, **{name: body[name] for name in sorted(names)}, "outcomes": []}


def _times(outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**one, "at": datetime.fromtimestamp(one["at"], UTC).isoformat()} for one in outcomes]


def _reason_only(why: Why | None) -> Any:
    return why and (None, why[1])


def _rfmb(one: One) -> dict[str, float | None]:
    scored, place = one
    found = {name: float(scored.rows.x_NF[place, scored.rows.names.index(name)]) for name in RFMB if name in scored.rows.names}
    return {name: None if value != value else value for name, value in found.items()}


def _field(where: str) -> str:
    return where if where.split(".")[0] in ("sequences",) else "features"


def _now(zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(time.time(), zone).replace(tzinfo=None)
