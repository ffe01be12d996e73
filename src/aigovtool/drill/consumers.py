"""
Consumers that never stop asking, and keep what they were given.

Each has verified its enclave and believes an answer only with a receipt that the attested key
signed, so what is counted here is counted without trusting custodian or enclave.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from aigovtool.attestation.policy import Policy
from aigovtool.client.session import AsyncClient, connect_async
from aigovtool.drill.background import Background
from aigovtool.errors import AIGovToolError
from aigovtool.wire.codec import Signed
from aigovtool.wire.receipt import Receipt

ANSWER_TIMEOUT_S = 4.0
AFTER_REFUSAL_S = 0.02
IMAGE = np.zeros((1, 8, 8), np.float32)  # what the demo's model takes


@dataclass(frozen=True, slots=True)
class Served:
    """An answer that came with its receipt; the times are this machine's monotonic clock's."""

    asked_s: float
    answered_s: float
    receipt: Receipt
    signed: Signed


@dataclass
class Seen:
    """
    What the consumers saw, all together.

    Args:
        refused: refusals and failures by their code.
        refused_s: when each of those was told so.
        asking: queries that wait for their answer.
        failed: queries that were sent and brought no receipt: charged, for all one knows.
        untrue: answers whose receipts were not what they should be; there must be none.
    """

    served: list[Served] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    refused_s: list[float] = field(default_factory=list)
    asking: int = 0
    failed: int = 0
    untrue: list[str] = field(default_factory=list)

    def served_after(self, moment_s: float) -> list[Served]:
        """Return what was asked at or after *moment_s* and served all the same."""
        return [one for one in self.served if one.asked_s >= moment_s]

    def last_answer_after(self, moment_s: float) -> float:
        """Return seconds from *moment_s* to the last answer of a query asked since then, or 0."""
        answers = [one.answered_s for one in self.served_after(moment_s)]
        return max(answers, default=moment_s) - moment_s


class Consumers:
    """
    Asks enclaves without end, each at one address, until told to rest.

    Args:
        every_s: seconds between one consumer's queries.
    """

    def __init__(
        self, background: Background, *, policy: Policy, api_key: str, every_s: float = 0.05
    ) -> None:
        self._background = background
        self.policy = policy
        self.api_key = api_key
        self._every_s = every_s
        self._tasks: list[asyncio.Task[None]] = []
        self._resting = False
        self.seen = Seen()

    def ask(self, port: int, *, count: int) -> None:
        """Let *count* more consumers ask the enclave at a loopback *port*."""
        self._background.call(self._start(port, count))

    def rest(self) -> None:
        """Ask no more; what is under way is waited for, so that its receipt is not lost."""
        self._background.call(self._rest())

    def wait_for_answer(self, *, limit_s: float, more: int = 1) -> bool:
        """Wait until *more* queries were served from now on; False when the time was up first."""
        goal = len(self.seen.served) + more
        end_s = time.monotonic() + limit_s
        while len(self.seen.served) < goal:
            if time.monotonic() > end_s:
                return False
            time.sleep(AFTER_REFUSAL_S)
        return True

    async def _start(self, port: int, count: int) -> None:
        self._tasks += [asyncio.create_task(self._consume(port)) for _ in range(count)]

    async def _rest(self) -> None:
        self._resting = True
        await asyncio.gather(*self._tasks)
        self._tasks.clear()
        self._resting = False

    async def _consume(self, port: int) -> None:
        client: AsyncClient | None = None
        try:
            while not self._resting:
                try:
                    if client is None:
                        client = await connect_async(
                            f"127.0.0.1:{port}",
                            manifest=self.policy,
                            api_key=self.api_key,
                            timeout_s=ANSWER_TIMEOUT_S,
                        )
                    await self._ask_once(client)
                    await asyncio.sleep(self._every_s)
                except AIGovToolError as error:
                    self.seen.refused[error.code] += 1
                    await asyncio.sleep(AFTER_REFUSAL_S)
        finally:
            if client is not None:
                await client.aclose()

    async def _ask_once(self, client: AsyncClient) -> None:
        asked_s = time.monotonic()
        self.seen.asking += 1
        try:
            result = await client.infer({"image": IMAGE})
        except AIGovToolError as error:
            self.seen.failed += 1
            self.seen.refused_s.append(time.monotonic())
            if error.code.startswith("receipt"):
                self.seen.untrue.append(str(error))
            raise
        finally:
            self.seen.asking -= 1
        self.seen.served.append(
            Served(asked_s, time.monotonic(), result.receipt.receipt, result.receipt.signed)
        )
