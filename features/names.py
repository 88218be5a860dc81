"""Which of a source's columns a mapping names, and how it uses them: as text, as a number alone, in an expression."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from features.errors import InputError
from features.mapping import Dataset, Table
from features.schema import EXACT, SOURCES, TEXT

_IDENTIFIER = re.compile(r"""'(?:[^']|'')*'|"((?:[^"]|"")+)"|([^\W\d]\w*)""")


class Place:
    """Makes the errors of one table of a mapping file."""

    def __init__(self, dataset: Dataset, table: str) -> None:
        self.dataset, self.table = dataset, table

    def error(self, key: str, value: str, problem: str, fix: str) -> InputError:
        """An error that names file, table, key and value."""
        where = f"{self.dataset.file}: tables.{self.table}" + (f".{key} = {value!r}" if key else "")
        return InputError(where, problem, fix)


@dataclass(frozen=True)
class Names:
    """Which of a source's columns a mapping names, and how it uses them."""

    place: Place
    every: frozenset[str]
    texts: frozenset[str]
    """Names used for ids and other texts, or to group by."""
    computed: frozenset[str]
    """Names used in an expression or a condition."""
    measures: frozenset[str] = frozenset()
    """Names used in conditions and in expressions for numbers, and nowhere else: that 12.5 and 12.50 are one number does no harm there."""
    everything: bool = False

    @classmethod
    def of(cls, place: Place, table: Table, key: str) -> "Names":
        """What one table of a mapping file names; ``key`` is its canonical table."""
        texts, computed, every, others = set(), set(), set(), set()
        for column, text in table.columns.items():
            bare = _bare(text)
            named = {bare} if bare else {text} | identifiers(text)
            every |= named
            if SOURCES[key].column(column).type == TEXT:
                texts |= named
            if not bare:
                computed |= identifiers(text)
            others |= named if SOURCES[key].column(column).type != EXACT else set()
        for text in filter(None, (table.where, table.query)):
            computed |= identifiers(text)
        for text in (table.group_by or "").split(","):
            bare = _bare(text.strip())
            texts |= {bare} if bare else set()
            computed |= identifiers(text)
        others |= identifiers(f"{table.group_by} {table.query}")
        for canonical in SOURCES[key].columns:  # ids that a query gives another name
            if canonical.type == TEXT and (out := table.columns.get(canonical.name)):
                texts |= set(re.findall(rf"([^\W\d]\w*)\s+AS\s+{re.escape(out)}\b", table.query or "", re.IGNORECASE))
        everything = bool(table.query and re.search(r"(?<!\()\s*\*", table.query))
        return cls(place, frozenset(every | computed), frozenset(texts), frozenset(computed), frozenset(computed - others), everything)

    def wanted(self, names: Sequence[str]) -> list[int]:
        """Positions of the columns to read among all of a file. Raises InputError where a name fits several."""
        folds: dict[str, list[int]] = {}
        for position, one in enumerate(names):
            folds.setdefault(one.casefold(), []).append(position)
        named = {one.casefold() for one in self.every}
        found = []
        for fold, positions in folds.items():
            if fold not in named:
                found += positions[:1] if self.everything else []
                continue
            exact = [position for position in positions if names[position] in self.every]
            if len(positions) > 1 and len(exact) != 1:
                listed = ", ".join(repr(names[position]) for position in positions)
                raise self.place.error("columns", names[positions[0]], f"several columns fit: {listed}", "rename all but one in the source")
            found += exact or positions
        return sorted(found)

    def spelt(self, column: str) -> str:
        """A source's column as the mapping spells it, where that differs by case alone: files may differ by it."""
        if column in self.every:
            return column
        return next((one for one in self.every if one.casefold() == column.casefold()), column)

    def is_text(self, column: str) -> bool:
        """Whether a column is an id or another text."""
        return self._among(column, self.texts)

    def is_computed(self, column: str) -> bool:
        """Whether a column is part of an expression or a condition."""
        return self.everything or self._among(column, self.computed)

    def is_measure(self, column: str) -> bool:
        """Whether a column is used as a number alone."""
        return self._among(column, self.measures)

    def _among(self, column: str, names: frozenset[str]) -> bool:
        return column in names or (column not in self.every and column.casefold() in {one.casefold() for one in names})


def identifiers(text: str) -> set[str]:
    """Names of columns that an SQL text may hold."""
    found = (match[1].replace('""', '"') if match[1] else match[2] for match in _IDENTIFIER.finditer(text))
    return {one for one in found if one}


def _bare(text: str) -> str | None:
    """The column that a text names and nothing else, if it may be one."""
    match = _IDENTIFIER.fullmatch(text.strip())
    if match and (match[1] or match[2]):
        return match[1].replace('""', '"') if match[1] else match[2]
    return None
