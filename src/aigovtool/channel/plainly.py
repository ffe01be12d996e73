"""Why a connection failed, in words for people instead of the name of an exception's class."""

from __future__ import annotations

import http.client
import os
import socket
import ssl

import aiohttp

CLOSED = "the connection was closed"

_WORDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (ssl.SSLCertVerificationError, "a certificate that is not trusted here"),
    (ssl.SSLError, "TLS could not be agreed upon"),
    (socket.gaierror, "no machine of that name"),
    (ConnectionRefusedError, "nothing listens there"),
    (TimeoutError, "no answer in time"),
    ((ConnectionError, EOFError, aiohttp.ServerDisconnectedError), CLOSED),
    (aiohttp.ClientPayloadError, "the answer broke off"),
    ((aiohttp.ClientResponseError, http.client.HTTPException), "an answer that is not HTTP"),
)


def why_it_failed(error: BaseException | None) -> str:
    """Say why a connection failed; None for one that was closed without an error."""
    if error is None:
        return CLOSED
    beneath = getattr(error, "os_error", None)  # aiohttp wraps what the socket said
    if isinstance(beneath, BaseException):
        error = beneath
    for kinds, words in _WORDS:
        if isinstance(error, kinds):
            return words
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return "the connection failed"
