"""
From a signed manifest and a content key to a model that answers.

Rule 1: plaintext exists in memory only, and once: the runtime gives the memory to decrypt to, and
        computes from there. It is overwritten when the model is closed, or at once if the runtime
        copied it.
Rule 2: what comes is decrypted as it comes. A download that is cut goes on where it was cut;
        ciphertext is cached if there is a place, before it is decrypted.
Rule 3: cached bytes that do not authenticate are fetched anew, once; then the fault is elsewhere.
Rule 4: loading can be cancelled; what was decrypted is overwritten before `load` ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import queue
from collections.abc import AsyncIterator
from typing import Protocol

from aigovtool.enclave.backoff import Backoff
from aigovtool.enclave.cache import BodyCache
from aigovtool.enclave.runtime.base import Model, RuntimeOptions
from aigovtool.enclave.runtime.registry import runtime_for
from aigovtool.errors import UnavailableError, VerificationError
from aigovtool.sealing.chunked import Source
from aigovtool.sealing.manifest import VerifiedManifest
from aigovtool.sealing.unseal import unseal_into

MAX_CUTS = 8  # of one download without a byte in between
PIECE_BYTES = 1 << 20  # as downloads come, and as what the cache has is read
PIPE_PIECES = 2  # that wait to be decrypted

_log = logging.getLogger(__name__)


class Progress(Protocol):
    """Is told how loading goes on."""

    def begin(self, what: str, total_bytes: int) -> None:
        """A step begins."""
        ...

    def at(self, done_bytes: int) -> None:
        """So much of the step is done; called from any thread."""
        ...

    def end(self) -> None:
        """Loading is over, well or not."""
        ...


class BodySource(Protocol):
    """Where sealed bodies come from."""

    def body(self, digest: bytes, *, offset: int, size: int) -> AsyncIterator[bytes]:
        """See `CustodianClient.body`."""
        ...


class Loader:
    """
    Args:
        source: gives sealed bodies.
        cache: keeps them.
        options: for the runtime, which the model's format chooses.
        progress: is told how it goes.
    """

    def __init__(
        self,
        *,
        source: BodySource,
        cache: BodyCache,
        options: RuntimeOptions,
        progress: Progress,
    ) -> None:
        self._source = source
        self._cache = cache
        self._options = options
        self._progress = progress

    async def load(self, verified: VerifiedManifest, content_key: bytes) -> Model:
        """
        Fetch, unseal and load the model.

        Raises:
            VerificationError: the body is not the manifest's, or not sealed with this key.
            UnavailableError: it cannot be fetched, or there is no memory.
            MalformedError: no runtime here can load it.
            ConfigurationError: what its runtime needs is not installed; nothing is fetched then.
        """
        runtime_for(verified.manifest, self._options)
        try:
            return await self._from_cache(verified, content_key)
        finally:
            self._progress.end()

    async def _from_cache(self, verified: VerifiedManifest, content_key: bytes) -> Model:
        body = verified.manifest.body
        with self._cache.reading(body) as whole:
            if whole is not None:
                try:
                    return await self._unseal(whole, verified, content_key)
                except VerificationError as error:
                    _log.warning("the cached model is damaged and is fetched again: %s", error)
                    self._cache.forget(body)
        with self._cache.writing(body) as stream:
            if stream is not None:
                part = _Part(stream)
                try:
                    model = await self._fetched(verified, content_key, part)
                except VerificationError as error:
                    _log.warning("the fetched model is damaged and is fetched again: %s", error)
                else:
                    if part.whole:
                        self._cache.keep(body)
                    else:
                        self._cache.forget(body)
                    return model
                self._cache.forget(body)
        return await self._fetched(verified, content_key, None)

    async def _fetched(
        self, verified: VerifiedManifest, content_key: bytes, part: _Part | None
    ) -> Model:
        """Decrypt while fetching; what *part* has is not fetched, and the rest is added to it."""
        pipe = _Pipe()

        async def pump() -> None:
            try:
                async for piece in self._pieces(verified, part):
                    await pipe.put(piece)
            except Exception as error:
                pipe.fail(error)
                raise
            await pipe.put(b"")

        pumping = asyncio.create_task(pump())
        try:
            return await self._unseal(pipe, verified, content_key, "fetching and unsealing")
        finally:
            pumping.cancel()
            await asyncio.wait([pumping])
            if not pumping.cancelled():
                pumping.exception()  # the reader of the pipe has raised it

    async def _pieces(self, verified: VerifiedManifest, part: _Part | None) -> AsyncIterator[bytes]:
        offset = 0
        while part is not None and (piece := part.read()):
            offset += len(piece)
            yield piece
        async for piece in self._download(verified, offset):
            if part is not None:
                part.add(piece)
            yield piece

    async def _download(self, verified: VerifiedManifest, offset: int) -> AsyncIterator[bytes]:
        """Yield the body from *offset* on, going on after each cut where it was cut."""
        body = verified.manifest.body
        cuts, backoff = 0, Backoff()
        while offset < body.size:
            pieces = self._source.body(verified.digest, offset=offset, size=body.size)
            try:
                async for piece in pieces:
                    offset += len(piece)
                    cuts = 0
                    backoff.reset()
                    yield piece
                if offset < body.size:
                    raise UnavailableError("the sealed model was cut off", code="custodian.body")
            except UnavailableError as error:
                cuts += 1
                if cuts > MAX_CUTS:
                    raise
                _log.warning("fetching goes on at byte %d: %s", offset, error)
                await backoff.wait()

    async def _unseal(
        self,
        source: Source,
        verified: VerifiedManifest,
        content_key: bytes,
        what: str = "unsealing",
    ) -> Model:
        guarded = _Cancellable(source)
        self._progress.begin(what, verified.manifest.plaintext_size)
        work = asyncio.create_task(
            asyncio.to_thread(self._unseal_in_thread, guarded, verified, content_key)
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            guarded.cancel()
            await asyncio.wait([work])
            if work.exception() is None:
                work.result().close()
            raise

    def _unseal_in_thread(
        self, source: Source, verified: VerifiedManifest, content_key: bytes
    ) -> Model:
        runtime = runtime_for(verified.manifest, self._options)
        unsealed = unseal_into(
            source,
            verified,
            content_key,
            allocate=runtime.allocate,
            progress=self._progress.at,
        )
        try:
            unsealed.confirm()
            return runtime.load(unsealed.files, unsealed.wipe)
        except BaseException:
            unsealed.wipe()
            raise


class _Part:
    """A body in the cache that is not whole yet: what is there is read, then the rest added."""

    def __init__(self, stream: io.FileIO) -> None:
        self._stream = stream
        self._stream.seek(0)
        self.whole = True  # so far: a disk that does not take a piece has not got the rest either

    def read(self) -> bytes:
        """Return the next piece, nothing at the end."""
        return self._stream.read(PIECE_BYTES)

    def add(self, piece: bytes) -> None:
        """Write a piece at the end; a disk that is full is a warning (`cache`, Rule 2)."""
        if not self.whole:
            return
        try:
            _write_all(self._stream, piece)
        except OSError as error:
            _log.warning("cannot write to the cache, going on without: %s", error.strerror)
            self.whole = False


def _write_all(stream: io.FileIO, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:  # a nearly full disk takes a part, and says so only the next time
        rest = rest[stream.write(rest) :]


class _Cancellable:
    """A source that can be told, from another thread, to end with an error."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        if isinstance(self._source, _Pipe):
            self._source.fail(UnavailableError("loading was cancelled"))

    def readinto(self, buffer: memoryview, /) -> int | None:
        if self._cancelled:
            raise UnavailableError("loading was cancelled")
        return self._source.readinto(buffer)


class _Pipe:
    """Pieces from the event loop, read by a thread like a file; an empty piece is the end."""

    def __init__(self) -> None:
        self._pieces: queue.Queue[bytes | Exception] = queue.Queue(PIPE_PIECES)
        self._room = asyncio.Semaphore(PIPE_PIECES)
        self._loop = asyncio.get_running_loop()
        self._rest = memoryview(b"")

    async def put(self, piece: bytes) -> None:
        await self._room.acquire()
        self._pieces.put_nowait(piece)

    def fail(self, error: Exception) -> None:
        """Let the reader raise *error* next; no piece may follow one that was taken out."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._pieces.get_nowait()
        self._pieces.put_nowait(error)

    def readinto(self, buffer: memoryview, /) -> int:
        if not self._rest:
            piece = self._pieces.get()
            self._loop.call_soon_threadsafe(self._room.release)
            if isinstance(piece, Exception):
                raise piece
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
