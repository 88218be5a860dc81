"""Removes persons from every file of a home: ``python -m serving.erase HOME`` does what `ask` has left to do.

The service asks when it erases somebody from the online store, and starts this; when it starts itself it looks for what a kill has left
undone. Files that hold the person are written anew without, each whole or not at all, one erasure after another and never beside a run
that writes the same files. The shop's own source files are the shop's.
"""

import fcntl
import os
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.files import locked, replacing, write_text

IDS = ("customer_id", "left_id", "right_id", "person_id")
ORDER = "order_id"
ASKED = Path("serving") / "erasing"
"""Folder of a home with a file for each person still to be removed."""


def erase(home: Path, pseudonym: str) -> list[Path]:
    """Rewrite the files under ``home`` without a customer; returns those that held the customer.

    An order's lines and deliveries name no customer: they go with the order.
    """
    files = [file for file in sorted(home.rglob("*.parquet")) if "bentoml" not in file.parts]
    schemas = {file: pq.read_schema(file).names for file in files}
    orders = {order for file in files for order in _orders(file, schemas[file], pseudonym)}
    ids = [file for file in files if _without(file, [name for name in IDS if name in schemas[file]], {pseudonym})]
    parts = [file for file in files if ORDER in schemas[file] and "customer_id" not in schemas[file]]
    lines = [file for file in parts if _without(file, [ORDER], orders)]
    return [*ids, *lines, *(file for file in home.rglob("*.db") if _vacuumed(file, pseudonym))]


def holds(home: Path, pseudonyms: Sequence[str]) -> bool:
    """Whether any Parquet file under ``home`` holds a customer, under any pseudonym."""
    for file in home.rglob("*.parquet"):
        names = pq.read_schema(file).names
        if any(_rows(file, [name], set(pseudonyms)) for name in IDS if name in names):
            return True
    return False


def _orders(file: Path, names: list[str], pseudonym: str) -> list[str]:
    if ORDER not in names or "customer_id" not in names:
        return []
    found: list[str] = pq.read_table(file, columns=[ORDER], filters=[("customer_id", "=", pseudonym)])[ORDER].to_pylist()
    return found


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
    with closing(sqlite3.connect(file, timeout=60)) as db:
        db.execute("VACUUM")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return True


def ask(home: Path, pseudonyms: Sequence[str]) -> Path:
    """Leave word of a person to remove, with all pseudonyms; the file goes when it is done."""
    return write_text(home / ASKED / uuid4().hex, "\n".join(pseudonyms))


def asked(home: Path) -> dict[Path, list[str]]:
    """Whom to remove, by the file that says so."""
    found = {}
    for file in sorted(file for file in (home / ASKED).glob("*") if not file.name.startswith(".")):
        with suppress(FileNotFoundError):  # done meanwhile
            found[file] = file.read_text(encoding="utf-8").split()
    return found


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
            with locked(home, wait=True):
                failed |= _erase_all(home)


def _erase_all(home: Path) -> set[Path]:
    """Do what is asked for; returns the words of those for whom that failed: the others do not wait, the next start tries again."""
    failed = set()
    for file, pseudonyms in asked(home).items():
        try:
            changed = {changed for one in pseudonyms for changed in erase(home, one)}
        except Exception as error:
            failed.add(file)
            print(f"an erasure failed: {type(error).__name__}", file=sys.stderr, flush=True)
            continue
        file.unlink(missing_ok=True)
        print(f"erased a customer from {len(changed)} file(s)", flush=True)
    return failed


if __name__ == "__main__":
    main()
