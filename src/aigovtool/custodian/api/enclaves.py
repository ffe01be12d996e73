"""
The door for enclaves, port 7000: TLS under the custodian's key, and a ticket's token for all of it.
"""

from __future__ import annotations

import re

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from aigovtool.custodian.api.bodies import send_body
from aigovtool.custodian.api.control import Control
from aigovtool.custodian.api.http import (
    bearer_of,
    json_response,
    make_app,
    off_loop,
    problem_response,
    read_body,
)
from aigovtool.custodian.api.log import send_log
from aigovtool.custodian.app import App
from aigovtool.custodian.records import Loan, Model
from aigovtool.errors import AIGovToolError, NotFoundError, PromiseBrokenError
from aigovtool.wire.codec import MAX_MESSAGE_BYTES, decode
from aigovtool.wire.enrolment import ChallengeRequest, EnrolRequest
from aigovtool.wire.headers import BODY_PATH, CHALLENGE_PATH, CONTROL_PATH, ENROL_PATH
from aigovtool.wire.log import LOG_PATH

MAX_CHALLENGE_BYTES = 4096
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class EnclaveDoor:
    """The endpoints."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._control = Control(app)

    async def _loan(self, connection: HTTPConnection) -> Loan:
        """Return the loan of the ticket whose token came; raises UnauthenticatedError."""
        token = bearer_of(connection)
        return await off_loop(self._app.pool, lambda: self._app.enrolment.loan_of_ticket(token))

    async def challenge(self, request: Request) -> Response:
        await self._loan(request)
        token = bearer_of(request)
        asked = decode(await read_body(request, MAX_CHALLENGE_BYTES), ChallengeRequest)
        return json_response(
            await off_loop(self._app.pool, lambda: self._app.enrolment.challenge(token, asked))
        )

    async def enrol(self, request: Request) -> Response:
        await self._loan(request)
        token = bearer_of(request)
        asked = decode(await read_body(request, MAX_MESSAGE_BYTES), EnrolRequest)
        return json_response(
            await off_loop(self._app.pool, lambda: self._app.enrolment.enrol(token, asked))
        )

    async def body(self, request: Request) -> Response:
        loan = await self._loan(request)
        digest = request.path_params["digest"]
        if not _DIGEST.match(digest):
            raise NotFoundError("this ticket is not of a loan of that model")
        model = await off_loop(self._app.pool, lambda: self._find(loan, bytes.fromhex(digest)))
        path = self._app.folder.body(model.digest)
        return await send_body(request, path, sha256=model.body_sha256, pool=self._app.pool)

    def _find(self, loan: Loan, digest: bytes) -> Model:
        """Return the loan's model, or one that was replaced while a session of it was loading."""
        with self._app.ledger.read() as tx:
            live = tx.live_sessions_of_loan(loan.loan) if digest != loan.model else ()
            if digest != loan.model and all(one.model != digest for one in live):
                raise NotFoundError("this ticket is not of a loan of that model")
            model = tx.model(digest)
        if model is None:
            raise PromiseBrokenError("a loan of a model that is not in the ledger")
        return model

    async def log(self, request: Request) -> Response:
        await self._loan(request)
        return await send_log(request, self._app.folder.log, pool=self._app.pool)

    async def control(self, socket: WebSocket) -> None:
        try:
            loan = await self._loan(socket)
        except AIGovToolError as error:
            await socket.send_denial_response(problem_response(error))
            return
        await self._control.serve(socket, loan.loan)


def enclave_app(app: App) -> Starlette:
    """Return the ASGI application for enclaves."""
    door = EnclaveDoor(app)
    return make_app(
        [
            Route(CHALLENGE_PATH, door.challenge, methods=["POST"]),
            Route(ENROL_PATH, door.enrol, methods=["POST"]),
            Route(BODY_PATH, door.body, methods=["GET"]),
            Route(LOG_PATH + "/{path:path}", door.log, methods=["GET"]),
            WebSocketRoute(CONTROL_PATH, door.control),
        ]
    )
