"""
A load over TLS by N connections: each asks again as soon as it has its answer (closed loop), or at
times that were set before (open loop), from which its latencies then count.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import cast

import uvloop


@dataclass
class Seen:
    """What came of one run."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return self.statuses[200] / self.seconds

    def percentile_ms(self, percent: int) -> float:
        return statistics.quantiles(self.latencies_s, n=100)[percent - 1] * 1000


class _Connection(asyncio.Protocol):
    """One connection; it reads the status line and Content-Length and nothing else."""

    def __init__(self, request: bytes, seen: Seen, end_s: float, every_s: float) -> None:
        self.request = request
        self.seen = seen
        self.end_s = end_s
        self.every_s = every_s
        self.buffer = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass
        self.due_s = time.perf_counter() + random.uniform(0, self.every_s)
        self._ask_when_due()

    def _ask_when_due(self) -> None:
        if not self.every_s:
            self.due_s = time.perf_counter()
        wait_s = self.due_s - time.perf_counter()
        if wait_s > 0:
            asyncio.get_running_loop().call_later(wait_s, self.transport.write, self.request)
        else:
            self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        if len(rest) < length:
            return
        self.buffer = b""
        now_s = time.perf_counter()
        self.seen.statuses[int(head[9:12])] += 1
        self.seen.latencies_s.append(now_s - self.due_s)
        if now_s < self.end_s:
            self.due_s += self.every_s
            self._ask_when_due()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def load(
    port: int, request: bytes, *, connections: int, seconds: float, per_second: float | None = None
) -> Seen:
    """
    Load the server at a loopback *port* with copies of one request; the peer is not judged.

    Args:
        per_second: how many to ask for, of all connections together; None is as fast as it goes.
    """
    every_s = 0.0 if per_second is None else connections / per_second

    async def run() -> Seen:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        seen = Seen()
        loop = asyncio.get_running_loop()
        begin_s = time.perf_counter()
        made = await asyncio.gather(
            *(
                loop.create_connection(
                    lambda: _Connection(request, seen, begin_s + seconds, every_s),
                    "127.0.0.1",
                    port,
                    ssl=context,
                )
                for _ in range(connections)
            )
        )
        await asyncio.gather(*(protocol.done for _, protocol in made))
        seen.seconds = time.perf_counter() - begin_s
        return seen

    return uvloop.run(run())
