"""
Proving again: fresh evidence for the keys of a running session, whenever the custodian asks.

Rule 1: the newest nonce is answered, and once; what an older one asked for is dropped.
Rule 2: evidence that cannot be made now is tried again, with jittered waits, until it is there or
        another is wanted: without it the custodian renews no lease, and the queries end with them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aigovtool.attestation.binding import AskedBy, EnclaveKeys, report_data
from aigovtool.enclave.attester.base import Attester
from aigovtool.enclave.backoff import Backoff
from aigovtool.enclave.enrolment import attest, documents
from aigovtool.errors import AIGovToolError
from aigovtool.ids import LoanId
from aigovtool.telemetry.logs import event
from aigovtool.wire.control import Reattest, ReattestWanted

_log = logging.getLogger(__name__)


class Reattestation:
    """Makes the evidence of one session; `keys` are those that it enrolled with."""

    def __init__(
        self, *, attester: Attester, keys: EnclaveKeys, custodian_key: bytes, loan: LoanId
    ) -> None:
        self._attester = attester
        self._keys = keys
        self._custodian_key = custodian_key
        self._loan = loan
        self._wanted: ReattestWanted | None = None
        self._changed = asyncio.Event()

    def want(self, wanted: ReattestWanted) -> None:
        """The custodian asks; what it asked for before is void."""
        self._wanted = wanted
        self._changed.set()

    def forget(self) -> None:
        """The connection is gone: on the next one the custodian asks anew."""
        self._wanted = None

    async def answer(self, send: Callable[[Reattest], Awaitable[None]]) -> None:
        """
        Answer whatever is asked for as long as the connection lives; never returns.

        Raises:
            UnavailableError: as *send*.
        """
        backoff = Backoff()
        while True:
            self._changed.clear()
            if (wanted := self._wanted) is None:
                await self._changed.wait()
                continue
            try:
                made = await self._make(wanted.nonce)
            except AIGovToolError as error:
                _log.warning(
                    "no fresh evidence yet, which the custodian asked for: %s",
                    error,
                    extra=event("reattestation.failed"),
                )
                await backoff.wait()
                continue
            if self._wanted is wanted:
                self._wanted = None
                backoff.reset()
                await send(made)

    async def _make(self, nonce: bytes) -> Reattest:
        bound = report_data(
            AskedBy.CUSTODIAN,
            nonce=nonce,
            keys=self._keys,
            custodian_key=self._custodian_key,
            loan_id=self._loan,
        )
        evidence, endorsements = await asyncio.to_thread(attest, self._attester, bound)
        return Reattest(
            nonce=nonce, evidence=documents(evidence), endorsements=documents(endorsements)
        )
