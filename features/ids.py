"""One rule for ids, the same in a file, a database and a request: `canonical_id`.

An id is text. In Unicode's composed form (NFC), without white space around it, and a whole number that was written as a
decimal (``12345.0``, as spreadsheets and data frames with a gap write it) is that number. Leading zeros and case stay: ``007``
is not ``7``, and ``ab`` is not ``AB``, unless the mapping file says ``identity.fold_case = true`` for customers.
"""

import re
import unicodedata

from features.sql import literal

WHITE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200C))) + "\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
"""What is cut off around an id: white space of Unicode, zero-width spaces and byte-order marks."""
_DECIMAL = r"^([+-]?[0-9]+)\.0+$"
_WHOLE = re.compile(_DECIMAL.removesuffix("$") + r"\Z")
PLACEHOLDERS = (
    *("", "guest", "anonymous", "unknown", "n/a", "-1", "0", "test"),
    *("null", "\\n", "none", "nan", "nat", "<na>", "#n/a", "undefined"),
)
"""What shops write where there is no customer, and what programs write where there is nothing; compared without case."""


def canonical_id(text: str, fold_case: bool = False) -> str:
    """The canonical form of an id; empty where nothing is left. ``fold_case``: upper and lower case are one (`str.casefold`)."""
    found = canonical_text(text)
    if whole := _WHOLE.match(found):
        found = whole[1]
    return unicodedata.normalize("NFC", found.casefold()) if fold_case else found


def canonical_text(text: str) -> str:
    """A text in NFC without white space around it, as `sql_text` has it; empty where nothing is left."""
    return text if text.isascii() and text.isalnum() else unicodedata.normalize("NFC", text).strip(WHITE)


def sql_text(expression: str) -> str:
    """SQL of a text in NFC without white space around it; null where nothing is left."""
    other = f"nullif(trim(nfc_normalize({expression}), {literal(WHITE)}), '')"  # slow, and rarely needed
    return f"CASE WHEN regexp_full_match({expression}, '[!-~]([ -~]*[!-~])?') THEN {expression} ELSE {other} END"


def sql_id(expression: str) -> str:
    """`canonical_id` of a text in DuckDB's SQL; null where nothing is left."""
    text = sql_text(expression)
    return f"CASE WHEN contains({expression}, '.0') THEN regexp_replace({text}, '{_DECIMAL}', '\\1') ELSE {text} END"
