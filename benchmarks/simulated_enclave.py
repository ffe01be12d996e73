"""
An enclave without a model: its side of the control connection, as cheap as it can be made.

The bytes are the real ones: TLS pinned to the custodian's root, a WebSocket, `Hello` signed by the
session's key, reports with signed settlements. Only what costs the client and not the custodian is
left out: frames are masked with zeros, and answers' statements are not verified.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.ids import ConsumerId, LoanId, SessionId, sha256
from aigovtool.wire.codec import Signed, encode, sign
from aigovtool.wire.control import (
    NO_SETTLEMENT_BEFORE,
    ControlChallenge,
    FromCustodian,
    Hello,
    Lease,
    LoanChanged,
    Report,
    ReportAnswer,
    SessionEnded,
    Settlement,
    Stopped,
    StopProof,
    Want,
    Welcome,
)
from aigovtool.wire.headers import CONTROL_PATH

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10  # RFC 6455, 5.2
ACTIVE = "active"

_challenge = msgspec.json.Decoder(ControlChallenge)
_message: msgspec.json.Decoder[Any] = msgspec.json.Decoder(FromCustodian)


@dataclass
class Tally:
    """What the fleet has seen, all enclaves together."""

    leases: int = 0
    settlements: int = 0
    answers_s: list[float] = field(default_factory=list)
    stopped_s: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


class SimulatedEnclave(asyncio.Protocol):
    """
    One session.

    Args:
        every_s: between two reports; 0 sends the next as soon as one is answered, None sends none.
        want: credits asked for; each lease is settled as used up by the next report.
    """

    def __init__(
        self,
        *,
        loan: LoanId,
        session: SessionId,
        consumer: ConsumerId,
        key: SigningKey,
        token: str,
        statement: Signed,
        tally: Tally,
        want: int = 20,
    ) -> None:
        self.loan, self.session, self.consumer, self.key = loan, session, consumer, key
        self.tally = tally
        self.token = token
        self.statement = statement
        self.want = want
        self.every_s: float | None = None
        self.active = False
        self.number = 0
        self.sent_s = 0.0
        self.waiting = False
        self.connected = True
        self.lease: Lease | None = None
        self.say_goodbye = False
        self.welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._buffer = bytearray()
        self._take: Callable[[bytes], None] = self._challenged
        self._upgraded = False
        self._settled, self._chain = 0, NO_SETTLEMENT_BEFORE
        self._timer: asyncio.TimerHandle | None = None

    # --- the connection ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        key = base64.b64encode(os.urandom(16)).decode()
        self.transport.write(
            f"GET {CONTROL_PATH} HTTP/1.1\r\nHost: custodian\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            f"Authorization: Bearer {self.token}\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self.every_s = None
        self.waiting = False  # no answer will come
        self.connected = False
        if not self.welcomed.done():
            self.welcomed.set_exception(ConnectionError(f"{self.session} was not welcomed: {exc}"))
        elif not self.say_goodbye:
            self.tally.lost.append(f"{self.session}: {exc!r}")

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._upgraded:
            head, found, rest = buffer.partition(b"\r\n\r\n")
            if not found:
                return
            assert head.startswith(b"HTTP/1.1 101"), bytes(head[:200])
            self._upgraded, self._buffer = True, rest
            buffer = rest
        while len(buffer) >= 2:
            size, at = buffer[1], 2  # a server masks nothing
            if size == 126:
                size, at = int.from_bytes(buffer[2:4]), 4
            elif size == 127:
                size, at = int.from_bytes(buffer[2:10]), 10
            if len(buffer) < at + size:
                return
            kind, payload = buffer[0] & 15, bytes(buffer[at : at + size])
            del buffer[: at + size]
            if kind == TEXT:
                self._take(payload)
            elif kind == PING:
                self._send(payload, PONG)
            elif kind == CLOSE:
                self.transport.close()

    def _send(self, payload: bytes, kind: int = TEXT) -> None:
        size = len(payload)
        if size < 126:
            head = bytes((0x80 | kind, 0x80 | size))
        elif size < 1 << 16:
            head = bytes((0x80 | kind, 0x80 | 126)) + size.to_bytes(2)
        else:
            head = bytes((0x80 | kind, 0x80 | 127)) + size.to_bytes(8)
        self.transport.write(head + bytes(4) + payload)

    # --- the conversation ----------------------------------------------------------------------

    def _challenged(self, payload: bytes) -> None:
        nonce = _challenge.decode(payload).nonce
        signature = self.key.sign(Label.CONTROL_HELLO, nonce + self.session.encode())
        self._take = self._told
        self._send(
            encode(Hello(session=self.session, signature=signature, statement=self.statement))
        )

    def _told(self, payload: bytes) -> None:
        message = _message.decode(payload)
        match message:
            case ReportAnswer():
                self._answered(message)
            case LoanChanged():
                self.active = message.state == ACTIVE
                if self.active:
                    self.go()
                else:
                    self.tally.stopped_s.append(time.monotonic())
                    self._settle()
            case Welcome():
                self.active = message.state == ACTIVE
                self.welcomed.set_result(None)
            case SessionEnded():
                if not self.say_goodbye:
                    self.tally.lost.append(f"{self.session}: {message.reason}")
            case _:
                pass

    def go(self, first_s: float = 0.0) -> None:
        """Send reports from *first_s* on, as often as `every_s` says."""
        if self.every_s is not None and self.active and not self.waiting:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(first_s, self._report)

    def _report(self) -> None:
        if self.every_s is not None and self.active and not self.waiting:
            self._say(Want(credits=self.want, by_consumer={}))

    def _say(self, want: Want | None) -> None:
        lease, self.lease = self.lease, None
        settlements = () if lease is None else (self._settlement(lease),)
        self.number += 1
        self.waiting, self.sent_s = True, time.monotonic()
        self._send(encode(Report(number=self.number, settlements=settlements, want=want)))

    def _settlement(self, lease: Lease) -> Signed:
        self._settled += 1
        signed = sign(
            Settlement(
                loan=self.loan,
                session=self.session,
                lease=lease.lease,
                used=lease.credits,
                by_consumer={self.consumer: lease.credits},
                receipts=self.number,
                receipt_chain=bytes(32),
                number=self._settled,
                previous=self._chain,
            ),
            self.key,
            Label.SETTLEMENT,
        )
        self._chain = sha256(signed.payload)
        return signed

    def _answered(self, answer: ReportAnswer) -> None:
        now_s = time.monotonic()
        self.waiting = False
        self.tally.answers_s.append(now_s - self.sent_s)
        self.tally.settlements += len(answer.settled)
        self.lease = answer.lease
        if answer.lease is not None:
            self.tally.leases += 1
        if not self.active:
            self._settle()
        elif self.every_s is not None:
            self.go(max(0.0, self.sent_s + self.every_s - now_s))

    def _settle(self) -> None:
        """After a stop: give back what is held, and then, if that is wanted, prove the wipe."""
        if self.waiting:
            return
        if self.lease is not None:
            self._say(None)
        elif self.say_goodbye:
            proof = StopProof(
                loan=self.loan,
                session=self.session,
                receipts=self.number,
                receipt_chain=bytes(32),
                cancelled=0,
                reason="the loan is stopped",
                wiped=datetime.now(UTC),
            )
            self._send(encode(Stopped(proof=sign(proof, self.key, Label.STOP_PROOF))))
