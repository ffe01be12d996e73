"""
uvicorn, with our TLS context and our limits on connections.

Rule 1: signals are the application's affair, which settles and wipes before the server ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Generator
from typing import Any

import uvicorn

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
    """The server of one application on one socket; `run` serves until `should_exit`."""

    def __init__(self, app: Any, *, tls: ssl.SSLContext, limits: Limits) -> None:
        config = uvicorn.Config(
            app,
            http=guarded_protocol(max_connections=limits.max_connections),
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
        """Capture none (Rule 1)."""
        yield
