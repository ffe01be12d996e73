"""
uvicorn, with our TLS context and our limits on connections.

Rule 1: signals are the application's affair, which settles and wipes before the server ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Generator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from aigovtool.channel.accepting import Entrance, always
from aigovtool.channel.guarded import guarded_protocol
from aigovtool.enclave.config import Limits
from aigovtool.errors import ConfigurationError

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
            f"cannot listen on {host}:{port}",
            came=error.strerror if error.errno is None else os.strerror(error.errno),
            mend="choose another address with --listen, or end what listens there",
        ) from None
    # Accepted sockets inherit it; asyncio sets it only on those that say they are TCP, which
    # these do not. Without it each answer waits some 40 ms for a delayed ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class EnclaveServer(uvicorn.Server):
    """
    The server of one application on one socket; `serve` serves until `should_exit`.

    Args:
        protocol: of its connections, where it is not the plain guarded one.
    """

    def __init__(
        self,
        app: Any,
        *,
        tls: ssl.SSLContext | None,
        limits: Limits,
        protocol: type[HttpToolsProtocol] | None = None,
    ) -> None:
        self._tls = tls
        self._accepting: list[asyncio.Task[None]] = []
        self._max_connections = limits.max_connections
        self._protocol = protocol or guarded_protocol(max_connections=limits.max_connections)
        config = uvicorn.Config(
            app,
            http=self._protocol,
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
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve what connects to *sockets*, which listen already."""
        await super().startup(sockets=[])
        for listener in sockets or ():
            entrance = Entrance(
                listener,
                make=lambda: self._protocol(
                    config=self.config,
                    server_state=self.server_state,
                    app_state=self.lifespan.state,
                ),
                choose=always(self._tls),
                room=lambda: self._max_connections - len(self.server_state.connections),
            )
            accepting = asyncio.create_task(entrance.run())
            accepting.add_done_callback(self._is_deaf)
            self._accepting.append(accepting)

    def _is_deaf(self, _: asyncio.Task[None]) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let nobody in, and what is in flight end; raises what made the server deaf, if so."""
        for accepting in self._accepting:
            accepting.cancel()
        ended = await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets=[])
        for error in ended:
            if isinstance(error, Exception):
                raise error

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none (Rule 1)."""
        yield
