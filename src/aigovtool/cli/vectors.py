"""
A folder of recorded evidence, judged case by case under the strict policy.

The verdict is computed from the evidence alone; only then is it held against what the folder's
`manifest.json` expects. A case is as expected when authenticity, TCB status and the result of the
strict policy are the same, every other expected field that we claim is the same, and each expected
reason is among ours (evidence that is not authentic says nothing more, so there the first one).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from aigovtool.attestation.appraise import platform_of
from aigovtool.attestation.claims import Claims
from aigovtool.attestation.dcap.chain import ENDORSEMENT_MISSING
from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.kinds import appraise_claims
from aigovtool.attestation.nvidia.claims import Measurements, NvidiaClaims
from aigovtool.attestation.nvidia.ocsp import Revocation
from aigovtool.attestation.policy import Alternative
from aigovtool.attestation.strict import strict_nvidia, strict_policy
from aigovtool.attestation.verify import verify
from aigovtool.cli.evidence_files import (
    COLLATERAL,
    endorsements_of,
    evidence_of,
    file_name,
    read_file,
)
from aigovtool.errors import (
    ConfigurationError,
    MalformedError,
    Reason,
    VerificationError,
)

MANIFEST = "manifest.json"

_TEES: Mapping[str, Tee] = {
    "SGX": Tee.SGX,
    "TDX": Tee.TDX,
    "SEV-SNP": Tee.SNP,
    "Nitro": Tee.NITRO,
    "NVIDIA GPU": Tee.NVIDIA,
    "NVIDIA NVSwitch": Tee.NVIDIA,
    "Azure SEV-SNP vTPM": Tee.AZURE_SNP,
    "Azure TDX vTPM": Tee.AZURE_TDX,
    "TPM 2.0": Tee.TPM2,
}


_GPU = " + NVIDIA"  # as in "TDX + NVIDIA GPU"


class Case(Struct, frozen=True):
    """One case of a vector; fields that only people read are left out."""

    name: str
    verification_time: datetime
    expected: dict[str, object]
    collateral: str | None = None


class Vector(Struct, frozen=True):
    """One vector: a folder of files, and the cases in which they are judged."""

    id: str
    tee: str
    files: dict[str, object]
    cases: tuple[Case, ...]


class Manifest(Struct, frozen=True):
    """The folder's `manifest.json`."""

    version: int
    vectors: tuple[Vector, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """
    What the evidence of one case came to.

    Args:
        authentic: None when it cannot be checked, for want of an endorsement.
        claims: what it says; None unless authentic.
        reasons: why the strict policy refuses it, in the words of the vectors; none: it accepts.
    """

    authentic: bool | None
    claims: Claims | None
    reasons: tuple[str, ...]

    @property
    def strict_policy(self) -> str:
        return "reject" if self.reasons else "accept"

    @property
    def tcb_status(self) -> str | None:
        platform = platform_of(self.claims) if self.claims is not None else None
        return None if platform is None else str(platform.tcb_status)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder of vectors; raises ConfigurationError."""
    try:
        manifest = msgspec.json.decode(read_file(folder / MANIFEST), type=Manifest)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(
            f"{folder / MANIFEST} is not a manifest of vectors", code="manifest", came=str(error)
        ) from None
    if manifest.version != 1:
        raise ConfigurationError(
            "manifest of an unknown version", expected="1", came=str(manifest.version)
        )
    return manifest


class CaseResult(Struct, frozen=True, kw_only=True):
    """The result of one case, in the form that `attestation vectors --json` prints."""

    id: str
    case: str
    authentic: bool | None
    tcb_status: str | None
    strict_policy: str
    reasons: tuple[str, ...]
    ok: bool


def judge_folder(folder: Path) -> Iterator[CaseResult]:
    """Yield one result for each case of *folder*, in its order."""
    for vector in read_manifest(folder).vectors:
        for case in vector.cases:
            verdict = judge_case(folder, vector, case)
            yield CaseResult(
                id=vector.id,
                case=case.name,
                authentic=verdict.authentic,
                tcb_status=verdict.tcb_status,
                strict_policy=verdict.strict_policy,
                reasons=verdict.reasons,
                ok=as_expected(verdict, case.expected),
            )


def judge_case(folder: Path, vector: Vector, case: Case) -> Verdict:
    """Judge one case from its evidence, endorsements and time alone."""
    tee = _tee_of(vector)
    place = folder / file_name(vector.id)
    roles: dict[str, object] = dict(vector.files)
    if case.collateral is not None:
        roles[COLLATERAL] = case.collateral
    try:
        claims = verify(
            evidence_of(tee, place, roles),
            endorsements_of(tee, place, roles),
            now=case.verification_time,
        )
    except (VerificationError, MalformedError) as error:
        missing = error.reasons[0].code == ENDORSEMENT_MISSING
        return Verdict(
            authentic=None if missing else False,
            claims=None,
            reasons=tuple(
                _in_their_words(reason, tee, otherwise=_CHAIN) for reason in error.reasons
            ),
        )
    reasons = appraise_claims(claims, _strict_policy(tee, vector))
    words = [_in_their_words(reason, tee) for reason in reasons]
    return Verdict(authentic=True, claims=claims, reasons=tuple(dict.fromkeys(words)))


def _tee_of(vector: Vector) -> Tee:
    tee = Tee.COMPOSITE if _GPU in vector.tee else _TEES.get(vector.tee)
    if tee is None:
        raise ConfigurationError("vector of an unknown TEE", code="manifest", came=vector.tee)
    return tee


def _strict_policy(tee: Tee, vector: Vector) -> Alternative:
    """Demand revocation evidence as far as the vector can carry it: OCSP, where it has some."""
    if tee is Tee.NVIDIA and "ocsp" not in vector.files:
        return strict_nvidia(device_revocation="unknown-accepted")
    return strict_policy(tee)


# The vectors' words for our codes; `{came}` is the reason's own.
_WORDS: Mapping[str, str] = {
    "tcb.status": "tcb:{came}",
    "sgx.debug": "attr:debug",
    "tdx.debug": "attr:debug",
    "tdx.sept_ve_disable": "attr:no-SEPT_VE_DISABLE",
    "snp.debug": "policy:debug",
    "nitro.debug": "debug: PCR0..PCR2 are zero",
    ENDORSEMENT_MISSING: "endorsement certificate missing",
    "certificate.expired": "certificate expired",
    "certificate.not_yet_valid": "certificate not yet valid",
    "crl.expired": "collateral expired",
    "crl.not_yet_valid": "collateral not yet valid",
    "dcap.collateral.expired": "collateral expired",
    "dcap.collateral.not_yet_valid": "collateral not yet valid",
    "tpm2.ak": "AK has no certificate: signature valid, AK not anchored",
}
# Under Intel's root, certificates are a part of the collateral; they live longer than the rest.
_WORDS_OF_INTEL: Mapping[str, str] = {
    **_WORDS,
    "certificate.expired": "collateral expired",
    "certificate.not_yet_valid": "collateral not yet valid",
}
_INTEL = frozenset({Tee.SGX, Tee.TDX})
_CHAIN = "signature chain: "


def _in_their_words(reason: Reason, tee: Tee, *, otherwise: str = "") -> str:
    if reason.code.startswith("nvidia."):
        return f"GPU: {_of_gpu(reason)}" if tee is Tee.COMPOSITE else _of_gpus(reason)
    words = (_WORDS_OF_INTEL if tee in _INTEL else _WORDS).get(reason.code)
    return otherwise + reason.message if words is None else words.format(came=reason.came)


def _of_gpus(reason: Reason) -> str:
    return "reference values missing" if reason.code == "nvidia.rim_missing" else _of_gpu(reason)


def _of_gpu(reason: Reason) -> str:
    """Leave out which of the devices it is: the vectors' words are about all of them."""
    what = {"nvidia.device_revocation": "device", "nvidia.rim_revocation": "RIM"}.get(reason.code)
    if what is not None and reason.came == Revocation.UNKNOWN:
        return "revocation status unknown"
    if what is not None and reason.came in (Revocation.REVOKED, Revocation.ON_HOLD):
        return f"revocation: {what} certificate {reason.came}"
    if what is not None:
        return f"revocation: {what} OCSP responses not valid at this time"
    if reason.code == "nvidia.rim":
        return f"RIM signer certificate {reason.came}"
    return reason.message.partition(": ")[2] or reason.message


def as_expected(verdict: Verdict, expected: Mapping[str, object]) -> bool:
    """Hold a verdict against what the manifest expects."""
    ours: dict[str, object] = {
        "authentic": verdict.authentic,
        "strict_policy": verdict.strict_policy,
        **_claimed(verdict),
    }
    if any(ours[field] != expected[field] for field in ours.keys() & expected.keys()):
        return False
    if verdict.tcb_status != expected.get("tcb_status"):
        return False
    reasons = expected.get("reasons", [])
    assert isinstance(reasons, list)
    if not verdict.authentic:
        return bool(verdict.reasons) and bool(reasons) and _same(verdict.reasons[0], reasons[0])
    return all(any(_same(mine, theirs) for mine in verdict.reasons) for theirs in reasons)


def _claimed(verdict: Verdict) -> dict[str, object]:
    """Return the expected fields that our claims know, in the vectors' form."""
    if verdict.claims is None:
        return {}
    if isinstance(verdict.claims, NvidiaClaims):
        return _claimed_of_gpus(verdict.claims)
    platform = platform_of(verdict.claims)
    if platform is None:
        return {}
    module, date = platform.tdx_module_status, platform.tcb_date
    return {
        "advisories": list(platform.advisories),
        "tcb_date": None if date is None else date.date().isoformat(),
        "tdx_module_status": None if module is None else str(module),
        "qe_status": str(platform.qe_status),
        "tcb_evaluation_data_number": platform.tcb_evaluation_number,
    }


def _claimed_of_gpus(claims: NvidiaClaims) -> dict[str, object]:
    matches = {device.measurements for device in claims.devices}
    claimed: dict[str, object] = {
        "measurements": "match" if matches == {Measurements.MATCH} else None,
        "compared_measurements": sum(device.compared for device in claims.devices),
        "device_ocsp": _worst(device.revocation for device in claims.devices),
    }
    rims = [rim for device in claims.devices for rim in device.rims]
    if rims:
        claimed["rim_ocsp"] = _worst(rim.revocation for rim in rims)
        claimed["rim_signature"] = _worst(rim.validity for rim in rims)
    return claimed


def _worst(states: Iterable[str]) -> str:
    """Return the first state that is not good; they come as NVIDIA's OCSP and RIM states."""
    found = list(dict.fromkeys(map(str, states)))
    return next((state for state in found if state not in ("good", "valid")), found[0])


def _same(mine: str, theirs: str) -> bool:
    """Compare reasons; how a signature chain is broken may be told in other words."""
    return mine == theirs or (mine.startswith(_CHAIN) and theirs.startswith(_CHAIN))
