"""A small seeded fake shop whose files look nothing like the sample's: other names, cents, several files, CSV, UTC.

Synthetic. Each customer orders at an own, fairly regular rhythm and leaves after an order with a probability
that is low, but high after a refund or in Switzerland; some orders arrive a day late, some are cancelled. So
there is more to learn than BG/NBD can (which takes gaps for exponential and leaving for blind chance).
"""

import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

START, DAYS = datetime(2023, 1, 1, tzinfo=UTC), 420
HORIZON_DAYS = 30
MAPPING = """\
name = "fake_shop"
timezone = "Europe/Berlin"
currency = "EUR"
personal = false
[churn]
horizon_days = {horizon}
lookback_days = inf
[segments]
high_value_per_year = 1500
[tables.orders]
path = "sales-*.csv"
where = "state <> 'test'"
[tables.orders.columns]
order_id = "'O' || no"
customer_id = "client"
ordered_at = "placed"
arrived_at = "loaded"
cancelled_at = "voided"
[tables.order_lines]
path = "positions.csv.gz"
[tables.order_lines.columns]
order_id = "'O' || sale_no"
product_id = "sku"
quantity = "pieces"
amount = "pieces * cents / 100.0"
discount = "off_cents / 100.0"
[tables.returns]
path = "refunds.csv"
[tables.returns.columns]
return_id = "refund"
customer_id = "client"
returned_at = "asked"
quantity = "pieces"
amount = "cents / 100.0"
[tables.customers]
path = "clients.parquet"
[tables.customers.columns]
customer_id = "client"
registered_at = "since"
country = "land"
"""


def write(folder: Path, customers: int = 500, seed: int = 7) -> Path:
    """Write the shop's files and its mapping file; returns the mapping file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    sales, positions, refunds, clients = [], [], [], []
    for client in range(customers):
        land = str(rng.choice(["DE", "AT", "CH"], p=[0.7, 0.2, 0.1]))
        joined = START + timedelta(days=float(rng.uniform(0, DAYS - 60)))
        clients.append({"client": f"k{client:05d}", "since": joined.replace(tzinfo=None), "land": land})
        _client(rng, f"k{client:05d}", land, joined, sales, positions, refunds)
    sales.append(
        {"no": 999_999, "client": "k00000", "placed": START.isoformat(), "loaded": START.isoformat(), "voided": "", "state": "test"}
    )
    half = len(sales) // 2
    _csv(folder / "sales-2023.csv", sales[:half])
    _csv(folder / "sales-2024.csv", sales[half:])
    _csv(folder / "positions.csv.gz", positions)
    _csv(folder / "refunds.csv", refunds)
    pq.write_table(pa.Table.from_pylist(clients), folder / "clients.parquet")
    mapping = folder / "fake_shop.toml"
    mapping.write_text(MAPPING.format(horizon=HORIZON_DAYS))
    return mapping


def _client(rng: np.random.Generator, client: str, land: str, joined: datetime, sales: list, positions: list, refunds: list) -> None:
    rhythm = float(np.clip(rng.lognormal(2.6, 0.6), 4, 45))
    moment, end = joined, START + timedelta(days=DAYS)
    while moment < end:
        number = len(sales) + 1
        loaded = moment + timedelta(days=1) * float(rng.random() < 0.05)
        voided = moment + timedelta(days=3) if rng.random() < 0.02 else None
        sales.append(
            {
                "no": number,
                "client": client,
                "placed": moment.isoformat(timespec="seconds"),
                "loaded": loaded.isoformat(timespec="seconds"),
                "voided": voided.isoformat(timespec="seconds") if voided else "",
                "state": "ok",
            }
        )
        hurt = False
        for _ in range(int(rng.integers(1, 5))):
            cents, off = int(rng.lognormal(7.5, 0.8)) + 1, int(rng.integers(0, 200)) * int(rng.random() < 0.3)
            line = {
                "sale_no": number,
                "sku": f"s{rng.integers(0, 80):03d}",
                "pieces": int(rng.integers(1, 4)),
                "cents": cents,
                "off_cents": off,
            }
            positions.append(line)
            if rng.random() < 0.05:
                hurt = True
                asked = (moment + timedelta(days=2)).isoformat(timespec="seconds")
                refunds.append({"refund": f"r{len(refunds)}", "client": client, "asked": asked, "pieces": 1, "cents": cents})
        if rng.random() < (0.8 if hurt else 0.25 if land == "CH" else 0.04):
            return
        moment += timedelta(days=rhythm * float(rng.gamma(8, 1 / 8)) + 0.01)


def _csv(path: Path, rows: list[dict]) -> None:
    import gzip

    opened = gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="")
    with opened as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
