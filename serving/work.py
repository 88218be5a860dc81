"""Whose turn it is: a bounded queue before the work, and raw histories computed together."""

import asyncio
import random
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar

from serving import metrics
from serving.answers import Refusal

Item = TypeVar("Item")
Result = TypeVar("Result")
LONGEST_WAIT_SECONDS = 0.2
PACE_REQUESTS = 50
"""Requests over which the pace is averaged."""
HOLD_SECONDS = 2.0


async def hold() -> None:
    """Hold a refusal back for about `HOLD_SECONDS`: who asks again at once costs more than it gets; not all at one moment."""
    await asyncio.sleep(HOLD_SECONDS * random.uniform(0.5, 1.5))


class Gate:
    """Lets ``at_once`` requests in while others wait in the order they came; refuses with 503 who would wait too long.

    How long that is comes from the pace at which requests have left lately; never more than ``most`` are held.
    """

    def __init__(self, at_once: int, most: int) -> None:
        self._turn, self.at_once, self.most, self.waiting = asyncio.Semaphore(at_once), at_once, most, 0
        self._pace_seconds, self._left_at = 0.0, 0.0

    @property
    def full(self) -> bool:
        """Whether a request that comes now is refused."""
        return self.waiting >= self.most or (self.waiting > self.at_once and self.waiting * self._pace_seconds > LONGEST_WAIT_SECONDS)

    async def __aenter__(self) -> None:
        if self.full:
            metrics.refused.labels("busy").inc()
            await hold()
            raise Refusal(503, "Busy", "more requests wait than can be answered in time", headers={"Retry-After": "1"})
        self.waiting += 1
        try:
            await self._turn.acquire()
        except BaseException:
            self.waiting -= 1
            raise
        await asyncio.sleep(0)  # whoever has come is counted before this one's work blocks the event loop

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        now = time.monotonic()
        if self.waiting > self.at_once:
            self._pace_seconds += (min(now - self._left_at, 1.0) - self._pace_seconds) / PACE_REQUESTS
        self._left_at = now
        self.waiting -= 1
        self._turn.release()


class Together(Generic[Item, Result]):
    """Computes what waits together: requests that come while one batch is at work make the next; nobody waits for company.

    ``compute`` runs in a thread of its own on items of one ``kind`` and returns a result, or an exception, for each.
    """

    def __init__(self, compute: Callable[[Any, Sequence[Item]], Sequence[Result | Exception]], most: int) -> None:
        self.compute, self.most = compute, most
        self._thread = ThreadPoolExecutor(1, "together")
        self._waiting: list[tuple[Hashable, Item, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, kind: Hashable, item: Item) -> Result:
        """The result of one item."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((kind, item, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            kind = self._waiting[0][0]
            batch = [one for one in self._waiting if one[0] == kind][: self.most]
            self._waiting = [one for one in self._waiting if one not in batch]
            try:
                results = await loop.run_in_executor(self._thread, self.compute, kind, [item for _, item, _ in batch])
            except Exception as error:  # a fault of ours: every one of the batch learns of it
                results = [error] * len(batch)
            for (_, _, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)


class Every:
    """Runs a function in the event loop, ``seconds`` apart, until the service stops; an error of one round is told and forgotten."""

    def __init__(self, seconds: float, function: Callable[[], Any], told: Callable[[Exception], None]) -> None:
        self.seconds, self.function, self.told = seconds, function, told

    async def run(self) -> None:
        """For ever."""
        while True:
            start = time.monotonic()
            try:
                found = self.function()
                if asyncio.iscoroutine(found):
                    await found
            except Exception as error:
                self.told(error)
            await asyncio.sleep(max(self.seconds - (time.monotonic() - start), 0.01))
