"""
Accepting connections: what both servers ask of a connection before its first byte is decrypted.

Rule 1: a TLS handshake is finished within a time, or the connection is closed.
Rule 2: connections that have not finished it are bounded, and count with the others. When there is
        no room for one more, the oldest of them goes, once it has had `PATIENCE_S`: an honest
        handshake takes milliseconds, a crowd of them a second, so that those who only hold a place
        lose it first, and lock nobody out. Until then newcomers wait in the system's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

HANDSHAKE_TIME_S = 10.0
PATIENCE_S = 3.0
MAX_HANDSHAKES = 256
ACCEPT_AGAIN_S = 0.1  # after an error such as too many open files
CLOSING_TIME_S = 5.0  # for a peer to say that it closes, too

_log = logging.getLogger(__name__)

Choose = Callable[[socket.socket], Awaitable[ssl.SSLContext | None]]


@dataclass(frozen=True, slots=True)
class _Opening:
    """A connection that shakes hands, and since when."""

    connection: socket.socket
    since_s: float


class Entrance:
    """
    Accepts connections of one listening socket; `run` until it is cancelled.

    Args:
        listener: bound; it listens from now on.
        make: gives the protocol of one connection.
        choose: says by which TLS context a connection is served, None for plain; raises OSError
            or TimeoutError when it will not be served.
        room: how many more connections may be open now, those that shake hands included.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        make: Callable[[], asyncio.Protocol],
        choose: Choose,
        room: Callable[[], int],
    ) -> None:
        listener.listen(socket.SOMAXCONN)
        listener.setblocking(False)
        self._listener = listener
        self._make = make
        self._choose = choose
        self._room = room
        self._pending: dict[asyncio.Task[None], _Opening] = {}  # the oldest first

    @property
    def pending(self) -> int:
        """How many connections have not finished their handshake."""
        return len(self._pending)

    async def run(self) -> None:
        """Accept until cancelled; connections that are not open by then are closed."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._make_room()
                try:
                    connection, _ = await loop.sock_accept(self._listener)
                except OSError as error:
                    _log.warning("cannot accept a connection: %s", error.strerror)
                    await asyncio.sleep(ACCEPT_AGAIN_S)
                    continue
                task = loop.create_task(self._open(connection))
                self._pending[task] = _Opening(connection, loop.time())
                task.add_done_callback(self._settled)
        finally:
            opening = list(self._pending)
            for task in opening:
                self._give_up(task)
            await asyncio.gather(*opening, return_exceptions=True)

    async def _make_room(self) -> None:
        loop = asyncio.get_running_loop()
        # at least one may shake hands: whoever finds no room then is told so, encrypted
        while len(self._pending) >= max(1, min(MAX_HANDSHAKES, self._room())):
            oldest = next(iter(self._pending))
            patience_s = self._pending[oldest].since_s + PATIENCE_S - loop.time()
            if patience_s > 0:
                await asyncio.wait(
                    self._pending, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
                )
            else:
                self._give_up(oldest)
                await asyncio.wait((oldest,))

    def _give_up(self, task: asyncio.Task[None]) -> None:
        _shut(self._pending[task].connection)
        task.cancel()

    def _settled(self, task: asyncio.Task[None]) -> None:
        connection = self._pending.pop(task).connection
        if task.cancelled() or (error := task.exception()) is not None:
            _shut(connection)
            connection.close()
            if not task.cancelled() and not isinstance(error, OSError):  # TimeoutError is one
                _log.error("a connection could not be served: %s", type(error).__name__)

    async def _open(self, connection: socket.socket) -> None:
        async with asyncio.timeout(HANDSHAKE_TIME_S):
            context = await self._choose(connection)
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make,
                connection,
                ssl=context,
                ssl_handshake_timeout=None if context is None else HANDSHAKE_TIME_S,
                ssl_shutdown_timeout=None if context is None else CLOSING_TIME_S,
            )


def always(context: ssl.SSLContext | None) -> Choose:
    """Return the choice that is the same for every connection."""

    async def choose(_: socket.socket) -> ssl.SSLContext | None:
        return context

    return choose


def _shut(connection: socket.socket) -> None:
    """End a connection that a transport may hold already: it sees the end, and lets go."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
