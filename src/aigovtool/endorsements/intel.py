"""
Intel's collateral for a quote, from Intel's own service (PCS) or a cache of it (PCCS).

The quote's PCK certificate says what to ask for: the platform family (FMSPC) and the CA that
issued it (Platform or Processor), each with lists of its own. A quote that only names its PCK
certificate needs that from the platform (``pck_certificate_chain``): Intel gives it to the
platform's owner alone.

Source: Intel PCS API version 4; Intel PCCS design guide, section 4.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal
from urllib.parse import unquote, urlencode

import msgspec
from msgspec import Struct

from aigovtool.attestation.dcap import collateral as dcap
from aigovtool.attestation.dcap.chain import in_order
from aigovtool.attestation.dcap.pck import read_pck_extension
from aigovtool.attestation.dcap.quote import TdReport, parse_quote
from aigovtool.attestation.x509chain import common_name, load_certificates
from aigovtool.endorsements.fetch import Answer, Question, malformed
from aigovtool.endorsements.library import Documents, Item
from aigovtool.errors import MalformedError, NotFoundError

PCS_URL = "https://api.trustedservices.intel.com"
ROOT_CRL_URL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
LONGEST_AGE = timedelta(days=1)  # valid for 30 days; a TCB recovery should be known sooner

_TCB_CHAIN = ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain")  # the latter by older PCCS
_QE_CHAIN = ("sgx-enclave-identity-issuer-chain",)
_CRL_CHAIN = ("sgx-pck-crl-issuer-chain",)
_CAS = {"Intel SGX PCK Platform CA": "platform", "Intel SGX PCK Processor CA": "processor"}
_DER_SEQUENCE = 0x30


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelService:
    """
    Where Intel's collateral is had.

    Args:
        url: of a PCS or PCCS, without a path.
        root_crl_url: of the root's revocation list; None for a PCCS, which has it itself.
        update: which of two generations of TCB info, after a TCB recovery: ``standard`` is the
            older one while platforms are given time to update; None leaves it to the service.
        tcb_evaluation_number: asks for exactly this generation instead.
    """

    url: str = PCS_URL
    root_crl_url: str | None = ROOT_CRL_URL
    update: Literal["early", "standard"] | None = None
    tcb_evaluation_number: int | None = None

    @classmethod
    def pccs(cls, url: str) -> IntelService:
        """Return the service of a PCCS at *url*."""
        return cls(url=url, root_crl_url=None)


def collateral_items(quote: bytes, have: Documents, service: IntelService) -> list[Item]:
    """
    Return what a quote needs.

    Args:
        quote: as in the evidence.
        have: consulted for ``pck_certificate_chain`` alone.
        service: where to ask.

    Raises:
        MalformedError: not a quote, or its certificate is no PCK certificate.
        NotFoundError: it carries no PCK certificate, and none is in *have*.
    """
    parsed = parse_quote(quote)
    pem = parsed.pck_chain_pem or have.get(dcap.PCK_CERTIFICATE_CHAIN)
    if pem is None:
        raise NotFoundError(
            "the quote names its PCK certificate and does not carry it",
            code="endorsements.pck",
            mend=f"give the platform's certificate as {dcap.PCK_CERTIFICATE_CHAIN}",
        )
    chain = in_order(load_certificates(pem, what="PCK certificate chain"))
    fmspc = read_pck_extension(chain[0]).fmspc.hex()
    ca = _CAS.get(common_name(chain[1])) if len(chain) > 1 else None
    if ca is None:
        raise MalformedError(
            "the quote's certificate is not issued by a PCK CA that Intel has",
            code="dcap.pck.chain",
            expected=" or ".join(_CAS),
        )
    base = service.url.rstrip("/")
    tee = "tdx" if isinstance(parsed.report, TdReport) else "sgx"
    generation = _generation(service)
    return [
        Item(
            question=Question(
                url=f"{base}/{tee}/certification/v4/tcb?"
                + urlencode({"fmspc": fmspc, **generation}),
                headers=_TCB_CHAIN,
            ),
            read=_read_tcb_info,
            names=(dcap.TCB_INFO, dcap.TCB_INFO_SIGNATURE, dcap.TCB_INFO_ISSUER_CHAIN),
            longest_age=LONGEST_AGE,
        ),
        Item(
            question=Question(
                url=f"{base}/{tee}/certification/v4/qe/identity"
                + (f"?{urlencode(generation)}" if generation else ""),
                headers=_QE_CHAIN,
            ),
            read=_read_qe_identity,
            names=(dcap.QE_IDENTITY, dcap.QE_IDENTITY_SIGNATURE, dcap.QE_IDENTITY_ISSUER_CHAIN),
            longest_age=LONGEST_AGE,
        ),
        Item(
            question=Question(
                url=f"{base}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der", headers=_CRL_CHAIN
            ),
            read=_read_pck_crl,
            names=(dcap.PCK_CRL, dcap.PCK_CRL_ISSUER_CHAIN),
            longest_age=LONGEST_AGE,
        ),
        Item(
            question=Question(url=service.root_crl_url or f"{base}/sgx/certification/v4/rootcacrl"),
            read=_read_root_crl,
            names=(dcap.ROOT_CA_CRL,),
            longest_age=LONGEST_AGE,
        ),
    ]


def _generation(service: IntelService) -> Mapping[str, str]:
    if service.tcb_evaluation_number is not None:
        return {"tcbEvaluationDataNumber": str(service.tcb_evaluation_number)}
    return {} if service.update is None else {"update": service.update}


class _TcbAnswer(Struct, frozen=True, rename="camel"):
    tcb_info: msgspec.Raw
    signature: str


# made here, where nobody else runs: see `wire.codec`
_tcb_decoder = msgspec.json.Decoder(_TcbAnswer)


class _IdentityAnswer(Struct, frozen=True, rename="camel"):
    enclave_identity: msgspec.Raw
    signature: str


# made here, where nobody else runs: see `wire.codec`
_identity_decoder = msgspec.json.Decoder(_IdentityAnswer)


def _read_tcb_info(answer: Answer) -> dict[str, bytes]:
    try:
        read = _tcb_decoder.decode(answer.body)
        signature = binascii.unhexlify(read.signature)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        raise malformed("TCB info") from None
    return {
        # Raw: the signature is over this text to the letter
        dcap.TCB_INFO: bytes(read.tcb_info),
        dcap.TCB_INFO_SIGNATURE: signature,
        dcap.TCB_INFO_ISSUER_CHAIN: _issuer_chain(answer, _TCB_CHAIN),
    }


def _read_qe_identity(answer: Answer) -> dict[str, bytes]:
    try:
        read = _identity_decoder.decode(answer.body)
        signature = binascii.unhexlify(read.signature)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        raise malformed("a QE identity") from None
    return {
        dcap.QE_IDENTITY: bytes(read.enclave_identity),
        dcap.QE_IDENTITY_SIGNATURE: signature,
        dcap.QE_IDENTITY_ISSUER_CHAIN: _issuer_chain(answer, _QE_CHAIN),
    }


def _read_pck_crl(answer: Answer) -> dict[str, bytes]:
    return {
        dcap.PCK_CRL: _crl(answer.body),
        dcap.PCK_CRL_ISSUER_CHAIN: _issuer_chain(answer, _CRL_CHAIN),
    }


def _read_root_crl(answer: Answer) -> dict[str, bytes]:
    return {dcap.ROOT_CA_CRL: _crl(answer.body)}


def _crl(body: bytes) -> bytes:
    """Return DER; a PCCS may give it in hexadecimal, whatever encoding was asked for."""
    if body[:1] == bytes([_DER_SEQUENCE]) and body[1:2] >= b"\x80":
        return body
    try:
        return binascii.unhexlify(body.strip())
    except ValueError:
        raise malformed("a CRL", expected="DER, or DER in hexadecimal") from None


def _issuer_chain(answer: Answer, names: tuple[str, ...]) -> bytes:
    for name in names:
        if name in answer.headers:
            try:
                pem = unquote(answer.headers[name]).encode("ascii")
            except UnicodeEncodeError:
                raise malformed("complete: its issuer is no PEM") from None
            load_certificates(pem, what=name)
            return pem
    raise malformed(
        "complete: it names no issuer",
        expected=f"the header {names[0]}",
        came=", ".join(answer.headers) or "none",
    )
