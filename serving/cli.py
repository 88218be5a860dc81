"""Commands `package`, `serve`, `score` and `show`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from features.errors import InputError
from features.files import locked, write_json
from features.mapping import Dataset
from features.options import SAMPLE, DatasetOption, dataset_of
from features.settings import Settings
from features.terminal import console, progress

PolicyOption = Annotated[Path | None, typer.Option("--policy", help="policy file (TOML); default: the shipped serving/policy.toml")]


def package(dataset: DatasetOption = SAMPLE, policy: PolicyOption = None) -> None:
    """Build a Bento with the champion's files, the feature code and the policy."""
    progress("packaging the champion")
    from serving import package as packaging

    settings = Settings()
    with locked(settings.home):
        told = packaging.build(settings, dataset_of(dataset).model_name, policy)
    progress(f"packaged {told['tag']}: {told['model']} version {told['model_version']}")


def serve(
    dataset: DatasetOption = SAMPLE,
    host: Annotated[str, typer.Option(help="address to bind; only this machine unless told")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 3000,
    from_registry: Annotated[
        str | None, typer.Option(help="serve this alias of the registry (champion, challenger) instead of the Bento")
    ] = None,
    policy: PolicyOption = None,
) -> None:
    """Serve the packaged champion: POST /v1/score, GET /v1/model, GET /openapi.json."""
    from serving import package as packaging
    from serving import server

    settings, mapped = Settings(), dataset_of(dataset)
    folder = None
    if from_registry:
        folder = settings.home / "serving" / from_registry
        identity = packaging.fetch(settings, mapped.model_name, from_registry, folder, policy)
        target = packaging.SERVICE
    elif policy is not None:
        raise InputError("--policy", "a Bento carries its own policy", "give it to `holdfast package`, or add --from-registry champion")
    else:
        identity = packaging.packaged(settings)
        target = identity["path"]
    env = server.environment(settings, _newest(settings, mapped), folder)
    progress(f"serving {identity['model']} version {identity['model_version']} on http://{host}:{port}")
    line = server.command(target, host, port)
    os.execvpe(line[0], line, env)


def score(
    dataset: DatasetOption = SAMPLE,
    out: Annotated[Path | None, typer.Option(help="Parquet file to write; default: scored.parquet in the data set's folder")] = None,
    policy: PolicyOption = None,
) -> None:
    """Score every customer of the latest snapshot with the champion, in one batch."""
    from serving import batch
    from serving import package as packaging

    settings, mapped = Settings(), dataset_of(dataset)
    folder = settings.home / "serving" / "batch"
    with locked(settings.home):
        packaging.fetch(settings, mapped.model_name, "champion", folder, policy)
        out = out or settings.of(mapped.name) / "scored.parquet"
        rows = batch.score(folder, _newest(settings, mapped), out)
    progress(f"scored {rows:,} customers to {out}")


def show(dataset: DatasetOption = SAMPLE) -> None:
    """Start the packaged service, ask it about three real customers, print the answers, shut it down."""
    from serving import package as packaging
    from serving import server, showcase

    settings, mapped = Settings(), dataset_of(dataset)
    table = _newest(settings, mapped)
    told = packaging.packaged(settings)
    progress("starting the packaged service")
    settings.reports.mkdir(parents=True, exist_ok=True)
    with server.running(told["path"], server.environment(settings, table), settings.reports / "service.log") as address:
        answers = showcase.ask(address, table)
    write_json(settings.reports / "answers.json", answers)
    progress("service answered and shut down cleanly")
    for who, answer in answers["customers"].items():
        console().print(f"          {who}: {answer['churn_probability']:.0%} churn, tier {answer['tier']}")


def _newest(settings: Settings, mapped: Dataset) -> Path:
    from features.table import newest

    return newest(settings.of(mapped.name))
