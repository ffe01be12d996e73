"""
The control connection: who is there, then reports in and answers and pushes out.

Rule 1: nothing is told to anyone who has not signed our nonce with a session's attested key.
Rule 2: messages are handled one after the other, so a peer's pace is bounded by our own; a bucket
        bounds it further.
Rule 3: a session that may only settle is told so after its first report, and ends.
Rule 4: while the ledger is held a session may hand in what it has, and is given nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
from typing import TypeAlias

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from aigovtool.attestation.binding import NONCE_BYTES
from aigovtool.custodian.api.http import off_loop
from aigovtool.custodian.app import App
from aigovtool.custodian.hub import ClonedError, Connection
from aigovtool.custodian.records import Session
from aigovtool.custodian.reporting import Reporting
from aigovtool.errors import (
    AIGovToolError,
    MalformedError,
    NotFoundError,
    RefusedError,
    UnavailableError,
    VerificationError,
)
from aigovtool.ids import LoanId
from aigovtool.telemetry.logs import event
from aigovtool.wire.codec import Signed, decode, encode
from aigovtool.wire.control import (
    MAX_CONTROL_BYTES,
    ControlChallenge,
    ExtractionSeen,
    FromCustodian,
    FromEnclave,
    GrantSeenBy,
    Hello,
    MoreWanted,
    OutputSeen,
    Reattest,
    Report,
    ReportAnswer,
    SessionEnded,
    Stopped,
)
from aigovtool.wire.enrolment import SessionStatement

HELLO_TIMEOUT_S = 10.0
MAX_HELLO_BYTES = 4096
MESSAGES_PER_S = 2000  # more reports than one disk can make durable
BURST_MESSAGES = 200

NORMAL, POLICY_VIOLATION, TRY_AGAIN = 1000, 1008, 1013  # RFC 6455, 7.4.1, and the IANA registry

_log = logging.getLogger(__name__)
_Message: TypeAlias = FromEnclave


class Control:
    """Serves control connections."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._reporting = Reporting(
            lambda reports: off_loop(app.reports, lambda: app.leasing.report_all(reports))
        )

    async def serve(self, socket: WebSocket, loan: LoanId) -> None:
        """Serve one connection, of a bearer of *loan*'s ticket, to its end."""
        await socket.accept()
        code = NORMAL
        try:
            hello, nonce = await self._greet(socket)
            stated = await off_loop(
                self._app.pool, lambda: self._app.handing_in.identify(hello, nonce, loan)
            )
            if self._app.ledger.held is not None:
                await self._take_in(socket, stated, hello.statement)
                return
            session = await self._identify(hello, nonce, loan)
            async with self._app.hub.connection(session.session, session.loan) as connection:
                try:
                    await self._converse(socket, session, connection)
                finally:
                    leave = off_loop(
                        self._app.reports, lambda: self._app.sessions.disconnect(session.session)
                    )
                    await asyncio.shield(leave)
        except WebSocketDisconnect:
            return
        except ClonedError as error:
            cloned = functools.partial(self._app.sessions.cloned, stated.session)
            await off_loop(self._app.reports, cloned)
            await _send(socket, SessionEnded(reason=str(error)))
            code = POLICY_VIOLATION
        except UnavailableError as error:
            _log.warning(
                "a control connection is turned away: %s", error, extra=event("control.turned_away")
            )
            code = TRY_AGAIN
        except AIGovToolError as error:
            _log.warning(
                "a control connection is refused: %s", error, extra=event("control.refused")
            )
            await _send(socket, SessionEnded(reason=str(error)))
            code = POLICY_VIOLATION
        if socket.application_state is WebSocketState.CONNECTED:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await socket.close(code)

    async def _greet(self, socket: WebSocket) -> tuple[Hello, bytes]:
        nonce = secrets.token_bytes(NONCE_BYTES)
        await socket.send_text(encode(ControlChallenge(nonce=nonce)).decode())
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello = decode(await _receive(socket), Hello, max_bytes=MAX_HELLO_BYTES)
        except TimeoutError:
            raise UnavailableError("nobody said hello in time") from None
        return hello, nonce

    async def _identify(self, hello: Hello, nonce: bytes, loan: LoanId) -> Session:
        session = await off_loop(self._app.pool, lambda: self._app.sessions.identify(hello, nonce))
        if session.loan != loan:
            raise VerificationError("the session is of another loan", code="control.loan")
        return session

    async def _take_in(
        self, socket: WebSocket, stated: SessionStatement, statement: Signed
    ) -> None:
        """While the ledger is held: take settlements and proofs, give nothing."""
        app = self._app
        await _send(socket, await off_loop(app.pool, lambda: app.handing_in.welcome(stated.loan)))
        pace = _Pace()
        while True:
            await pace.wait()
            message: _Message = decode(
                await _receive(socket), FromEnclave, max_bytes=MAX_CONTROL_BYTES
            )
            match message:
                case Report():
                    take = functools.partial(app.handing_in.take, stated, statement, message)
                    await _send(socket, await off_loop(app.reports, take))
                case Stopped(proof=proof):
                    stopped = functools.partial(app.sessions.stopped, stated.session, proof)
                    with contextlib.suppress(NotFoundError):  # a session that the ledger lost
                        await off_loop(app.reports, stopped)
                    await socket.close(NORMAL)
                    return
                case _:
                    pass  # wishes and evidence are for a ledger that is served

    async def _converse(self, socket: WebSocket, session: Session, connection: Connection) -> None:
        welcome, settle_only = await off_loop(
            self._app.reports, lambda: self._app.sessions.connect(session.session)
        )
        await _send(socket, welcome)
        if not settle_only:
            await off_loop(
                self._app.reports, lambda: self._app.reattestation.connected(session.session)
            )
            await off_loop(
                self._app.pool, lambda: self._app.notices.connected(session.loan, session.session)
            )
        reading = asyncio.create_task(self._read(socket, connection, settle_only=settle_only))
        writing = asyncio.create_task(_write(socket, connection))
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
                connection.send(None)
            await writing
        finally:
            reading.cancel()
            writing.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)

    async def _read(self, socket: WebSocket, connection: Connection, *, settle_only: bool) -> None:
        """Handle messages until one says that it was the last."""
        pace = _Pace()
        more = True
        while more:
            await pace.wait()
            message: _Message = decode(
                await _receive(socket), FromEnclave, max_bytes=MAX_CONTROL_BYTES
            )
            try:
                more = await self._handle(message, connection)
            except UnavailableError:
                raise
            except AIGovToolError as error:
                # whatever it asked for, the session ends; its push may be on the way already
                _log.warning(
                    "session %s is ended: %s",
                    connection.session,
                    error,
                    extra=event("control.ended", session=connection.session),
                )
                connection.send(SessionEnded(reason=str(error)))
                return
            if settle_only and isinstance(message, Report):
                connection.send(SessionEnded(reason="this session is over; enrol again"))
                return

    async def _handle(self, message: _Message, connection: Connection) -> bool:
        app, session = self._app, connection.session
        match message:
            case Report():

                def tell(answer: ReportAnswer) -> None:
                    without = message.want is not None and answer.lease is None
                    app.hub.heard(connection, without=without)
                    connection.send(answer)

                with app.metrics.report():
                    await self._reporting.report(session, message, tell)
            case MoreWanted():
                with contextlib.suppress(
                    MalformedError, RefusedError
                ):  # a consumer's wish ends no session
                    await off_loop(app.reports, lambda: app.grants.want_more(session, message))
                    app.hub.heard(connection, without=message.waiting_in_all > 0)
            case Reattest():
                # an appraisal takes milliseconds, which reports need not wait for
                await off_loop(app.pool, lambda: app.reattestation.answer(session, message))
            case GrantSeenBy():
                await off_loop(app.pool, lambda: app.notices.seen(session, message.seen))
            case ExtractionSeen():
                loan = connection.loan
                await off_loop(app.reports, lambda: app.extraction.alarm(loan, session, message))
            case OutputSeen():
                loan = connection.loan
                connection.send(
                    await off_loop(app.reports, lambda: app.extraction.outputs(loan, message))
                )
            case Stopped():
                await off_loop(app.reports, lambda: app.sessions.stopped(session, message.proof))
                return False
        return True


class _Pace:
    """A token bucket that waits instead of refusing."""

    def __init__(self) -> None:
        self._tokens = float(BURST_MESSAGES)
        self._at_s = asyncio.get_running_loop().time()

    async def wait(self) -> None:
        now_s = asyncio.get_running_loop().time()
        grown = self._tokens + (now_s - self._at_s) * MESSAGES_PER_S
        self._at_s, self._tokens = now_s, min(BURST_MESSAGES, grown) - 1
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / MESSAGES_PER_S)


async def _receive(socket: WebSocket) -> bytes | str:
    frame = await socket.receive()
    if frame["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(frame.get("code", NORMAL))
    body = frame.get("text") or frame.get("bytes") or b""
    assert isinstance(body, bytes | str)
    return body


async def _write(socket: WebSocket, connection: Connection) -> None:
    while (message := await connection.outgoing.get()) is not None:
        await _send(socket, message)


async def _send(socket: WebSocket, message: FromCustodian) -> None:
    try:
        await socket.send_text(encode(message).decode())
    except RuntimeError:  # what Starlette says of a socket that is closed already
        raise WebSocketDisconnect(NORMAL) from None
