"""Peak memory of this process and its children, sampled (the kernel's own figure for children counts forks twice)."""

import threading
import time

import psutil

INTERVAL_SECONDS = 0.5


class PeakMemory:
    """Samples the resident memory of the process tree in a daemon thread once `watch` was called."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Start sampling; a second call does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, daemon=True)
            self._thread.start()

    def megabytes(self) -> int:
        """The highest sum seen so far, at least the present one."""
        self._sample()
        return round(self.peak_bytes / 1024**2)

    def _loop(self) -> None:
        while True:
            self._sample()
            time.sleep(INTERVAL_SECONDS)

    def _sample(self) -> None:
        total = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.peak_bytes = max(self.peak_bytes, total)


peak = PeakMemory()
"""The process's own sampler."""
