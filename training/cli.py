"""Commands `train`, `benchmark`, `promote` and `report`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from features.errors import InputError
from features.files import locked, read_json
from features.mapping import Promotion
from features.options import SAMPLE, DatasetOption, dataset_of
from features.settings import Settings
from features.terminal import console, progress
from training.config import ModelChoice, TrainConfig

DEFAULT, FLOOR = TrainConfig(), Promotion()
FLOOR_HELP = "of a table from elsewhere, which needs 100 rows a snapshot to be learnt from (a mapping file has [promotion])"


def train(
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            help="mapping file (TOML) whose features are built, or a feature table (Parquet with id, snapshot, label and numeric columns) "
            "that another feature store built; 'sample' is the embedded Online Retail II",
        ),
    ] = SAMPLE,
    trials: Annotated[
        int, typer.Option(min=1, help="LightGBM trials; LSTM a quarter, logistic half of them, at least two")
    ] = DEFAULT.trials,
    timeout: Annotated[float, typer.Option(min=0, help="seconds after which each study ends early; 0: none")] = 0,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = DEFAULT.seed,
    model: Annotated[str, typer.Option(help="blend (all members and their blend), lightgbm, lstm or logistic")] = DEFAULT.model,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="processes that share each study; HOLDFAST_STUDY_STORAGE: several machines")
    ] = 1,
    id_column: Annotated[str, typer.Option(help="of a table from elsewhere: the customer's id")] = "customer_id",
    snapshot_column: Annotated[str, typer.Option(help="of a table from elsewhere: when the features were known")] = "snapshot",
    label_column: Annotated[str, typer.Option(help="of a table from elsewhere: 1 churned, 0 not, null not known yet")] = "churned",
    horizon_days: Annotated[int, typer.Option(min=1, help="of a table from elsewhere: length of the label window")] = 90,
) -> None:
    """Tune, blend, calibrate, test and register the models; the best on validation becomes challenger.

    A study that was killed continues; more --trials continue the same study. With --workers trials are suggested in the order in which
    others end, so that two runs may differ.
    """
    progress("loading the training libraries")
    from training.train import train as stage

    if model not in get_args(ModelChoice):
        raise InputError(f"--model {model}", "is no model", f"choose one of {', '.join(get_args(ModelChoice))}")
    settings = Settings()
    config = TrainConfig(trials, timeout or None, seed, model, workers)  # type: ignore[arg-type]
    with locked(settings.home):
        if dataset.endswith(".parquet"):
            from validation.external import Columns

            name, places = _accepted(settings, Path(dataset), Columns(id_column, snapshot_column, label_column, horizon_days))
        else:
            mapped = dataset_of(dataset)
            name, places = mapped.model_name, _places(settings, mapped.name)
        facts = stage(name, places, settings, config, progress)
    tested = facts["test"]["models"]
    for candidate in facts["versions"]:
        auc, loss = tested[candidate]["auc"], tested[candidate]["log_loss"]
        progress(f"{candidate}: AUC {auc[0]:.3f} [{auc[1]:.3f}, {auc[2]:.3f}], log loss {loss[0]:.3f} on {facts['test']['snapshot']}")
    progress(f"challenger: {facts['challenger']}, version {facts['versions'][facts['challenger']]['version']} of {name}")


def _accepted(settings: Settings, file: Path, columns: Any) -> tuple[str, Any]:
    """Name of the model and places of a table from elsewhere, checked and put in force."""
    from validation.external import accept

    model_name, places = _of_table(settings, file)
    manifest = accept(file, columns, places)
    progress(f"{file.name}: {len(manifest.names)} features at {len(manifest.snapshots)} labelled snapshots, test {manifest.test:%Y-%m-%d}")
    if left_out := read_json(places.contract("features"))["left_out"]:
        progress(f"no features, as they are no numbers: {', '.join(left_out)}")
    return model_name, places


def _of_table(settings: Settings, file: Path) -> tuple[str, Any]:
    """Name of the model and places of a table from elsewhere: both from the file's name."""
    name = re.sub(r"[^a-z0-9_]", "_", file.stem.lower())
    return f"holdfast-churn-{name}", _places(settings, f"table_{name}")


def promote(
    dataset: Annotated[
        str,
        typer.Option("--dataset", help="mapping file (TOML), 'sample', or the feature table (Parquet) that `holdfast train` learnt from"),
    ] = SAMPLE,
    min_rows: Annotated[int, typer.Option(min=1, help=f"{FLOOR_HELP}: customers that a test needs")] = FLOOR.min_rows,
    min_class: Annotated[int, typer.Option(min=1, help=f"{FLOOR_HELP}: of them churned, and as many not")] = FLOOR.min_class,
) -> None:
    """Make the challenger champion if it beats the champion (or all baselines) on the test snapshot; else exit 3."""
    from training.promote import promote as stage

    settings, floor = Settings(), Promotion(min_rows=min_rows, min_class=min_class)
    if not dataset.endswith(".parquet"):
        mapped = dataset_of(dataset)
        name, places, floor = mapped.model_name, _places(settings, mapped.name), mapped.promotion
    with locked(settings.home):
        if dataset.endswith(".parquet"):
            from validation.external import in_force

            name, places = _of_table(settings, Path(dataset))
            in_force(Path(dataset), places)
        told = stage(name, places, settings, floor)
    progress(f"champion: version {told['challenger']} ({told['model']}), judged against {told['against']}")


def report(dataset: DatasetOption = SAMPLE) -> None:
    """Print the facts of the last run and write reports/report.html and reports/run.json."""
    from training.report import report as stage

    settings, mapped = Settings(), dataset_of(dataset)
    stage(mapped, _places(settings, mapped.name), progress.start)


def _places(settings: Settings, dataset: str) -> Any:
    from validation.stages import Places

    return Places(settings.of(dataset), settings.reports)


def benchmark(
    protocol: Annotated[list[str] | None, typer.Option(help="published protocol(s) to run; default: all (`--list` names them)")] = None,
    dataset: Annotated[
        list[Path] | None, typer.Option(help="mapping file(s) of other shops to run by the same rules, at their test snapshot")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="folder with cdnow.parquet, which is not shipped")] = None,
    short: Annotated[bool, typer.Option(help="one seed, the strong hyper-parameters only")] = False,
    trials: Annotated[int, typer.Option(min=1, help="LightGBM trials of each protocol")] = 8,
    jobs: Annotated[int, typer.Option(min=1, help="protocols at a time, a core each")] = 2,
    json: Annotated[Path | None, typer.Option(help="write the results as a list")] = None,
    markdown: Annotated[Path | None, typer.Option(help="write the results as a table")] = None,
    list: Annotated[bool, typer.Option("--list", help="name the protocols and stop")] = False,
) -> None:
    """Judge the models against their rivals on published protocols; every figure on rows that nothing was tuned on."""
    progress("loading the training libraries")
    from training import benchmark as suite
    from training.protocols import PROTOCOLS

    known = [one.name for one in PROTOCOLS]
    if list:
        print("\n".join(known))
        return
    chosen = _protocols(protocol or ([] if dataset else known), known, data)
    chosen += [str(file) for file in dataset or []]
    settings = Settings()
    options = suite.Options(settings.home, data, 1 if short else trials, (1,) if short else (1, 2, 3))
    with locked(settings.home):
        results = suite.run(chosen, options, jobs, progress)
    if json:
        suite.write(results, json)
    if markdown:
        from features.files import write_text

        write_text(markdown, suite.markdown(results))
    _print_benchmark(results)


def _protocols(asked: Sequence[str], known: Sequence[str], data: Path | None) -> Any:
    """The protocols that can be run."""
    for name in asked:
        if name not in known:
            raise InputError(f"--protocol {name}", "is no protocol", f"choose among {', '.join(known)}")
    there = data is not None and (data / "cdnow.parquet").exists()
    if not there and "CDNOW-98" in asked:
        progress("CDNOW-98 is left out: give the folder of cdnow.parquet with --data")
    return [name for name in asked if there or name != "CDNOW-98"]


def _print_benchmark(results: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    columns = ("protocol", "customers", "model", "seed", "AUC", "log loss", "to tuned LightGBM", "ECE", "predicted", "observed")
    shown = Table(
        *columns, title="AUC and log loss on the test snapshot; difference in log loss with its 95 % interval", title_justify="left"
    )
    for one in results:
        value, low, high = one["log_loss_difference"]
        difference = f"{value:+.4f} [{low:+.4f}, {high:+.4f}]" if one["model"] != "lightgbm" else ""
        who = f"{one['protocol']} {one['population']}"
        rates = (f"{one[name]:.3f}" for name in ("ece", "predicted", "observed"))
        shown.add_row(
            who, f"{one['rows']:,}", one["model"], str(one["seed"]), f"{one['auc'][0]:.4f}", f"{one['log_loss']:.4f}", difference, *rates
        )
    console().print(shown)
