"""
The enclave's metrics, on a port of their own: consumers have no business there.

Rule 1: on loopback anyone on the machine may read them. Elsewhere they are served by TLS, under the
        enclave's own key, to whoever bears the token.
"""

from __future__ import annotations

import hmac

from aigovtool.enclave.api.http import (
    Receive,
    Reply,
    Request,
    Scope,
    Send,
    fault_reply,
    problem_reply,
)
from aigovtool.enclave.metrics import Metrics
from aigovtool.errors import AIGovToolError, NotFoundError, UnauthenticatedError
from aigovtool.telemetry.metrics import render

PATH = "/metrics"


class Scrape:
    """
    The ASGI application for Prometheus.

    Args:
        token: that must be borne; None on loopback only.
    """

    def __init__(self, metrics: Metrics, *, token: str | None) -> None:
        self._metrics = metrics
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            reply = self._reply(request)
        except AIGovToolError as error:
            reply = problem_reply(error)
        except Exception as error:  # noqa: BLE001 - internals stop at this door
            reply = fault_reply(error)
        if request.has_unread_body:
            await reply.send_and_close(send, request)
        else:
            await reply.send(send)

    def _reply(self, request: Request) -> Reply:
        offered = request.headers.get(b"authorization", b"")
        if self._expected is not None and not hmac.compare_digest(offered, self._expected):
            raise UnauthenticatedError("not the token for metrics")
        if request.path != PATH or request.method != "GET":
            raise NotFoundError("no such path here", expected=f"GET {PATH}")
        accept = request.headers.get(b"accept", b"").decode("latin-1")
        body, content_type = render(self._metrics, accept)
        return Reply(200, ((b"content-type", content_type.encode()),), (body,))
