"""A decision asked for again with the same `Idempotency-Key` is answered with what was answered first, and made once.

After draft-ietf-httpapi-idempotency-key-header. The answer is kept in the decision's own transaction, so that there is never one without
the other. What is kept names nobody but by pseudonym, and goes with the customer's erasure: the shop's own ids come again with the
repeated request, and both digests are keyed as pseudonyms are (`HOLDFAST_ID_KEY`), so that no id can be guessed from them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from serving import schemas
from serving.answers import Refusal
from serving.naming import Who, named
from serving.online import DAY_SECONDS, OnlineStore
from serving.score import Engine

HEADER, REPLAYED = "Idempotency-Key", "Idempotent-Replayed"
FORM = r"[\x21-\x7e]{1,128}"
"""Visible ASCII."""
KEPT_SECONDS = 2 * DAY_SECONDS
PRUNED_AT_ONCE = 500
"""Answers removed in one transaction, which others wait for."""


@dataclass
class Once:
    """A request that is done once: who asks with which key, and what, as keyed digests; ``replayed``: it was answered before."""

    key: str
    body: str
    replayed: bool = False


class Repeated(Exception):
    """The request was answered meanwhile: the decision that was about to be made is undone."""


def told(values: Sequence[str]) -> str | None:
    """The key that a request's headers tell, None without one. Raises Refusal for what is no key."""
    if not values:
        return None
    if len(values) > 1 or not re.fullmatch(FORM, values[0]):
        raise Refusal(
            422,
            "Invalid request",
            f"{HEADER} must be 1 to 128 visible ASCII characters, once",
            [{"field": HEADER, "rule": "visible ASCII"}],
        )
    return values[0]


def once(engine: Engine, caller: str, key: str, asked: schemas.DecisionRequest) -> Once:
    """A request as it is known again: one caller's keys are not another's, and spaces and order in the body do not count."""
    return Once(engine.pseudonyms(f"{caller} {key}", "idempotency"), engine.pseudonyms(asked.model_dump_json(), "body"))


def keep(store: OnlineStore, once: Once, answer: Mapping[str, Any], now: float) -> None:
    """Keep an answer, in the transaction of its decisions. Raises Repeated where somebody was first."""
    if store.kept_answer(once.key, now - KEPT_SECONDS):
        raise Repeated
    head = {name: value for name, value in answer.items() if name != "results"}
    rows = [_row(one) for one in answer["results"]]
    store.keep_answer(once.key, once.body, now, orjson.dumps(head).decode(), rows)


def _row(one: Mapping[str, Any]) -> tuple[str | None, str]:
    """Whose it is, and the fields of one result in their order, without the customer's names; nobody's where nothing was decided."""
    customer = one["pseudonym"] if one["status"] == "scored" else None
    return customer, orjson.dumps({**one, "customer_id": None, "pseudonym": None}).decode()


def replay(store: OnlineStore, engine: Engine, once: Once, asked: schemas.DecisionRequest, now: float) -> dict[str, Any] | None:
    """What was answered to the same request before, to the byte; who was erased since is unknown. Raises Refusal for another body."""
    kept = store.kept_answer(once.key, now - KEPT_SECONDS)
    if kept is None:
        return None
    if kept.body != once.body:
        raise Refusal(422, "Key used before", f"another request was sent with this {HEADER}; send each with a key of its own")
    once.replayed = True
    texts = [one.customer_id for one in asked.customers]
    results = []
    for place, (text, own) in enumerate(zip(texts, named(engine, store, texts), strict=True)):
        customer, fields = kept.rows.get(place, (None, ""))
        one = orjson.loads(fields) if fields else {"status": "unknown", "customer_id": "", "pseudonym": "", "detail": Who.ERASED.value}
        results.append(one | {"customer_id": text, "pseudonym": customer or own.pseudonym})
    return {**orjson.loads(kept.head), "results": results}
