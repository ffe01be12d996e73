"""
Are genuine NVIDIA devices acceptable?

Rule 1: every field must be given; what is free is said with the word ``any``.
Rule 2: what is known to be revoked or on hold is refused by every policy; what a policy may accept
        is that nothing is known.
Rule 3: each device must satisfy the policy; one that does not refuses them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from aigovtool.attestation.nvidia.claims import DeviceClaims, Measurements, Mode, NvidiaClaims
from aigovtool.attestation.nvidia.ocsp import Revocation
from aigovtool.attestation.nvidia.rim import Validity
from aigovtool.errors import Reason

DeviceCount = Annotated[int, msgspec.Meta(ge=1)]
MeasurementDigest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
RevocationPolicy = Literal["good", "unknown-accepted"]


class NvidiaPolicy(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="tee",
    tag="nvidia",
):
    """
    What is accepted of the GPUs and switches of a host.

    Args:
        devices: how many must answer, so that none is left out; or ``any``.
        platforms: serial numbers of the chips accepted; or ``any``.
        products: such as ``GH100``; or ``any``.
        drivers: driver versions accepted; or ``any``. Switches have none.
        vbios: VBIOS versions accepted, as RIMs write them; or ``any``.
        modes: ``spt``, ``mpt``, ``ppcie``; or ``any``, also when the firmware does not say.
        measurements: ``match`` demands every RIM and agreement with it; a list demands one of these
            digests of the measurement record (hex); or ``any``, which accepts altered firmware and
            developer mode.
        rims: ``current`` demands that the signers of the RIMs used are valid; or ``any``.
        device_revocation: ``good`` demands current OCSP answers for the devices' chains;
            ``unknown-accepted`` refuses only what is known to be revoked or on hold.
        rim_revocation: the same for the signers of the RIMs used.
    """

    devices: DeviceCount | Literal["any"]
    platforms: tuple[str, ...] | Literal["any"]
    products: tuple[str, ...] | Literal["any"]
    drivers: tuple[str, ...] | Literal["any"]
    vbios: tuple[str, ...] | Literal["any"]
    modes: tuple[Mode, ...] | Literal["any"]
    measurements: tuple[MeasurementDigest, ...] | Literal["match", "any"]
    rims: Literal["current", "any"]
    device_revocation: RevocationPolicy
    rim_revocation: RevocationPolicy


def appraise(claims: NvidiaClaims, policy: NvidiaPolicy) -> list[Reason]:
    """Return every reason why *policy* refuses *claims*; an empty list accepts."""
    reasons = []
    if policy.devices != "any" and len(claims.devices) != policy.devices:
        reasons.append(
            Reason(
                code="nvidia.devices",
                message="not as many devices answered as the policy says",
                expected=str(policy.devices),
                came=str(len(claims.devices)),
                mend="collect the evidence of every GPU and switch of the host",
            )
        )
    for device in claims.devices:
        reasons += _appraise_device(device, policy)
    return reasons


def _appraise_device(device: DeviceClaims, policy: NvidiaPolicy) -> Iterator[Reason]:
    where = f"device {device.platform_id}"
    mode = None if device.mode is None else device.mode.value
    drivers = "any" if device.is_switch else policy.drivers
    for code, what, wanted, came in (
        ("nvidia.platform", "chip", policy.platforms, device.platform_id),
        ("nvidia.product", "product", policy.products, device.product),
        ("nvidia.driver", "driver", drivers, device.driver_version),
        ("nvidia.vbios", "VBIOS", policy.vbios, device.vbios_version),
        ("nvidia.mode", "mode", policy.modes, mode),
    ):
        if wanted != "any" and came not in wanted:
            yield Reason(
                code=code,
                message=f"{where}: {what} is not one of those accepted",
                expected=" or ".join(wanted) or "none at all",
                came=came or "not reported",
                mend="install what the policy names, or add this to it",
            )
    yield from _appraise_measurements(device, policy, where)
    for rim in device.rims:
        if policy.rims == "current" and rim.validity is not Validity.VALID:
            yield Reason(
                code="nvidia.rim",
                message=f"{where}: a signer of the RIM for {rim.version} is {rim.validity}",
                expected="signers valid at the time of verification",
                came=rim.validity,
                mend="fetch the RIM again from NVIDIA, or install a version that has a current one",
            )
        yield from _appraise_revocation(
            rim.revocation,
            policy.rim_revocation,
            code="nvidia.rim_revocation",
            what=f"{where}: signers of the RIM for {rim.version}",
        )
    yield from _appraise_revocation(
        device.revocation,
        policy.device_revocation,
        code="nvidia.device_revocation",
        what=f"{where}: certificates of the device",
    )


def _appraise_measurements(
    device: DeviceClaims, policy: NvidiaPolicy, where: str
) -> Iterator[Reason]:
    if policy.measurements == "any":
        return
    if policy.measurements != "match":
        if device.measurement not in policy.measurements:
            yield Reason(
                code="nvidia.measurements",
                message=f"{where}: measurements are not among those accepted",
                expected=" or ".join(policy.measurements) or "none at all",
                came=device.measurement,
                mend="add this digest to the policy, if this state is to be accepted",
            )
        return
    if device.measurements is Measurements.MISMATCH:
        yield Reason(
            code="nvidia.measurements",
            message=f"{where}: measurements disagree with NVIDIA's reference values",
            expected="agreement at every active index",
            came=f"RIM indices {', '.join(map(str, device.mismatched))} disagree",
            mend="restart the GPU out of developer mode with unaltered driver and VBIOS",
        )
    wanted = [("VBIOS", device.vbios_version, device.vbios_rim)]
    if not device.is_switch:
        wanted.append(("driver", device.driver_version, device.driver_rim))
    for what, version, rim in wanted:
        if rim is None:
            yield Reason(
                code="nvidia.rim_missing",
                message=f"{where}: {what} reference values missing",
                expected=f"a RIM for {device.product} {what} {version}",
                came="none",
                mend="fetch the RIM from NVIDIA and send it with the endorsements",
            )


def _appraise_revocation(
    came: Revocation, wanted: RevocationPolicy, *, code: str, what: str
) -> Iterator[Reason]:
    revoked = came in (Revocation.REVOKED, Revocation.ON_HOLD)
    if revoked or (wanted == "good" and came is not Revocation.GOOD):
        yield Reason(
            code=code,
            message=f"{what}: revocation status is {came}",
            expected="good" if wanted == "good" else "not revoked",
            came=came,
            mend="do not use it" if revoked else "send OCSP responses that are current",
        )
