"""
HTTP and HTTPS on one port, told apart by the first byte.

The first AIGovTool had its admin calls over HTTPS under a self-made certificate (``curl -k``), and
whoever follows today's examples uses plain HTTP; on loopback both find the same door here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable

TLS_HANDSHAKE = b"\x16"  # RFC 8446 section 5.1, the content type of a first record
FIRST_BYTE_WITHIN_S = 10.0
MAX_UNDECIDED = 256  # connections that have not said anything yet
ACCEPT_AGAIN_S = 0.1  # after an error such as too many open files

_log = logging.getLogger(__name__)


async def accept_either(
    listener: socket.socket, *, make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext
) -> None:
    """
    Accept connections until cancelled, and hand each to a protocol of its own.

    Args:
        listener: bound; it listens from now on.
        make: gives the protocol, plain or behind *tls* as its peer begins.
    """
    loop = asyncio.get_running_loop()
    listener.listen()
    listener.setblocking(False)
    places = asyncio.Semaphore(MAX_UNDECIDED)

    async def hand_on(connection: socket.socket) -> None:
        try:
            first = await _peek(connection)
            if first:
                context = tls if first == TLS_HANDSHAKE else None
                await loop.connect_accepted_socket(make, connection, ssl=context)
            else:
                connection.close()
        except (OSError, TimeoutError):  # a handshake that failed, or nothing was ever said
            connection.close()
        finally:
            places.release()

    async with asyncio.TaskGroup() as tasks:
        while True:
            await places.acquire()
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                places.release()
                _log.warning("cannot accept a connection: %s", error.strerror)
                await asyncio.sleep(ACCEPT_AGAIN_S)
            else:
                tasks.create_task(hand_on(connection))


async def _peek(connection: socket.socket) -> bytes:
    """Wait for the first byte and return it, still unread; nothing when the peer has gone."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    readable = asyncio.Event()
    loop.add_reader(connection.fileno(), readable.set)
    try:
        async with asyncio.timeout(FIRST_BYTE_WITHIN_S):
            await readable.wait()
    finally:
        loop.remove_reader(connection.fileno())
    with contextlib.suppress(BlockingIOError):
        return connection.recv(1, socket.MSG_PEEK)
    return b""
