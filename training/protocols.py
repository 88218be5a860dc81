"""The published protocols that models are judged by: which data, which test snapshot, which customers. Nothing here is tuned."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features import mapping
from features.errors import InputError
from features.mapping import Churn, Dataset, Snapshots
from training.models.base import Floats, Rows

SHOP_CUSTOMERS, SHOP_SEED = 3_000, 11
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Population:
    """The test rows that a figure is about: a filter of known features."""

    name: str
    keep: Callable[[Rows], Mask]


def _everyone(rows: Rows) -> Mask:
    return np.ones(len(rows), dtype=bool)


def _active_180(rows: Rows) -> Mask:
    return np.asarray(rows.column("recency_days") <= 180)


def _eligible_45(rows: Rows) -> Mask:
    """At least two invoices in the 180 days before the snapshot, the last one at most 81 days ago."""
    return np.asarray((rows.column("recency_days") <= 81) & (rows.column("orders_180d") >= 2))


ALL, ACTIVE_180, ELIGIBLE_45 = Population("all", _everyone), Population("active-180", _active_180), Population("eligible", _eligible_45)


@dataclass(frozen=True)
class Protocol:
    """One data set with its test snapshot and the populations that it is read by.

    ``dataset`` makes the mapping from (folder of data that are not shipped, folder to write to); ``truth`` gives the true churn
    probability of (folder, customer ids, snapshot, horizon), for simulated data.
    """

    name: str
    dataset: Callable[[Path | None, Path], Dataset]
    populations: tuple[Population, ...]
    truth: Callable[[Path, list[str], datetime, int], Floats] | None = None


def _orii(
    test: str, first: str, every: int, horizon_days: int = 90, only_second_sheet: bool = False
) -> Callable[[Path | None, Path], Dataset]:
    def dataset(data: Path | None, folder: Path) -> Dataset:
        sample = mapping.read()
        tables = sample.tables
        if only_second_sheet:
            second = {name: f"({table.where}) AND sheet = 'Year 2010-2011'" for name, table in tables.items()}
            tables = {name: table.model_copy(update={"where": second[name]}) for name, table in tables.items()}
        churn = Churn(horizon_days=horizon_days, lookback_days=sample.churn.lookback_days)
        moments = Snapshots(first=date.fromisoformat(first), test=date.fromisoformat(test), every=every)
        return sample.model_copy(update={"churn": churn, "snapshots": moments, "tables": tables})

    return dataset


def _cdnow(data: Path | None, folder: Path) -> Dataset:
    file = Path(str(resources.files("features") / "data" / "cdnow.toml"))
    if data is None or not (data / "cdnow.parquet").exists():
        raise InputError("CDNOW-98", "needs cdnow.parquet, which is not shipped", "give its folder: --data FOLDER")
    found = mapping.read(file).model_copy(update={"file": data / "cdnow.toml"})
    return found.model_copy(update={"snapshots": Snapshots(first=date(1997, 4, 1), test=date(1998, 4, 1), every=30)})


def _shop(data: Path | None, folder: Path) -> Dataset:
    from features.simulate import simulate

    return mapping.read(simulate(folder / "shop", SHOP_CUSTOMERS, SHOP_SEED))


def _shop_truth(folder: Path, customer_ids: list[str], snapshot: datetime, horizon_days: int) -> Floats:
    """True probabilities of the table's customers, who are known by their pseudonyms."""
    import pyarrow.parquet as pq

    from features.pseudonym import Pseudonyms
    from features.simulate import true_churn_probability

    truth, assignments = (pq.read_table(folder / "shop" / name) for name in ("truth", "truth_assignments"))
    true = true_churn_probability(truth, snapshot, horizon_days, assignments)
    pseudonym = Pseudonyms.of(False)
    by_id: dict[str, Any] = dict(zip(map(pseudonym, truth["customer_id"].to_pylist()), true.tolist(), strict=True))
    return np.array([by_id.get(customer, np.nan) for customer in customer_ids])


PROTOCOLS = (
    Protocol("ORII-Sep", _orii("2011-09-01", "2010-02-01", 30), (ALL, ACTIVE_180)),
    Protocol("ORII-Jun", _orii("2011-06-01", "2010-02-01", 30), (ALL, ACTIVE_180)),
    Protocol("UCI-45-year", _orii("2011-10-17", "2011-01-01", 15, 45, True), (ELIGIBLE_45,)),
    Protocol("UCI-45-both", _orii("2011-10-17", "2010-02-01", 30, 45), (ELIGIBLE_45,)),
    Protocol("CDNOW-98", _cdnow, (ALL, ACTIVE_180)),
    Protocol("fake-shop", _shop, (ALL, ACTIVE_180), _shop_truth),
)
"""In the order of the results table. UCI-45 is the protocol of github.com/sgevatschnaider/customer-churn-decisioning-platform (MIT): its
eligible customers, its label of 45 days, its test snapshot; training snapshots are ours, all with labels that end before the test."""


def of_mapping(file: Path) -> Protocol:
    """The protocol of a shop's own mapping file: its test snapshot, all customers and the active ones."""
    dataset = mapping.read(file)
    return Protocol(dataset.name, lambda data, folder: dataset, (ALL, ACTIVE_180))
