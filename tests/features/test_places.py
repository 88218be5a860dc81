"""The same shop read from a real PostgreSQL and from S3-compatible storage gives the same canonical tables as from disk."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from features import databases, mapping, sources
from features.pseudonym import of_dataset
from features.simulate import simulate
from features.store import Store

SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
BUCKET = "shop"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("shop"), 300)


def loaded(file: Path, folder: Path) -> Store:
    dataset = mapping.read(file)
    return sources.load(dataset, folder / "sources.json", of_dataset(dataset))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def remapped(shop: Path, folder: Path, place: str) -> Path:
    """The shop's mapping file with every table somewhere else; ``place`` has the table's name as {name}."""
    text = shop.read_text()
    for name in mapping.read(shop).tables:
        text = text.replace(f'path = "{name}/*.parquet"', place.format(name=name))
    file = folder / "elsewhere.toml"
    file.write_text(text)
    return file


@contextmanager
def postgres() -> Iterator[str]:
    """URL of an empty PostgreSQL that lives as long as the block; it will not run as root."""
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="holdfast-postgres-"))
    if user:
        shutil.chown(folder, user)
    port, data, bin = free_port(), str(folder / "data"), SERVERS[-1]
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    subprocess.run([bin / "initdb", "-D", data, "-U", "shop", "-A", "trust"], user=user, check=True, capture_output=True, cwd=folder)
    start = [bin / "pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start"]
    subprocess.run(start, user=user, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    try:
        yield f"postgresql+psycopg://shop@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([bin / "pg_ctl", "-D", data, "-m", "immediate", "stop"], user=user, check=True, capture_output=True, cwd=folder)
        shutil.rmtree(folder)


@pytest.mark.skipif(not SERVERS, reason="PostgreSQL is not installed (Debian: postgresql)")
def test_postgresql(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy

    with postgres() as url:
        database = sqlalchemy.create_engine(url)
        for name in mapping.read(shop).tables:
            pq.read_table(shop.parent / name).to_pandas().to_sql(name, database, index=False)
        monkeypatch.setenv("SHOP_DB_URL", url)
        monkeypatch.setattr(databases, "CHUNK_ROWS", 500)
        found = loaded(remapped(shop, tmp_path, 'database = "$SHOP_DB_URL"\ntable = "{name}"'), tmp_path / "elsewhere")
        database.dispose()
    assert found.hashes == loaded(shop, tmp_path / "disk").hashes


def test_s3(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    port = free_port()
    server = ThreadedMotoServer("127.0.0.1", port)
    server.start()
    secrets = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    for name, value in {**secrets, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
        monkeypatch.setenv(name, value)
    try:
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        for part in shop.parent.glob("*/part-*.parquet"):
            client.upload_file(str(part), BUCKET, f"{part.parent.name}/{part.name}")
        found = loaded(remapped(shop, tmp_path, f'path = "s3://{BUCKET}/{{name}}/"'), tmp_path / "elsewhere")
    finally:
        server.stop()
    assert found.hashes == loaded(shop, tmp_path / "disk").hashes
