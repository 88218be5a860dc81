"""The one thread of a process that writes: what is urgent goes first, the rest in the order it came. What decides has a limit of time.

Work over its limit is answered `TooSlow` at once and cut off by a watchdog: SQL is interrupted, and `_Cut` thrown into the thread at its
next line of Python. Why that is safe: a piece of work is cut only while it is ``open``, which is read and changed under one lock. It is
closed by itself before it commits (`Writer.last_moment`, which raises where the limit is over) and by the thread when it has ended, which
takes back a cut that is still on its way. So no cut hits a COMMIT, other work, or the thread's own loop, and what was answered
`TooSlow` was never committed. Wherever a cut hits, a rollback or the release of a lock too: afterwards the thread gives up its connection.

A call into C that never returns cannot be cut; `Writer.stuck` tells, and whoever watches the process has to end it.
"""

import asyncio
import ctypes
import itertools
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import PriorityQueue
from typing import Any, TypeVar

from serving import metrics
from serving.online import OnlineStore

LIMIT_SECONDS, FURTHER_SECONDS = 1.0, 0.01
"""What a decision may take, waiting for other processes included, and what each further customer of a list adds."""
STUCK_SECONDS = 30.0
"""Who is at one piece of work for longer is stuck: to wait for another process's lock takes a third of it at most (`BUSY_SECONDS`)."""
TICK_SECONDS, AGAIN_SECONDS = 0.1, 1.0
"""How often the watchdog looks, and after how long it cuts again what goes on: a cut within a finalizer is lost."""
NO_LIMIT = float("inf")
Result = TypeVar("Result")
log = logging.getLogger("holdfast.writer")


class TooSlow(Exception):
    """The work took longer than its limit and was cancelled: nothing was written."""


class _Cut(BaseException):
    """Thrown into the writer's thread; no `except Exception` of the work holds it up."""


@dataclass
class _Piece:
    """One piece of work: its limit and begin in seconds, whether it may be cut off now, and whether that has happened."""

    function: Callable[[], Any]
    limit: float
    future: Future[Any] = field(default_factory=Future)
    begun: float = 0.0
    cut_at: float = NO_LIMIT
    open: bool = True
    over: bool = False


def limit(customers: int) -> float:
    """Seconds that a decision about so many customers may take."""
    return LIMIT_SECONDS + FURTHER_SECONDS * max(customers - 1, 0)


class Writer:
    """Does what it is given, one after another, in its own thread: waiting for another worker's transaction must not stop the event loop.

    A consent or an erasure is ``urgent``: it waits for the one transaction that is at work, never for those that came before it.
    ``store`` gives the store that the work writes to.
    """

    def __init__(self, store: Callable[[], OnlineStore] | None = None) -> None:
        self._store = store
        self._waiting: PriorityQueue[tuple[bool, int, _Piece]] = PriorityQueue()
        self._number, self._lock = itertools.count(), threading.Lock()
        self._at: _Piece | None = None
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="writer's watchdog", daemon=True)
        self._thread.start()
        self._watchdog.start()

    async def __call__(self, function: Callable[[], Result], urgent: bool = False, limit: float = NO_LIMIT) -> Result:
        """The result of a function that writes. Raises TooSlow after ``limit`` seconds of work."""
        piece = _Piece(function, limit)
        self._waiting.put((not urgent, next(self._number), piece))
        found: Result = await asyncio.wrap_future(piece.future)
        return found

    @property
    def stuck(self) -> bool:
        """Whether nothing is written any more: one piece of work takes for ever, or a thread has died."""
        piece = self._at
        dead = not (self._thread.is_alive() and self._watchdog.is_alive())
        return dead or (piece is not None and time.monotonic() - piece.begun > STUCK_SECONDS)

    def last_moment(self) -> None:
        """Work with a limit calls this right before it commits: from here on it is not cut off. Raises TooSlow if the limit is over."""
        piece = self._at
        if piece is None or threading.get_ident() != self._thread.ident:  # done outside the writer: nobody cuts it off
            return
        with self._lock:
            if piece.over or time.monotonic() - piece.begun > piece.limit:
                raise TooSlow
            piece.open = False

    def _work(self) -> None:
        while True:
            _, _, piece = self._waiting.get()
            if piece.future.set_running_or_notify_cancel():
                self._do(piece)
            del piece  # nothing of a request stays while nothing comes

    def _do(self, piece: _Piece) -> None:
        piece.begun = time.monotonic()
        piece.cut_at = piece.begun + piece.limit
        try:
            try:
                self._at = piece
                result = piece.function()
            finally:
                self._close(piece)
        except BaseException as error:
            self._close(piece)  # once more: it may be a cut that came before the first had its effect
            if not piece.over:
                piece.future.set_exception(error)
        else:
            if not piece.over:
                piece.future.set_result(result)
        if piece.over and self._store:
            self._store().give_up()
        self._at = None

    def _close(self, piece: _Piece) -> None:
        """From here on the piece of work is not cut off, not by what is on its way either."""
        with self._lock:
            piece.open = False
            if piece.over:
                _throw(self._thread.ident, None)

    def _watch(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            piece = self._at
            if piece is not None and piece.open and time.monotonic() > piece.cut_at:
                self._cut(piece)
            del piece

    def _cut(self, piece: _Piece) -> None:
        with self._lock:
            if not piece.open:
                return
            first, piece.over, piece.cut_at = not piece.over, True, time.monotonic() + AGAIN_SECONDS
            where = _where(self._thread.ident)
            if self._store:
                self._store().interrupt(self._thread.ident or 0)
            _throw(self._thread.ident, _Cut)
        if first:
            piece.future.set_exception(TooSlow())
            metrics.cancelled.inc()
            log.error("a decision was cancelled: it took longer than %.2f s, at %s", piece.limit, where)


def _throw(thread: int | None, error: type[BaseException] | None) -> None:
    """Have a thread raise an error at its next line of Python; None takes back what it has not raised yet."""
    given = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread or 0), given)


def _where(thread: int | None) -> str:
    """Where a thread is, inner calls first: places of the code, no values."""
    frame, places = sys._current_frames().get(thread or 0), list[str]()
    while frame is not None and len(places) < 8:
        places.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(places)
