"""Removes a customer from every file of a home: ``python -m serving.erase HOME``, the pseudonym on standard input.

The service starts it after it has erased the customer from the online store. Parquet files that hold the customer are written anew without,
each whole or not at all; what is done already stays done if it is killed. The shop's own source files are the shop's.
"""

import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.files import replacing

IDS = ("customer_id", "left_id", "right_id", "person_id")


def erase(home: Path, pseudonym: str) -> list[Path]:
    """Rewrite the Parquet files under ``home`` without a customer; returns those that held the customer."""
    return [file for file in sorted(home.rglob("*.parquet")) if "bentoml" not in file.parts and _without(file, pseudonym)]


def _without(file: Path, pseudonym: str) -> bool:
    schema = pq.read_schema(file)
    ids = [name for name in IDS if name in schema.names]
    if not ids or not pq.read_table(file, columns=ids, filters=[[(name, "=", pseudonym)] for name in ids]).num_rows:
        return False
    rows = pq.ParquetFile(file)
    with replacing(file) as temporary, pq.ParquetWriter(temporary, rows.schema_arrow, compression="zstd") as writer:
        for batch in rows.iter_batches():
            for name in ids:
                batch = batch.filter(pc.fill_null(pc.not_equal(batch[name], pseudonym), True))
            writer.write_batch(batch)
    return True


def main() -> None:
    """Tell how many files changed, never whose."""
    changed = erase(Path(sys.argv[1]), sys.stdin.read().strip())
    print(f"erased a customer from {len(changed)} file(s)", flush=True)


if __name__ == "__main__":
    main()
