"""Is every installed package the one that requirements.lock names? ``--write`` makes the lock from what is installed."""

import sys
from importlib import metadata
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
OURS = "holdfast"


def installed() -> dict[str, str]:
    """Name and version of each installed package; a local build tag (`+cpu`) is no part of the version."""
    found = {
        dist.metadata["Name"].lower().replace("_", "-").replace(".", "-"): dist.version.split("+")[0] for dist in metadata.distributions()
    }
    return {name: version for name, version in sorted(found.items()) if name != OURS}


def locked() -> dict[str, str]:
    """Name and version of each line of the lock file."""
    lines = (line.split("#")[0].strip() for line in LOCK.read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def main() -> int:
    """Compare, or write."""
    there = installed()
    if "--write" in sys.argv:
        kept = {name: version for name, version in locked().items() if name not in there} if LOCK.exists() else {}
        LOCK.write_text("".join(f"{name}=={version}\n" for name, version in sorted({**kept, **there}.items())))
        return 0
    wrong = [
        f"{name}: installed {version}, locked {locked().get(name, 'nowhere')}"
        for name, version in there.items()
        if locked().get(name) != version
    ]
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"lock file: {len(there)} packages installed, {len(wrong)} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
