"""
The wire between an enclave and its custodian, and what can happen to it.

A TCP relay on loopback: it carries the TLS bytes and understands none of them.

- *passing*: every byte goes on.
- *frozen*: connections stay open and new ones are accepted, and no byte goes on in either
  direction, as when a router has lost its mind. What was held goes on once it passes again.
- *half open*: what the enclave sends goes on, what the custodian sends is held.
- *slow*: every piece is held for a while first.
- *cut*: connections are reset and new ones refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
from collections.abc import Sequence

from aigovtool.drill.background import Background

PIECE_BYTES = 64 << 10
CONNECT_TIMEOUT_S = 2.0


class Wire(enum.Enum):
    """How the wire is."""

    PASSING = "passing"
    FROZEN = "frozen"
    HALF_OPEN = "half open"
    SLOW = "slow"
    CUT = "cut"


class Proxy:
    """
    Relays connections to the first of *targets* that answers; a new one begins at the next target.

    Args:
        targets: loopback ports.
        delay_s: how long a piece is held while the wire is slow.
    """

    def __init__(
        self, background: Background, targets: Sequence[int], *, delay_s: float = 0.3
    ) -> None:
        self._background = background
        self._targets = list(targets)
        self._delay_s = delay_s
        self._wire = Wire.PASSING
        self._changed = asyncio.Event()
        self._relays: set[asyncio.Task[None]] = set()
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self._server = background.call(self._serve(listener))

    def set(self, wire: Wire) -> None:
        """Let the wire be so from now on; returns when it is."""
        self._background.call(self._set(wire))

    def close(self) -> None:
        """Cut it for good."""
        self._background.call(self._close())

    async def _serve(self, listener: socket.socket) -> asyncio.Server:
        return await asyncio.start_server(self._accept, sock=listener)

    async def _set(self, wire: Wire) -> None:
        self._wire = wire
        self._changed.set()
        self._changed = asyncio.Event()
        if wire is Wire.CUT:
            for relay in self._relays:
                relay.cancel()

    async def _close(self) -> None:
        await self._set(Wire.CUT)
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        far: asyncio.StreamWriter | None = None
        try:
            if self._wire is Wire.CUT:
                return
            far_reader, far = await self._connect()
            up = asyncio.create_task(self._pass_on(reader, far, upwards=True))
            down = asyncio.create_task(self._pass_on(far_reader, writer, upwards=False))
            try:
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                up.cancel()
                down.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._relays.discard(task)
            for each in (writer, far):
                if each is not None:
                    each.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._targets.append(self._targets.pop(0))
        for port in self._targets:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    return await asyncio.open_connection("127.0.0.1", port)
        raise ConnectionRefusedError

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upwards: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE_BYTES):
                if self._wire is Wire.SLOW:
                    await asyncio.sleep(self._delay_s)
                while self._wire is Wire.FROZEN or (self._wire is Wire.HALF_OPEN and not upwards):
                    await self._changed.wait()
                writer.write(data)
                await writer.drain()
