"""Raw history through HTTP = batch score to 1e-9, for 200 real customers of the embedded sample."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from features import table
from serving import policy, server
from serving.score import Engine
from tests.conftest import Shop
from tests.serving.raw import histories

CUSTOMERS = 200


@pytest.fixture(scope="module")
def client(package: Path, sample_features: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    from features.settings import Settings
    from serving.package import SERVICE

    settings = Settings(home=tmp_path_factory.mktemp("served"))
    env = server.environment(settings, sample_features.places.features, package, auth="off")
    with server.running(SERVICE, env, settings.home / "service.log") as address, httpx.Client(base_url=address, timeout=120) as found:
        yield found


@pytest.mark.parametrize("at", ["test", "latest"])
def test_raw_history_through_http_equals_the_batch(client: httpx.Client, package: Path, sample_features: Shop, at: str) -> None:
    manifest = table.read_manifest(sample_features.places.features)
    moment = getattr(manifest, at)
    engine = Engine.load(package / "model", policy.read())
    rows = table.read(sample_features.places.features, [moment])
    chosen = np.random.default_rng(11).choice(rows.num_rows, CUSTOMERS, replace=False)
    scored = engine.of_table(rows.take(chosen))
    ones = [(scored, place) for place in range(len(scored))]
    engine.foresee_all(ones)
    told = zip(ones, scored.customer_id, engine.explain_all(ones), strict=True)
    expected = {name: engine.answer(one, name, name, why) for one, name, why in told}
    from features import store

    with store.opened(sample_features.places.sources) as connection:
        bodies = histories(connection, list(expected))
    found = []
    for start in range(0, CUSTOMERS, 50):
        answer = client.post("/v1/score", json={"snapshot": moment.isoformat(), "customers": bodies[start : start + 50]})
        assert answer.status_code == 200, answer.text[:500]
        found += answer.json()["results"]
    gaps = [abs(one["churn_probability"] - expected[one["customer_id"]]["churn_probability"]) for one in found]
    assert len(gaps) == CUSTOMERS
    assert max(gaps) <= 1e-9
    names = ("churn_reason", "next_order_days")
    assert [[one[name] for name in names] for one in found] == [[expected[one["customer_id"]][name] for name in names] for one in found]
    assert [one["reasons"] for one in found] == [expected[one["customer_id"]]["reasons"] for one in found]


def test_a_killed_service_leaves_no_child(package: Path, sample_features: Shop, tmp_path: Path) -> None:
    from features.settings import Settings
    from serving.package import SERVICE

    env = server.environment(Settings(home=tmp_path), sample_features.places.features, package, auth="off")
    with server.running(SERVICE, env, tmp_path / "service.log") as address:
        port = address.rsplit(":", 1)[1]
    listening = subprocess.run(["python3", "-c", f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"], capture_output=True)
    assert listening.returncode != 0
