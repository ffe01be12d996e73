"""A large body is copied once, in its order, and never past its room."""

from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping
from typing import Any

import numpy as np
import pytest

from aigovtool.enclave.api.http import DIVERT, DIVERTED_BYTES, BodyRoom, ClientGoneError, Request
from aigovtool.errors import UnavailableError

from .conftest import RunningEnclave, query

PIECE = 32 << 10
BODY = np.random.default_rng(2026).bytes(20 * PIECE)
assert len(BODY) > DIVERTED_BYTES


class Connection:
    """Gives *pieces* as `DirectProtocol` does; *between* happens before each but the first."""

    def __init__(
        self, pieces: list[bytes], between: Callable[[int], None] = lambda _: None
    ) -> None:
        self.pieces = pieces
        self.between = between
        self.number = 0
        self.events = 0
        self.take: Callable[[bytes], bool] | None = None

    def scope(self) -> MutableMapping[str, Any]:
        length = sum(map(len, self.pieces))
        return {
            "method": "POST", "path": "/", "query_string": b"", "client": None,
            "headers": [(b"content-length", b"%d" % length)], DIVERT: self.divert,
        }  # fmt: skip

    def divert(self, take: Callable[[bytes], bool] | None) -> None:
        self.take = take

    async def receive(self) -> MutableMapping[str, Any]:
        self.events += 1
        while self.number < len(self.pieces):
            piece, self.number = self.pieces[self.number], self.number + 1
            self.between(self.number)
            if self.take is None or not self.take(piece):
                self.take = None
                more = self.number < len(self.pieces)
                return {"type": "http.request", "body": piece, "more_body": more}
        return {"type": "http.request", "body": b"", "more_body": False}


def pieces() -> list[bytes]:
    return [BODY[at : at + PIECE] for at in range(0, len(BODY), PIECE)]


async def test_a_large_body_is_whole_in_two_events() -> None:
    connection, room = Connection(pieces()), BodyRoom(len(BODY))
    request = Request(connection.scope(), connection.receive)
    body = await request.body(max_bytes=len(BODY), time_s=5, room=room)
    assert body == BODY
    assert (connection.events, connection.take) == (2, None)
    assert request.body_bytes == len(BODY)
    room.give_back(request.body_bytes)
    room.take(len(BODY))  # all of it was given back


async def test_a_piece_without_room_is_refused_and_what_follows_does_not_take_its_place() -> None:
    room = BodyRoom(2 * len(BODY))

    def between(number: int) -> None:
        if number == 5:
            room.take(2 * len(BODY) - 4 * PIECE)
        if number == 6:
            room.give_back(2 * len(BODY) - 4 * PIECE)

    connection = Connection(pieces(), between)
    request = Request(connection.scope(), connection.receive)
    with pytest.raises(UnavailableError):
        await request.body(max_bytes=len(BODY), time_s=5, room=room)
    assert connection.number == 5
    assert connection.take is None
    assert request.body_bytes == 4 * PIECE


async def test_nobody_takes_more_once_the_client_left() -> None:
    connection = Connection(pieces())

    async def receive() -> MutableMapping[str, Any]:
        if connection.number == 0:
            connection.number = 1
            return {"type": "http.request", "body": connection.pieces[0], "more_body": True}
        assert connection.take is not None
        return {"type": "http.disconnect"}

    request = Request(connection.scope(), receive)
    with pytest.raises(ClientGoneError):
        await request.body(max_bytes=len(BODY), time_s=5, room=BodyRoom(len(BODY)))
    assert connection.take is None


async def test_large_bodies_one_after_the_other_are_each_their_own(enclave: RunningEnclave) -> None:
    for value in (1.0, 2.0, 3.0):
        text = json.dumps(query([[value, value]])).encode()
        status, answer, _ = await enclave.infer(body=text + b" " * 20 * PIECE)
        assert (status, answer["outputs"][0]["data"]) == (200, [2 * value, 2 * value])
