"""Features against a naive oracle written row by row, and the feature table's own promises."""

import math
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from features import table
from features.family import HIGHEST, LOWEST
from features.table import FAMILIES
from tests.conftest import Shop
from tests.features.histories import MANIFEST, SNAPSHOT, features


def purchase(
    days_ago: float, *amounts: float, order_id: str, product: str = "p1", cancelled_days_ago: float | None = None
) -> dict[str, object]:
    return {
        "order_id": order_id,
        "ordered_at": SNAPSHOT - timedelta(days=days_ago),
        "arrived_at": None,
        "cancelled_at": None if cancelled_days_ago is None else SNAPSHOT - timedelta(days=cancelled_days_ago),
        "lines": [{"product_id": product, "quantity": 2.0, "amount": amount, "discount": amount / 4} for amount in amounts],
    }


@pytest.fixture(scope="module")
def row() -> dict[str, float]:
    orders = [
        purchase(400, 10.0, order_id="a"),
        purchase(100, 30.0, 30.0, order_id="b", product="p2"),
        purchase(90, 20.0, order_id="c"),
        purchase(40, 50.0, order_id="d", product="p3"),
        purchase(5, 99.0, order_id="void", cancelled_days_ago=1),
    ]
    given_back = [{"return_id": "r", "returned_at": SNAPSHOT - timedelta(days=20), "arrived_at": None, "quantity": 1.0, "amount": 15.0}]
    attributes = {"registered_at": SNAPSHOT - timedelta(days=500), "country": "FR"}
    found = features([{"customer_id": "c", "orders": orders, "returns": given_back, "attributes": attributes}])
    return {name: found[name][0].as_py() for name in found.column_names}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("recency_days", 40.0),
        ("frequency_orders", 4.0),
        ("monetary_net", 140.0 - 15.0),
        ("tenure_days", 400.0),
        ("recency_over_tenure", 0.1),
        ("orders_30d", 0.0),
        ("orders_60d", 1.0),
        ("orders_90d", 1.0),  # the order exactly 90 days ago lies outside (t - 90, t]
        ("orders_180d", 3.0),
        ("spend_365d", 130.0),
        ("units_365d", 8.0),
        ("lines_365d", 4.0),
        ("products_365d", 3.0),
        ("orders_90d_share_of_180d", 1 / 3),
        ("orders_90d_change", 1.0 - 2.0),
        ("gap_mean_days", 120.0),
        ("gap_median_days", 50.0),
        ("gap_max_days", 300.0),
        ("gap_last_days", 50.0),
        ("gap_std_days", math.sqrt(((300 - 120) ** 2 + (10 - 120) ** 2 + (50 - 120) ** 2) / 2)),
        ("silence_over_gap_mean", 40 / 120),
        ("order_value_mean", 35.0),
        ("order_value_first", 10.0),
        ("order_value_last", 50.0),
        ("order_value_max", 60.0),
        ("order_lines_mean", 1.25),
        ("product_repeat_share", 0.25),
        ("product_top_share", 0.5),
        ("discount_share", 0.2),
        ("discounted_order_share", 1.0),
        ("returns_total", 1.0),
        ("return_recency_days", 20.0),
        ("returns_90d", 1.0),
        ("orders_next_window_year_ago", 0.0),
        ("orders_past_window_year_ago", 1.0),
        ("known_year_ago", 1.0),
        ("active_months", 3.0),
        ("country_rank", 1.0),
        ("lifecycle_stage", "active"),
        ("plan_stage", "silent"),
        ("value_segment", "standard"),
    ],
)
def test_a_feature_of_a_known_history(row: dict[str, float], name: str, expected: object) -> None:
    assert row[name] == pytest.approx(expected) if isinstance(expected, float) else row[name] == expected


def test_the_weeks_hold_the_same_history(row: dict[str, float]) -> None:
    channels = len(MANIFEST.channels)
    weeks = np.zeros(52 * channels)
    weeks[row["week_cells"]] = row["week_values"]
    weeks = weeks.reshape(52, channels)
    assert np.expm1(weeks[:, 0]).round().sum() == 3  # orders of the last 364 days
    assert np.expm1(weeks[51 - 40 // 7, 1]) == pytest.approx(50.0, rel=1e-5)


def test_every_family_computes_exactly_what_it_declares() -> None:
    names = [feature.name for family in FAMILIES for feature in family.features]
    assert len(names) == len(set(names)) >= 60
    assert MANIFEST.names[: len(names)] == names


def test_every_feature_reads_as_a_sentence() -> None:
    for feature in MANIFEST.features:
        assert "{value}" in feature.words or feature.unit == "flag"
        assert "{" not in feature.render(0.5) + feature.render(1.0)
        assert "not known" in feature.render(math.nan)


def test_the_sample_has_the_published_test_population(sample_features: Shop) -> None:
    """5,249 past buyers on 2011-09-01, 57.3 % of whom order nothing in 90 days (the data's reference points)."""
    manifest = table.read_manifest(sample_features.places.features)
    rows = table.read(sample_features.places.features, [manifest.test])
    assert rows.num_rows == 5249
    assert rows["churned"].to_numpy().mean() == pytest.approx(0.573, abs=5e-4)
    assert len(manifest.names) >= 60


def test_values_keep_to_the_bounds_of_their_unit(sample_features: Shop) -> None:
    manifest = table.read_manifest(sample_features.places.features)
    rows = table.read(sample_features.places.features)
    for feature in manifest.features:
        values = rows[feature.name].to_numpy()
        assert np.nanmin(values) >= LOWEST.get(feature.unit, -np.inf) - 1e-9, feature.name
        assert np.nanmax(values) <= HIGHEST.get(feature.unit, np.inf) + 1e-9, feature.name


def test_scores_are_fitted_on_the_earliest_training_snapshots_only(sample_features: Shop) -> None:
    from features.scores import Fitted
    from training.dataset import TrainingData

    data = TrainingData.read(sample_features.places.features)
    base = table.read(sample_features.places.features, data.split.base)
    assert Fitted.fit(base) == data.manifest.fitted


def test_a_rebuilt_table_is_the_same_to_the_byte(sample_features: Shop) -> None:
    from features import mapping
    from features.files import sha256
    from validation.stages import build_features

    before = sha256(sample_features.places.features)
    build_features(mapping.read(), sample_features.places)
    assert sha256(sample_features.places.features) == before


def test_a_table_cut_into_parts_is_the_same_table(sample_features: Shop) -> None:
    from features import reduce, store
    from features.profile import from_arrow

    manifest = table.read_manifest(sample_features.places.features)
    with store.opened(sample_features.places.sources) as connection:
        relations = reduce.relations(manifest.tables, [manifest.test])
        profile = from_arrow({kind: connection.sql(reduce.to_sql(rows)).to_arrow_table() for kind, rows in relations.items()})
    whole = next(table.fold(profile, [manifest.test], manifest))
    cut = pa.concat_tables([rows for part in profile.parts(100_000) for rows in table.fold(part, [manifest.test], manifest)])
    assert cut["customer_id"].num_chunks > 1
    assert cut.combine_chunks().to_pandas().equals(whole.to_pandas())
