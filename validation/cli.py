"""Commands `validate` and `features`."""

from features.files import locked, read_json
from features.options import SAMPLE, DatasetOption, dataset_of
from features.settings import Settings
from features.terminal import console, progress


def validate(dataset: DatasetOption = SAMPLE) -> None:
    """Load the sources of a data set and check their contract (exit code 2 when it is broken)."""
    from validation.stages import Places
    from validation.stages import validate as stage

    settings, mapped = Settings(), dataset_of(dataset)
    places = Places.of(settings, mapped)
    with locked(settings.home):
        progress(f"validating the sources of {mapped.name}")
        report = stage(mapped, places)
    rows = read_json(places.contract("sources"))["rows"]
    counted = ", ".join(f"{count:,} {name}" for name, count in rows.items())
    progress(f"contract holds: {len(report.findings)} rules on {counted}")


def features(dataset: DatasetOption = SAMPLE) -> None:
    """Build the feature table of all snapshots and check its contract (exit code 2 when it is broken)."""
    from validation.stages import Places, build_features

    settings, mapped = Settings(), dataset_of(dataset)
    places = Places.of(settings, mapped)
    with locked(settings.home):
        progress("building the feature table")
        manifest = build_features(mapped, places, lambda rows: progress(f"  {rows:,} feature rows"))
    names, snapshots = len(manifest.names), len(manifest.snapshots)
    progress(f"contract holds: {names} features at {snapshots} labelled snapshots and {manifest.latest:%Y-%m-%d}, to score")
    for family, lacking in manifest.left_out.items():
        console().print(f"          left out: {family} (no source {', '.join(lacking)})")
