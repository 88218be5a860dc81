"""What the API does, without HTTP: finds customers by id, history or feature row, scores them, decides, and keeps what it is told."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from features.domain import TOUCHPOINTS
from features.row_rules import Clock
from serving import histories, idempotency, inbox, metrics, occasions, row_check, schemas
from serving.answers import Refusal
from serving.champions import Champions
from serving.decide import NEEDS
from serving.decisions import Decider, Gone
from serving.finding import Finder, Found, do
from serving.idempotency import Once, Repeated
from serving.ledger import Breach
from serving.naming import Named, Who, as_pseudonym, named
from serving.online import DAY_SECONDS, OnlineStore
from serving.policy import Occasion
from serving.score import RFMB, Engine, One, Why
from serving.standings import consent
from serving.writer import Writer, limit

DUE_AT_ONCE, LEASE_SECONDS = 100, 30.0
TRIES = 10
"""So often a decision is made anew because a customer was erased meanwhile."""
CLOCK_TICK = 1e-3
"""Seconds by which a word is later than the one before it."""
ENDS_LADDER = ("responded", "converted", "recovered")
MADE = ("delivered", "opened", *ENDS_LADDER, "refused", "unsubscribed")
"""Outcomes that show that the contact was made, whatever else is told of it."""
Results = list[dict[str, Any]]
log = logging.getLogger("holdfast.desk")


class _Passed(Exception):
    """An occasion is not there any more, or decided about; nothing was written."""


class Desk:
    """One service's engines, store and decisions."""

    def __init__(self, champions: Champions, store: OnlineStore) -> None:
        self.champions, self.store, self.decider = champions, store, Decider(store)
        self.write, self.finder = Writer(lambda: self.store), Finder(lambda: self.store)

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
        found = await self.finder.find(engine, asked)
        results = await do(len(found), lambda: self._scores(engine, found, asked.reasons))
        return self._answer(engine, results)

    def _scores(self, engine: Engine, found: Sequence[Found], reasons: bool) -> list[dict[str, Any]]:
        ones = [one.scored for one in found if one.scored]
        engine.foresee_all(ones)
        why: Sequence[Why | None] = engine.explain_all(ones) if reasons else [None] * len(ones)
        told = iter(zip(why, engine.recommendation(ones, why), strict=True))
        return [self._one(engine, one, one.scored, *next(told)) if one.scored else one.unscored(engine) for one in found]

    @staticmethod
    def _one(engine: Engine, found: Found, one: One, why: Any, more: Any) -> dict[str, Any]:
        metrics.probability.observe(one[0].p[one[1]])
        return {**engine.answer(one, found.name, found.pseudonym, why), **more}

    async def decide(self, asked: schemas.DecisionRequest, once: Once | None = None) -> dict[str, Any]:
        """The answer to ``POST /v1/decisions``; where ``once`` was answered before, that answer."""
        if once and (kept := await self._replayed(once, asked)):
            return kept
        engine = self.engine(asked.model_version)
        if any(need not in engine.names for need in NEEDS):
            raise Refusal(409, "No decisions", "the model's feature table tells neither value nor silence; ask /v1/score")
        occasion = asked.occasion.value if asked.occasion else None
        for _ in range(TRIES):
            found = await self.finder.find(engine, asked)
            if len(set(self.store.persons([one.pseudonym for one in found]))) < len(found):
                raise Refusal(422, "Invalid request", "two of the customers are one person", [{"field": "customers", "rule": "unique"}])
            with contextlib.suppress(Gone):  # erased meanwhile: now nobody knows the customer
                await do(len(found), partial(self._prepare, engine, found, occasion, asked.reasons))
                keep = partial(self._keep, engine, once) if once else None
                work = partial(self.decisions, engine, found, occasion, asked.reasons, keep)
                try:
                    return self._answer(engine, _counted(await self.write(work, limit=limit(len(found)))))
                except Repeated:  # asked twice at one moment, and the other was first
                    if once and (kept := await self._replayed(once, asked)):
                        return kept
        raise Refusal(503, "Busy", "the customers change faster than they can be decided about", headers={"Retry-After": "1"})

    async def _replayed(self, once: Once, asked: schemas.DecisionRequest) -> dict[str, Any] | None:
        now = self.decider.clock()
        return await do(len(asked.customers), lambda: idempotency.replay(self.store, self.champions.current, once, asked, now))

    def _keep(self, engine: Engine, once: Once, results: Sequence[Mapping[str, Any]]) -> None:
        idempotency.keep(self.store, once, self._answer(engine, results), self.decider.clock())

    async def once(self, caller: str, key: str, asked: schemas.DecisionRequest) -> Once:
        """A request that a caller sends with a key."""
        return await do(len(asked.customers), lambda: idempotency.once(self.champions.current, caller, key, asked))

    async def forget_answers(self) -> None:
        """Drop answers that no repeated request gets any more, in small steps between which others write."""
        while await self.write(self._forget_some):
            await asyncio.sleep(0)

    def _forget_some(self) -> bool:
        until, most = self.decider.clock() - idempotency.KEPT_SECONDS, idempotency.PRUNED_AT_ONCE
        with self.store.transaction():
            return self.store.forget_answers(until, most) > 0

    def _prepare(self, engine: Engine, found: Sequence[Found], occasion: str | None, reasons: bool) -> None:
        """Before the writer's turn: reasons and days to the next order, which take long and are kept with the scores."""
        ones = [one.scored for one in found if one.scored]
        self.decider.reasons(engine, ones, occasion)
        engine.foresee_all(ones)
        if reasons:
            engine.explain_all(ones)

    def decisions(
        self, engine: Engine, found: Sequence[Found], occasion: str | None, reasons: bool, also: Callable[[Results], None] | None = None
    ) -> Results:
        """Decide about customers, log it, and tell; ``also`` is done with what is told, in the same transaction."""
        there = [one for one in found if one.scored]
        ones = [one.scored for one in there if one.scored]
        results: Results = []

        def committing(decided: Sequence[dict[str, Any]]) -> None:
            results.extend(self._results(engine, found, reasons, decided))
            if also:
                also(results)
            self.write.last_moment()

        if ones:
            names, live = [one.pseudonym for one in there], [one.live for one in there]
            with metrics.breaches.count_exceptions(Breach):
                self.decider.decide(engine, ones, names, occasion, live, committing)
        else:
            with self.store.transaction() if also else contextlib.nullcontext():
                committing([])
        return results

    def _results(self, engine: Engine, found: Sequence[Found], reasons: bool, decided: Sequence[dict[str, Any]]) -> Results:
        ones = [one.scored for one in found if one.scored]
        engine.foresee_all(ones)
        why = engine.explain_all(ones) if reasons else [_reason_only(scored.why.get(place)) for scored, place in ones]
        told = iter(zip(why, decided, strict=True))
        return [_decision(engine, one, *next(told)) if one.scored else one.unscored(engine) for one in found]

    def _answer(self, engine: Engine, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "model_version": engine.version,
            "policy_version": engine.policy.version,
            "currency": engine.manifest.currency,
            "results": results,
        }

    async def add_events(self, events: Sequence[Any]) -> dict[str, int]:
        """Keep new events, in parts between which consents come first. After an error the same may be told again: each counts once."""
        engine, store = self.champions.current, self.store
        row_check.events(events, Clock.at(self.decider.clock(), engine.zone))
        kept, counts = await do(len(events), partial(inbox.prepared, engine, store, events))
        for part in inbox.parts(kept):
            counts += await self.write(partial(inbox.keep, engine, store, part, self.decider.clock()))
        return {name: counts[name] for name in inbox.COUNTS}

    async def decide_due(self) -> int:
        """Look at customers whose time has come, and decide about those who have the occasion; returns how many that were.

        A look that fails is due again later, the others go on.
        """
        due, decided = await self.write(lambda: self.store.take_due(self.decider.clock(), DUE_AT_ONCE, LEASE_SECONDS)), 0
        for name, occasion in due:
            try:
                decided += await self._decide_one(name, Occasion(occasion))
            except Exception as error:
                log.error("a decision about an occasion failed: %s", error if isinstance(error, Breach) else type(error).__name__)
        return decided

    async def _decide_one(self, name: str, occasion: Occasion) -> bool:
        """Whether the customer had the occasion, and was decided about."""
        engine, found = self.champions.current, list[Found]()
        if (await asyncio.to_thread(self._look, engine, name, occasion)).there:
            asked = schemas.DecisionRequest(customers=[schemas.DecisionCustomer(customer_id=name)], occasion=occasion)
            found = await self.finder.find(engine, asked, [Named(name, Who.CUSTOMER)])
            self._prepare(engine, found, occasion.value, False)
        return await self.write(partial(self._decided_due, engine, found, name, occasion), limit=limit(1))

    def _look(self, engine: Engine, name: str, occasion: Occasion) -> occasions.Look:
        tables = histories.of_person(self.store, name, occasions.NEEDS[occasion])
        known, served = occasions.Known.of(tables, engine.zone), self.store.served(name, occasion.value)
        return occasions.look(occasion, known, self.decider.clock(), served)

    def _decided_due(self, engine: Engine, found: Sequence[Found], name: str, occasion: Occasion) -> bool:
        """Decide about a customer who was ``found`` because the occasion was there, and is there still; in any case plan the next look.

        The transaction looks again: what was told meanwhile counts, and of two workers one decides.
        """
        unscored = bool(found) and not any(one.scored for one in found)
        if found and not unscored:
            with contextlib.suppress(Gone, _Passed):
                _counted(self.decisions(engine, found, occasion.value, False, lambda told: self._serve(engine, name, occasion)))
                metrics.occasions.labels(occasion.value).inc()
                return True
        with self.store.transaction():
            look = self._look(engine, name, occasion)
            came = bool(look.there) and not unscored  # told since it was looked for
            self._plan(name, occasion, self.decider.clock() if came else look.again)
        return False

    def _serve(self, engine: Engine, name: str, occasion: Occasion) -> None:
        """Within the decision's transaction: no look will bring the same occasion again. Raises _Passed where it is not there."""
        look = self._look(engine, name, occasion)
        if not look.there:
            raise _Passed
        self.store.serve_occasion(name, occasion.value, look.there)
        self._plan(name, occasion, look.again)

    def _plan(self, name: str, occasion: Occasion, look: float | None) -> None:
        self.store.cancel_occasion(name, occasion.value)
        if look is not None:
            self.store.plan_occasion(self.store.ids_of(name)[0], occasion.value, look)

    def add_outcomes(self, outcomes: Sequence[schemas.Outcome]) -> dict[str, int]:
        """Keep what happened to decisions."""
        engine, counts = self.champions.current, {"accepted": 0, "known": 0, "unknown": 0}
        now = self.decider.clock()
        clock, withdrawn = Clock.at(now, engine.zone), any(one.kind == "unsubscribed" for one in outcomes)
        with self.store.transaction(urgent=withdrawn):
            for place, outcome in enumerate(outcomes):
                row_check.moment(f"outcomes.{place}.at", outcome.at, clock)
                found = self.store.decision(outcome.decision_id)
                if found is None:
                    counts["unknown"] += 1
                    continue
                row_check.after_decision(f"outcomes.{place}.at", outcome.at, datetime.fromisoformat(found[1]["at"]), clock)
                counts["accepted" if self._happened(engine, outcome, *found[:2], now) else "known"] += 1
        return counts

    def _happened(self, engine: Engine, outcome: schemas.Outcome, name: str, body: Mapping[str, Any], now: float) -> bool:
        """Keep one outcome and what it means; False where it was told before."""
        at = (outcome.at if outcome.at.tzinfo else outcome.at.replace(tzinfo=engine.zone)).timestamp()
        if not self.store.add_outcome(outcome.decision_id, outcome.kind, at, outcome.value):
            return False
        if outcome.kind in ENDS_LADDER:
            self.store.answer(name, at)
            self.store.answer_decision(outcome.decision_id)
        if outcome.kind == "unsubscribed":
            purpose = engine.policy.consent.purpose
            self.store.set_consents([(name, purpose, body["channel"] or "", False, self._since(name, purpose, now))])
        if outcome.kind == "failed" or outcome.kind in MADE:
            told = {one["kind"] for one in self.store.outcomes_of(outcome.decision_id)}
            self.store.set_failed(outcome.decision_id, "failed" in told and told.isdisjoint(MADE))
        return True

    def set_consents(self, whom: schemas.OneCustomer, asked: schemas.ConsentRequest) -> dict[str, Any]:
        """Change consents from now on, in force for the very next decision; of an id that nobody knows yet, for when it comes."""
        if asked.timezone is not None:
            try:
                ZoneInfo(asked.timezone)
            except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: a folder of zones
                raise Refusal(422, "Invalid request", "no such time zone", [{"field": "timezone", "rule": "an IANA name"}]) from None
        now, ours = self.decider.clock(), self.champions.current.policy.consent.purpose
        with self.store.transaction(urgent=True):
            name = self._customer(whom)
            known = self._known(self.store.ids_of(name))
            since = {purpose: self._since(name, purpose, now) for purpose in {one.purpose or ours for one in asked.consents}}
            words = [(one.purpose or ours, one.channel or "", one.granted) for one in asked.consents]
            self.store.set_consents((name, purpose, channel, granted, since[purpose]) for purpose, channel, granted in words)
            if asked.timezone is not None:
                self.store.set_timezone(name, asked.timezone)
            (standing,) = self.store.standing([name], ours, now)
        return {"pseudonym": name, "known": known, "consents": standing.consents, "timezone": standing.timezone}

    def _since(self, name: str, purpose: str, now: float) -> float:
        """From when a consent holds that is told now: later than every word before it, also one that another clock dates later."""
        latest = self.store.consented_until(name, purpose)
        return now if latest is None or latest < now else latest + CLOCK_TICK

    async def profile(self, whom: schemas.OneCustomer) -> dict[str, Any]:
        """What is known of a customer."""
        engine, name = self.champions.current, self._customer(whom)
        if not self._known(self.store.ids_of(name)):
            raise unknown()
        asked = schemas.DecisionRequest(customers=[schemas.DecisionCustomer(customer_id=whom.text)])
        (found,) = await self.finder.find(engine, asked, [Named(name, Who.CUSTOMER)])
        (standing,) = self.store.standing([name], engine.policy.consent.purpose, self.decider.clock() - DAY_SECONDS)
        one = found.scored
        return {
            "customer_id": whom.text,
            "pseudonym": found.pseudonym,
            "score": self._scores(engine, [found], True)[0],
            "rfmb": _rfmb(one) if one else {},
            "touchpoints": [t.name for t, holds in zip(TOUCHPOINTS, one[0].touchpoints_NP[one[1]], strict=True) if holds] if one else [],
            "consents": standing.consents,
            "consent": consent(engine.policy, standing, self.decider.tracked),
            "timezone": standing.timezone,
            "events_since_load": sum(len(self.store.events(id)) for id in self.store.ids_of(name)),
            "decisions": [logged(body, found.pseudonym) for body in self.store.decisions_of(name, 10)],
        }

    async def erase(
        self, whom: schemas.OneCustomer, ask: Callable[[Sequence[str]], Path], holds: Callable[[Sequence[str]], bool]
    ) -> list[str]:
        """Remove a person from the online store; returns the pseudonyms of all ids, the person's own first.

        ``ask`` leaves word, before anything is removed, that the files of the batch are to follow; ``holds`` tells whether these hold
        somebody whom neither table nor store knows.
        """
        one = self._whom(whom)
        names = self.store.ids_of(one.pseudonym)
        gone = one.who is Who.NOBODY or self.store.erased(names[:1])
        if gone or not (self._known(names) or await asyncio.to_thread(holds, names)):
            raise unknown()
        return await self.write(partial(self._erase, one.pseudonym, ask), urgent=True)

    def _erase(self, name: str, ask: Callable[[Sequence[str]], Path]) -> list[str]:
        if self.store.erased([name]):  # by somebody else meanwhile
            raise unknown()
        names = self.store.ids_of(name)
        word = ask(names)
        try:
            erased = self.store.erase(names[0])
        except BaseException:  # not erased, and the caller is told so
            word.unlink(missing_ok=True)
            raise
        if more := [name for name in erased if name not in names]:  # joined meanwhile
            ask(more)
        return erased

    def _whom(self, whom: schemas.OneCustomer) -> Named:
        engine = self.champions.current
        if whom.pseudonym is not None:
            return as_pseudonym(engine, self.store, whom.pseudonym)
        return named(engine, self.store, [whom.text])[0]

    def _customer(self, whom: schemas.OneCustomer) -> str:
        """The pseudonym of a customer. Raises Refusal (404) for a pseudonym that nobody knows, for nobody, and for who was erased."""
        one = self._whom(whom)
        if one.who is not Who.CUSTOMER or self.store.erased([one.pseudonym]):
            raise unknown(one.who.value)
        return one.pseudonym

    def _known(self, names: Sequence[str]) -> bool:
        """Whether feature table or online store know any id of a person."""
        engine = self.champions.current
        return any(engine.found(one) for one in names) or bool(self.store.knows(names))

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


def _decision(engine: Engine, found: Found, because: Any, more: Mapping[str, Any]) -> dict[str, Any]:
    """A result of `POST /v1/decisions`."""
    assert found.scored is not None
    return {**engine.answer(found.scored, found.name, found.pseudonym, because), **more}


def _counted(results: Results) -> Results:
    """Decisions, put into the metrics: once they are committed, and outside the writer, whose cut might leave a metric's lock taken."""
    for one in results:
        if one["status"] == "scored":
            metrics.probability.observe(one["churn_probability"])
            metrics.decisions.labels(one["tier"], one["binding"] or "").inc()
    return results


def unknown(detail: str = "") -> Refusal:
    """Nobody, as far as anybody here knows."""
    return Refusal(404, "Unknown customer", detail or "neither the feature table nor the online store knows the customer")


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
