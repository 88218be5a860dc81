"""Histories at the edges: nothing known yet, or an order without lines."""

from datetime import timedelta

from tests.features.histories import MANIFEST, SNAPSHOT, arrays_of, features, tables

ORDER = {"order_id": "o", "arrived_at": None, "cancelled_at": None, "lines": [], "amount": 3.0}


def customer(days: float) -> dict[str, object]:
    order = {**ORDER, "ordered_at": SNAPSHOT + timedelta(days=days)}
    return {"customer_id": "c", "orders": [order], "returns": [], "attributes": None}


def test_a_customer_whose_first_order_is_still_to_come_has_no_row() -> None:
    assert features([customer(5)]).num_rows == 0


def test_an_order_without_lines_counts_with_its_own_amount() -> None:
    row = features([customer(-5)])
    assert (row["frequency_orders"][0].as_py(), row["order_value_mean"][0].as_py()) == (1.0, 3.0)
    assert (
        row["product_repeat_share"][0].as_py() is None
        or row["product_repeat_share"].to_numpy()[0] != row["product_repeat_share"].to_numpy()[0]
    )


def test_arrays_of_nobody_have_no_rows_but_every_feature() -> None:
    rows = arrays_of(tables([customer(5)]))
    assert (len(rows), rows.customer_id, rows.x_NF.shape) == (0, [], (0, len(MANIFEST.names)))
    assert (rows.lists.num_rows, rows.texts["lifecycle_stage"]) == (0, [])
