"""
Reference integrity manifests: what NVIDIA says the measurements of a driver or VBIOS should be.

Rule 1: the signature holds, and its certificates lead to NVIDIA's pinned RIM root. Otherwise the
        RIM is untrue and refused.
Rule 2: signers last about two years, RIMs are used for longer. One that was good and whose signer
        has since expired is not untrue: its `Validity` says so, and a policy decides.
Rule 3: RIM index i is SPDM index i + 1; only active entries are compared, and a RIM without one is
        malformed, as it would compare nothing and so match everything.

Source: TCG Reference Integrity Manifest Information Model 1.01; ISO/IEC 19770-2:2015 (SWID tags).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from cryptography import x509

from aigovtool.attestation.nvidia.xmldsig import MALFORMED, verify_signed_document
from aigovtool.attestation.x509chain import verify_chain
from aigovtool.errors import MalformedError

RIM_ROOTS = frozenset(
    {
        # NVIDIA CoRIM signing Root CA, valid until 2053-03-08
        bytes.fromhex("12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1"),
    }
)
MAX_SPDM_INDEX = 254  # DSP0274: 0xFF asks for all

_SWID = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_HASH = "{http://www.w3.org/2001/04/xmlenc#sha384}Hash"
_ACTIVE = {"true": True, "false": False}


class Validity(StrEnum):
    """The signers of a RIM at the stated time."""

    VALID = "valid"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rim:
    """
    A RIM whose signature holds.

    Args:
        product: such as ``GH100``.
        version: of the driver or VBIOS, such as ``550.90.07`` or ``96.00.9F.00.01``.
        tag_id: NVIDIA's name for this RIM.
        accepted: by SPDM index (from 1), the values of which any one is right.
        validity: of its signers, at the stated time.
        chain: signer first, root last.
    """

    product: str
    version: str
    tag_id: str
    accepted: Mapping[int, frozenset[bytes]]
    validity: Validity
    chain: tuple[x509.Certificate, ...]

    def describes(self, product: str, version: str | None) -> bool:
        """Whether it is about this version of this product (``LS_10`` is also written LS10)."""
        return (
            version is not None
            and self.version.upper() == version.upper()
            and self.product.replace("_", "") == product.replace("_", "")
        )


def verify_rim(data: bytes, *, now: datetime) -> Rim:
    """
    Check a RIM and read its reference values.

    Args:
        data: the signed XML.
        now: aware time at which its signers are judged.

    Raises:
        ConfigurationError: lxml is not installed.
        MalformedError: not a RIM, or one that compares nothing.
        VerificationError: the signature does not hold, or is not NVIDIA's.
    """
    document = verify_signed_document(data)
    root, chain = document.root, document.certificates
    validity, judged_at = _validity(chain, now)
    verify_chain(chain, root_fingerprints=RIM_ROOTS, now=judged_at)
    meta, payload = _one(root, "Meta"), _one(root, "Payload")
    return Rim(
        product=_attribute(meta, "product"),
        version=_attribute(meta, "colloquialVersion"),
        tag_id=_attribute(root, "tagId"),
        accepted=_accepted(payload),
        validity=validity,
        chain=chain,
    )


def _validity(chain: Iterable[x509.Certificate], now: datetime) -> tuple[Validity, datetime]:
    """Return the state at *now*, and a time at which the chain can be judged for all else."""
    chain = list(chain)
    start = max(certificate.not_valid_before_utc for certificate in chain)
    end = min(certificate.not_valid_after_utc for certificate in chain)
    if now > end:
        return Validity.EXPIRED, end
    if now < start:
        return Validity.NOT_YET_VALID, start
    return Validity.VALID, now


def _accepted(payload: Any) -> dict[int, frozenset[bytes]]:
    accepted: dict[int, frozenset[bytes]] = {}
    seen = set()
    for resource in payload:
        index = _number(resource, "index") + 1
        active = _ACTIVE.get(_attribute(resource, "active").lower())
        if (
            resource.tag != f"{_SWID}Resource"
            or _attribute(resource, "type") != "Measurement"
            or active is None
            or not 0 < index <= MAX_SPDM_INDEX
            or index in seen
        ):
            raise MalformedError(
                "RIM with an entry that is no measurement, or the second of its index",
                code=MALFORMED,
                came=f"index {index - 1}",
            )
        seen.add(index)
        if active:
            accepted[index] = _values(resource)
    if not accepted:
        raise MalformedError("RIM without an active measurement", code=MALFORMED)
    return accepted


def _values(resource: Any) -> frozenset[bytes]:
    count, size = _number(resource, "alternatives"), _number(resource, "size")
    names = {name for name in resource.attrib if name.startswith(_HASH)}
    try:
        values = frozenset(bytes.fromhex(resource.attrib[name]) for name in names)
    except ValueError:
        values = frozenset()
    if (
        names != {f"{_HASH}{number}" for number in range(count)}
        or not values
        or {len(value) for value in values} != {size}
    ):
        raise MalformedError(
            "RIM with a measurement that does not have the values it says",
            code=MALFORMED,
            expected=f"{count} of {size} bytes",
        )
    return values


def _one(root: Any, name: str) -> Any:
    found = root.findall(f"{_SWID}{name}")
    if root.tag != f"{_SWID}SoftwareIdentity" or len(found) != 1:
        raise MalformedError(
            f"RIM that is no SWID tag with one {name}", code=MALFORMED, came=str(len(found))
        )
    return found[0]


def _attribute(element: Any, name: str) -> str:
    value = element.attrib.get(name)
    if not isinstance(value, str) or not value:
        raise MalformedError(f"RIM without the attribute {name!r}", code=MALFORMED)
    return value


def _number(element: Any, name: str) -> int:
    text = _attribute(element, name)
    if not (text.isascii() and text.isdecimal() and len(text) <= 4):
        raise MalformedError(f"RIM with a {name!r} that is no number", code=MALFORMED, came=text)
    return int(text)
