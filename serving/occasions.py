"""Moments that ask for a decision [S 4]: what in a new event plans one, what calls it off, and who has one today in a feature table."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from features.domain import HORIZON_DAYS
from serving.policy import Occasion

FIRST_ORDER = timedelta(days=1)
CART = timedelta(hours=24)
"""A cart not paid for so long has been left."""
YEAR = timedelta(days=365)
Planned = dict[Occasion, timedelta | None]
"""How long after the event; None: the occasion is off."""


def of_event(table: str, row: Mapping[str, Any], first: bool) -> Planned:
    """What a new row of a canonical table plans and calls off; ``first``: nothing was known of the customer before."""
    if table == "orders" and row.get("cancelled_at"):
        return {Occasion.FIRST_ORDER: None, Occasion.ANNIVERSARY: None} if first else {}
    if table == "orders":
        began: Planned = {Occasion.FIRST_ORDER: FIRST_ORDER, Occasion.ANNIVERSARY: YEAR} if first else {}
        return {Occasion.CART_LEFT: None, Occasion.SILENT: timedelta(days=HORIZON_DAYS), **began}
    if table == "events":
        kind = row["kind"]
        return {Occasion.CART_LEFT: CART} if kind == "add_to_cart" else {Occasion.CART_LEFT: None} if kind == "pay" else {}
    if table == "tickets" and row.get("complaint"):
        return {Occasion.COMPLAINT: None if row.get("resolved_at") else timedelta(0)}
    return {}


def today(occasion: Occasion, rows: pa.Table) -> Any:
    """Which rows of a feature table have the occasion on the day before their snapshot, shape (n,) of bool.

    An anniversary is that of the first order. Where the table lacks the source nobody has the occasion.
    """
    within = {
        Occasion.FIRST_ORDER: lambda: (_column(rows, "frequency_orders") == 1) & _lies(_column(rows, "recency_days"), 1, 2),
        Occasion.ANNIVERSARY: lambda: (_column(rows, "tenure_days") >= YEAR.days) & (_column(rows, "tenure_days") % YEAR.days < 1),
        Occasion.SILENT: lambda: _lies(_column(rows, "recency_days"), HORIZON_DAYS, HORIZON_DAYS + 1),
        Occasion.CART_LEFT: lambda: _column(rows, "tp_cart_left") > 0,
        Occasion.COMPLAINT: lambda: _column(rows, "complaints_open") > 0,
    }
    return np.asarray(within[occasion]())


def _column(rows: pa.Table, name: str) -> Any:
    return rows[name].to_numpy() if name in rows.column_names else np.full(rows.num_rows, np.nan)


def _lies(days: Any, low: float, high: float) -> Any:
    return (days >= low) & (days < high)
