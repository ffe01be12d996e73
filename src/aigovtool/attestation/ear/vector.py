"""
From a verdict to the trustworthiness vector.

Rule 1: an accepted attester is described as it is, and not as the policy puts up with it: who reads
        the token has not read the policy. What the policy leaves free is not affirmed.
Rule 2: memory that the owner of the machine can read (debug, or a simulated TEE) is
        contraindicated, even where a policy accepts it.
Rule 3: of what the evidence cannot show, nothing is claimed: files, storage and sourced data never,
        memory encryption only where the hardware vouches for it, hardware and an identity only
        where revocation was checked and the policy names the machines.
Rule 4: what refused an attester marks the aspect that it is about as contraindicated. Evidence
        that is not genuine marks every aspect.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from aigovtool.attestation.azure.claims import AzureSnpClaims, AzureTdxClaims
from aigovtool.attestation.azure.policy import AzureRules, AzureSnpPolicy, AzureTdxPolicy
from aigovtool.attestation.claims import Claims
from aigovtool.attestation.composite import CompositeClaims, CompositePolicy
from aigovtool.attestation.dcap.claims import PlatformClaims, SgxClaims, TdxClaims
from aigovtool.attestation.dcap.policy import PlatformRules, SgxPolicy, TdRules
from aigovtool.attestation.dcap.tcb import TcbStatus
from aigovtool.attestation.ear.ar4si import (
    APPROVED_BOOT,
    APPROVED_CONFIGURATION,
    CONTRAINDICATED_HARDWARE,
    CONTRAINDICATED_RUNTIME,
    CRYPTO_VALIDATION_FAILED,
    ENCRYPTED_MEMORY,
    GENUINE_HARDWARE,
    NO_CLAIM,
    RECOGNIZED_INSTANCE,
    UNRECOGNIZED_HARDWARE,
    UNRECOGNIZED_RUNTIME,
    UNSAFE_CONFIGURATION,
    UNSAFE_HARDWARE,
    UNSUPPORTABLE_CONFIGURATION,
    UNTRUSTWORTHY_INSTANCE,
    VISIBLE_MEMORY,
    TrustVector,
)
from aigovtool.attestation.nitro.claims import NitroClaims
from aigovtool.attestation.nitro.policy import NitroPolicy
from aigovtool.attestation.nvidia.claims import DeviceClaims, Measurements, NvidiaClaims
from aigovtool.attestation.nvidia.ocsp import Revocation
from aigovtool.attestation.nvidia.policy import NvidiaPolicy
from aigovtool.attestation.policy import Alternative
from aigovtool.attestation.simulated import SimulatedClaims
from aigovtool.attestation.snp.claims import SnpClaims
from aigovtool.attestation.snp.policy import SnpPolicy
from aigovtool.attestation.tpm2.policy import PcrPolicy, Tpm2Policy
from aigovtool.attestation.tpm2.verify import Tpm2Claims
from aigovtool.errors import PromiseBrokenError, Reason

NOT_GENUINE = TrustVector(**dict.fromkeys(TrustVector.__struct_fields__, CRYPTO_VALIDATION_FAILED))

_SOUND_HARDWARE = frozenset({TcbStatus.UP_TO_DATE, TcbStatus.CONFIGURATION_NEEDED})
_CONDEMNED_HARDWARE = frozenset({TcbStatus.REVOKED, TcbStatus.NOT_SUPPORTED})
_UNSAFE_CONFIGURATION = frozenset(
    {
        TcbStatus.CONFIGURATION_NEEDED,
        TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
        TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED,
        TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
    }
)


def vector_of_accepted(claims: Claims, alternative: Alternative) -> TrustVector:
    """Describe an attester whose *claims* this *alternative* of a policy accepted."""
    match claims, alternative:
        case SimulatedClaims(), TdRules():
            real = vector_of_accepted(claims.td, alternative)
            return msgspec.structs.replace(
                real, hardware=UNRECOGNIZED_HARDWARE, runtime_opaque=VISIBLE_MEMORY
            )
        case TdxClaims(), TdRules():
            free = "any" in (alternative.mr_td, alternative.rt_mr1, alternative.rt_mr2)
            return _of_intel(claims.platform, alternative, debug=claims.debug, code_free=free)
        case SgxClaims(), SgxPolicy():
            free = alternative.mr_enclave == alternative.mr_signer == "any"
            return _of_intel(claims.platform, alternative, debug=claims.debug, code_free=free)
        case SnpClaims(), SnpPolicy():
            return _vector(
                named=alternative.chip_id != "any",
                code_free=alternative.measurement == "any",
                hardware=GENUINE_HARDWARE if claims.revocation == "checked" else NO_CLAIM,
                memory=ENCRYPTED_MEMORY,
                debug=claims.debug,
            )
        case NitroClaims(), NitroPolicy():
            return _vector(
                named=alternative.parent_instance != "any",
                code_free=alternative.pcr0 == alternative.pcr8 == "any",
                hardware=GENUINE_HARDWARE,
                memory=NO_CLAIM,  # isolated by the hypervisor, and no word of encryption
                debug=claims.debug,
            )
        case AzureSnpClaims(), AzureSnpPolicy():
            return _of_azure(vector_of_accepted(claims.hardware, alternative.hardware), alternative)
        case AzureTdxClaims(), AzureTdxPolicy():
            paravisor = _of_intel(
                claims.hardware.platform,
                alternative.hardware,
                debug=claims.hardware.debug,
                code_free=alternative.hardware.mr_td == "any",  # the guest is in the vTPM's PCRs
            )
            return _of_azure(paravisor, alternative)
        case Tpm2Claims(), Tpm2Policy():
            return _vector(
                named=isinstance(alternative.attestation_keys, tuple),
                code_free=_any_guest(alternative.pcrs),
                hardware=NO_CLAIM,  # a TPM vouches for what was booted, not for the machine
                memory=NO_CLAIM,
                debug=False,
            )
        case NvidiaClaims(), NvidiaPolicy():
            first, *more = (_of_device(device, alternative) for device in claims.devices)
            for another in more:
                first = first.joined(another)
            return first
        case CompositeClaims(), CompositePolicy():
            cpu = vector_of_accepted(claims.cpu, alternative.cpu)
            gpu = vector_of_accepted(claims.gpu, alternative.gpu)
            return cpu.joined(gpu)
    raise PromiseBrokenError(
        "claims and alternative of different kinds",
        expected=type(alternative).__name__,
        came=type(claims).__name__,
    )


def vector_of_refused(reasons: Iterable[Reason]) -> TrustVector:
    """Describe a genuine attester that a policy refused for *reasons* (at least one)."""
    marks: dict[str, int] = {}
    for reason in reasons:
        marks.update(_mark(reason.code))
    return TrustVector(**marks)


def _vector(
    *, named: bool, code_free: bool, hardware: int, memory: int, debug: bool
) -> TrustVector:
    return TrustVector(
        instance_identity=RECOGNIZED_INSTANCE if named else NO_CLAIM,
        configuration=UNSUPPORTABLE_CONFIGURATION if debug else APPROVED_CONFIGURATION,
        executables=UNRECOGNIZED_RUNTIME if code_free else APPROVED_BOOT,
        hardware=hardware,
        runtime_opaque=VISIBLE_MEMORY if debug else memory,
    )


def _of_intel(
    platform: PlatformClaims, rules: PlatformRules, *, debug: bool, code_free: bool
) -> TrustVector:
    status = platform.tcb_status
    hardware = UNSAFE_HARDWARE
    if status in _SOUND_HARDWARE:
        hardware = GENUINE_HARDWARE
    elif status in _CONDEMNED_HARDWARE:
        hardware = CONTRAINDICATED_HARDWARE
    vector = _vector(
        named=rules.pinned_platforms != "any",
        code_free=code_free,
        hardware=hardware,
        memory=ENCRYPTED_MEMORY,
        debug=debug,
    )
    if status in _UNSAFE_CONFIGURATION and not debug:
        return msgspec.structs.replace(vector, configuration=UNSAFE_CONFIGURATION)
    return vector


def _of_azure(paravisor: TrustVector, rules: AzureRules) -> TrustVector:
    """The hardware knows the paravisor; the guest is known when paravisor and PCRs are."""
    vector = paravisor
    if _any_guest(rules.pcrs):
        vector = msgspec.structs.replace(vector, executables=UNRECOGNIZED_RUNTIME)
    if rules.vm_ids != "any":
        vector = msgspec.structs.replace(vector, instance_identity=RECOGNIZED_INSTANCE)
    return vector


def _any_guest(pcrs: PcrPolicy) -> bool:
    return pcrs == "any" or not pcrs


def _of_device(device: DeviceClaims, rules: NvidiaPolicy) -> TrustVector:
    listed = not isinstance(rules.measurements, str)
    vector = _vector(
        named=rules.platforms != "any",
        code_free=not listed and device.measurements is not Measurements.MATCH,
        hardware=GENUINE_HARDWARE if device.revocation is Revocation.GOOD else NO_CLAIM,
        memory=NO_CLAIM,  # no field of a report says it
        debug=False,
    )
    if device.measurements is Measurements.MISMATCH and not listed:
        return msgspec.structs.replace(vector, executables=CONTRAINDICATED_RUNTIME)
    return vector


_EXECUTABLES = frozenset(
    [
        "tdx.mr_td",
        "tdx.rt_mr0",
        "tdx.rt_mr1",
        "tdx.rt_mr2",
        "tdx.rt_mr3",
        "tdx.mr_service_td",
        "sgx.mr_enclave",
        "sgx.mr_signer",
        "sgx.isv_prod_id",
        "sgx.isv_svn",
        "snp.measurement",
        "snp.id_key_digest",
        "snp.author_key_digest",
        "snp.family_id",
        "snp.image_id",
        "snp.guest_svn",
        "nvidia.measurements",
        "nvidia.rim_missing",
        "nvidia.driver",
        "nvidia.vbios",
        "azure.pcr",
        "tpm2.pcr",
    ]
)
_HARDWARE = frozenset(
    [
        "tcb.status",
        "tcb.evaluation_number",
        "tcb.advisory",
        "tdx.mr_seam",
        "simulated.root",
        "snp.product",
        "snp.reported_tcb",
        "snp.current_tcb",
        "snp.committed_tcb",
        "snp.launch_tcb",
        "snp.provisional_firmware",
        "snp.mitigations",
        "snp.revocation",
        "snp.signing_key",
        "nvidia.product",
        "nvidia.rim",
        "nvidia.rim_revocation",
        "nvidia.device_revocation",
    ]
)
_INSTANCE = frozenset(
    [
        "platform.pin",
        "snp.chip_id",
        "snp.csp_id",
        "nitro.parent_instance",
        "azure.vm_id",
        "azure.ak",
        "tpm2.ak",
        "nvidia.platform",
        "nvidia.devices",
    ]
)


def _mark(code: str) -> dict[str, int]:
    """Name the aspects that a reason is about; what is of no other aspect is configuration."""
    if code in ("policy.tee", "composite.cpu"):
        return {"hardware": UNRECOGNIZED_HARDWARE}
    if code in _HARDWARE:
        return {"hardware": CONTRAINDICATED_HARDWARE}
    if code in _INSTANCE:
        return {"instance_identity": UNTRUSTWORTHY_INSTANCE}
    if code in _EXECUTABLES or code.startswith("nitro.pcr"):
        return {"executables": CONTRAINDICATED_RUNTIME}
    if code.endswith(".debug"):
        return {
            "configuration": UNSUPPORTABLE_CONFIGURATION,
            "runtime_opaque": VISIBLE_MEMORY,
        }
    if code == "policy.others":
        return {}  # it tells of the other alternatives, not of the attester
    return {"configuration": UNSUPPORTABLE_CONFIGURATION}
