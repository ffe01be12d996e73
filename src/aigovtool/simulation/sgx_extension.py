"""
The SGX extension of a PCK certificate, in DER.

    SEQUENCE OF SEQUENCE { OBJECT IDENTIFIER, value }

Source: Intel SGX PCK Certificate and CRL Profile Specification, section 1.3.5 and appendix A.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat import asn1

_BASE = "1.2.840.113741.1.13.1"
OID = x509.ObjectIdentifier(_BASE)
_STANDARD_PLATFORM = b"\x0a\x01\x00"  # DER: ENUMERATED 0


@asn1.sequence
class _Octets:
    oid: x509.ObjectIdentifier
    value: bytes


@asn1.sequence
class _Integer:
    oid: x509.ObjectIdentifier
    value: int


@asn1.sequence
class _Nested:
    oid: x509.ObjectIdentifier
    value: list[asn1.TLV]


@asn1.sequence
class _Other:
    oid: x509.ObjectIdentifier
    value: asn1.TLV


@asn1.sequence
class _SgxExtension:
    ppid: _Octets
    tcb: _Nested
    pce_id: _Octets
    fmspc: _Octets
    sgx_type: _Other


def encode_sgx_extension(
    *, ppid: bytes, components: Sequence[int], pce_svn: int, pce_id: bytes, fmspc: bytes
) -> bytes:
    """
    Return the extension's DER for a platform of one package.

    Args:
        ppid: 16 bytes.
        components: the 16 SVNs of the platform; CPUSVN is written as the same 16 bytes.
        pce_id: 2 bytes.
        fmspc: 6 bytes.
    """
    tcb = [
        _tlv(asn1.encode_der(_Integer(oid=_oid(f"2.{number}"), value=svn)))
        for number, svn in enumerate((*components, pce_svn), start=1)
    ]
    tcb.append(_tlv(asn1.encode_der(_Octets(oid=_oid("2.18"), value=bytes(components)))))
    return asn1.encode_der(
        _SgxExtension(
            ppid=_Octets(oid=_oid("1"), value=ppid),
            tcb=_Nested(oid=_oid("2"), value=tcb),
            pce_id=_Octets(oid=_oid("3"), value=pce_id),
            fmspc=_Octets(oid=_oid("4"), value=fmspc),
            sgx_type=_Other(oid=_oid("5"), value=_tlv(_STANDARD_PLATFORM)),
        )
    )


def _oid(suffix: str) -> x509.ObjectIdentifier:
    return x509.ObjectIdentifier(f"{_BASE}.{suffix}")


def _tlv(der: bytes) -> asn1.TLV:
    return asn1.decode_der(asn1.TLV, der)
