"""The front door: composes the commands that each folder offers (entry points `holdfast.commands`)."""

import os
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from features.errors import InputError, RefusedError
from features.settings import ENVIRONMENT, Settings

GROUP = "holdfast.commands"
STAGES = ("validate", "features", "train", "promote", "package", "show", "report")
"""`holdfast run`, in reading order; each stage is a command of its own and finds its input in HOLDFAST_HOME."""
SERVED = ("package", "show")
"""Stages that need a champion."""
HELP = """Holdfast finds the customers who are about to leave, says why, and recommends how to step in.

Start with `holdfast run` (the embedded sample), then `holdfast init` for your own data.
State lives in the folder HOLDFAST_HOME (default .holdfast); MLFLOW_TRACKING_URI moves tracking and registry.
Exit codes: 0 done, 2 bad input or broken contract, 3 refused by a gate."""


def commands() -> dict[str, EntryPoint]:
    """Every command that an installed folder offers, by name."""
    return {found.name: found for found in entry_points(group=GROUP)}


def stage_of(entry: EntryPoint) -> Callable[..., Any]:
    """The function of a command; of a command with further ones under it, what it does by itself."""
    command = entry.load()
    if isinstance(command, typer.Typer):
        assert command.registered_callback is not None
        command = command.registered_callback.callback
    return command  # type: ignore[no-any-return]


def main() -> None:
    """Console script `holdfast`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas")
    app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    for name, entry in sorted(commands().items()):
        command = entry.load()
        app.add_typer(command, name=name) if isinstance(command, typer.Typer) else app.command(name)(command)
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except RefusedError as error:
        print(f"refused: {error}", file=sys.stderr)
        raise SystemExit(3) from None


def init(
    file: Annotated[Path, typer.Argument(help="mapping file to write")] = Path("my_shop.toml"),
    force: Annotated[bool, typer.Option(help="overwrite an existing file")] = False,
) -> None:
    """Write a commented mapping file: where your tables lie and how their columns map."""
    from features.files import write_text
    from features.mapping import template

    if file.exists() and not force:
        raise InputError(str(file), "exists already", "choose another name, or --force")
    write_text(file, template(file))
    print(f"wrote {file}; edit it, then: holdfast run --dataset {file}")


def ui(
    host: Annotated[str, typer.Option(help="address to bind; only this machine unless told")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """Open MLflow's pages on the runs and the registry of HOLDFAST_HOME."""
    uri = Settings().tracking_uri
    line = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", host, "--port", str(port)]
    os.execv(line[0], line)


def _release_memory() -> None:
    """Give memory that a finished stage has freed back to the system: the next stage starts small."""
    import ctypes
    import gc

    import pyarrow as pa

    gc.collect()
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def run(
    dataset: Annotated[str, typer.Option(help="mapping file (TOML), or 'sample' for the embedded Online Retail II")] = "sample",
    trials: Annotated[int, typer.Option(min=1, help="LightGBM trials; the LSTM gets a quarter of them, at least two")] = 16,
    timeout: Annotated[float, typer.Option(min=0, help="seconds after which each study ends early; 0: none")] = 0,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 20260101,
) -> None:
    """Everything: validate, features, train, promote, package, show the service's answers, report.

    Killed at any point, it continues on the next call.
    """
    from features.memory import peak

    peak.watch()
    found = commands()
    given: dict[str, dict[str, Any]] = {"train": {"trials": trials, "timeout": timeout, "seed": seed}}
    refused: RefusedError | None = None
    for stage in STAGES:
        if refused and not refused.champion_stays and stage in SERVED:
            continue
        try:
            stage_of(found[stage])(dataset=dataset, **given.get(stage, {}))
            _release_memory()
        except RefusedError as error:
            if stage != "promote":
                raise
            refused = error
            print(f"refused: {error}", file=sys.stderr)
    if refused and not refused.champion_stays:
        raise SystemExit(3)
