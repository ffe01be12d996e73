"""
The enclave's gRPC door: every call is a request to the HTTP API of this very process.

So it is admitted, limited, charged, replayed, computed and receipted there, as any other.

Rule 1: a call that its client cancels, or whose deadline is over, is to the API a connection that
        was closed: what has been begun under an Idempotency-Key goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from aigovtool.channel.grpc_door import Metadata
from aigovtool.enclave.api.reception import Reception
from aigovtool.errors import UnavailableError
from aigovtool.wire.grpc.translate import HttpAnswer, HttpRequest


class InProcess:
    """Asks *reception*, without a socket."""

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._under_way: set[asyncio.Task[HttpAnswer]] = set()

    def admit(self, metadata: Metadata) -> str:
        """
        Return which consumer of the loan asks.

        Raises:
            UnauthenticatedError, BlockedError, UnavailableError: as `Session.authenticate`.
        """
        authorization = metadata.get("authorization", "").encode("latin-1", "replace")
        enclave = self._reception.of_key(authorization).enclave
        if (session := enclave.session) is None:
            raise enclave.not_serving()
        return session.authenticate(authorization)

    async def __call__(self, request: HttpRequest, metadata: Metadata) -> HttpAnswer:
        gone = asyncio.Event()
        task = asyncio.create_task(self._ask(request, metadata, gone))
        self._under_way.add(task)
        task.add_done_callback(self._over)
        try:
            return await asyncio.shield(task)
        finally:
            gone.set()  # Rule 1; when the answer is there, nobody listens to it

    async def _ask(
        self, request: HttpRequest, metadata: Metadata, gone: asyncio.Event
    ) -> HttpAnswer:
        bodies = [request.body]
        status = 0
        headers: dict[str, str] = {}
        chunks: list[bytes | memoryview] = []

        async def receive() -> MutableMapping[str, Any]:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers.update((k.decode(), v.decode("latin-1")) for k, v in message["headers"])
            else:
                chunks.append(message["body"])

        given = [*metadata.items(), *request.headers, ("content-length", str(len(request.body)))]
        await self._reception(
            {
                "type": "http",
                "method": request.method,
                "path": request.path,
                "query_string": b"",
                "headers": [(k.encode(), v.encode("latin-1", "replace")) for k, v in given],
                "client": None,
            },
            receive,
            send,
        )
        if not status:
            raise UnavailableError("the client went away", code="query.left")
        return HttpAnswer(status=status, headers=headers, body=b"".join(chunks))

    def _over(self, task: asyncio.Task[HttpAnswer]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # a client that went away does not ask for it
