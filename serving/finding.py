"""Customers of a request, scored as far as anything is known: by id from table or online store, by raw history, by feature row."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from features.errors import InputError
from features.row_rules import Clock
from serving import histories, row_check, schemas
from serving.answers import Refusal
from serving.naming import Named, Who, named
from serving.online import OnlineStore
from serving.score import Engine, One, Scored
from serving.work import Together

FEW = 8
"""So many customers are answered in the event loop; more go to a thread, so that others are not kept waiting."""
MOST_TOGETHER = 64
Asked = schemas.ScoreRequest | schemas.DecisionRequest
Result = TypeVar("Result")


@dataclass
class Found:
    """One customer of a request.

    ``name``: as the caller has it; ``scored``: None where there is no score; ``live``: features were computed for this request.
    """

    name: str
    pseudonym: str
    who: Who
    customer: Any
    scored: One | None = None
    live: bool = False

    @property
    def brings(self) -> bool:
        """Whether the request has more than the name."""
        return self.customer.orders is not None or self.row

    @property
    def row(self) -> bool:
        """Whether the request has a feature row."""
        return getattr(self.customer, "features", None) is not None

    def unscored(self, engine: Engine) -> dict[str, Any]:
        """The answer where there is no score."""
        told = engine.not_scored(self.name, self.pseudonym, self.live)
        if self.who is Who.CUSTOMER:
            return told
        return told | {"status": "not_eligible" if self.who is Who.NOBODY else "unknown", "detail": self.who.value}


class Finder:
    """Finds customers; ``store`` gives the online store."""

    def __init__(self, store: Callable[[], OnlineStore]) -> None:
        self._store = store
        self._histories: Together[Any, dict[str, One]] = Together(_score_histories, MOST_TOGETHER)
        self._live: Together[Any, dict[str, One]] = Together(self._score_live, MOST_TOGETHER)

    async def find(self, engine: Engine, asked: Asked, own: Sequence[Named] | None = None) -> list[Found]:
        """Every customer of a request, in its order; ``own``: whom they are, where that is known.

        A snapshot may be historic, not in the future: nobody knows what is known then.
        """
        clock = Clock.at(time.time(), engine.zone)
        if asked.snapshot:
            row_check.moment("snapshot", asked.snapshot, clock)
        await do(len(asked.customers), partial(row_check.histories, asked.customers, clock))
        found = self._named(engine, asked, own)
        there = [one for one in found if one.who is Who.CUSTOMER]
        snapshot = histories.local(asked.snapshot, engine.zone) if asked.snapshot else None
        scored: dict[str, One] = {}
        if rows := [one for one in there if one.row]:
            scored |= await self._rows(engine, rows, snapshot or _now(engine.zone))
        if told := {one.pseudonym: one.customer for one in there if one.customer.orders is not None}:
            scored |= await self._histories((engine, snapshot), told)
        by_id = [one.pseudonym for one in there if not one.brings]
        fresh = self._store().fresh(by_id)
        if fresh:
            scored |= await self._live((engine, snapshot), sorted(fresh))
        scored |= {name: one for name in by_id if name not in fresh and (one := self.of_table(engine, name))}
        for who in there:
            who.scored, who.live = scored.get(who.pseudonym), who.brings or who.pseudonym in fresh
        return found

    def _named(self, engine: Engine, asked: Asked, own: Sequence[Named] | None) -> list[Found]:
        """Who is asked for. Whoever was erased is unknown, whatever the request brings."""
        customers: Sequence[Any] = asked.customers
        own = own or named(engine, self._store(), [customer.customer_id for customer in customers])
        if len({one.pseudonym for one in own}) < len(own):
            raise Refusal(422, "Invalid request", "two of the ids are one", [{"field": "customers", "rule": "unique"}])
        persons, erased = self._store().who([one.pseudonym for one in own])
        found = []
        for customer, (pseudonym, who), person in zip(customers, own, persons, strict=True):
            one = Found(customer.customer_id, pseudonym, Who.ERASED if pseudonym in erased else who, customer)
            one.pseudonym = pseudonym if one.brings else person
            found.append(one)
        return found

    def of_table(self, engine: Engine, person: str) -> One | None:
        """A person in the latest feature table, which may be older than the link of the ids."""
        found = engine.found(person)
        return found or next((one for id in self._store().ids_of(person) if (one := engine.found(id))), None)

    @staticmethod
    async def _rows(engine: Engine, rows: Sequence[Found], moment: datetime) -> dict[str, One]:
        try:
            scored = await do(len(rows), lambda: engine.of_rows([one.customer for one in rows], moment))
        except InputError as error:
            field = error.where if error.where.split(".")[0] == "sequences" else "features"
            told = [{"field": field, "rule": error.problem}]
            raise Refusal(422, "Invalid request", f"{error.problem}; {error.fix}", told) from None
        return {one.pseudonym: (scored, place) for place, one in enumerate(rows)}

    def _score_live(self, kind: Any, items: Sequence[Sequence[str]]) -> list[dict[str, One] | Exception]:
        """Customers of the store with events since the last load, their features computed anew."""
        engine, snapshot = kind
        names = list(dict.fromkeys(name for item in items for name in item))
        stored = [histories.of_person(self._store(), name, engine.manifest.tables) for name in names]
        place = _places(scored := engine.of_stored(stored, snapshot or _now(engine.zone)))
        return [{name: (scored, place[name]) for name in item if name in place} for item in items]


def _score_histories(kind: Any, items: Sequence[Mapping[str, Any]]) -> list[dict[str, One] | Exception]:
    """Raw histories of several requests, folded together; nobody sees another's rows."""
    engine, snapshot = kind
    everybody = {f"{number}\x1f{name}": one for number, item in enumerate(items) for name, one in item.items()}
    place = _places(scored := engine.of_histories(everybody, snapshot or _now(engine.zone)))
    return [{name: (scored, place[key]) for name in item if (key := f"{number}\x1f{name}") in place} for number, item in enumerate(items)]


def _places(scored: Scored) -> dict[str, int]:
    return {name: row for row, name in enumerate(scored.customer_id)}


async def do(customers: int, function: Callable[[], Result]) -> Result:
    """Do something about so many customers, in a thread where they are many."""
    return function() if customers <= FEW else await asyncio.to_thread(function)


def _now(zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(time.time(), zone).replace(tzinfo=None)
