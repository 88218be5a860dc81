"""The one thread of a process that writes: what is urgent goes first, the rest in the order it came."""

import asyncio
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import PriorityQueue
from typing import Any, TypeVar

Result = TypeVar("Result")


class Writer:
    """Does what it is given, one after another, in its own thread: waiting for another worker's transaction must not stop the event loop.

    A consent or an erasure is ``urgent``: it waits for the one transaction that is at work, never for those that came before it.
    """

    def __init__(self) -> None:
        self._waiting: PriorityQueue[tuple[bool, int, Future[Any], Callable[[], Any]]] = PriorityQueue()
        self._number = itertools.count()
        threading.Thread(target=_work, args=(self._waiting,), name="writer", daemon=True).start()

    async def __call__(self, function: Callable[[], Result], urgent: bool = False) -> Result:
        """The result of a function that writes."""
        future: Future[Result] = Future()
        self._waiting.put((not urgent, next(self._number), future, function))
        return await asyncio.wrap_future(future)


def _work(waiting: PriorityQueue[tuple[bool, int, Future[Any], Callable[[], Any]]]) -> None:
    while True:
        _, _, future, function = waiting.get()
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)
        del future, function  # nothing of a request stays while nothing comes
