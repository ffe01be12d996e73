"""
HTTP and HTTPS on one port, told apart by the first byte.

The first AIGovTool had its admin calls over HTTPS under a self-made certificate (``curl -k``), and
whoever follows today's examples uses plain HTTP; on loopback both find the same door here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from aigovtool.channel.accepting import Choose

TLS_HANDSHAKE = b"\x16"  # RFC 8446 section 5.1, the content type of a first record


def either(tls: ssl.SSLContext) -> Choose:
    """Return the choice between plain and behind *tls*, as a connection's peer begins."""

    async def choose(connection: socket.socket) -> ssl.SSLContext | None:
        first = await _peek(connection)
        if not first:
            raise ConnectionError("nothing was ever said")
        return tls if first == TLS_HANDSHAKE else None

    return choose


async def _peek(connection: socket.socket) -> bytes:
    """Wait for the first byte and return it, still unread; nothing when the peer has gone."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    readable = asyncio.Event()
    loop.add_reader(connection.fileno(), readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection.fileno())
    with contextlib.suppress(BlockingIOError):
        return connection.recv(1, socket.MSG_PEEK)
    return b""
