"""Who is silent is pinged, who is heard is not, and who is dead is found out in time."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from aigovtool.crypto.tls import pinned_client_context
from aigovtool.custodian import heartbeat, hub
from tests.custodian.house import House, open_house
from tests.custodian.test_server import Peer

LOOK_S, ANSWER_S = 0.05, 3.0
LIMIT_S = 20.0


def test_a_dead_connection_is_known_before_another_stops_waiting_for_it() -> None:
    assert 2 * heartbeat.LOOK_EVERY_S + heartbeat.ANSWER_WITHIN_S < hub.TAKEOVER_WAIT_S


class Pings:
    """Counts what the custodian really sends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.sent = asyncio.Event()
        send = WebSocketsSansIOProtocol.send_keepalive_ping

        def counted(protocol: WebSocketsSansIOProtocol) -> None:
            self.count += 1
            self.sent.set()
            send(protocol)

        monkeypatch.setattr(WebSocketsSansIOProtocol, "send_keepalive_ping", counted)

    async def more(self, number: int) -> None:
        async with asyncio.timeout(LIMIT_S):
            for _ in range(number):
                await self.sent.wait()
                self.sent.clear()


@pytest.fixture
async def scene(tmp_path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(heartbeat, "LOOK_EVERY_S", LOOK_S)
    monkeypatch.setattr(heartbeat, "ANSWER_WITHIN_S", ANSWER_S)
    pings = Pings(monkeypatch)
    async with (
        open_house(tmp_path) as (made, doors),
        aiohttp.ClientSession(
            f"https://{doors.enclave_address}",
            connector=aiohttp.TCPConnector(
                ssl=pinned_client_context(made.app.identity.certificate_pem)
            ),
            headers={"Authorization": f"Bearer {made.ticket.token}"},
        ) as http,
    ):
        peer = Peer(made, http)
        await peer.enrol()
        await peer.hello()
        yield made, peer, pings


Scene = tuple[House, Peer, Pings]


async def test_one_that_answers_pings_stays(scene: Scene) -> None:
    made, peer, pings = scene

    async def read() -> None:
        while True:  # aiohttp answers pings while it reads
            await peer.socket.receive()

    reading = asyncio.create_task(read())
    await pings.more(4)
    assert made.app.hub.connected == 1
    reading.cancel()


async def test_one_that_does_not_is_dropped(scene: Scene) -> None:
    made, _, pings = scene  # nobody reads, so nobody answers
    await pings.more(1)
    async with asyncio.timeout(LIMIT_S):
        while made.app.hub.connected:  # noqa: ASYNC110 - the hub tells nobody of it
            await asyncio.sleep(LOOK_S)
    assert pings.count == 1


class Looks:
    """uvicorn's part of the protocol, noting what it is asked to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        base = WebSocketsSansIOProtocol
        for name, what in (
            ("send_keepalive_ping", "pinged"),
            ("schedule_ping", "skipped"),
            ("keepalive_timeout", "failed"),
        ):
            monkeypatch.setattr(base, name, lambda _, what=what: self.seen.append(what))
        monkeypatch.setattr(base, "data_received", lambda *_: None)
        self.socket = object.__new__(heartbeat.SparingWebSocket)
        self.socket.read_paused = False
        self.socket.transport = self  # type: ignore[assignment]

    def abort(self) -> None:
        self.seen.append("aborted")


def test_one_that_was_heard_is_not_pinged_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    looks.socket.send_keepalive_ping()
    looks.socket.data_received(b"anything")
    looks.socket.send_keepalive_ping()
    looks.socket.send_keepalive_ping()
    assert looks.seen == ["pinged", "skipped", "pinged"]


def test_one_whose_words_lie_unread_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its report waits for a slow ledger, and its answer to the ping is behind that."""
    looks = Looks(monkeypatch)
    looks.socket.send_keepalive_ping()
    looks.socket.read_paused = True
    looks.socket.keepalive_timeout()
    looks.socket.send_keepalive_ping()
    looks.socket.read_paused = False
    looks.socket.send_keepalive_ping()
    looks.socket.keepalive_timeout()
    assert looks.seen == ["pinged", "skipped", "skipped", "pinged", "failed", "aborted"]
