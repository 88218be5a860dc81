"""Three real customers that tell the story: one leaving, one loyal, one new."""

from pathlib import Path
from typing import Any

import numpy as np

from features import table
from serving import server
from serving.schemas import MAX_CUSTOMERS

LEAVING_MIN_ORDERS = 4
LEAVING_MAX_SILENCE_DAYS = 270


def ask(address: str, features: Path) -> dict[str, Any]:
    """What the service says of the three, and which model it serves.

    The one who is leaving is the customer with the highest probability among those asked about who ordered
    often and still recently; the loyal one orders most regularly; the new one ordered first most lately.
    """
    candidates, loyal, new = choose(features)
    scored = _score(address, list(dict.fromkeys([*candidates, loyal, new])))
    leaving = max(candidates, key=lambda customer: scored[customer]["churn_probability"])
    chosen = {"leaving": leaving, "loyal": loyal, "new": new}
    return {"model": server.ask(f"{address}/v1/model"), "customers": {who: scored[customer] for who, customer in chosen.items()}}


def choose(features: Path) -> tuple[list[str], str, str]:
    """From the latest snapshot: candidates for the one leaving, the most regular and the newest customer."""
    manifest = table.read_manifest(features)
    rows = table.read(features, [manifest.latest] if manifest.latest else None)
    ids = rows["customer_id"].to_pylist()
    silence, orders = rows["recency_days"].to_numpy(), rows["frequency_orders"].to_numpy()
    fading = np.where(
        (orders >= LEAVING_MIN_ORDERS) & (silence <= LEAVING_MAX_SILENCE_DAYS), rows["silence_over_gap_mean"].to_numpy(), -1.0
    )
    loyal = rows["active_months"].to_numpy() + rows["orders_90d"].to_numpy() / 1000
    new = np.where(orders <= 2, -silence, -np.inf)
    candidates = np.argsort(-np.nan_to_num(fading, nan=-1.0), kind="stable")[: MAX_CUSTOMERS // 10]
    return [ids[row] for row in candidates], ids[int(loyal.argmax())], ids[int(new.argmax())]


def _score(address: str, customers: list[str]) -> dict[str, Any]:
    answer = server.ask(f"{address}/v1/score", {"customers": [{"customer_id": customer} for customer in customers]})
    return {result["customer_id"]: result for result in answer["results"]}
