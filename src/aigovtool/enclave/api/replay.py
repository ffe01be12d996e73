"""
Retries with an ``Idempotency-Key``: computed and charged once (I3).

Rule 1: a key is its consumer's own, and stands for one body; with another body it is a conflict.
Rule 2: a retry that comes while the first is being computed waits for it.
Rule 3: what was charged is remembered for its time whatever happens. When its answer has to be
        forgotten to bound memory, a retry is told so, and is not charged again.
Rule 4: what was not charged is not remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aigovtool.enclave.api.http import Reply
from aigovtool.errors import ConflictError, MalformedError, UnavailableError
from aigovtool.ids import ConsumerId, sha256

MAX_KEY_BYTES = 255
MAX_REMEMBERED = 100_000
MAX_ANSWER_BYTES = 8 << 20  # a larger answer is not kept

_Key = tuple[ConsumerId, bytes]


class _Entry:
    __slots__ = ("answer", "body_digest", "done", "forget_at_s", "reply_bytes")

    def __init__(self, body_digest: bytes, forget_at_s: float) -> None:
        self.body_digest = body_digest
        self.forget_at_s = forget_at_s
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answer: Reply | None = None
        self.reply_bytes = 0


class Replays:
    """
    The answers of the last *keep_s* seconds to queries with a key.

    Args:
        max_bytes: of all kept answers.
    """

    def __init__(self, *, keep_s: float, max_bytes: int) -> None:
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: dict[_Key, _Entry] = {}  # oldest first

    async def once(
        self,
        consumer: ConsumerId,
        key: bytes,
        body: bytes,
        now_s: float,
        compute: Callable[[], Awaitable[tuple[Reply, bool]]],
    ) -> Reply:
        """
        Return the answer of *compute*, or the one that it gave before.

        Args:
            compute: gives the reply, and whether it was charged.

        Raises:
            MalformedError: the key is empty or too long.
            ConflictError: the key stood for another body, or its answer is no longer kept.
            UnavailableError: too many keys are remembered.
        """
        if not 0 < len(key) <= MAX_KEY_BYTES:
            raise MalformedError(
                "not an Idempotency-Key", expected=f"1 to {MAX_KEY_BYTES} bytes", came=str(len(key))
            )
        self._forget(now_s)
        name, digest = (consumer, key), sha256(body)
        while (entry := self._entries.get(name)) is not None:
            if entry.body_digest != digest:
                raise ConflictError(
                    "this Idempotency-Key was used for another query",
                    code="idempotency.other",
                    mend="use a new key for each query",
                )
            if entry.done.done():
                return self._again(entry)
            await asyncio.wait([entry.done])
        if len(self._entries) >= MAX_REMEMBERED:
            raise UnavailableError("too many Idempotency-Keys are remembered")
        entry = self._entries[name] = _Entry(digest, now_s + self._keep_s)
        charged = True  # when nothing is known, a retry must not be charged again
        try:
            reply, charged = await compute()
            if charged:
                self._keep(entry, reply)
        except Exception:
            charged = False  # `compute` answers whatever happens after a charge
            raise
        finally:
            if not charged:
                del self._entries[name]
            entry.done.set_result(None)
        return reply

    def _again(self, entry: _Entry) -> Reply:
        if entry.answer is None:
            raise ConflictError(
                "this query was answered and charged, and its answer is no longer kept",
                code="idempotency.gone",
                mend="use a new key to ask, and be charged, again",
            )
        return entry.answer

    def _keep(self, entry: _Entry, reply: Reply) -> None:
        chunks = tuple(bytes(chunk) for chunk in reply.chunks)
        size = sum(map(len, chunks))
        if size > min(MAX_ANSWER_BYTES, self._max_bytes):
            return
        for old in self._entries.values():
            if self._bytes + size <= self._max_bytes:
                break
            self._bytes -= old.reply_bytes
            old.answer, old.reply_bytes = None, 0
        entry.answer = Reply(reply.status, reply.headers, chunks)
        entry.reply_bytes = size
        self._bytes += size

    def _forget(self, now_s: float) -> None:
        while self._entries:
            name, oldest = next(iter(self._entries.items()))
            if oldest.forget_at_s > now_s or not oldest.done.done():
                return
            self._bytes -= oldest.reply_bytes
            del self._entries[name]
