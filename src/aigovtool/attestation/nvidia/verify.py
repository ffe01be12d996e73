"""
Are the reports of NVIDIA GPUs and switches genuine, and are they as NVIDIA says they should be?

1. Each report is signed by a device whose chain leads to NVIDIA's root (`device`).
2. All reports answer the same nonce, and no chip answers twice.
3. Every RIM given is signed by NVIDIA (`rim`), whether or not a device needs it.
4. Each device is compared with the RIMs of its driver and VBIOS (a switch: of its BIOS). What is
   missing is claimed to be missing, and what disagrees to disagree: these are for the policy.
5. Every OCSP response given for a certificate that was used is genuine (`ocsp`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from aigovtool.attestation.evidence import Endorsements, Evidence
from aigovtool.attestation.nvidia.claims import (
    DeviceClaims,
    Measurements,
    Mode,
    NvidiaClaims,
    RimClaims,
)
from aigovtool.attestation.nvidia.device import Device, verify_device
from aigovtool.attestation.nvidia.layout import (
    DISABLED,
    ENABLED,
    MALFORMED,
    Opaque,
    Report,
    parse_report,
)
from aigovtool.attestation.nvidia.ocsp import Response, parse_response, revocation_of_chain
from aigovtool.attestation.nvidia.rim import Rim, verify_rim
from aigovtool.errors import MalformedError, VerificationError
from aigovtool.ids import sha256

REPORT = "device.{number}.report"  # evidence, number from 0: SPDM request and response
CERTIFICATES = "device.{number}.certificates"  # evidence: PEM, leaf first
RIM_PREFIX = "rim."  # endorsements, any number, any name after it: signed XML
OCSP_PREFIX = "ocsp."  # endorsements, any number, any name after it: DER

MAX_DEVICES = 16  # 8 GPUs and 4 switches are the largest known host
MAX_RIMS = 32  # a driver and a VBIOS for each device
MAX_OCSP_RESPONSES = 64
NVDEC0_INDEX = 36  # SPDM index; 35 in RIMs

_MODES = {0: Mode.SINGLE, 1: Mode.MULTI, 2: Mode.PROTECTED_PCIE}


def verify(evidence: Evidence, endorsements: Endorsements, *, now: datetime) -> NvidiaClaims:
    """
    Check the reports and return their claims; the numbers are those of this module.

    Raises:
        ConfigurationError: a RIM came and lxml is not installed.
        MalformedError: a document is missing or cannot be read.
        VerificationError: a report, RIM or OCSP response is not genuine, or one of rule 2.
    """
    parts = _documents(endorsements, RIM_PREFIX, MAX_RIMS)
    rims = [verify_rim(body, now=now) for body in parts]  # 3
    parts = _documents(endorsements, OCSP_PREFIX, MAX_OCSP_RESPONSES)
    responses = [parse_response(body) for body in parts]
    devices = []
    nonces = set()
    for number in range(_count(evidence)):
        report = parse_report(evidence.document(REPORT.format(number=number)))
        chain = evidence.document(CERTIFICATES.format(number=number))
        device = verify_device(report, chain, now=now)  # 1
        devices.append(_claims(report, device, rims, responses, now))
        nonces.add(report.nonce)
    if len(nonces) != 1 or len({device.platform_id for device in devices}) != len(devices):  # 2
        raise VerificationError(
            "the devices do not answer one nonce, each once",
            code="nvidia.nonce",
            came=f"nonces {', '.join(sorted(nonce.hex() for nonce in nonces))}; "
            f"devices {', '.join(device.platform_id for device in devices)}",
        )
    return NvidiaClaims(report_data=nonces.pop(), devices=tuple(devices), verified_at=now)


def _count(evidence: Evidence) -> int:
    count = sum(1 for name in evidence.documents if name.endswith(".report"))
    if not 0 < count <= MAX_DEVICES:
        raise MalformedError(
            "NVIDIA evidence with no device, or too many",
            code=MALFORMED,
            expected=f"1 to {MAX_DEVICES} documents {REPORT.format(number='N')!r}",
            came=str(count),
        )
    return count


def _documents(endorsements: Endorsements, prefix: str, limit: int) -> list[bytes]:
    names = sorted(name for name in endorsements.documents if name.startswith(prefix))
    if len(names) > limit:
        raise MalformedError(
            f"too many endorsements {prefix}*",
            code=MALFORMED,
            expected=f"at most {limit}",
            came=str(len(names)),
        )
    return [endorsements.documents[name] for name in names]


def _claims(
    report: Report,
    device: Device,
    rims: Iterable[Rim],
    responses: Sequence[Response],
    now: datetime,
) -> DeviceClaims:
    driver_version = report.text(Opaque.DRIVER_VERSION)
    driver = _best_rim(report, device, driver_version, rims)
    vbios = _best_rim(report, device, report.vbios_version, rims)
    accepted = _merge(driver, vbios)  # 4
    mismatched, exempted = _compare(report, accepted)
    complete = vbios is not None and (device.is_switch or driver is not None)
    outcome = Measurements.MATCH if complete else Measurements.MISSING
    return DeviceClaims(
        platform_id=device.serial,
        product=device.product,
        is_switch=device.is_switch,
        driver_version=driver_version,
        vbios_version=report.vbios_version,
        mode=_mode(report),
        measurement=sha256(report.measurement_record).hex(),
        fwid_bound=device.fwid_bound,
        driver_rim=_rim_claims(driver, responses, now),
        vbios_rim=_rim_claims(vbios, responses, now),
        measurements=Measurements.MISMATCH if mismatched else outcome,
        compared=len(accepted),
        mismatched=mismatched,
        exempted=exempted,
        revocation=revocation_of_chain(device.chain[1:], responses, now=now),  # 5
    )


def _best_rim(
    report: Report, device: Device, version: str | None, rims: Iterable[Rim]
) -> Rim | None:
    """Of the RIMs for this version (boards of one product can each have one), the best match."""
    candidates = [rim for rim in rims if rim.describes(device.product, version)]
    return min(candidates, key=lambda rim: len(_compare(report, rim.accepted)[0]), default=None)


def _merge(*rims: Rim | None) -> dict[int, frozenset[bytes]]:
    accepted: dict[int, frozenset[bytes]] = {}
    for rim in rims:
        if rim is None:
            continue
        if accepted.keys() & rim.accepted.keys():
            raise VerificationError(
                "the RIMs of driver and VBIOS both claim the same measurement",
                code="nvidia.rim_conflict",
                came=", ".join(str(index - 1) for index in accepted.keys() & rim.accepted.keys()),
            )
        accepted.update(rim.accepted)
    return accepted


def _compare(
    report: Report, accepted: Mapping[int, frozenset[bytes]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the RIM indices that disagree, and those that do and do not count."""
    without_nvdec0 = report.opaque.get(Opaque.NVDEC0_STATUS) == DISABLED
    differ = [index for index in accepted if report.measurements.get(index) not in accepted[index]]
    exempted = [index for index in differ if index == NVDEC0_INDEX and without_nvdec0]
    mismatched = sorted(index - 1 for index in differ if index not in exempted)
    return tuple(mismatched), tuple(index - 1 for index in exempted)


def _rim_claims(rim: Rim | None, responses: Sequence[Response], now: datetime) -> RimClaims | None:
    if rim is None:
        return None
    return RimClaims(
        version=rim.version,
        tag_id=rim.tag_id,
        validity=rim.validity,
        revocation=revocation_of_chain(rim.chain, responses, now=now),  # 5
    )


def _mode(report: Report) -> Mode | None:
    flag = report.opaque.get(Opaque.FEATURE_FLAG)
    if flag is not None:
        return _MODES.get(int.from_bytes(flag, "little"))
    # Firmware before the flag says only whether PCIe is protected.
    status = report.opaque.get(Opaque.PROTECTED_PCIE_STATUS, b"")
    return {ENABLED: Mode.PROTECTED_PCIE, DISABLED: Mode.SINGLE}.get(status)
