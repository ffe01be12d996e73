"""
Which device signed a report: its certificate chain, from the report's key to NVIDIA's root.

    leaf        made by the device at each start, for the firmware that it started
    device      the boot ROM's key, one for each chip: the device's identity
    … root      NVIDIA Device Identity CA, pinned

Rule 1: leaf and device certificates never expire; revocation is a question for OCSP.
Rule 2: the leaf names the firmware it was made for (FWID); a report that names one must name that.
Rule 3: who the device is comes from the device certificate, which NVIDIA signed, and not from the
        leaf, which the device signed.

Source: TCG DICE Attestation Architecture 1.1, section 6.1 (TcbInfo and the older CompositeDeviceID,
which Hopper uses); DMTF DSP0274, section 10.8 (device certificates).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from aigovtool.attestation.nvidia.layout import MALFORMED, Opaque, Report
from aigovtool.attestation.x509chain import load_certificates, name_of, verify_chain
from aigovtool.errors import MalformedError, VerificationError

DEVICE_ROOTS = frozenset(
    {
        # NVIDIA Device Identity CA, valid until 9999
        bytes.fromhex("102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"),
    }
)
MIN_CHAIN_CERTIFICATES = 3  # leaf, device, root; real chains have two authorities more

_COMPOSITE_DEVICE_ID = x509.ObjectIdentifier("2.23.133.5.4.1")  # Hopper, LS10
_TCB_INFO = x509.ObjectIdentifier("2.23.133.5.4.1.1")  # Blackwell


@asn1.sequence
class _Fwid:
    algorithm: x509.ObjectIdentifier
    digest: bytes


@asn1.sequence
class _CompositeDeviceId:
    version: int
    device_key: asn1.TLV
    fwid: _Fwid


@asn1.sequence
class _TcbInfo:
    vendor: Annotated[str | None, asn1.Implicit(0)]
    model: Annotated[str | None, asn1.Implicit(1)]
    version: Annotated[str | None, asn1.Implicit(2)]
    svn: Annotated[int | None, asn1.Implicit(3)]
    layer: Annotated[int | None, asn1.Implicit(4)]
    index: Annotated[int | None, asn1.Implicit(5)]
    fwids: Annotated[list[_Fwid] | None, asn1.Implicit(6)]
    flags: Annotated[asn1.BitString | None, asn1.Implicit(7)]
    vendor_info: Annotated[bytes | None, asn1.Implicit(8)]
    kind: Annotated[bytes | None, asn1.Implicit(9)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """
    A device whose chain holds.

    Args:
        chain: leaf first, root last.
        product: such as ``GH100``, ``GB100`` or ``LS_10``, as NVIDIA certified it.
        serial: the device's number, unique over all products.
        fwid_bound: the report names the firmware that the leaf was made for; False when it names
            none.
    """

    chain: tuple[x509.Certificate, ...]
    product: str
    serial: str
    fwid_bound: bool

    @property
    def is_switch(self) -> bool:
        """Whether it is an NVSwitch, which has a BIOS and no driver."""
        return self.product.startswith("LS_")


def verify_device(report: Report, chain_pem: bytes, *, now: datetime) -> Device:
    """
    Check that a genuine NVIDIA device signed *report*.

    Args:
        report: as parsed.
        chain_pem: PEM, leaf first, root last.
        now: aware time at which every certificate must be valid.

    Raises:
        MalformedError: the chain is not one of a device.
        VerificationError: chain, firmware id or signature does not hold.
    """
    chain = load_certificates(chain_pem, what="certificate chain of a device")
    if len(chain) < MIN_CHAIN_CERTIFICATES:
        raise MalformedError(
            "certificate chain of a device is too short",
            code=MALFORMED,
            expected=f"at least {MIN_CHAIN_CERTIFICATES} certificates",
            came=str(len(chain)),
        )
    verify_chain(chain, root_fingerprints=DEVICE_ROOTS, now=now)
    _verify_signature(report, chain[0])
    product = _subject(chain[1], x509.NameOID.COMMON_NAME).partition(" ")[0]
    return Device(
        chain=tuple(chain),
        product=product,
        serial=_subject(chain[1], x509.NameOID.SERIAL_NUMBER),
        fwid_bound=_check_fwid(report, chain[0]),
    )


def _verify_signature(report: Report, leaf: x509.Certificate) -> None:
    half = len(report.signature) // 2
    r, s = int.from_bytes(report.signature[:half]), int.from_bytes(report.signature[half:])
    try:
        key = leaf.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
            raise MalformedError(
                f"{name_of(leaf)} holds no P-384 key", code=MALFORMED, expected="ECDSA P-384"
            )
        key.verify(encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        raise VerificationError(
            "the report is not signed by the device's key",
            code="nvidia.signature",
            expected=f"signed by {name_of(leaf)}",
        ) from None


def _check_fwid(report: Report, leaf: x509.Certificate) -> bool:
    came = report.opaque.get(Opaque.FWID)
    if came is None:
        return False
    certified = _certified_fwids(leaf)
    if came not in certified or not any(came):
        raise VerificationError(
            "the report is by other firmware than the leaf certificate was made for",
            code="nvidia.fwid",
            expected=" or ".join(sorted(fwid.hex() for fwid in certified)) or "no firmware id",
            came=came.hex(),
        )
    return True


def _certified_fwids(leaf: x509.Certificate) -> frozenset[bytes]:
    # verify_chain has read the extensions of every certificate
    values = {
        extension.oid: extension.value.value
        for extension in leaf.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }
    try:
        if _COMPOSITE_DEVICE_ID in values:
            composite = asn1.decode_der(_CompositeDeviceId, values[_COMPOSITE_DEVICE_ID])
            return frozenset({composite.fwid.digest})
        if _TCB_INFO in values:
            info = asn1.decode_der(_TcbInfo, values[_TCB_INFO])
            return frozenset(fwid.digest for fwid in info.fwids or [])
    except ValueError:
        raise MalformedError(
            f"{name_of(leaf)} names its firmware in an unknown way", code=MALFORMED
        ) from None
    return frozenset()


def _subject(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    values = certificate.subject.get_attributes_for_oid(oid)
    if len(values) != 1 or not isinstance(values[0].value, str):
        raise MalformedError(
            f"{name_of(certificate)} does not say which device it is",
            code=MALFORMED,
            expected=f"one attribute {oid.dotted_string}",
        )
    return values[0].value
