"""
What the bytes of an Intel quote say. Nothing here is checked for truth.

Layout, all integers little-endian (Intel SGX ECDSA QuoteLibReference, appendix A; Intel TDX DCAP
Quoting Library API, appendix A.3 and A.4):

- version 3 (SGX): header 48 | enclave report 384 | signature section
- version 4 (TDX): header 48 | TD report 584 | signature section
- version 5 (TDX): header 48 | body type 2, body size 4 | TD report 584 (1.0) or 648 (1.5) | section

Rule 1: a length that does not add up is malformed; nothing is padded or cut.
Rule 2: what follows the quote may be zeros (Google Cloud pads to 8000 bytes), and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from aigovtool.attestation.reader import Reader
from aigovtool.errors import MalformedError

INTEL_QE_VENDOR_ID = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
TEE_TYPE_SGX = 0x00000000
TEE_TYPE_TDX = 0x00000081
ECDSA_P256 = 2

HEADER_BYTES = 48
SGX_REPORT_BYTES = 384
TD_REPORT_10_BYTES = 584
TD_REPORT_15_BYTES = 648
_BODY_TYPE_TD_10 = 2
_BODY_TYPE_TD_15 = 3

CERTIFICATION_QE_REPORT = 6
CERTIFICATION_PCK_CHAIN = 5  # PEM, concatenated
MAX_QUOTE_BYTES = 64 * 1024  # real quotes have 4 to 8 kB


@dataclass(frozen=True, slots=True, kw_only=True)
class SgxReport:
    """An SGX enclave report (Intel SDM 3D, REPORT): 384 bytes."""

    cpu_svn: bytes
    misc_select: int
    attributes_flags: int
    attributes_xfrm: int
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """A TD report: 584 bytes (TD 1.0), or 648 bytes (TD 1.5), which has the last two fields."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rt_mr: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn2: bytes | None
    mr_service_td: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """
    A parsed quote.

    Args:
        version: 3, 4 or 5.
        signed: the bytes under the attestation key's signature: header and body.
        report: the enclave's or trust domain's report.
        signature: 64 bytes r||s by the attestation key.
        attestation_key: 64 bytes x||y, P-256.
        qe_report_raw: the quoting enclave's report as signed by the PCK, 384 bytes.
        qe_report: the same, parsed.
        qe_signature: 64 bytes r||s by the PCK.
        qe_auth_data: what the quoting enclave hashed together with the attestation key.
        pck_chain_pem: the chain in the quote, or None when the quote names its PCK otherwise.
    """

    version: int
    signed: bytes
    report: SgxReport | TdReport
    signature: bytes
    attestation_key: bytes
    qe_report_raw: bytes
    qe_report: SgxReport
    qe_signature: bytes
    qe_auth_data: bytes
    pck_chain_pem: bytes | None


def parse_quote(raw: bytes) -> Quote:
    """
    Read a quote of version 3, 4 or 5.

    Raises:
        MalformedError: not such a quote, a length that does not add up, or something after it.
    """
    if len(raw) > MAX_QUOTE_BYTES:
        raise MalformedError(
            "quote too large",
            code="dcap.quote.size",
            expected=f"at most {MAX_QUOTE_BYTES} bytes",
            came=f"{len(raw)} bytes",
        )
    reader = _reader(raw, "quote")
    version = reader.uint(2)
    key_type = reader.uint(2)
    tee_type = reader.uint(4)
    reader.take(4)  # QE and PCE SVN; the signed reports carry the ones that count
    vendor = reader.take(16)
    reader.take(20)
    _expect("quote version and TEE", (version, tee_type), _VERSIONS)
    _expect("attestation key type", key_type, (ECDSA_P256,))
    _expect("quoting enclave vendor", vendor.hex(), (INTEL_QE_VENDOR_ID.hex(),))
    report = _read_body(reader, version)
    signed = raw[: len(raw) - reader.left]
    section = _reader(reader.sized(4), "signature section of the quote")
    quote = _read_signature_section(section, version=version, signed=signed, report=report)
    section.end()
    if any(reader.take(reader.left)):
        raise MalformedError(
            "something other than zeros follows the quote", code="dcap.quote.trailing"
        )
    return quote


def _reader(data: bytes, what: str) -> Reader:
    return Reader(data, what=what, code="dcap.quote.length", byteorder="little")


_VERSIONS = ((3, TEE_TYPE_SGX), (4, TEE_TYPE_TDX), (5, TEE_TYPE_TDX))


def _expect(what: str, came: object, accepted: tuple[object, ...]) -> None:
    if came not in accepted:
        raise MalformedError(
            f"{what} not supported",
            code="dcap.quote.unsupported",
            expected=" or ".join(str(value) for value in accepted),
            came=str(came),
        )


def _read_body(reader: Reader, version: int) -> SgxReport | TdReport:
    if version == 3:
        return parse_sgx_report(reader.take(SGX_REPORT_BYTES))
    if version == 4:
        return _parse_td_report(reader.take(TD_REPORT_10_BYTES))
    body = (reader.uint(2), reader.uint(4))
    _expect(
        "body type and size",
        body,
        ((_BODY_TYPE_TD_10, TD_REPORT_10_BYTES), (_BODY_TYPE_TD_15, TD_REPORT_15_BYTES)),
    )
    return _parse_td_report(reader.take(body[1]))


def _read_signature_section(
    section: Reader, *, version: int, signed: bytes, report: SgxReport | TdReport
) -> Quote:
    signature = section.take(64)
    attestation_key = section.take(64)
    if version >= 4:
        # Versions 4 and 5 wrap the quoting enclave's part in certification data of type 6.
        _expect("certification data", section.uint(2), (CERTIFICATION_QE_REPORT,))
        _expect("length of the certification data", section.uint(4), (section.left,))
    qe_report_raw = section.take(SGX_REPORT_BYTES)
    qe_signature = section.take(64)
    qe_auth_data = section.sized(2)
    certification_type = section.uint(2)
    certification = section.sized(4)
    has_chain = certification_type == CERTIFICATION_PCK_CHAIN
    return Quote(
        version=version,
        signed=signed,
        report=report,
        signature=signature,
        attestation_key=attestation_key,
        qe_report_raw=qe_report_raw,
        qe_report=parse_sgx_report(qe_report_raw),
        qe_signature=qe_signature,
        qe_auth_data=qe_auth_data,
        # C strings come with their zero.
        pck_chain_pem=certification.rstrip(b"\0") if has_chain else None,
    )


def parse_sgx_report(raw: bytes) -> SgxReport:
    """Read an enclave report of 384 bytes; raises MalformedError when it is shorter."""
    reader = _reader(raw, "enclave report")
    cpu_svn = reader.take(16)
    misc_select = reader.uint(4)
    reader.take(28)
    flags, xfrm = reader.uint(8), reader.uint(8)
    mr_enclave = reader.take(32)
    reader.take(32)
    mr_signer = reader.take(32)
    reader.take(96)
    isv_prod_id, isv_svn = reader.uint(2), reader.uint(2)
    reader.take(60)
    return SgxReport(
        cpu_svn=cpu_svn,
        misc_select=misc_select,
        attributes_flags=flags,
        attributes_xfrm=xfrm,
        mr_enclave=mr_enclave,
        mr_signer=mr_signer,
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
        report_data=reader.take(64),
    )


def _parse_td_report(raw: bytes) -> TdReport:
    reader = _reader(raw, "TD report")
    is_15 = len(raw) == TD_REPORT_15_BYTES
    return TdReport(
        tee_tcb_svn=reader.take(16),
        mr_seam=reader.take(48),
        mr_signer_seam=reader.take(48),
        seam_attributes=reader.take(8),
        td_attributes=reader.take(8),
        xfam=reader.take(8),
        mr_td=reader.take(48),
        mr_config_id=reader.take(48),
        mr_owner=reader.take(48),
        mr_owner_config=reader.take(48),
        rt_mr=(reader.take(48), reader.take(48), reader.take(48), reader.take(48)),
        report_data=reader.take(64),
        tee_tcb_svn2=reader.take(16) if is_15 else None,
        mr_service_td=reader.take(48) if is_15 else None,
    )
