"""Whom a caller means: an id of the shop, or a pseudonym that this API gave out. Told apart by form or by look-up, never guessed.

A pseudonym is 32 lower-case hexadecimal digits. Where no id of the shop looks like that (`Manifest.hex_ids` is false) such a text is a
pseudonym, and one that nobody knows is nobody's; in capitals, or with the dashes of a UUID, it is one where it is known. Where ids of the
shop do, a text that is known as a pseudonym is one, any other is an id. A pseudonym is never made of a pseudonym that is known.
"""

import re
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from features.ids import canonical_id
from features.pseudonym import HEX_DIGITS
from serving.online import OnlineStore
from serving.score import Engine

UUID_LETTERS = HEX_DIGITS + 4
_FORM = re.compile(f"[0-9a-f]{{{HEX_DIGITS}}}")


class Who(Enum):
    """Whom a text stands for; each but the first with what is said to the caller."""

    CUSTOMER = ""
    UNKNOWN = "a pseudonym that neither the feature table nor the online store knows; send the shop's own id"
    ERASED = "not in the latest feature table; send the raw history (`orders`)"  # as of anybody else whom nobody knows
    NOBODY = "the id stands for nobody (identity.not_customers of the mapping file)"


class Named(NamedTuple):
    """A text of a request, told: the pseudonym under which anything would be stored, and whom it stands for."""

    pseudonym: str
    who: Who


def named(engine: Engine, store: OnlineStore, texts: Sequence[str]) -> list[Named]:
    """Whom each of some texts stands for."""
    manifest = engine.ids
    ids = [canonical_id(text, manifest.fold_case) for text in texts]
    plain = [_plain(id) for id in ids]
    formed = {one for one in plain if _FORM.fullmatch(one)}
    known = {one for one in formed if engine.found(one)}
    known |= store.knows(sorted(formed - known)) if formed > known else set()
    known |= store.erased(sorted(formed - known - set(ids)))  # in another spelling it would else be an id
    return [_named(engine, one if one in known else id, one in known) for id, one in zip(ids, plain, strict=True)]


def _plain(text: str) -> str:
    """A text as a pseudonym would be written: other systems keep 32 hexadecimal digits as a UUID, or in capitals."""
    return text.replace("-", "").lower() if len(text) in (HEX_DIGITS, UUID_LETTERS) else text


def as_pseudonym(engine: Engine, store: OnlineStore, text: str) -> Named:
    """The same of a text that the caller says is a pseudonym."""
    plain = _plain(text)
    known = engine.found(plain) is not None or bool(store.knows([plain]))
    return _customer(engine, plain) if known else Named(text, Who.UNKNOWN)


def _named(engine: Engine, id: str, known: bool) -> Named:
    if known:
        return _customer(engine, id)
    if not engine.ids.hex_ids and _FORM.fullmatch(id):
        return Named(id, Who.UNKNOWN)
    return _customer(engine, engine.pseudonyms(id))


def _customer(engine: Engine, pseudonym: str) -> Named:
    return Named(pseudonym, Who.NOBODY if pseudonym in engine.ids.not_customers else Who.CUSTOMER)
