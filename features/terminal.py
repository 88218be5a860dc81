"""What a person sees while a command works: one line a step, with the seconds passed; tables at the end."""

import time
from functools import cache

from rich.console import Console
from rich.markup import escape

WIDTH = 132


@cache
def console() -> Console:
    """The terminal; without one (a pipe, a log) plain text wide enough for the tables."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=WIDTH)


class Progress:
    """Prints lines with the seconds since its creation."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def __call__(self, line: str) -> None:
        """Print one line."""
        console().print(f"[dim]{time.monotonic() - self.start:6.1f} s[/dim]  {escape(line)}", soft_wrap=True)


class Count:
    """Tells how many of something there are so far, at most every few seconds."""

    def __init__(self, what: str, every_seconds: float = 5.0) -> None:
        self.what, self.every, self.total, self.told = what, every_seconds, 0, time.monotonic()

    def __call__(self, more: int) -> None:
        """Count ``more``."""
        self.total += more
        if time.monotonic() - self.told >= self.every:
            self.told = time.monotonic()
            progress(f"  {self.total:,} {self.what}")


progress = Progress()
"""The process's own clock."""
