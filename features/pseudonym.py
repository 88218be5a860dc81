"""Persons' ids are never stored: a keyed HMAC-SHA256 (RFC 2104), cut to 128 bits, stands for each.

The key is the environment's ``HOLDFAST_ID_KEY`` (hexadecimal, 32 bytes or more). Public and synthetic data sets
(``personal = false``) use an empty key, so that everybody gets the same pseudonyms. Who holds the key can turn an
id into its pseudonym, never back.
"""

import hashlib
import hmac
from dataclasses import dataclass

from features.errors import InputError
from features.mapping import Dataset
from features.settings import Settings

HEX_DIGITS = 32
MIN_KEY_BYTES = 32
_BLOCK_BYTES = 64
_SQL = """CREATE OR REPLACE TEMP MACRO pseudonym(kind, id) AS
    left(sha256(getvariable('holdfast_outer') || unhex(sha256(getvariable('holdfast_inner') || encode(kind || ':' || id)))), {digits})"""


@dataclass(frozen=True)
class Pseudonyms:
    """Turns (kind, id) into pseudonyms, in Python and in DuckDB."""

    key: bytes

    @classmethod
    def of(cls, personal: bool, settings: Settings | None = None) -> "Pseudonyms":
        """The pseudonyms of a data set.

        Raises InputError when ids are personal and the environment holds no good key.
        """
        if not personal:
            return cls(b"")
        given = (settings or Settings()).id_key
        text = given.get_secret_value() if given else ""
        fix = "set it to 64 or more hexadecimal digits (openssl rand -hex 32) and keep it; or personal = false for public or synthetic ids"
        if not text:
            raise InputError("HOLDFAST_ID_KEY", "is not set, and the data set's ids are personal", fix)
        try:
            key = bytes.fromhex(text.strip())
        except ValueError:
            raise InputError("HOLDFAST_ID_KEY", "is not hexadecimal", fix) from None
        if len(key) < MIN_KEY_BYTES:
            raise InputError("HOLDFAST_ID_KEY", f"holds {len(key)} bytes, fewer than {MIN_KEY_BYTES}", fix)
        return cls(key)

    def __call__(self, id: str, kind: str = "customer") -> str:
        """The pseudonym of one id."""
        return hmac.digest(self.key, f"{kind}:{id}".encode(), "sha256").hex()[:HEX_DIGITS]

    @property
    def check(self) -> str:
        """Tells keys apart without telling the key."""
        return self("check", "holdfast")[:8]

    def install(self, connection: object) -> None:
        """Define the SQL macro ``pseudonym(kind, id)``; the key stays out of every query's text."""
        key = self.key if len(self.key) <= _BLOCK_BYTES else hashlib.sha256(self.key).digest()
        padded = key.ljust(_BLOCK_BYTES, b"\0")
        for name, byte in (("inner", 0x36), ("outer", 0x5C)):
            connection.execute(f"SET VARIABLE holdfast_{name} = $1::BLOB", [bytes(b ^ byte for b in padded)])  # type: ignore[attr-defined]
        connection.execute(_SQL.format(digits=HEX_DIGITS))  # type: ignore[attr-defined]


def of_dataset(dataset: Dataset) -> Pseudonyms:
    """The pseudonyms of a mapping file's data set."""
    return Pseudonyms.of(dataset.personal)
