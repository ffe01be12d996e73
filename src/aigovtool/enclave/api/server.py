"""
uvicorn, with our TLS context, our limits on connections, and problem details for broken HTTP.

Rule 1: a connection must finish its request's head within a time and a size, or is closed.
Rule 2: signals are the application's affair, which settles and wipes before the server ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Generator
from typing import Any

import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from aigovtool.enclave.config import Limits
from aigovtool.errors import ConfigurationError, MalformedError, UnavailableError
from aigovtool.wire.problem import CONTENT_TYPE, Problem, problem_of

HEAD_TIME_S = 15.0
MAX_HEAD_BYTES = 64 << 10
BACKLOG = 2048
GRACE_S = 3  # for answers to be written out when the server ends


def listen_on(host: str, port: int) -> socket.socket:
    """Open the listening socket; raises ConfigurationError, also when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=host == "::"
        )
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            mend="choose another address with --listen",
        ) from None
    # Accepted sockets inherit it; asyncio sets it only on those that say they are TCP, which
    # these do not. Without it each answer waits some 40 ms for a delayed ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class EnclaveServer(uvicorn.Server):
    """The server of one application on one socket; `run` serves until `should_exit`."""

    def __init__(self, app: Any, *, tls: ssl.SSLContext, limits: Limits) -> None:
        config = uvicorn.Config(
            app,
            http=_protocol(limits),
            ws="none",
            lifespan="off",
            loop="none",
            interface="asgi3",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(max(1, limits.idle_s)),
            timeout_graceful_shutdown=GRACE_S,
        )
        config.load()
        config.ssl = tls  # uvicorn itself only reads keys from files
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none (Rule 2)."""
        yield


def _protocol(limits: Limits) -> type[asyncio.Protocol]:
    class GuardedProtocol(HttpToolsProtocol):
        """Bounds the number of connections, and the head of each request (Rule 1)."""

        _head_bytes = 0
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                self._refuse(
                    problem_of(UnavailableError("too many connections", code="connections"))
                )
                return
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_is_here()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self.transport.is_closing():
                super().data_received(data)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head_bytes = 0
            self._await_head()

        def on_url(self, url: bytes) -> None:
            self._count(url)
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(name)
            self._count(value)
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._head_is_here()
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            self._refuse(problem_of(MalformedError("not an HTTP request", code="http")))

        def _count(self, part: bytes) -> None:
            self._head_bytes += len(part)
            if self._head_bytes > MAX_HEAD_BYTES:
                raise ValueError("request head too large")  # the parser turns it into a 400

        def _await_head(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(HEAD_TIME_S, self._close)

        def _head_is_here(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _close(self) -> None:
            self.transport.close()

        def _refuse(self, problem: Problem) -> None:
            body = msgspec.json.encode(problem)
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%s"
                % (problem.status, problem.title.encode(), CONTENT_TYPE.encode(), len(body), body)
            )
            self.transport.close()

    return GuardedProtocol
