"""
``GET /.well-known/attestation?nonce=…``: fresh evidence for a consumer, before it sends anything.

Rule 1: whoever asks gets it, without a key: a consumer must judge before it shows its key.
Rule 2: evidence costs time, so that all together get only so much of it, and one peer a share.
Rule 3: the statement names a live lease, if there is anything to lease.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs

from aigovtool.attestation.binding import NONCE_BYTES, AskedBy, report_data
from aigovtool.attestation.evidence import Endorsements, Evidence
from aigovtool.clock import Clock
from aigovtool.enclave.api.http import Reply, Request, json_reply
from aigovtool.enclave.api.pace import PeerPace
from aigovtool.enclave.attester.base import Attester
from aigovtool.enclave.config import Limits
from aigovtool.enclave.enclave import Enclave
from aigovtool.enclave.enrolment import documents
from aigovtool.enclave.keys import on_the_wire
from aigovtool.errors import MalformedError, UnavailableError
from aigovtool.wire.enrolment import AttestationDocument

EVIDENCE_THREADS = 2


class Witness:
    """Makes evidence for consumers, of all loans together (Rule 2)."""

    def __init__(self, attester: Attester, limits: Limits, clock: Clock) -> None:
        self._attester = attester
        self._clock = clock
        self.wait_s = limits.attestation_wait_s
        self._threads = ThreadPoolExecutor(EVIDENCE_THREADS, thread_name_prefix="evidence")
        self._pace = PeerPace(
            per_s=limits.attestations_per_s,
            burst=limits.attestation_burst,
            now_s=clock.monotonic_s(),
        )

    def check_pace(self, peer: str) -> None:
        """Raise UnavailableError when too many ask, or *peer* does."""
        if (after_s := self._pace.take(peer, self._clock.monotonic_s())) > 0:
            raise UnavailableError(
                "too many ask for evidence", code="attestation.rate", retry_after_s=after_s
            )

    async def evidence(self, bound: bytes) -> tuple[Evidence, Endorsements]:
        """Return evidence that commits to *bound*; raises UnavailableError, and as the attester."""

        def make() -> tuple[Evidence, Endorsements]:
            return self._attester.evidence(bound), self._attester.endorsements()

        try:
            async with asyncio.timeout(self.wait_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, make)
        except TimeoutError:
            raise UnavailableError(
                "the platform gave no evidence in time", code="attestation.slow"
            ) from None


class Attest:
    """Serves attestation documents."""

    def __init__(self, enclave: Enclave, witness: Witness, clock: Clock) -> None:
        self._enclave = enclave
        self._witness = witness
        self._clock = clock

    async def __call__(self, request: Request) -> Reply:
        """Answer with an `AttestationDocument` for the nonce in the query string."""
        nonce = _nonce(request.query)
        try:
            session, _ = self._enclave.serving()
        except UnavailableError:
            # who judges first shows no key; the pace bounds how often a stranger can want it
            self._witness.check_pace(request.peer)
            self._enclave.want()
            raise
        self._witness.check_pace(request.peer)
        bound = report_data(
            AskedBy.CONSUMER,
            nonce=nonce,
            keys=session.keys,
            custodian_key=session.custodian_key,
            loan_id=session.loan,
        )
        evidence, statement = await asyncio.gather(
            self._witness.evidence(bound),
            session.renewal.live_lease(self._clock.monotonic_s(), wait_s=self._witness.wait_s),
        )
        self._enclave.serving()  # it may have been stopped meanwhile
        return json_reply(
            AttestationDocument(
                nonce=nonce,
                keys=on_the_wire(session.keys),
                custodian_key=session.custodian_key,
                loan=session.loan,
                evidence=documents(evidence[0]),
                endorsements=documents(evidence[1]),
                manifest=session.verified.signed,
                statement=statement,
            )
        )


def _nonce(query: bytes) -> bytes:
    """Read the nonce, 64 hex digits; raises MalformedError."""
    try:
        fields = parse_qs(query.decode("ascii"), strict_parsing=True, max_num_fields=8)
        (text,) = fields["nonce"]
        if len(text) != 2 * NONCE_BYTES:
            raise ValueError
        return bytes.fromhex(text)
    except (KeyError, ValueError):
        raise MalformedError(
            "no nonce", code="attestation.nonce", expected=f"?nonce=<{2 * NONCE_BYTES} hex digits>"
        ) from None
