"""Load on an HTTP service from a process of its own: closed loop (each client asks again at once) or open loop (so many requests a second).

`run` starts ``python -m tests.benchmarks.load`` with the job on standard input and reads what it measured.
"""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import uvloop


@dataclass(frozen=True)
class Load:
    """What was measured: answers with status 200 a second, quantiles of their times in ms, and how many had which status (0: reset)."""

    good_per_second: float
    p50_ms: float
    p99_ms: float
    statuses: dict[str, int]
    without_retry_after: int


def run(
    address: str, path: str, bodies: list[bytes], clients: int, seconds: float, per_second: float = 0.0, key: str = "", settle: float = 0.0
) -> Load:
    """Ask a service with the bodies in turn; ``per_second`` above 0 makes it an open loop.

    In the first ``settle`` seconds of a closed loop clients join one after another, and what is answered then does not count.
    """
    job = {"address": address, "path": path, "bodies": [b.decode() for b in bodies], "clients": clients, "seconds": seconds}
    told = json.dumps({**job, "per_second": per_second, "key": key, "settle": settle})
    done = subprocess.run([sys.executable, "-m", "tests.benchmarks.load"], input=told, capture_output=True, text=True, check=True)
    return Load(**json.loads(done.stdout))


class _Client:
    """One keep-alive connection."""

    def __init__(self, job: dict[str, Any], times: list[float], statuses: dict[str, int], count: list[int]) -> None:
        self.host, port = job["address"].removeprefix("http://").split(":")
        self.port, self.times, self.statuses, self.count = int(port), times, statuses, count
        head = f"POST {job['path']} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {job['key']}\r\n" if job["key"] else ""
        self.requests = [f"{head}Content-Length: {len(b)}\r\n\r\n".encode() + b for b in (body.encode() for body in job["bodies"])]
        self.writer: asyncio.StreamWriter | None = None
        self.end = float("inf")

    async def connect(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port, limit=2**24)

    async def ask(self, number: int, since: float) -> None:
        try:
            if self.writer is None:
                await self.connect()
            assert self.writer is not None
            self.writer.write(self.requests[number % len(self.requests)])
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            status = head[9:12].decode()
            await self.reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
            if b"connection: close" in head:
                self.writer = None
        except (OSError, asyncio.IncompleteReadError):
            status, head, self.writer = "0", b"", None
        if time.perf_counter() > self.end:
            return
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == "200":
            self.times.append(time.perf_counter() - since)
        elif b"retry-after:" not in head:
            self.count[0] += 1


async def _closed(clients: list[_Client], end: float, settle: float) -> None:
    """What is answered after the end does not count: the last refusals may be held for seconds."""

    async def one(number: int, client: _Client) -> None:
        await asyncio.sleep(settle / 2 * number / len(clients))
        while (now := time.perf_counter()) < end:
            await client.ask(number, now)
            number += len(clients)

    async def forget() -> None:
        await asyncio.sleep(settle)
        for client in clients[:1]:
            client.times.clear()
            client.statuses.clear()
            client.count[0] = 0

    await asyncio.gather(forget(), *(one(number, client) for number, client in enumerate(clients)))


async def _open(clients: list[_Client], per_second: float, seconds: float) -> None:
    """Requests are due at fixed times, whether clients are free or not; waiting for one counts."""
    free: asyncio.Queue[_Client] = asyncio.Queue()
    for client in clients:
        free.put_nowait(client)
    start, tasks = time.perf_counter(), []

    async def one(number: int, due: float) -> None:
        client = await free.get()
        await client.ask(number, due)
        free.put_nowait(client)

    for number in range(int(per_second * seconds)):
        due = start + number / per_second
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)


async def _measure(job: dict[str, Any]) -> dict[str, Any]:
    times: list[float] = []
    statuses: dict[str, int] = {}
    count = [0]
    clients = [_Client(job, times, statuses, count) for _ in range(job["clients"])]
    for client in clients:
        await client.connect()
    start, took = time.perf_counter(), float(job["seconds"])
    if job["per_second"]:
        await _open(clients, job["per_second"], job["seconds"])
        took = time.perf_counter() - start
    else:
        for client in clients:
            client.end = start + job["settle"] + took
        await _closed(clients, client.end, job["settle"])
    ranked = sorted(times) or [float("nan")]
    p50, p99 = (1000 * ranked[min(int(len(ranked) * q), len(ranked) - 1)] for q in (0.5, 0.99))
    return {"good_per_second": len(times) / took, "p50_ms": p50, "p99_ms": p99, "statuses": statuses, "without_retry_after": count[0]}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_measure(json.load(sys.stdin)))))
