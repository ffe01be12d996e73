"""
The PCK certificate: which platform it names, and the SVNs that Intel certified for it.

Source: Intel SGX PCK Certificate and CRL Profile Specification, section 1.3.5 (the SGX extension).
"""

from __future__ import annotations

from dataclasses import dataclass

import dcap_qvl
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from aigovtool.errors import MalformedError

SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_CONFIGURATION = f"{SGX_EXTENSION.dotted_string}.7"
_DYNAMIC_PLATFORM = f"{_CONFIGURATION}.1"
_CACHED_KEYS = f"{_CONFIGURATION}.2"
_SMT_ENABLED = f"{_CONFIGURATION}.3"
_KINDS = {0: "standard", 1: "scalable", 2: "scalable-with-integrity"}
_PPID_BYTES, _CPU_SVN_BYTES, _FMSPC_BYTES, _PCE_ID_BYTES = 16, 16, 6, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PckExtension:
    """The SGX extension of a PCK certificate; flags are None when it does not say."""

    ppid: bytes
    cpu_svn: bytes
    pce_svn: int
    pce_id: bytes
    fmspc: bytes
    kind: str
    platform_instance_id: bytes | None
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt_enabled: bool | None


def read_pck_extension(certificate: x509.Certificate) -> PckExtension:
    """Read the SGX extension; raises MalformedError when there is none, or it is not complete."""
    pem = certificate.public_bytes(Encoding.PEM)
    try:
        parsed = dcap_qvl.parse_pck_extension_from_pem(pem)
        flags = {
            oid: parsed.get_value(oid) for oid in (_DYNAMIC_PLATFORM, _CACHED_KEYS, _SMT_ENABLED)
        }
    except ValueError:
        raise MalformedError(
            "the quote's certificate is no PCK certificate: it has no readable SGX extension",
            code="dcap.pck.extension",
        ) from None
    extension = PckExtension(
        ppid=bytes(parsed.ppid),
        cpu_svn=bytes(parsed.cpu_svn),
        pce_svn=parsed.pce_svn,
        pce_id=bytes(parsed.pce_id),
        fmspc=bytes(parsed.fmspc),
        kind=_KINDS.get(parsed.sgx_type, f"unknown ({parsed.sgx_type})"),
        platform_instance_id=(
            None if parsed.platform_instance_id is None else bytes(parsed.platform_instance_id)
        ),
        dynamic_platform=_boolean(flags[_DYNAMIC_PLATFORM]),
        cached_keys=_boolean(flags[_CACHED_KEYS]),
        smt_enabled=_boolean(flags[_SMT_ENABLED]),
    )
    sizes = tuple(
        len(part) for part in (extension.ppid, extension.cpu_svn, extension.fmspc, extension.pce_id)
    )
    if sizes != (_PPID_BYTES, _CPU_SVN_BYTES, _FMSPC_BYTES, _PCE_ID_BYTES):
        raise MalformedError(
            "a field of the SGX extension has a wrong length", code="dcap.pck.extension"
        )
    return extension


def _boolean(der_content: bytes | None) -> bool | None:
    """Read the content of a DER BOOLEAN: 0x00 is false, anything else true (X.690, 8.2.2)."""
    return None if der_content is None else any(der_content)
