"""Commands `policy` (check, show, diff) and `keys` (add, list, remove)."""

from pathlib import Path
from typing import Annotated

import typer

from features.settings import Settings
from features.terminal import console
from serving.keys import SCOPES

policy_app = typer.Typer(help="Check a policy file, show the shipped one, or compare two.", no_args_is_help=True)
keys_app = typer.Typer(help="API keys of the service: made here, shown once, kept as digests.", no_args_is_help=True)


@policy_app.command("check")
def check_policy(file: Annotated[Path, typer.Argument(help="policy file (TOML)")]) -> None:
    """Read a policy file and say what it means, with a warning for all that is doubtful; exit code 2 with every wrong key."""
    from serving import policy

    found = policy.read(file)
    limits = ", ".join(f"{name} {limit:g}" for name, limit in zip(found.resources, found.limits_K.tolist(), strict=True))
    print(f"{file}: good. Version {found.version}, digest {found.digest}, effects {found.effects_source}.")
    print(f"{len(found.rules)} rules, {len(found.caps)} caps. A day has: {limits or 'no limit'}.")
    print(f"Consent for {found.consent.purpose}: unknown {found.consent.unknown}, untracked {found.consent.untracked}.")
    print(f"Of a contact that failed: cost {found.failed.cost}, hours {found.failed.hours}.")
    for doubt in policy.doubts(found):
        print(f"warning: {doubt}")


@policy_app.command("show")
def show_policy() -> None:
    """Print the shipped policy file, to start from."""
    from serving import policy

    print(policy.default_file().read_text(encoding="utf-8"), end="")


@policy_app.command("diff")
def diff_policies(
    before: Annotated[Path, typer.Argument(help="policy file")],
    after: Annotated[Path | None, typer.Argument(help="policy file; default: the shipped one stands before, the given one after")] = None,
) -> None:
    """List every value in which two policies differ."""
    from rich.table import Table

    from serving import policy

    left, right = (policy.default_file(), before) if after is None else (before, after)
    shown = Table("key", str(left.name), str(right.name))
    for key, old, new in policy.differences(policy.read(left), policy.read(right)):
        shown.add_row(key, "-" if old is None else str(old), "-" if new is None else str(new))
    console().print(shown if shown.row_count else "no difference")


@keys_app.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="who it is for")],
    scope: Annotated[list[str] | None, typer.Option(help=f"{', '.join(SCOPES)}; repeat for several; default: score and events")] = None,
    per_second: Annotated[float, typer.Option(min=0.01, help="requests a second")] = 5000.0,
) -> None:
    """Make a key and print it: it is shown this once."""
    from serving import keys

    print(keys.add(_file(), name, scope or ["score", "events"], per_second))


@keys_app.command("list")
def list_keys() -> None:
    """Who has a key, for what."""
    from rich.table import Table

    from serving import keys

    shown = Table("name", "scopes", "requests/s", "made at")
    for key in keys.read(_file()):
        shown.add_row(key.id, ", ".join(key.scopes), f"{key.per_second:g}", key.created)
    console().print(shown if shown.row_count else "no keys yet: `holdfast keys add NAME`")


@keys_app.command("remove")
def remove_key(name: Annotated[str, typer.Argument(help="whose")]) -> None:
    """Withdraw a key; a running service refuses it within a second."""
    from serving import keys

    keys.remove(_file(), name)
    print(f"withdrew the key of {name}")


def _file() -> Path:
    from serving.keys import FILE

    settings = Settings()
    return settings.keys or settings.home / FILE
