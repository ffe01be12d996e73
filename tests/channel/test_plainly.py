from __future__ import annotations

import errno
import http.client
import socket
import ssl

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey

from aigovtool.channel.plainly import why_it_failed

KEY = ConnectionKey("host", 1, True, True, None, None, None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (None, "the connection was closed"),
        (ConnectionRefusedError(), "nothing listens there"),
        (
            aiohttp.ClientConnectorError(KEY, ConnectionRefusedError(errno.ECONNREFUSED, "x")),
            "nothing listens there",
        ),
        (aiohttp.ClientConnectorDNSError(KEY, socket.gaierror(-2, "x")), "no machine of that name"),
        (aiohttp.ServerDisconnectedError(), "the connection was closed"),
        (aiohttp.ServerTimeoutError(), "no answer in time"),
        (aiohttp.ClientPayloadError(), "the answer broke off"),
        (http.client.RemoteDisconnected(), "the connection was closed"),
        (http.client.BadStatusLine("x"), "an answer that is not HTTP"),
        (ssl.SSLError(), "TLS could not be agreed upon"),
        (OSError(errno.EHOSTUNREACH, "x"), "No route to host"),
        (aiohttp.ClientError(), "the connection failed"),
    ],
)
def test_no_class_name_reaches_people(error: BaseException | None, words: str) -> None:
    assert why_it_failed(error) == words
