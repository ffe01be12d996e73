"""Who never finishes the TLS handshake is bounded in time and number, and locks nobody out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from aigovtool.channel import accepting
from aigovtool.channel.accepting import Entrance, always
from aigovtool.crypto.tls import make_enclave_identity, server_context

HALF_A_HELLO = b"\x16\x03\x01"
TLS = server_context(make_enclave_identity(now=datetime.now(UTC)))


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def accepting_on(*, room: int = 100) -> AsyncIterator[tuple[int, Entrance]]:
    listener = socket.create_server(("127.0.0.1", 0))
    entrance = Entrance(listener, make=Echo, choose=always(TLS), room=lambda: room)
    task = asyncio.create_task(entrance.run())
    try:
        yield listener.getsockname()[1], entrance
    finally:
        task.cancel()
        await asyncio.wait({task})
        listener.close()


async def hold(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Begin a handshake, and never go on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HALF_A_HELLO)
    return reader, writer


async def ends(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def echo(port: int) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"here")
        came = await reader.readexactly(4)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return came


async def until(condition) -> None:  # type: ignore[no-untyped-def]
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - of file descriptors nobody tells us
            await asyncio.sleep(0.01)


async def test_a_handshake_that_never_ends_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accepting, "HANDSHAKE_TIME_S", 0.2)
    async with accepting_on() as (port, entrance):
        before = len(os.listdir("/proc/self/fd"))
        held = [await hold(port) for _ in range(5)]
        await until(lambda: entrance.pending == 5)
        for reader, writer in held:
            await ends(reader)
            writer.close()
        await until(lambda: entrance.pending == 0)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_who_holds_every_place_locks_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "MAX_HANDSHAKES", 4)
    monkeypatch.setattr(accepting, "PATIENCE_S", 0.05)
    async with accepting_on() as (port, entrance):
        held = [await hold(port) for _ in range(12)]
        for reader, _ in held[:8]:  # the oldest lose their places
            await ends(reader)
        await until(lambda: entrance.pending <= 4)
        assert await echo(port) == b"here"
        assert entrance.pending <= 4
        for _, writer in held:
            writer.close()


async def test_a_crowd_of_honest_peers_waits_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "MAX_HANDSHAKES", 2)
    async with accepting_on() as (port, _):
        assert await asyncio.gather(*(echo(port) for _ in range(100))) == [b"here"] * 100


async def test_handshakes_take_their_places_from_all_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accepting, "PATIENCE_S", 0.05)
    async with accepting_on(room=2) as (port, entrance):
        held = [await hold(port) for _ in range(6)]
        for reader, _ in held[:4]:
            await ends(reader)
        await until(lambda: entrance.pending <= 2)
        for _, writer in held:
            writer.close()


async def test_without_any_room_one_at_a_time_is_still_told_so() -> None:
    async with accepting_on(room=-1) as (port, _):
        assert await echo(port) == b"here"  # the guarded protocol says that there is no room


async def test_the_end_closes_what_is_not_open_yet() -> None:
    async with accepting_on() as (port, entrance):
        reader, writer = await hold(port)
        await until(lambda: entrance.pending == 1)
    await ends(reader)
    writer.close()


async def test_what_is_no_tls_at_all_is_closed() -> None:
    async with accepting_on() as (port, entrance):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        await until(lambda: entrance.pending == 0)
        writer.close()
        assert await echo(port) == b"here"
