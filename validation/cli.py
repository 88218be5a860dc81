"""Commands `validate` and `features`, with `features list`, `features touchpoints` and `features profile`."""

from collections.abc import Sequence
from datetime import date, datetime
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from features.errors import InputError
from features.files import locked, read_json
from features.options import SAMPLE, DatasetOption, dataset_of
from features.settings import Settings
from features.terminal import Count, console, progress

if TYPE_CHECKING:
    from validation.contracts import Finding

features_app = typer.Typer(help="Build the feature table; `list` shows every feature, `touchpoints` and `profile` what the data say.")


def validate(
    dataset: DatasetOption = SAMPLE,
    json: Annotated[bool, typer.Option(help="print what was found as JSON: rows, reading, warnings; also when it fails")] = False,
) -> None:
    """Load the sources of a data set and check their contract (exit code 2 when it is broken).

    What was converted, guessed, mended or left out at reading is counted by rule and told.
    """
    from validation.contracts import told
    from validation.stages import Places
    from validation.stages import validate as stage

    settings, mapped = Settings(), dataset_of(dataset)
    places = Places.of(settings, mapped)
    with locked(settings.home):
        if not json:
            progress(f"validating the sources of {mapped.name}" + (" (synthetic data)" if mapped.synthetic else ""))
        try:
            report = stage(mapped, places)
        except InputError as error:
            if json:
                print(dumps({"passed": False, "where": error.where, "problem": error.problem, "fix": error.fix}, indent=2))
            raise
    facts = read_json(places.contract("sources"))
    if json:
        found = {"passed": True, "rules": len(report.findings), "rows": facts["rows"], "reading": facts["reading"]}
        print(dumps(found | {"warnings": _plain(report.warnings)}, indent=2))
        return
    counted = ", ".join(f"{count:,} {name}" for name, count in facts["rows"].items())
    progress(f"contract holds: {len(report.findings)} rules on {counted}")
    if facts["reading"]:
        progress("at reading:")
        console().print("\n".join(f"  {count:>9,}  {rule}" for rule, count in facts["reading"].items()), markup=False, soft_wrap=True)
    if report.warnings:
        progress(f"{len(report.warnings)} rule(s) warn:")
        console().print(told(report.warnings), markup=False, soft_wrap=True)


def _plain(findings: Sequence["Finding"]) -> list[dict[str, Any]]:
    """Broken rules as plain data: counts only."""
    return [{"rule": one.id, "words": one.rule, "broken": one.broken, "checked": one.checked, "detail": one.detail} for one in findings]


@features_app.callback(invoke_without_command=True)
def features(
    context: typer.Context = None,  # type: ignore[assignment]
    dataset: DatasetOption = SAMPLE,
    snapshot: Annotated[
        str | None, typer.Option(help="write the table of one day only: 'today' or YYYY-MM-DD (all that is known at its first midnight)")
    ] = None,
) -> None:
    """Build the feature table of all snapshots, or of one day, and check its contract (exit code 2 when it is broken)."""
    if context is not None and context.invoked_subcommand:
        return
    from validation.stages import Places, build_features

    settings, mapped = Settings(), dataset_of(dataset)
    places = Places.of(settings, mapped)
    with locked(settings.home):
        if snapshot is not None:
            _daily(mapped, places, snapshot)
            return
        progress("building the feature table")
        manifest = build_features(mapped, places, Count("feature rows"))
    names, snapshots = len(manifest.names), len(manifest.snapshots)
    progress(f"contract holds: {names} features at {snapshots} labelled snapshots and {manifest.latest:%Y-%m-%d}, to score")
    facts = read_json(places.contract("features"))
    if joined := facts["identities"]:
        progress(f"  {joined['customers']:,} customer ids belong to {joined['persons']:,} persons with several")
        progress(f"  left apart: {joined['shared']:,} shared identities, {joined['cut']:,} components too large")
    for family, lacking in manifest.left_out.items():
        console().print(f"          left out of {family}: what needs {', '.join(lacking)}")


def _daily(mapped: object, places: object, snapshot: str) -> None:
    from features.mapping import Dataset
    from validation.stages import Places, build_daily
    from validation.stages import validate as stage

    assert isinstance(mapped, Dataset)
    assert isinstance(places, Places)
    day = _day(snapshot, mapped.timezone)
    progress(f"validating what is new in the sources of {mapped.name}")
    stage(mapped, places)
    progress(f"building the feature table of {day}")
    manifest, new = build_daily(mapped, places, day, Count("feature rows"))
    progress(f"{'wrote' if new else 'unchanged:'} {places.daily(day)}, fingerprint {manifest.fingerprint}")


def _day(snapshot: str, timezone: str) -> date:
    if snapshot == "today":
        return datetime.now(ZoneInfo(timezone)).date()
    try:
        return date.fromisoformat(snapshot)
    except ValueError:
        raise InputError(f"--snapshot {snapshot!r}", "is no day", "give 'today' or a day as YYYY-MM-DD") from None


@features_app.command("list")
def catalogue(
    dataset: Annotated[str | None, typer.Option(help="mapping file: only the features that this data set feeds; default: all")] = None,
    markdown: Annotated[bool, typer.Option(help="print the catalogue as Markdown")] = False,
) -> None:
    """List every feature: name, family, unit, sources, meaning."""
    from rich.table import Table

    from features.catalogue import entries, to_markdown
    from features.sources import present

    found = entries(present(dataset_of(dataset)) if dataset else None)
    if markdown:
        print(to_markdown(found), end="")
        return
    table = Table("feature", "family", "unit", "sources", "meaning", title=f"{len(found)} features")
    for entry in found:
        table.add_row(*entry)
    console().print(table)


@features_app.command("touchpoints")
def touchpoints(dataset: DatasetOption = SAMPLE) -> None:
    """Churn risk measured after each touchpoint of the journey, beside the reported one."""
    from validation.journey import touchpoint_report
    from validation.stages import Places

    mapped = dataset_of(dataset)
    console().print(touchpoint_report(Places.of(Settings(), mapped).features))


@features_app.command("profile")
def profile(dataset: DatasetOption = SAMPLE) -> None:
    """Three lows and one high: what sets churned customers apart from those who stayed."""
    from validation.journey import profile_report
    from validation.stages import Places

    mapped = dataset_of(dataset)
    console().print(profile_report(Places.of(Settings(), mapped).features))
