"""Persons are the connected components of what was known at the snapshot; shared identities link nobody."""

from datetime import datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import identity
from features.mapping import Identity
from tests.features.histories import MANIFEST, SNAPSHOT, connection, features_of, linked_rows, shop, tables
from tests.features.test_leakage import same, with_a_known_order

Link = tuple[str, str, int, int]
"""(left, right, days seen before the snapshot, days of delay); names that begin with c are customers, d devices."""
nodes = st.sampled_from([f"{kind}{number}" for kind in "cd" for number in range(8)])
links = st.lists(st.tuples(nodes, nodes, st.integers(-5, 20), st.integers(0, 8)), max_size=14)
LOOSE = Identity(max_customers=999, max_component=999)


def kind(node: str) -> str:
    return "customer" if node.startswith("c") else "device"


def joined(found: list[Link], guards: Identity = LOOSE, moments: tuple[datetime, ...] = (SNAPSHOT,)) -> dict[datetime, dict[str, str]]:
    """By moment: the person of each customer id with company."""
    connection = duckdb.connect(config={"threads": 1})
    seen = [SNAPSHOT - timedelta(days=days) for _, _, days, _ in found]
    columns = {
        "left_kind": [kind(a) for a, *_ in found],
        "left_id": [a for a, *_ in found],
        "right_kind": [kind(b) for _, b, *_ in found],
        "right_id": [b for _, b, *_ in found],
    }
    times = {"seen_at": seen, "arrived_at": [at + timedelta(days=late) for at, (*_, late) in zip(seen, found, strict=True)]}
    texts = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    connection.register("identities", pa.table(texts | {name: pa.array(v, pa.timestamp("us")) for name, v in times.items()}))
    identity.join(connection, moments, guards)
    rows = connection.sql("SELECT * FROM persons").fetchall()
    return {moment: {customer: person for at, customer, person in rows if at == moment} for moment in moments}


def oracle(found: list[Link], moment: datetime) -> dict[str, str]:
    """Depth-first search over the links known at the moment, one by one."""
    near: dict[str, set[str]] = {}
    for a, b, days, late in found:
        if SNAPSHOT - timedelta(days=days) + timedelta(days=late) <= moment and a != b:
            near.setdefault(a, set()).add(b)
            near.setdefault(b, set()).add(a)
    persons: dict[str, str] = {}
    for start in near:
        reached, waiting = {start}, [start]
        while waiting:
            fresh = near[waiting.pop()] - reached
            reached |= fresh
            waiting += fresh
        customers = sorted(node for node in reached if node.startswith("c"))
        if len(customers) > 1:
            persons |= dict.fromkeys(customers, customers[0])
    return persons


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(links)
def test_persons_are_the_components_known_at_each_snapshot(found: list[Link]) -> None:
    moments = (SNAPSHOT - timedelta(days=6), SNAPSHOT)
    assert joined(found, moments=moments) == {moment: oracle(found, moment) for moment in moments}


def test_a_long_chain_is_one_person() -> None:
    chain = [(f"c{n:03d}", f"d{n:03d}", 1, 0) for n in range(200)] + [(f"d{n:03d}", f"c{n + 1:03d}", 1, 0) for n in range(199)]
    assert set(joined(chain)[SNAPSHOT].values()) == {"c000"}


def test_a_device_shared_by_many_links_nobody() -> None:
    shared = [(f"c{n}", "d0", 1, 0) for n in range(6)] + [("c0", "d1", 1, 0), ("c1", "d1", 1, 0)]
    assert joined(shared, Identity(max_customers=4))[SNAPSHOT] == {"c0": "c0", "c1": "c0"}


def test_a_component_with_too_many_customers_is_left_apart() -> None:
    chain = [(f"c{n}", f"d{n}", 1, 0) for n in range(8)] + [(f"d{n}", f"c{n + 1}", 1, 0) for n in range(7)]
    assert joined(chain, Identity(max_customers=4, max_component=5))[SNAPSHOT] == {}


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(links, links)
def test_links_known_later_change_no_person_whatever_the_guards(found: list[Link], later: list[Link]) -> None:
    guards = Identity(max_customers=2, max_component=3)
    future = [(a, b, -1 - abs(days), late) for a, b, days, late in later]
    now = [link for link in found if link[3] <= link[2]]  # known by the snapshot
    assert joined(now + future, guards)[SNAPSHOT] == joined(now, guards)[SNAPSHOT]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(shop(2, 4), st.randoms(use_true_random=False))
def test_a_person_with_two_ids_has_the_features_of_the_same_events_under_one(customers: list[dict[str, Any]], random: Any) -> None:
    customers = with_a_known_order(customers)
    one, second = tables(customers), {name: f"{name}b" for name in ("c0", "c1")}
    two = {}
    for name, rows in one.items():
        if "customer_id" in rows.column_names and name != "customers":
            own = rows["customer_id"].to_pylist()
            ids = [second.get(id, id) if random.random() < 0.5 else id for id in own]
            if name == "events":  # a visit is one id's
                visits = [None if visit is None else f"{id} {visit}" for id, visit in zip(ids, rows["session_id"].to_pylist(), strict=True)]
                rows = rows.set_column(rows.column_names.index("session_id"), "session_id", pa.array(visits, pa.string()))
                one["events"] = rows
            rows = rows.set_column(rows.column_names.index("customer_id"), "customer_id", pa.array(ids, pa.string()))
        two[name] = rows
    seen = pa.array([SNAPSHOT - timedelta(days=300)] * 2, pa.timestamp("us"))
    ids = {"left_id": list(second), "right_id": list(second.values())}
    two["identities"] = pa.table(
        {"left_kind": ["customer"] * 2, "right_kind": ["customer"] * 2, **ids, "seen_at": seen, "arrived_at": seen}
    )
    database = connection(two)
    identity.join(database, [SNAPSHOT], LOOSE)
    assert MANIFEST.fitted is not None
    same(features_of(one), MANIFEST.fitted.apply(linked_rows(database, [SNAPSHOT])))


def test_two_accounts_of_one_person_are_one_row_from_the_link_on() -> None:
    order = {"ordered_at": SNAPSHOT - timedelta(days=50), "lines": [{"quantity": 1.0, "amount": 10.0}]}
    shop = [{"customer_id": name, "orders": [dict(order)]} for name in ("c1", "c2", "c3")]
    links = [("c1", "d", 30, 0), ("c2", "d", 10, 0)]  # together known 10 days before the snapshot
    moments = [SNAPSHOT - timedelta(days=20), SNAPSHOT]
    connection = duckdb.connect()
    for name, rows in tables(shop).items():
        connection.register(name, rows)
    seen = [SNAPSHOT - timedelta(days=days) for _, _, days, _ in links]
    texts = {"left_kind": ["customer"] * 2, "left_id": ["c1", "c2"], "right_kind": ["device"] * 2, "right_id": ["d", "d"]}
    connection.register("identities", pa.table(texts | {"seen_at": pa.array(seen, pa.timestamp("us")), "arrived_at": seen}))
    identity.join(connection, moments, LOOSE)
    rows = linked_rows(connection, moments)
    by_moment = {
        moment: dict(zip(part["customer_id"].to_pylist(), part["frequency_orders"].to_pylist(), strict=True))
        for moment in moments
        if (part := rows.filter(pa.compute.equal(rows["snapshot"], pa.scalar(moment, pa.timestamp("us")))))
    }
    assert by_moment[moments[0]] == {"c1": 1.0, "c2": 1.0, "c3": 1.0}
    assert by_moment[moments[1]] == {"c1": 2.0, "c3": 1.0}


@pytest.mark.parametrize("ids", [["c1", "c1"], ["c1", "c2"]])
def test_a_day_learnt_of_in_parts_or_under_two_ids_is_one_day(ids: list[str]) -> None:
    """As a snapshot alone sees it: the other snapshot must not show."""
    day, earlier = SNAPSHOT - timedelta(days=20), SNAPSHOT - timedelta(days=15)
    parts = [
        {"happened_at": day, "arrived_at": arrived, "kind": "view", "seconds": 60.0} for arrived in (day, SNAPSHOT - timedelta(days=9))
    ]
    order = {"ordered_at": SNAPSHOT - timedelta(days=50), "lines": [{"quantity": 1.0, "amount": 10.0}]}

    def found(names: list[str]) -> dict[str, pa.Table]:
        people: dict[str, dict[str, Any]] = {name: {"customer_id": name, "orders": [], "events": []} for name in names}
        for number, (name, part) in enumerate(zip(names, parts, strict=True)):
            people[name]["orders"].append({**order, "order_id": f"o{number}"})
            people[name]["events"].append(part)
        return tables(list(people.values()))

    two, seen = found(ids), pa.array([SNAPSHOT - timedelta(days=30)], pa.timestamp("us"))
    pair = {"left_kind": ["customer"], "right_kind": ["customer"], "left_id": ["c1"], "right_id": [ids[1]]}
    two["identities"] = pa.table(pair | {"seen_at": seen, "arrived_at": seen})
    database = connection(two)
    identity.join(database, [earlier, SNAPSHOT], LOOSE)
    rows = linked_rows(database, [earlier, SNAPSHOT])
    assert MANIFEST.fitted is not None
    late = rows.filter(pa.compute.equal(rows["snapshot"], pa.scalar(SNAPSHOT, pa.timestamp("us"))))
    assert late["browse_days_total"].to_pylist() == [1.0]
    same(features_of(found(["c1", "c1"])), MANIFEST.fitted.apply(late))
