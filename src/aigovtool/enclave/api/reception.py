"""
Several loans behind one listener: which of them a request is for.

Rule 1: a consumer key belongs to one loan, and says which. What has no key says nothing but to
        those who judge first: a request for evidence names the loan that it is about in a header.
Rule 2: each loan has its own application, queries in flight, state and session: what becomes of one
        is nothing to the others.
Rule 3: the server is ready while one of its loans is served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aigovtool.enclave.api.app import Api
from aigovtool.enclave.api.http import Receive, Scope, Send
from aigovtool.enclave.api.infer import AUTHORIZATION
from aigovtool.enclave.api.turn import Turns
from aigovtool.enclave.enclave import Enclave
from aigovtool.wire.headers import ATTESTATION_PATH, LOAN

_LOAN = LOAN.lower().encode()


@dataclass(frozen=True, slots=True)
class Desk:
    """What answers the requests for one loan."""

    enclave: Enclave
    api: Api
    turns: Turns


class Reception:
    """
    The ASGI application of a server that serves several loans, or one.

    Args:
        desks: of each loan, at least one; the first has what is for none of them.
    """

    def __init__(self, desks: Sequence[Desk]) -> None:
        self._desks = tuple(desks)

    def of_key(self, authorization: bytes | None) -> Desk:
        """
        Return the desk for who bears this.

        A key that nobody knows may be that of a loan whose consumers have not been said yet, whose
        desk tells it to come back; with none of these any desk will refuse it.
        """
        if len(self._desks) == 1:
            return self._desks[0]
        unsaid = None
        for desk in self._desks:
            session = desk.enclave.session
            if session is None or session.roster is None:
                unsaid = unsaid or desk
            elif session.roster.knows(authorization):
                return desk
        return unsaid or self._serving()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._for(scope).api(scope, receive, send)

    def _for(self, scope: Scope) -> Desk:
        if len(self._desks) == 1:
            return self._desks[0]
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        if scope["path"].rstrip("/") == ATTESTATION_PATH:
            return self._named(headers.get(_LOAN, b""))
        if AUTHORIZATION in headers:
            return self.of_key(headers[AUTHORIZATION])
        return self._serving()

    def _named(self, loan: bytes) -> Desk:
        """Return the desk of the loan that is asked about; of another one if it is none of ours."""
        for desk in self._desks:
            if desk.enclave.loan.encode() == loan:
                return desk
        return self._serving()

    def _serving(self) -> Desk:
        return next((desk for desk in self._desks if desk.enclave.life.admits), self._desks[0])
