"""A sheet of an Excel workbook as texts: ids, numbers and moments as the cells hold them, converted by the rules of every other source."""

import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, time
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import pyarrow as pa

from features.databases import plain
from features.errors import Unreadable

BATCH_ROWS = 20_000
_CLOCK = re.compile("[hs]", re.IGNORECASE)
"""In the format of a cell that shows a time of day."""


@dataclass(frozen=True)
class Sheet:
    """One sheet: the names in its first row, and its own name (None: the only one)."""

    names: tuple[str, ...]
    title: str | None
    guesses: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, title: str | None) -> "Sheet":
        """Look at a workbook. Raises Unreadable."""
        with closing(_workbook(path, formulas=False)) as book:
            first = next(_sheet(book, title).iter_rows(values_only=True), ())
        names = tuple("" if value is None else str(value).strip() for value in first)
        if not any(names):
            raise Unreadable("is empty", "bring the sheet with its header line and rows, or leave the table out of the mapping")
        return cls(names, title)

    def read(self, path: Path, positions: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """The columns at some positions as texts named ``c0``, ``c1`` ...; empty cells are null. Raises Unreadable.

        A formula counts by the value that Excel has stored beside it; one without is an error, for it would be read as nothing.
        """
        names = [f"c{place}" for place in positions]
        with closing(_workbook(path, formulas=False)) as values, closing(_workbook(path, formulas=True)) as formulas:
            rows = zip(*(_sheet(book, self.title).iter_rows(min_row=2) for book in (values, formulas)), strict=True)
            some: list[list[str | None]] = []
            for number, (row, written) in enumerate(rows, 2):
                if any(cell.value is not None for cell in written):
                    some.append([_text(row, written, place, number) for place in positions])
                if len(some) == BATCH_ROWS:
                    yield _batch(some, names)
                    some = []
            yield _batch(some, names)


def _text(row: Sequence[Any], written: Sequence[Any], place: int, number: int) -> str | None:
    if place >= len(row):
        return None
    value = row[place].value
    if value is None and written[place].value is not None:
        raise Unreadable(
            f"line {number:,} has a formula without its value", "open the workbook in Excel, save it, or save the sheet as CSV"
        )
    if isinstance(value, datetime) and value.time() == time() and not _CLOCK.search(row[place].number_format):
        value = value.date()  # Excel keeps a day as its midnight
    try:
        return plain(value)
    except (TypeError, ValueError):
        raise Unreadable(f"line {number:,} has a number too large to keep all its digits", "keep ids as text cells") from None


def _batch(rows: Sequence[Sequence[str | None]], names: Sequence[str]) -> pa.RecordBatch:
    columns = [pa.array([row[place] for row in rows], pa.string()) for place in range(len(names))]
    return pa.RecordBatch.from_arrays(columns, names=list(names))


def _workbook(path: Path, formulas: bool) -> Any:
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        return openpyxl.load_workbook(path, read_only=True, data_only=not formulas)
    except (InvalidFileException, BadZipFile, OSError, KeyError, ValueError, SyntaxError) as error:
        problem = "is empty" if path.stat().st_size == 0 else f"is no workbook that can be read ({type(error).__name__})"
        raise Unreadable(problem, "check that it opens in Excel; a password has to be taken off") from None


def _sheet(book: Any, name: str | None) -> Any:
    sheets = [sheet.title for sheet in book.worksheets]
    if name is None and len(sheets) == 1:
        return book.worksheets[0]
    if name in sheets:
        return book[name]
    problem = f"has the sheets {', '.join(sheets)}" + (f", and none called {name!r}" if name else "")
    raise Unreadable(problem, f"say which one: sheet = {sheets[0]!r}")
