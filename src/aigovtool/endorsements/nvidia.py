"""
NVIDIA's reference values and revocation answers for GPUs and switches.

Rule 1: the report says which RIMs: driver version, and board and version of the VBIOS. The name of
        the product is part of a driver RIM's name: a Hopper RIM for a Blackwell GPU is genuine,
        and about something else.
Rule 2: OCSP is asked about every certificate between a leaf and its root, without a nonce: the
        answer is kept, and sent along to those who have no network.
Rule 3: none of it is demanded here. NVIDIA takes RIMs back, and what is missing, a policy judges.

Source: NVIDIA, "RIM Service" (docs.nvidia.com/attestation); RFC 6960, section 4.1 and appendix A.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from msgspec import Struct

from aigovtool.attestation.evidence import Evidence
from aigovtool.attestation.nvidia import verify as nvidia
from aigovtool.attestation.nvidia.layout import MALFORMED, Opaque, Report, parse_report
from aigovtool.attestation.nvidia.ocsp import parse_response
from aigovtool.attestation.nvidia.xmldsig import verify_signed_document
from aigovtool.attestation.x509chain import common_name, load_certificates
from aigovtool.endorsements.fetch import Answer, Question, malformed
from aigovtool.endorsements.library import Documents, Item, Library
from aigovtool.errors import MalformedError, VerificationError
from aigovtool.ids import sha256

RIM_URL = "https://rim.attestation.nvidia.com"
OCSP_URL = "https://ocsp.ndis.nvidia.com"
LONGEST_RIM_AGE = timedelta(days=7)
LONGEST_OCSP_AGE = timedelta(hours=6)  # an answer is valid for 24

# Opaque fields that name the board; `Opaque` has those that a verifier needs.
_CHIP_SKU, _PROJECT, _PROJECT_SKU = 15, 17, 18
_SWITCH_BOARD = "5612_0002_890"  # LS10, the one switch; its report does not name the board
_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaService:
    """
    Where NVIDIA's reference values and revocation answers are had.

    Args:
        rim_url: of the RIM service or a mirror of it, without a path.
        ocsp_url: of the OCSP responder.
    """

    rim_url: str = RIM_URL
    ocsp_url: str = OCSP_URL


async def nvidia_documents(
    evidence: Evidence,
    have: Documents,
    *,
    service: NvidiaService,
    library: Library,
    now: datetime,
) -> dict[str, bytes]:
    """
    Return RIMs and OCSP answers for every device, beyond *have*; what cannot be had is left out.

    Raises:
        ConfigurationError: RIMs cannot be read, as lxml is not installed.
        MalformedError: a report or a chain cannot be read.
    """
    chains: list[Sequence[x509.Certificate]] = []
    rims: dict[str, Item] = {}
    for number in range(_count(evidence)):
        report = parse_report(evidence.document(nvidia.REPORT.format(number=number)))
        pem = evidence.document(nvidia.CERTIFICATES.format(number=number))
        chain = load_certificates(pem, what="certificate chain of a device")
        chains.append(chain[1:])  # the leaf is the device's own
        for rim_id in rim_ids(report, chain):
            rims[rim_id] = _rim_item(rim_id, service)
    documents = await library.fill(rims.values(), have, now=now)
    given = {**have, **documents}
    chains += _signers_of_rims(given)
    items = {item.question.key: item for chain in chains for item in _ocsp_items(chain, service)}
    answered = set(_certificates_answered(given, now))
    wanted = [item for item in items.values() if item.names[0] not in answered]
    return documents | await library.fill(wanted, {}, now=now)


def rim_ids(report: Report, chain: Sequence[x509.Certificate]) -> list[str]:
    """Return the names of the RIMs for a device, as NVIDIA's service has them (rule 1)."""
    product = common_name(chain[1]).partition(" ")[0] if len(chain) > 1 else ""
    version = (report.vbios_version or "").replace(".", "")
    if product.startswith("LS_"):
        return _sound([f"NV_SWITCH_BIOS_{_SWITCH_BOARD}_{version}"])
    driver = report.text(Opaque.DRIVER_VERSION) or ""
    series = "NV_GPU_DRIVER" if product == "GH100" else "NV_GPU_CC_DRIVER"
    board = "_".join(_board(report, field) for field in (_PROJECT, _PROJECT_SKU, _CHIP_SKU))
    return _sound([f"{series}_{product}_{driver}", f"NV_GPU_VBIOS_{board}_{version}"])


def _board(report: Report, field: int) -> str:
    return report.opaque.get(field, b"").rstrip(b"\0").decode("ascii", errors="replace")


def _sound(names: Iterable[str]) -> list[str]:
    """Leave out what is no name: the fields come from a stranger, and would go into a URL."""
    return [name.upper() for name in names if set(name.upper()) <= _SAFE and ".." not in name]


def _count(evidence: Evidence) -> int:
    count = sum(1 for name in evidence.documents if name.endswith(".report"))
    if not 0 < count <= nvidia.MAX_DEVICES:
        raise MalformedError(
            "NVIDIA evidence with no device, or too many", code=MALFORMED, came=str(count)
        )
    return count


class _RimAnswer(Struct, frozen=True):
    """The members that are read; the service adds others over time."""

    id: str
    rim: str
    sha256: str | None = None


# made here, where nobody else runs: see `wire.codec`
_rim_decoder = msgspec.json.Decoder(_RimAnswer)


def _rim_item(rim_id: str, service: NvidiaService) -> Item:
    name = nvidia.RIM_PREFIX + rim_id
    return Item(
        question=Question(url=f"{service.rim_url.rstrip('/')}/v1/rim/{rim_id}"),
        read=partial(_read_rim, name, rim_id),
        names=(name,),
        longest_age=LONGEST_RIM_AGE,
        required=False,
        outlives_span=True,  # whether an expired signer will do is for the policy (`rim.Validity`)
    )


def _read_rim(name: str, rim_id: str, answer: Answer) -> dict[str, bytes]:
    try:
        read = _rim_decoder.decode(answer.body)
        rim = base64.b64decode(read.rim, validate=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, binascii.Error, ValueError):
        raise malformed("a RIM") from None
    if read.id.upper() != rim_id:
        raise malformed("the RIM that was asked for", expected=rim_id, came=read.id[:80])
    if read.sha256 is not None and read.sha256.lower() != sha256(rim).hex():
        raise malformed("a whole RIM: its digest is another", expected=read.sha256[:64])
    if not rim.lstrip().startswith(b"<"):
        raise malformed("a RIM in XML")
    return {name: rim}


def _signers_of_rims(documents: Documents) -> Iterator[Sequence[x509.Certificate]]:
    for name, body in documents.items():
        if name.startswith(nvidia.RIM_PREFIX):
            try:
                yield verify_signed_document(body).certificates
            except (MalformedError, VerificationError) as error:
                _log.warning("no OCSP for the signers of %s: %s", name, error)


def _ocsp_items(chain: Sequence[x509.Certificate], service: NvidiaService) -> Iterator[Item]:
    for certificate, issuer in pairwise(chain):
        try:
            builder = ocsp.OCSPRequestBuilder()
            request = builder.add_certificate(certificate, issuer, hashes.SHA384()).build()
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise MalformedError(
                "a chain with a certificate that OCSP cannot be asked about", code=MALFORMED
            ) from None
        name = _ocsp_name(certificate.serial_number)
        yield Item(
            question=Question(
                url=service.ocsp_url,
                post=request.public_bytes(Encoding.DER),
                content_type="application/ocsp-request",
            ),
            read=partial(_read_ocsp, name),
            names=(name,),
            longest_age=LONGEST_OCSP_AGE,
            required=False,
        )


def _read_ocsp(name: str, answer: Answer) -> dict[str, bytes]:
    if name not in _names_answered(answer.body):
        raise malformed("an OCSP response about the certificate that was asked about")
    return {name: answer.body}


def _ocsp_name(serial: int) -> str:
    return f"{nvidia.OCSP_PREFIX}{serial:x}"


def _names_answered(body: bytes) -> set[str]:
    return {_ocsp_name(answer.serial_number) for answer in parse_response(body).answers}


def _certificates_answered(documents: Documents, now: datetime) -> Iterator[str]:
    """Name the certificates about which *documents* hold an answer that is valid at *now*."""
    for name, body in documents.items():
        if name.startswith(nvidia.OCSP_PREFIX):
            for answer in parse_response(body).answers:
                until = answer.next_update_utc
                if until is not None and answer.this_update_utc <= now <= until:
                    yield _ocsp_name(answer.serial_number)
