"""
Azure's instance metadata service: what the machine's host says and signs for its guests.

``/acc/tdquote`` turns a TD report into a quote (the quoting enclave is on the host);
``/metadata/THIM/amd/certification`` has the certificate of the chip's VCEK. Both prove themselves
by their signatures, so plain HTTP to a link-local address will do.

Source: Microsoft, "Azure Confidential VM guest attestation design" (tdquote) and "Trusted Hardware
Identity Management" (THIM).
"""

from __future__ import annotations

import base64
import binascii
import http.client
from typing import Protocol

import msgspec

from aigovtool.errors import UnavailableError

IMDS_HOST = "169.254.169.254"
TIMEOUT_S = 30.0  # a quote takes about a second; a host under load takes longer
MAX_ANSWER_BYTES = 1 << 20
TDQUOTE_PATH = "/acc/tdquote"
THIM_PATH = "/metadata/THIM/amd/certification"


class Connection(Protocol):
    """What is needed of `http.client.HTTPConnection`."""

    def request(
        self, method: str, url: str, body: bytes | None = None, headers: dict[str, str] = ...
    ) -> None: ...
    def getresponse(self) -> http.client.HTTPResponse: ...
    def close(self) -> None: ...


class _Quote(msgspec.Struct, frozen=True):
    quote: str


# made here, where nobody else runs: see `wire.codec`
_quote_decoder = msgspec.json.Decoder(_Quote)


class _Certification(msgspec.Struct, frozen=True, rename="camel"):
    vcek_cert: str
    certificate_chain: str


# made here, where nobody else runs: see `wire.codec`
_certification_decoder = msgspec.json.Decoder(_Certification)


class Imds:
    """The metadata service of the machine that this guest is on."""

    def connect(self) -> Connection:
        """Return a connection; tests put another here."""
        return http.client.HTTPConnection(IMDS_HOST, timeout=TIMEOUT_S)

    def quote(self, td_report: bytes) -> bytes:
        """Return the quote over *td_report* (1024 bytes); raises UnavailableError."""
        report = base64.urlsafe_b64encode(td_report).rstrip(b"=").decode()
        body = msgspec.json.encode({"report": report})
        answer = self._ask("POST", TDQUOTE_PATH, body)
        try:
            text = _quote_decoder.decode(answer).quote.rstrip("=").encode("ascii")
            return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (msgspec.MsgspecError, binascii.Error, ValueError):
            raise _unreadable(TDQUOTE_PATH) from None

    def amd_certification(self) -> tuple[bytes, bytes]:
        """Return VCEK and its chain, ASK and ARK, both PEM; raises UnavailableError."""
        answer = self._ask("GET", THIM_PATH, None)
        try:
            found = _certification_decoder.decode(answer)
        except (msgspec.MsgspecError, ValueError):
            raise _unreadable(THIM_PATH) from None
        return found.vcek_cert.encode(), found.certificate_chain.encode()

    def _ask(self, method: str, path: str, body: bytes | None) -> bytes:
        connection = self.connect()
        headers = {"Metadata": "true", "Content-Type": "application/json"}
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = response.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(
                "Azure's metadata service cannot be reached",
                code="attester.imds",
                came=type(error).__name__,
                mend=f"let this guest reach http://{IMDS_HOST}{path}",
            ) from None
        finally:
            connection.close()
        if response.status != http.client.OK or len(answer) > MAX_ANSWER_BYTES:
            raise UnavailableError(
                "Azure's metadata service gave no answer",
                code="attester.imds",
                came=f"status {response.status} for {path}",
            )
        return answer


def _unreadable(path: str) -> UnavailableError:
    return UnavailableError(
        "the answer of Azure's metadata service cannot be read", code="attester.imds", came=path
    )
