"""
Retries with an ``Idempotency-Key``: computed and charged once (I3).

Rule 1: a key is its consumer's own, and stands for one body; with another body it is refused.
Rule 2: a retry that comes while the first is being computed waits for it.
Rule 3: what was charged is remembered, for its time after it was answered, whatever happens. When
        its answer has to be forgotten to bound memory, a retry is told so, and not charged again.
Rule 4: what was not charged is not remembered, but for failures that would come again.
Rule 5: one consumer cannot use up the room of the others: its own oldest answers go first, and it
        has a bounded number of keys.
Rule 6: all this is in memory only, and ends with the process; another enclave knows nothing of it.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable

from aigovtool.enclave.api.http import Reply
from aigovtool.errors import ConflictError, KeyReusedError, MalformedError, UnavailableError
from aigovtool.ids import ConsumerId, sha256
from aigovtool.wire.headers import REPLAYED

MAX_KEY_BYTES = 255
MAX_REMEMBERED = 100_000
MAX_REMEMBERED_EACH = 25_000  # keys of one consumer
MAX_ANSWER_BYTES = 8 << 20  # a larger answer is not kept

_REPLAYED = REPLAYED.lower().encode()

_Key = tuple[ConsumerId, bytes]


class _Entry:
    __slots__ = ("answer", "body_digest", "done", "forget_at_s", "reply_bytes")

    def __init__(self, body_digest: bytes) -> None:
        self.body_digest = body_digest
        self.forget_at_s = math.inf  # while it is being computed
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answer: Reply | None = None
        self.reply_bytes = 0


class Replays:
    """
    The answers of the last *keep_s* seconds to queries with a key.

    Args:
        max_bytes: of all kept answers.
        now_s: tells the monotonic time.
    """

    def __init__(self, *, keep_s: float, max_bytes: int, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._count: Counter[ConsumerId] = Counter()
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._bytes = 0
        self._under_way: dict[_Key, _Entry] = {}
        self._entries: dict[_Key, _Entry] = {}  # those that are over, the oldest first

    async def once(
        self,
        consumer: ConsumerId,
        key: bytes,
        body: bytes,
        compute: Callable[[], Awaitable[tuple[Reply, bool]]],
    ) -> Reply:
        """
        Return the answer of *compute*, or the one that it gave before.

        Args:
            compute: gives the reply, and whether a retry must be told the same.

        Raises:
            MalformedError: the key is empty or too long.
            KeyReusedError: the key stood for another body.
            ConflictError: its answer is no longer kept.
            UnavailableError: too many keys are remembered.
        """
        if not 0 < len(key) <= MAX_KEY_BYTES:
            raise MalformedError(
                "not an Idempotency-Key", expected=f"1 to {MAX_KEY_BYTES} bytes", came=str(len(key))
            )
        name, digest = (consumer, key), sha256(body)
        while True:
            self._forget()
            entry = self._under_way.get(name) or self._entries.get(name)
            if entry is None:
                break
            if entry.body_digest != digest:
                raise KeyReusedError(
                    "this Idempotency-Key was used for another query",
                    mend="use a new key for each query",
                )
            if entry.done.done():
                return self._again(entry)
            await asyncio.wait([entry.done])
        known = len(self._entries) + len(self._under_way)
        if known >= MAX_REMEMBERED or self._count[consumer] >= MAX_REMEMBERED_EACH:
            raise UnavailableError(
                "too many Idempotency-Keys are remembered",
                code="idempotency.full",
                came=f"{self._count[consumer]} of yours",
                mend="ask without a key, or later",
            )
        entry = self._under_way[name] = _Entry(digest)
        self._count[consumer] += 1
        charged = True  # when nothing is known, a retry must not be charged again
        try:
            reply, charged = await compute()
            if charged:
                self._keep(consumer, entry, reply)
        except Exception:
            charged = False  # `compute` answers whatever happens after a charge
            raise
        finally:
            del self._under_way[name]
            if charged:
                entry.forget_at_s = self._now_s() + self._keep_s
                self._entries[name] = entry
            else:
                self._uncount(consumer)
            entry.done.set_result(None)
        return reply

    def _again(self, entry: _Entry) -> Reply:
        if entry.answer is None:
            raise ConflictError(
                "this query was answered and charged, and its answer is no longer kept",
                code="idempotency.gone",
                mend="use a new key to ask, and be charged, again",
            )
        headers = (*entry.answer.headers, (_REPLAYED, b"1"))
        return Reply(entry.answer.status, headers, entry.answer.chunks)

    def _keep(self, consumer: ConsumerId, entry: _Entry, reply: Reply) -> None:
        chunks = tuple(bytes(chunk) for chunk in reply.chunks)
        size = sum(map(len, chunks))
        if size > min(MAX_ANSWER_BYTES, self._max_bytes):
            return
        if self._bytes + size > self._max_bytes:
            own = [old for (whose, _), old in self._entries.items() if whose == consumer]
            for old in (*own, *self._entries.values()):
                if self._bytes + size <= self._max_bytes:
                    break
                self._bytes -= old.reply_bytes
                old.answer, old.reply_bytes = None, 0
        entry.answer = Reply(reply.status, reply.headers, chunks)
        entry.reply_bytes = size
        self._bytes += size

    def _forget(self) -> None:
        now_s = self._now_s()
        while self._entries:
            name, oldest = next(iter(self._entries.items()))
            if oldest.forget_at_s > now_s:
                return
            self._bytes -= oldest.reply_bytes
            del self._entries[name]
            self._uncount(name[0])

    def _uncount(self, consumer: ConsumerId) -> None:
        self._count[consumer] -= 1
        if not self._count[consumer]:
            del self._count[consumer]
