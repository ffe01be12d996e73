"""
A strict policy out of one piece of evidence: what it shows is demanded, what is unsafe is not.

The result accepts exactly such evidence from exactly that platform. When the evidence shows debug,
an old TCB or another fault, it is refused by its own policy: faults are to be mended, not written
down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypedDict

from msgspec.structs import replace

from aigovtool.attestation.azure.claims import AzureClaims, AzureSnpClaims, AzureTdxClaims
from aigovtool.attestation.azure.policy import AzureSnpPolicy, AzureTdxPolicy
from aigovtool.attestation.claims import Claims
from aigovtool.attestation.composite import CompositeClaims, CompositePolicy
from aigovtool.attestation.dcap.claims import SgxClaims, TdxClaims
from aigovtool.attestation.dcap.policy import SgxPolicy, TdRules, TdxPolicy
from aigovtool.attestation.kinds import tee_of
from aigovtool.attestation.nitro.claims import NitroClaims
from aigovtool.attestation.nitro.policy import NAMED_PCRS, NitroPolicy
from aigovtool.attestation.nvidia.claims import Measurements, NvidiaClaims
from aigovtool.attestation.nvidia.ocsp import Revocation
from aigovtool.attestation.nvidia.policy import NvidiaPolicy, RevocationPolicy
from aigovtool.attestation.policy import Alternative
from aigovtool.attestation.simulated import SimulatedClaims, SimulatedPolicy
from aigovtool.attestation.snp.claims import SnpClaims
from aigovtool.attestation.snp.policy import SnpPolicy, TcbMinimum
from aigovtool.attestation.snp.product import Tcb
from aigovtool.attestation.strict import (
    strict_nitro,
    strict_nvidia,
    strict_sgx,
    strict_snp,
    strict_tdx,
)
from aigovtool.attestation.tpm2.layout import Hash
from aigovtool.attestation.tpm2.policy import PcrPolicy, Tpm2Policy
from aigovtool.attestation.tpm2.verify import Tpm2Claims
from aigovtool.errors import PromiseBrokenError

_ALL_BITS_8, _ALL_BITS_4 = "ff" * 8, "ff" * 4
_NITRO_MAX_AGE_S = 300  # documents are made on demand; this allows for clocks that differ


def propose(claims: Claims) -> Alternative:
    """
    Return a strict alternative that names what *claims* show.

    PCRs are demanded as they are, all that a quote covers; take out those that your guests extend
    as they run.
    """
    match claims:
        case SimulatedClaims():
            rules = _td(claims.td)
            fields = {name: getattr(rules, name) for name in TdRules.__struct_fields__}
            return SimulatedPolicy(root_sha256=claims.root_sha256.hex(), **fields)
        case TdxClaims():
            return _td(claims)
        case SgxClaims():
            return _sgx(claims)
        case SnpClaims():
            return _snp(claims)
        case NitroClaims():
            return _nitro(claims)
        case AzureSnpClaims():
            return AzureSnpPolicy(hardware=_snp(claims.hardware), **_azure_guest(claims))
        case AzureTdxClaims():
            return AzureTdxPolicy(hardware=_td(claims.hardware), **_azure_guest(claims))
        case Tpm2Claims():
            return _tpm2(claims)
        case NvidiaClaims():
            return _nvidia(claims)
        case CompositeClaims():
            cpu = propose(claims.cpu)
            assert isinstance(cpu, TdxPolicy | SnpPolicy | AzureSnpPolicy | AzureTdxPolicy)
            return CompositePolicy(cpu=cpu, gpu=_nvidia(claims.gpu))
    raise PromiseBrokenError("no policy is proposed for this kind", came=tee_of(claims))


def _td(claims: TdxClaims) -> TdxPolicy:
    report, platform = claims.report, claims.platform
    return replace(
        strict_tdx(),
        mr_td=(report.mr_td.hex(),),
        rt_mr0=(report.rt_mr[0].hex(),),
        rt_mr1=(report.rt_mr[1].hex(),),
        rt_mr2=(report.rt_mr[2].hex(),),
        rt_mr3=(report.rt_mr[3].hex(),),
        mr_config_id=(report.mr_config_id.hex(),),
        mr_owner=(report.mr_owner.hex(),),
        mr_owner_config=(report.mr_owner_config.hex(),),
        perfmon="clear",
        xfam=report.xfam.hex(),
        xfam_mask=_ALL_BITS_8,
        min_tcb_evaluation_number=platform.tcb_evaluation_number,
        pinned_platforms=(platform.ppid.hex(),),
    )


def _sgx(claims: SgxClaims) -> SgxPolicy:
    report, platform = claims.report, claims.platform
    return replace(
        strict_sgx(),
        mr_enclave=(report.mr_enclave.hex(),),
        mr_signer=(report.mr_signer.hex(),),
        isv_prod_id=(report.isv_prod_id,),
        min_isv_svn=report.isv_svn,
        attributes_flags=report.attributes_flags.to_bytes(8, "little").hex(),
        attributes_mask_flags=_ALL_BITS_8,
        attributes_xfrm=report.attributes_xfrm.to_bytes(8, "little").hex(),
        attributes_mask_xfrm=_ALL_BITS_8,
        misc_select=report.misc_select.to_bytes(4, "little").hex(),
        misc_mask=_ALL_BITS_4,
        min_tcb_evaluation_number=platform.tcb_evaluation_number,
        pinned_platforms=(platform.ppid.hex(),),
    )


def _snp(claims: SnpClaims) -> SnpPolicy:
    guest, host = claims.guest_policy, claims.platform_info
    return replace(
        strict_snp(),
        product=[claims.product],
        measurement=[claims.measurement],
        host_data=[claims.host_data],
        id_key_digest=[claims.id_key_digest],
        author_key_digest=[claims.author_key_digest],
        family_id=[claims.family_id],
        image_id=[claims.image_id],
        guest_svn_min=claims.guest_svn,
        vmpl=[claims.vmpl],
        smt=_forbidden_unless(guest.smt),
        migration_agent="forbidden",
        single_socket=_required_if(guest.single_socket),
        cxl=_forbidden_unless(guest.cxl),
        aes_256_xts=_required_if(guest.aes_256_xts),
        page_swap=_forbidden_unless(not guest.page_swap_disabled),
        abi_min=(guest.abi_major, guest.abi_minor),
        host_smt=_forbidden_unless(host.smt),
        ecc=_required_if(host.ecc),
        rapl=_forbidden_unless(not host.rapl_disabled),
        ciphertext_hiding=_required_if(host.ciphertext_hiding),
        alias_check=_required_if(host.alias_check),
        reported_tcb_min={claims.product: _minimum(claims.reported_tcb)},
        current_tcb_min={claims.product: _minimum(claims.current_tcb)},
        committed_tcb_min={claims.product: _minimum(claims.committed_tcb)},
        launch_tcb_min={claims.product: _minimum(claims.launch_tcb)},
        provisional_firmware=_forbidden_unless(
            (claims.current_firmware, claims.current_tcb)
            != (claims.committed_firmware, claims.committed_tcb)
        ),
        signing_key=[claims.signing_key.value],
        chip_id="any" if claims.chip_id is None else [claims.chip_id],
        csp_id="any" if claims.csp_id is None else [claims.csp_id],
        revocation="checked" if claims.revocation == "checked" else "any",
    )


def _minimum(tcb: Tcb) -> TcbMinimum:
    return TcbMinimum(
        fmc=tcb.fmc or 0,
        boot_loader=tcb.boot_loader,
        tee=tcb.tee,
        snp=tcb.snp,
        microcode=tcb.microcode,
    )


def _forbidden_unless(present: bool) -> Literal["forbidden", "any"]:
    return "any" if present else "forbidden"


def _required_if(present: bool) -> Literal["required", "any"]:
    return "required" if present else "any"


def _nitro(claims: NitroClaims) -> NitroPolicy:
    zero = "0" * 96
    others = {
        str(index): [value]
        for index, value in claims.pcrs.items()
        if index not in NAMED_PCRS and value != zero
    }
    return replace(
        strict_nitro(),
        pcr0=[claims.pcrs[0]],
        pcr1=[claims.pcrs[1]],
        pcr2=[claims.pcrs[2]],
        pcr3=[claims.pcrs[3]],
        pcr4=[claims.pcrs[4]],
        pcr8=[claims.pcrs[8]],
        other_pcrs=others,
        parent_instance=[claims.parent_instance],
        max_age_s=_NITRO_MAX_AGE_S,
    )


class _AzureGuest(TypedDict):
    """The fields of `AzureRules`."""

    vm_ids: tuple[str, ...]
    pcrs: PcrPolicy
    secure_boot: Literal["required", "any"]
    console: Literal["refused", "any"]
    attestation_key: Literal["certified", "any"]


def _azure_guest(claims: AzureClaims) -> _AzureGuest:
    return {
        "vm_ids": (claims.vm_id,),
        "pcrs": _pcrs(claims.pcrs),
        "secure_boot": _required_if(claims.secure_boot),
        "console": "any" if claims.console else "refused",
        "attestation_key": "certified" if claims.ak_certified else "any",
    }


def _tpm2(claims: Tpm2Claims) -> Tpm2Policy:
    return Tpm2Policy(
        attestation_keys="certified" if claims.certified else (claims.platform_id,),
        pcrs=_pcrs(claims.pcrs),
        clock="safe" if claims.clock_safe else "any",
    )


def _pcrs(banks: Mapping[Hash, Mapping[int, bytes]]) -> PcrPolicy:
    return {
        f"{bank}:{index}": (value.hex(),)
        for bank, values in banks.items()
        if bank is not Hash.SHA1  # a policy cannot name it: anyone can make two inputs for one
        for index, value in values.items()
    }


def _nvidia(claims: NvidiaClaims) -> NvidiaPolicy:
    devices = claims.devices
    matched = all(device.measurements is Measurements.MATCH for device in devices)
    rims = [rim for device in devices for rim in device.rims]
    modes = {device.mode for device in devices}
    return replace(
        strict_nvidia(),
        devices=len(devices),
        platforms=tuple(device.platform_id for device in devices),
        products=_each(device.product for device in devices),
        drivers=_each(device.driver_version for device in devices),
        vbios=_each(device.vbios_version for device in devices),
        modes="any" if None in modes else tuple(sorted(mode for mode in modes if mode)),
        measurements="match" if matched else _each(device.measurement for device in devices),
        device_revocation=_revocation(device.revocation for device in devices),
        rim_revocation=_revocation(rim.revocation for rim in rims),
    )


def _each(values: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({value for value in values if value is not None}))


def _revocation(states: Iterable[Revocation]) -> RevocationPolicy:
    return "good" if all(state is Revocation.GOOD for state in states) else "unknown-accepted"
