"""Threads over parts of a prediction: NumPy and LightGBM let go of the interpreter while they compute."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def each(function: Callable[[T], object], parts: Sequence[T], rows: int, few: int) -> None:
    """Call ``function`` on every part, in threads of as many cores as there are; up to ``few`` rows in the caller's own.

    An error of a part is raised here.
    """
    if rows <= few or len(parts) <= 1:
        for part in parts:
            function(part)
        return
    with ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool:
        for _ in pool.map(function, parts):
            pass


def slices(rows: int, size: int) -> Iterable[slice]:
    """Consecutive parts of at most ``size`` rows."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
