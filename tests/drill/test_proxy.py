"""The wire, in each of its ways, with bytes that can be seen."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from aigovtool.drill.background import Background
from aigovtool.drill.proxy import Proxy, Wire

SOON_S = 5.0
NOTHING_S = 0.3  # what is held does not come in this time


@pytest.fixture
def wire() -> Iterator[tuple[Proxy, socket.socket, socket.socket]]:
    """A proxy, its near end, and its far end; what is behind it answers nothing by itself."""
    listener = socket.create_server(("127.0.0.1", 0))
    with Background() as background:
        proxy = Proxy(background, [listener.getsockname()[1]], delay_s=NOTHING_S)
        near = socket.create_connection(("127.0.0.1", proxy.port), timeout=SOON_S)
        far, _ = listener.accept()
        far.settimeout(SOON_S)
        yield proxy, near, far
        proxy.close()
        for each in (near, far, listener):
            each.close()


def comes(end: socket.socket, data: bytes, within_s: float) -> bool:
    end.settimeout(within_s)
    try:
        return end.recv(100) == data
    except TimeoutError:
        return False
    finally:
        end.settimeout(SOON_S)


Made = tuple[Proxy, socket.socket, socket.socket]


def test_what_passes_passes_both_ways(wire: Made) -> None:
    _, near, far = wire
    near.sendall(b"up")
    assert comes(far, b"up", SOON_S)
    far.sendall(b"down")
    assert comes(near, b"down", SOON_S)


def test_a_frozen_wire_holds_everything_and_loses_nothing(wire: Made) -> None:
    proxy, near, far = wire
    proxy.set(Wire.FROZEN)
    near.sendall(b"up")
    far.sendall(b"down")
    assert not comes(far, b"up", NOTHING_S)
    assert not comes(near, b"down", NOTHING_S)
    proxy.set(Wire.PASSING)
    assert comes(far, b"up", SOON_S)
    assert comes(near, b"down", SOON_S)


def test_a_half_open_wire_carries_what_goes_up(wire: Made) -> None:
    proxy, near, far = wire
    proxy.set(Wire.HALF_OPEN)
    near.sendall(b"up")
    assert comes(far, b"up", SOON_S)
    far.sendall(b"down")
    assert not comes(near, b"down", NOTHING_S)


def test_a_cut_wire_resets_and_refuses(wire: Made) -> None:
    proxy, near, _ = wire
    proxy.set(Wire.CUT)
    with contextlib.suppress(ConnectionResetError):
        assert near.recv(1) == b""
    with (
        socket.create_connection(("127.0.0.1", proxy.port), timeout=SOON_S) as again,
        contextlib.suppress(ConnectionResetError),
    ):
        assert again.recv(1) == b""


def test_a_connection_goes_to_a_target_that_answers() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with socket.socket() as dead, Background() as background:
        dead.bind(("127.0.0.1", 0))
        proxy = Proxy(background, [listener.getsockname()[1], dead.getsockname()[1]])

        def accept() -> None:
            listener.accept()[0].close()

        accepted = threading.Thread(target=accept)
        accepted.start()
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=SOON_S):
            accepted.join(SOON_S)
            assert not accepted.is_alive()
        proxy.close()
    listener.close()
