"""The body of a request: its bytes within limits, inflated where it was compressed, and read strictly, no key twice in one object."""

import asyncio
import json
import re
import zlib
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from serving.answers import Refusal, invalid
from serving.guard import SINGLE_BYTES

BODY_SECONDS = 10.0
CODINGS = {"": False, "identity": False, "gzip": True, "x-gzip": True}
"""What Content-Encoding may say, and whether the body is to be inflated."""
STEP_BYTES = 1024 * 1024
_WHITE = (b"\t", b"\n", b"\r", b" ")
_KEY = re.compile(rb'"[ \t\r\n]*:')
Model = TypeVar("Model", bound=BaseModel)


def compressed(request: Request) -> bool:
    """Whether a body comes compressed. Raises Refusal (415) for what is no JSON or compressed in a way that is not read here."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "Unsupported media type", "send application/json")
    coding = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    if coding not in CODINGS:
        raise Refusal(415, "Unsupported content encoding", "send gzip, or no Content-Encoding", headers={"Accept-Encoding": "gzip"})
    return CODINGS[coding]


async def received(request: Request, largest: int) -> bytes:
    """The bytes as they came. Raises Refusal when they are too many or too slow."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > largest:
                    raise too_large(largest)
                parts.append(part)
    except TimeoutError:
        raise Refusal(408, "Too slow", f"the body did not come within {BODY_SECONDS:.0f} s") from None
    except ClientDisconnect:
        raise Refusal(400, "Not JSON", "the caller hung up") from None
    return b"".join(parts)


def inflated(body: bytes, largest: int) -> bytes:
    """The bytes of a gzip body, by steps, so that a small body never becomes more than ``largest`` bytes here. Raises Refusal.

    One member only: of many empty ones each would cost a copy of all that follow.
    """
    parts, size, member = [], 0, zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        while not member.eof:
            part = member.decompress(body, STEP_BYTES)
            body = member.unconsumed_tail
            size += len(part)
            if size > largest:
                raise too_large(largest)
            if not part and not body and not member.eof:
                raise zlib.error("cut short")
            parts.append(part)
    except zlib.error:
        raise Refusal(400, "Not gzip", "the body is not what its Content-Encoding says") from None
    if member.unused_data:
        raise Refusal(400, "Not one gzip member", "more follows after the first gzip member: compress the body in one piece")
    return b"".join(parts)


def too_large(largest: int) -> Refusal:
    """More bytes than are read."""
    return Refusal(413, "Too large", f"the body is larger than {largest} bytes")


def parsed(model: type[Model], body: bytes) -> Model:
    """The body as a model. Raises Refusal that names fields and rules."""
    try:
        found = model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None
    if _colons(body) != _keys(found) and _twice(body):
        raise Refusal(422, "Invalid request", "a key comes twice in one object", [{"field": "(a key)", "rule": "once in an object"}])
    return found


def _colons(body: bytes) -> int:
    """How often a quote and a colon follow each other: once for each key, and more often where texts hold such."""
    spaced = any(one in body and one + b":" in body for one in _WHITE)
    return len(_KEY.findall(body)) if spaced else body.count(b'":')


def _keys(found: Any) -> int:
    """How many keys the objects have that a value was made of."""
    if isinstance(found, BaseModel):
        return len(found.model_fields_set) + sum(_keys(getattr(found, name)) for name in found.model_fields_set)
    if isinstance(found, dict):
        return len(found) + _keys(found.get("lines"))
    if isinstance(found, list) and found and not isinstance(found[0], str | int | float):
        rows = found if isinstance(found[0], dict) else ()
        lines = [row["lines"] for row in rows if "lines" in row]
        return sum(map(len, rows)) + sum(sum(map(len, some)) for some in lines) if rows else sum(map(_keys, found))
    return 0


def _twice(body: bytes) -> bool:
    """Whether a key comes twice in one object, exactly and slowly: asked only where counts differ."""

    def once(pairs: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in pairs}) < len(pairs):
            raise KeyError

    try:
        json.loads(body, object_pairs_hook=once, parse_int=float)
    except KeyError:
        return True
    return False


def single(items: Any, size: int) -> None:
    """Refuse (413) a single item that is larger than one may be."""
    if len(items) == 1 and size > SINGLE_BYTES:
        raise Refusal(413, "Too large", f"the body of a single item is larger than {SINGLE_BYTES} bytes")
