"""Removes persons from the online store and every file of a home: ``python -m serving.erase HOME`` does what `ask` has left to do.

The service asks when it erases somebody from the online store, and starts this; when it starts itself it looks for what a kill has left
undone. Files that hold the person are written anew without, each whole or not at all, one erasure after another and never beside a run
that writes the same files. The shop's own source files are the shop's.
"""

import fcntl
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.files import locked, replacing, write_text
from features.settings import Settings
from serving.online import BUSY_SECONDS
from serving.sqlite_store import SqliteStore, emptied

IDS = ("customer_id", "left_id", "right_id", "person_id")
ORDER = "order_id"
ASKED = Path("serving") / "erasing"
"""Folder of a home with a file for each person still to be removed."""
FAULTS = (pa.ArrowException, OSError, sqlite3.Error)
"""How a file fails that is odd, empty, broken or in use."""
SETTLE_SECONDS = 10.0
"""How long readers of a database are waited for; then it is tried again later."""
Result = TypeVar("Result")


@dataclass
class Erased:
    """What one removal did to the files of a home."""

    changed: set[Path] = field(default_factory=set)
    failed: dict[Path, str] = field(default_factory=dict)
    """Files that could not be read or written, which may hold the customer still, and the kind of the error."""

    def each(self, files: Iterable[Path], step: Callable[[Path], Result]) -> dict[Path, Result]:
        """The result of a step by file; one that fails keeps no other waiting."""
        results = {}
        for file in files:
            try:
                results[file] = step(file)
            except FAULTS as error:
                self.failed[file] = type(error).__name__
        return results


def erase(home: Path, pseudonym: str) -> Erased:
    """Rewrite the files under ``home`` without a customer.

    An order's lines and deliveries name no customer: they go with the order.
    """
    done, customer = Erased(), {pseudonym}
    texts = done.each((file for file in _tables(home) if "bentoml" not in file.parts), _texts)
    # a return names its order too, which may be missing, or somebody else's
    ordered = [file for file, names in texts.items() if {ORDER, "customer_id"} <= names and "return_id" not in names]
    orders = {order for some in done.each(ordered, partial(_orders, pseudonym=pseudonym)).values() for order in some}
    parts = [file for file, names in texts.items() if ORDER in names and "customer_id" not in names]
    without = done.each(texts, lambda file: _without(file, [name for name in IDS if name in texts[file]], customer))
    without_orders = done.each(parts, lambda file: _without(file, [ORDER], orders))
    vacuumed = done.each(sorted(home.rglob("*.db")), partial(_vacuumed, pseudonym=pseudonym))
    done.changed |= {file for steps in (without, without_orders, vacuumed) for file, changed in steps.items() if changed}
    return done


def holds(home: Path, pseudonyms: Sequence[str]) -> bool:
    """Whether any Parquet file under ``home`` that can be read holds a customer, under any pseudonym."""
    for file in _tables(home):
        with suppress(*FAULTS):
            if any(_rows(file, [name], set(pseudonyms)) for name in _texts(file).intersection(IDS)):
                return True
    return False


def _tables(home: Path) -> list[Path]:
    return [file for file in sorted(home.rglob("*.parquet")) if file.is_file()]


def _texts(file: Path) -> set[str]:
    """Columns that can hold a pseudonym: a number is none, whatever the column is called."""
    return {column.name for column in pq.read_schema(file) if _is_text(column.type)}


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(one(value) for one in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary))


def _orders(file: Path, pseudonym: str) -> list[str]:
    found: list[str] = pq.read_table(file, columns=[ORDER], filters=[("customer_id", "=", pseudonym)])[ORDER].to_pylist()
    return [order for order in found if order is not None]


def _without(file: Path, columns: list[str], values: set[str]) -> bool:
    """Rewrite a file without the rows that have one of some values in one of some columns; False where it has none."""
    if not columns or not values:
        return False
    if not _rows(file, columns, values):
        return False
    rows, gone = pq.ParquetFile(file), pa.array(sorted(values))
    with replacing(file) as temporary, pq.ParquetWriter(temporary, rows.schema_arrow, compression="zstd") as writer:
        for batch in rows.iter_batches():
            for name in columns:
                batch = batch.filter(pc.invert(pc.is_in(batch[name], gone)))
            writer.write_batch(batch)
    return True


def _rows(file: Path, columns: list[str], values: set[str]) -> int:
    """How many rows have one of some values in one of some columns."""
    found: int = pq.read_table(file, columns=columns, filters=[[(name, "in", values)] for name in columns]).num_rows
    return found


def _vacuumed(file: Path, pseudonym: str) -> bool:
    """Rewrite an SQLite file in whose unused bytes the customer is still found: pages that were split keep old copies."""
    if pseudonym.encode() not in file.read_bytes():
        return False
    _settle(file)
    if pseudonym.encode() in file.read_bytes():
        with closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as db:
            db.execute("VACUUM")
        _settle(file)
    return True


def _settle(file: Path) -> None:
    """Have an SQLite file hold what its log ahead says, and the log hold nothing. Raises OperationalError where a reader stays."""
    end = time.monotonic() + SETTLE_SECONDS
    with closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as db:
        while not emptied(db):
            if time.monotonic() > end:
                raise sqlite3.OperationalError("somebody reads on and on")
            time.sleep(0.05)


def ask(home: Path, pseudonyms: Sequence[str]) -> Path:
    """Leave word of a person to remove, with all pseudonyms; the file goes when it is done."""
    return write_text(home / ASKED / uuid4().hex, "\n".join(pseudonyms))


def asked(home: Path) -> dict[Path, list[str]]:
    """Whom to remove, by the file that says so."""
    found = {}
    for file in _words(home):
        with suppress(FileNotFoundError):  # done meanwhile
            found[file] = file.read_text(encoding="utf-8").split()
    return found


def overdue(home: Path, seconds: float) -> bool:
    """Whether somebody was to be removed so long ago: an eraser was killed, or something was in its way."""
    for file in _words(home):
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > seconds:
                return True
    return False


def _words(home: Path) -> list[Path]:
    return sorted(file for file in (home / ASKED).glob("*") if not file.name.startswith("."))


def main() -> None:
    """Tell how many files changed, never whose. One process does what all have asked for; the others are not needed."""
    if os.fork():  # the service's supervisor ends whatever its workers have started: this work is to be finished
        return
    os.setsid()
    home, failed = Path(sys.argv[1]), set[Path]()
    while set(asked(home)) - failed:  # asked again after the lock is free: who found it taken has left word before
        with (home / ASKED / ".lock").open("w") as alone:
            try:
                fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            failed |= erase_all(home)


def erase_all(home: Path) -> set[Path]:
    """Do what is asked for; returns the words of those for whom that failed: the others do not wait, the service tries again later."""
    words = asked(home)
    persons = {word: _tried(partial(_from_store, home, word, names)) for word, names in words.items()}
    with locked(home, wait=True):
        done = {word for word, ids in persons.items() if ids is not None and _tried(partial(_from_files, home, ids))}
    if done and not _tried(partial(_from_log, home)):
        return set(words)
    for word in done:
        word.unlink(missing_ok=True)
    return set(words) - done


def _tried(step: Callable[[], Result]) -> Result | None:
    """The result of a step, None where it failed."""
    try:
        return step()
    except Exception as error:
        _tell(f"an erasure failed: {type(error).__name__}")
        return None


def _store_file(home: Path) -> Path:
    return Settings().online or home / "online.db"


def _from_store(home: Path, word: Path, names: list[str]) -> list[str]:
    """Erase a person from the online store, which a worker may not have come to after it left word; returns all ids of the person."""
    if not _store_file(home).exists():
        return names
    store = SqliteStore(_store_file(home))
    if more := {id for name in names for id in store.ids_of(name)}.difference(names):
        names = [*names, *sorted(more)]
        write_text(word, "\n".join(names))  # the store's word on who is one person goes with the person
    return sorted({id for name in names for id in store.erase(name)})


def _from_log(home: Path) -> bool:
    """Empty the online store's log, which holds what was erased until nobody reads it any more."""
    if _store_file(home).exists():
        _settle(_store_file(home))
    return True


def _from_files(home: Path, ids: list[str]) -> bool:
    """Whether a person is in no file of the home any more."""
    done = [erase(home, one) for one in ids]
    changed = {file for one in done for file in one.changed}
    faults = {file: kind for one in done for file, kind in one.failed.items()}
    print(f"erased a customer from {len(changed)} file(s)", flush=True)
    for file, kind in faults.items():
        _tell(f"an erasure has to be tried again: {file.relative_to(home)} could not be read or written ({kind}); mend or remove it")
    return not faults


def _tell(fault: str) -> None:
    print(fault, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
