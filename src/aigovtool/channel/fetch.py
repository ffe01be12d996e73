"""
Ask an unknown peer who it is.

Rule 1: nobody is trusted yet, so nothing of the consumer's is sent: one GET with a random nonce,
        and the loan that the custodian's policy names.
Rule 2: the answer counts only together with the certificate of the connection that it came over,
        so both are taken from one connection, which is then closed.
Rule 3: an unknown peer may be hostile: what it sends is bounded in size and time, and no redirect
        or second answer is followed.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from urllib.parse import quote

from aigovtool.channel.address import Address
from aigovtool.channel.http1 import Request, open_connection
from aigovtool.crypto.tls import TLS_CIPHERS, certificate_pem, spki_sha256_of
from aigovtool.errors import MalformedError, UnavailableError
from aigovtool.ids import LoanId
from aigovtool.wire.codec import MAX_MESSAGE_BYTES
from aigovtool.wire.headers import ATTESTATION_PATH, LOAN
from aigovtool.wire.problem import error_of

FETCH_TIMEOUT_S = 20.0  # a quote can take a second, and an enclave makes few at a time
_LOAN = LOAN.lower().encode()
_NO_SUCH_PATH = (404, 405, 501)  # of a web server that knows nothing of attestation


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """
    What a peer said of itself, not judged yet.

    Args:
        document: the body of its answer, an `AttestationDocument` if it is honest.
        certificate_pem: of the TLS connection that the answer came over.
        spki_sha256: 32 bytes, SHA-256 of the public key in that certificate.
    """

    document: bytes
    certificate_pem: bytes
    spki_sha256: bytes


async def fetch_document(
    address: Address, *, nonce: bytes, loan: LoanId, timeout_s: float
) -> Presented:
    """
    Connect to *address* and get its attestation document for *nonce*.

    Raises:
        UnavailableError: nobody answers there, or not in time, or not with a document.
        MalformedError: the answer is not HTTP, or too large.
        AIGovToolError: what the peer's own problem document says.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _fetch(address, nonce, loan)
    except TimeoutError:
        raise UnavailableError(
            f"no attestation document from {address} within {timeout_s:g} s",
            mend="check that this is an enclave's address, then try again",
        ) from None


async def _fetch(address: Address, nonce: bytes, loan: LoanId) -> Presented:
    connection = await open_connection(address, _context_for_an_unknown_peer())
    try:
        certificate = connection.peer_certificate()
        if certificate is None:
            raise MalformedError("the peer presented no TLS certificate")
        response = await connection.ask(
            Request(
                method=b"GET",
                target=f"{ATTESTATION_PATH}?nonce={nonce.hex()}".encode("ascii"),
                headers=(
                    (b"accept", b"application/json"),
                    (_LOAN, quote(loan, safe="").encode()),  # a policy may name anything
                    (b"connection", b"close"),
                ),
            )
        )
        body = await response.read(max_bytes=MAX_MESSAGE_BYTES)
    finally:
        await connection.close()
    if response.status in _NO_SUCH_PATH:
        raise UnavailableError(
            f"what answers at {address} is not an enclave",
            code="attestation.nobody",
            came=f"status {response.status} instead of an attestation document",
            mend="check the address: an enclave listens on port 9924 unless told otherwise",
        )
    if response.status != 200:
        raise error_of(response.status, body)
    return Presented(
        document=body,
        certificate_pem=certificate_pem(certificate),
        spki_sha256=spki_sha256_of(certificate),
    )


def _context_for_an_unknown_peer() -> ssl.SSLContext:
    """A context that takes any certificate: the evidence, not a name or authority, will say."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(TLS_CIPHERS)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
