"""CSV as people have it: every field stays text; what is guessed of a file's form is told, what does not fit is refused by line.

Arrow's parser reads it in a stream. Guessed from the file itself: compression, encoding, the mark between fields, the quote. Nothing is
skipped: a line with one field too many or too few, and a second, other header in the middle, are errors that name the line.
"""

import codecs
import csv as standard
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv

from features.errors import Unreadable

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\x04\x22\x4d\x18": "lz4"}
_MARKS = (",", ";", "\t", "|")
_HEAD_BYTES = 1 << 20
FALLBACK = "cp1252"
"""Encoding of a file that is not UTF-8: what Windows writes in the west."""


@dataclass(frozen=True)
class Form:
    """How a file is written."""

    names: tuple[str, ...]
    compression: str | None
    encoding: str
    skipped: int
    """Lines before the header: empty ones, and Excel's ``sep=;``."""
    mark: str
    quote: str
    escape: str | bool

    @property
    def guesses(self) -> dict[str, int]:
        """What was guessed of the file and has to be told."""
        return {"files that are no UTF-8, read as Windows-1252": int(self.encoding == FALLBACK)}

    def read(self, path: Path, positions: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """The columns at some positions as texts named ``c0``, ``c1`` ...; empty fields are null. Raises Unreadable."""
        return _read(path, self, positions)


def form(path: Path, wanted: Sequence[str]) -> Form:
    """Guess the form from the first megabyte; ``wanted`` are names that the header should have. Raises Unreadable."""
    with path.open("rb") as file:
        magic = file.read(6)
    if not magic:
        raise Unreadable("is empty", "bring the file with its header line and rows, or leave the table out of the mapping")
    if magic.startswith((b"PK\x03\x04", b"\xfd7zXZ", b"7z\xbc\xaf", b"\xd0\xcf\x11\xe0")):
        raise Unreadable("is an archive or a spreadsheet, not CSV", "unpack it, or save the sheet as CSV (UTF-8)")
    if magic.startswith(b"PAR1"):
        raise Unreadable("is Parquet under another name", "call it *.parquet")
    compression = next((name for start, name in _MAGIC.items() if magic.startswith(start)), None)
    try:
        with _opened(path, compression) as stream:
            head = stream.read(_HEAD_BYTES)
    except (OSError, pa.ArrowException):
        raise Unreadable("cannot be unpacked", "check that the file is whole") from None
    encoding = _encoding(head)
    text = head.decode(encoding, errors="replace").removeprefix("\ufeff")
    lines = text.splitlines()
    skipped = next((number for number, line in enumerate(lines) if line.strip()), -1)
    if skipped < 0:
        raise Unreadable("is empty", "bring the file with its header line and rows, or leave the table out of the mapping")
    mark = re.fullmatch(r"sep=(.)", lines[skipped].strip())
    if mark:
        skipped += 1
    header = lines[skipped] if skipped < len(lines) else ""
    quote = "'" if re.fullmatch(r"\s*'[^']*'(.'[^']*')*\s*", header) else '"'
    chosen = mark[1] if mark else max(_MARKS, key=lambda one: _fit(_fields(header, one, quote), wanted))
    names = tuple(_fields(header, chosen, quote))
    escaped = '\\"' in text and not _even("\n".join(lines[skipped:-1]), chosen, quote, len(names))
    return Form(names, compression, encoding, skipped, chosen, quote, "\\" if escaped else False)


def _even(text: str, mark: str, quote: str, width: int) -> bool:
    """Whether every row has as many fields as the header when a backslash is a letter like any other."""
    rows = standard.reader(io.StringIO(text), delimiter=mark, quotechar=quote)
    try:
        return all(len(row) in (0, width) for row in rows)
    except standard.Error:
        return False


def _fit(fields: Sequence[str], wanted: Sequence[str]) -> tuple[int, int]:
    return sum(name in fields for name in wanted), len(fields)


def _fields(header: str, mark: str, quote: str) -> list[str]:
    return [field.strip().removeprefix("\ufeff") for field in next(standard.reader([header], delimiter=mark, quotechar=quote))]


def _encoding(head: bytes) -> str:
    """UTF-8 and UTF-16 by their marks or zero bytes; what is no UTF-8 is read as Windows-1252."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if head[:1000].count(0) > len(head[:1000]) // 4:
        return "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return FALLBACK
    return "utf-8"


def _opened(path: Path, compression: str | None) -> Any:
    return pa.CompressedInputStream(pa.OSFile(str(path)), compression) if compression else pa.OSFile(str(path))


def _read(path: Path, found: Form, positions: Sequence[int]) -> Iterator[pa.RecordBatch]:
    names = [f"c{number}" for number in range(len(found.names))]
    wrong: list[tuple[int | None, int, bool]] = []

    def refused(row: Any) -> str:
        wrong.append((row.number, row.actual_columns, _is_header(row.text, found)))
        return "error"

    options = csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        include_columns=[names[place] for place in positions],
        strings_can_be_null=True,
        null_values=[""],
        quoted_strings_can_be_null=True,
    )
    reading = csv.ReadOptions(column_names=names, skip_rows=0, use_threads=False, block_size=8 << 20)
    parsing = csv.ParseOptions(delimiter=found.mark, quote_char=found.quote, escape_char=found.escape, newlines_in_values=True)
    parsing.invalid_row_handler = refused
    try:
        yield from csv.open_csv(_after_header(path, found), reading, parsing, options)
    except pa.ArrowInvalid as error:
        if wrong:
            raise _misfit(found, *wrong[0]) from None
        if "Empty CSV" in str(error):  # a header and nothing else
            return
        if "UTF8" in str(error):
            raise Unreadable("holds bytes that are no UTF-8 beyond its first megabyte", "save it as UTF-8") from None
        raise Unreadable("is broken: a quote that never ends, or a line too long", "check its quotes") from None
    except (OSError, EOFError, UnicodeError):
        raise Unreadable("cannot be unpacked or decoded to its end", "check that the file is whole") from None


def _after_header(path: Path, found: Form) -> Any:
    """A stream of UTF-8 behind the header line."""
    raw = _opened(path, found.compression)
    if found.encoding != "utf-8":
        raw = _Recoded(raw, found.encoding)
    stream = io.BufferedReader(_Raw(raw))
    for _ in range(found.skipped + 1):
        _line(stream)
    return stream


def _line(stream: Any) -> None:
    """Skip one line, whichever of the three ends it has."""
    while byte := stream.read(1):
        if byte == b"\n":
            return
        if byte == b"\r":
            if stream.peek(1)[:1] == b"\n":
                stream.read(1)
            return


class _Raw(io.RawIOBase):
    """Any reader of bytes as Python's buffers want it."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; 0 at the end."""
        some = self.source.read(len(buffer))
        buffer[: len(some)] = some
        return len(some)


class _Recoded:
    """Bytes of any encoding as UTF-8."""

    def __init__(self, source: Any, encoding: str) -> None:
        self.source, self.decoder, self.held = source, codecs.getincrementaldecoder(encoding)(errors="strict"), b""
        if encoding == FALLBACK:  # five bytes of it mean nothing: as Latin-1 has them
            self.decoder = codecs.getincrementaldecoder(FALLBACK)(errors="holdfast_latin1")

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes of UTF-8."""
        while not self.held:
            some = self.source.read(size)
            self.held = self.decoder.decode(some, final=not some).encode()
            if not some:
                break
        found, self.held = self.held[:size], self.held[size:]
        return found


def _latin1(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("holdfast_latin1", _latin1)


def _is_header(text: str, found: Form) -> bool:
    fields = _fields(text, found.mark, found.quote)
    return len(set(fields) & set(found.names)) * 2 > len(found.names)


def _misfit(found: Form, number: int | None, fields: int, header: bool) -> Unreadable:
    line = "" if number is None else f"line {number + found.skipped + 1:,} "
    if header:
        return Unreadable(f"{line}is another header: two exports glued together", "split the file there, or bring one header")
    expected = len(found.names)
    return Unreadable(f"{line}has {fields} fields, its header {expected}", "mend that line (a field with the mark in it needs quotes)")
