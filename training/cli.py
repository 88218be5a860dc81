"""Commands `train`, `promote` and `report`."""

from typing import Annotated, Any

import typer

from features.files import locked
from features.options import SAMPLE, DatasetOption, dataset_of
from features.settings import Settings
from features.terminal import progress
from training.config import TrainConfig

DEFAULT = TrainConfig()


def train(
    dataset: DatasetOption = SAMPLE,
    trials: Annotated[int, typer.Option(min=1, help="LightGBM trials; the LSTM gets a quarter of them, at least two")] = DEFAULT.trials,
    timeout: Annotated[float, typer.Option(min=0, help="seconds after which each study ends early; 0: none")] = 0,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = DEFAULT.seed,
) -> None:
    """Tune, calibrate, test and register LightGBM and the LSTM; the better on validation becomes challenger.

    A study that was killed continues; more --trials continue the same study.
    """
    progress("loading the training libraries")
    from training.train import train as stage

    settings, mapped = Settings(), dataset_of(dataset)
    with locked(settings.home):
        facts = stage(mapped, _places(settings, mapped), settings, TrainConfig(trials, timeout or None, seed), progress)
    version = facts["versions"][facts["challenger"]]["version"]
    progress(f"challenger: {facts['challenger']}, version {version} of {mapped.model_name}")


def promote(dataset: DatasetOption = SAMPLE) -> None:
    """Make the challenger champion if it beats the champion (or all baselines) on the test snapshot; else exit 3."""
    from training.promote import promote as stage

    settings, mapped = Settings(), dataset_of(dataset)
    with locked(settings.home):
        told = stage(mapped, _places(settings, mapped), settings)
    progress(f"champion: version {told['challenger']} ({told['model']}), judged against {told['against']}")


def report(dataset: DatasetOption = SAMPLE) -> None:
    """Print the facts of the last run and write reports/report.html and reports/run.json."""
    from training.report import report as stage

    settings, mapped = Settings(), dataset_of(dataset)
    stage(mapped, _places(settings, mapped), progress.start)


def _places(settings: Settings, mapped: Any) -> Any:
    from validation.stages import Places

    return Places.of(settings, mapped)
