"""
How a consumer reaches an enclave: judge first, then pin, then send.

1. An unknown peer is asked for its attestation document, over a connection that carries nothing
   else (`fetch`); document and certificate are judged together (`judge`).
2. Every connection that carries requests accepts the judged certificate and no other, so
   that whoever else answers gets a failed handshake and not one byte.
3. When that happens, the enclave was restarted or is another: step 1 again, from a new nonce.
   Nothing is ever taken on trust because an earlier judgement was good.
4. A judgement lasts for `JUDGEMENT_LIFE_S`, and no longer than the endorsements it rests on.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from aigovtool.attestation.binding import NONCE_BYTES
from aigovtool.attestation.policy import Policy
from aigovtool.channel.address import Address
from aigovtool.channel.fetch import FETCH_TIMEOUT_S, fetch_document
from aigovtool.channel.http1 import Connection, PeerChanged, Request, Response, open_connection
from aigovtool.channel.judge import VerifiedEnclave, judge_enclave
from aigovtool.clock import Clock
from aigovtool.crypto.tls import pinned_client_context
from aigovtool.errors import ConfigurationError, VerificationError

JUDGEMENT_LIFE_S = 3600.0
MAX_CONNECTIONS = 64  # a query that waits for credits holds one
IDLE_LIFE_S = 4.0  # servers close idle connections after 5 s or more; stay clear of the race


@dataclass(frozen=True, slots=True, eq=False)
class _Pin:
    """A judged enclave, the TLS context that accepts it alone, and its idle connections."""

    enclave: VerifiedEnclave
    context: ssl.SSLContext
    good_until_s: float
    idle: deque[Connection] = field(default_factory=deque)


class AttestedChannel:
    """
    Connections to one enclave, all of them judged; made by `open_channel`.

    One event loop uses it; at most `MAX_CONNECTIONS` requests are under way, more wait.
    """

    def __init__(self, address: Address, policy: Policy, clock: Clock, pin: _Pin) -> None:
        self.address = address
        self._policy = policy
        self._clock = clock
        self._pin = pin
        self._judging = asyncio.Lock()
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)
        self._busy: set[Connection] = set()
        self.closed = False

    @property
    def enclave(self) -> VerifiedEnclave:
        """The enclave as last judged."""
        return self._pin.enclave

    async def rejudge(self) -> VerifiedEnclave:
        """Judge the enclave again, from a new nonce; raises as `open_channel`."""
        return (await self._renew(self._pin)).enclave

    @asynccontextmanager
    async def exchange(
        self, make_request: Callable[[VerifiedEnclave], Request]
    ) -> AsyncIterator[tuple[VerifiedEnclave, Response]]:
        """
        Send a request and give the answer, its body not read yet, with the enclave that it is of.

        Args:
            make_request: makes the request for an enclave; called again if a restarted one takes
                its place before anything was sent.

        Raises:
            UnavailableError: the enclave cannot be reached.
            ConnectionLostError: the connection broke; the request may have been served.
            MalformedError: the answer is not HTTP.
            AIGovToolError: another enclave answers, and it is refused (see `judge`).
        """
        async with self._places:
            pin, connection = await self._connect()
            self._busy.add(connection)
            try:
                if self.closed:  # while the connection was made
                    raise _closed()
                response = await connection.ask(make_request(pin.enclave))
                yield pin.enclave, response
            finally:
                self._busy.discard(connection)
                if connection.reusable and pin is self._pin and not self.closed:
                    connection.idle_since_s = self._clock.monotonic_s()
                    pin.idle.append(connection)
                else:
                    await connection.close()

    async def aclose(self) -> None:
        """Close every connection for good; requests under way fail."""
        self.closed = True
        for connection in (*self._pin.idle, *self._busy):
            await connection.close()
        self._pin.idle.clear()

    async def _connect(self) -> tuple[_Pin, Connection]:
        if self.closed:
            raise _closed()
        pin = self._pin
        now_s = self._clock.monotonic_s()
        if now_s >= pin.good_until_s:
            pin = await self._renew(pin)
        while pin.idle:
            connection = pin.idle.pop()
            fresh = now_s - connection.idle_since_s < IDLE_LIFE_S
            if fresh and connection.reusable and connection.silent:
                return pin, connection
            await connection.close()
        try:
            return pin, await open_connection(self.address, pin.context)
        except PeerChanged:
            pin = await self._renew(pin)
        try:
            return pin, await open_connection(self.address, pin.context)
        except PeerChanged:
            raise VerificationError(
                "the peer that was judged is not the one that answers",
                code="channel.peer",
                mend="several enclaves behind one address need an address each",
            ) from None

    async def _renew(self, stale: _Pin) -> _Pin:
        async with self._judging:
            if self._pin is stale:  # else another request has judged meanwhile
                self._pin = await _judge_and_pin(self.address, self._policy, self._clock)
                while stale.idle:
                    await stale.idle.pop().close()
            return self._pin


async def open_channel(address: Address, policy: Policy, *, clock: Clock) -> AttestedChannel:
    """
    Judge the enclave at *address* and return a channel to it.

    Raises:
        ConfigurationError: *policy* names no custodian and loan.
        UnavailableError: nobody answers, or the custodian's word on the session has run out.
        MalformedError, VerificationError, AppraisalError: refused (see `judge`), every reason told;
            the peer has got a nonce and nothing else.
    """
    policy.require_custodian()
    return AttestedChannel(address, policy, clock, await _judge_and_pin(address, policy, clock))


def _closed() -> ConfigurationError:
    return ConfigurationError("the client is closed", code="channel.closed")


async def _judge_and_pin(address: Address, policy: Policy, clock: Clock) -> _Pin:
    nonce = secrets.token_bytes(NONCE_BYTES)
    begin_s = clock.monotonic_s()
    loan = policy.require_custodian().loan
    presented = await fetch_document(address, nonce=nonce, loan=loan, timeout_s=FETCH_TIMEOUT_S)
    enclave = judge_enclave(presented, nonce=nonce, policy=policy, now=clock.now())
    life = timedelta(seconds=JUDGEMENT_LIFE_S)
    if enclave.attestation.valid_until is not None:
        life = min(life, enclave.attestation.valid_until - enclave.judged)
    return _Pin(
        enclave=enclave,
        context=pinned_client_context(presented.certificate_pem),
        good_until_s=begin_s + life.total_seconds(),
    )
