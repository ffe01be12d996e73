"""
A relay between enclave and custodian that reads all of it: it has the custodian's own key.

Only a test can have that: it takes the key out of the custodian's ledger with the master key.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from datetime import UTC, datetime

from aigovtool.crypto.tls import make_custodian_identity, pinned_client_context, server_context
from aigovtool.custodian import vault
from aigovtool.custodian.data import DataFolder
from aigovtool.custodian.store.sqlite import SqliteStore
from aigovtool.demo.stage import free_port

_END_OF_HEAD = b"\r\n\r\n"


class Tap:
    """Listens on `port`; what comes in the clear from each connection is kept in `_up`."""

    def __init__(self, folder: DataFolder, *, to_port: int) -> None:
        """Read the custodian's key out of *folder*, before it serves."""
        store = SqliteStore.open(folder.ledger)
        try:
            with store.read() as tx:
                row = tx.custodian()
        finally:
            store.close()
        assert row is not None
        keeper = vault.Vault(vault.read_master_key(folder.master_key, {}))
        identity = make_custodian_identity(
            keeper.signing_key(row), row.certificate_pem, now=datetime.now(UTC)
        )
        self._server = server_context(identity)
        self._client = pinned_client_context(row.certificate_pem)
        self._to_port = to_port
        self._up: list[bytearray] = []
        self.port = free_port()
        # one thread for all of it: a TLS connection is not for two threads at once
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._join, "127.0.0.1", self.port, ssl=self._server), self._loop
        ).result()

    def said(self) -> list[bytes]:
        """Return all that was said to the custodian, connection by connection, unmasked."""
        return [unmasked(bytes(up)) for up in self._up]

    def close(self) -> None:
        """End the relay, with every connection that goes through it."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._listener.close()
        through = asyncio.all_tasks() - {asyncio.current_task()}
        for one in through:
            one.cancel()
        await asyncio.gather(*through, return_exceptions=True)

    async def _join(self, near: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        kept = bytearray()
        self._up.append(kept)
        try:
            far, ask = await asyncio.open_connection("127.0.0.1", self._to_port, ssl=self._client)
        except OSError:  # the custodian is gone: so is the relay's other end
            answer.close()
            return
        await asyncio.gather(_pass_on(near, ask, kept), _pass_on(far, answer, None))


async def _pass_on(
    source: asyncio.StreamReader, to: asyncio.StreamWriter, kept: bytearray | None
) -> None:
    try:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if kept is not None:
                    kept += data
                to.write(data)
                await to.drain()
    finally:
        to.close()
        with contextlib.suppress(OSError):
            await to.wait_closed()


def unmasked(stream: bytes) -> bytes:
    """Return *stream* with the frames of a WebSocket in it, if it became one, in the clear."""
    # the upgrade may be a later request of a connection that was kept alive
    asked = stream.lower().find(b"upgrade: websocket")
    if asked < 0:
        return stream
    opened = stream.index(_END_OF_HEAD, asked) + len(_END_OF_HEAD)
    rest = stream[opened:]
    frames = [stream[:opened]]
    while len(rest) >= 6:  # RFC 6455 section 5.2; a client's frames are all masked
        size, at = rest[1] & 0x7F, 2
        if size == 126:
            (size,), at = struct.unpack(">H", rest[2:4]), 4
        elif size == 127:
            (size,), at = struct.unpack(">Q", rest[2:10]), 10
        assert rest[1] & 0x80
        mask, body = rest[at : at + 4], rest[at + 4 : at + 4 + size]
        frames.append(bytes(byte ^ mask[index % 4] for index, byte in enumerate(body)))
        rest = rest[at + 4 + size :]
    return b"\n".join(frames)
