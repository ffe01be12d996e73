"""
One strict alternative for each kind, as the README of the recorded evidence defines it.

It demands what holds of any well-kept machine, whatever code runs there: TCB up to date, no debug,
SEPT_VE_DISABLE, no PKS or Key Locker, no service TD, reference values for every GPU, a certified
AK. It leaves measurements and report data free, so it is a yardstick, and never a policy to serve
under: `propose` narrows it to one piece of evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aigovtool.attestation.azure.policy import AzureSnpPolicy, AzureTdxPolicy
from aigovtool.attestation.composite import CompositePolicy
from aigovtool.attestation.dcap.policy import SgxPolicy, TdxPolicy
from aigovtool.attestation.dcap.tcb import TcbStatus
from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.nitro.policy import NitroPolicy
from aigovtool.attestation.nvidia.policy import NvidiaPolicy, RevocationPolicy
from aigovtool.attestation.policy import Alternative
from aigovtool.attestation.snp.policy import SnpPolicy
from aigovtool.attestation.tpm2.policy import Tpm2Policy
from aigovtool.errors import ConfigurationError

_NO_BITS_8, _NO_BITS_4 = "00" * 8, "00" * 4
_NO_SERVICE_TD = "00" * 48


def strict_sgx() -> SgxPolicy:
    """The strict alternative for SGX."""
    return SgxPolicy(
        mr_enclave="any",
        mr_signer="any",
        isv_prod_id="any",
        min_isv_svn=0,
        debug=False,
        attributes_flags=_NO_BITS_8,
        attributes_mask_flags=_NO_BITS_8,
        attributes_xfrm=_NO_BITS_8,
        attributes_mask_xfrm=_NO_BITS_8,
        misc_select=_NO_BITS_4,
        misc_mask=_NO_BITS_4,
        tcb_statuses=(TcbStatus.UP_TO_DATE,),
        tcb_grace_days=0,
        min_tcb_evaluation_number=0,
        advisories_refused=(),
        pinned_platforms="any",
        smt="any",
        dynamic_platform="any",
        cached_keys="any",
    )


def strict_tdx() -> TdxPolicy:
    """The strict alternative for TDX."""
    return TdxPolicy(
        mr_td="any",
        rt_mr0="any",
        rt_mr1="any",
        rt_mr2="any",
        rt_mr3="any",
        mr_config_id="any",
        mr_owner="any",
        mr_owner_config="any",
        mr_service_td=(_NO_SERVICE_TD,),
        mr_seam="any",
        debug=False,
        sept_ve_disable="set",
        migratable="clear",
        pks="clear",
        key_locker="clear",
        perfmon="any",
        xfam=_NO_BITS_8,
        xfam_mask=_NO_BITS_8,
        tcb_statuses=(TcbStatus.UP_TO_DATE,),
        tcb_grace_days=0,
        min_tcb_evaluation_number=0,
        advisories_refused=(),
        pinned_platforms="any",
        smt="any",
        dynamic_platform="any",
        cached_keys="any",
    )


def strict_snp() -> SnpPolicy:
    """The strict alternative for SEV-SNP."""
    return SnpPolicy(
        product="any",
        measurement="any",
        host_data="any",
        id_key_digest="any",
        author_key_digest="any",
        family_id="any",
        image_id="any",
        guest_svn_min="any",
        vmpl="any",
        debug="forbidden",
        smt="any",
        migration_agent="any",
        single_socket="any",
        cxl="any",
        aes_256_xts="any",
        page_swap="any",
        abi_min="any",
        host_smt="any",
        ecc="any",
        rapl="any",
        ciphertext_hiding="any",
        alias_check="any",
        reported_tcb_min="any",
        current_tcb_min="any",
        committed_tcb_min="any",
        launch_tcb_min="any",
        provisional_firmware="any",
        mitigations="any",
        signing_key="any",
        chip_id="any",
        csp_id="any",
        revocation="any",
    )


def strict_nitro() -> NitroPolicy:
    """The strict alternative for Nitro."""
    return NitroPolicy(
        pcr0="any",
        pcr1="any",
        pcr2="any",
        pcr3="any",
        pcr4="any",
        pcr8="any",
        other_pcrs="any",
        debug="forbidden",
        parent_instance="any",
        max_age_s="any",
    )


def strict_tpm2() -> Tpm2Policy:
    """The strict alternative for TPM 2.0."""
    return Tpm2Policy(attestation_keys="certified", pcrs="any", clock="any")


def strict_azure_snp() -> AzureSnpPolicy:
    """The strict alternative for an Azure VM on SEV-SNP."""
    return AzureSnpPolicy(
        vm_ids="any",
        pcrs="any",
        secure_boot="any",
        console="any",
        attestation_key="any",
        hardware=strict_snp(),
    )


def strict_azure_tdx() -> AzureTdxPolicy:
    """The strict alternative for an Azure VM on TDX."""
    return AzureTdxPolicy(
        vm_ids="any",
        pcrs="any",
        secure_boot="any",
        console="any",
        attestation_key="any",
        hardware=strict_tdx(),
    )


def strict_nvidia(*, device_revocation: RevocationPolicy = "good") -> NvidiaPolicy:
    """
    The strict alternative for GPUs.

    Args:
        device_revocation: ``unknown-accepted`` where no OCSP response could be had.
    """
    return NvidiaPolicy(
        devices="any",
        platforms="any",
        products="any",
        drivers="any",
        vbios="any",
        modes="any",
        measurements="match",
        rims="current",
        device_revocation=device_revocation,
        rim_revocation="good",
    )


def strict_composite() -> CompositePolicy:
    """The strict alternative for a trust domain with GPUs."""
    return CompositePolicy(cpu=strict_tdx(), gpu=strict_nvidia())


def strict_policy(tee: Tee) -> Alternative:
    """
    Return the strict alternative for *tee*.

    Raises:
        ConfigurationError: there is none: a simulation has no vendor that could be strict.
    """
    makers: Mapping[Tee, Callable[[], Alternative]] = {
        Tee.SGX: strict_sgx,
        Tee.TDX: strict_tdx,
        Tee.SNP: strict_snp,
        Tee.NITRO: strict_nitro,
        Tee.AZURE_SNP: strict_azure_snp,
        Tee.AZURE_TDX: strict_azure_tdx,
        Tee.TPM2: strict_tpm2,
        Tee.NVIDIA: strict_nvidia,
        Tee.COMPOSITE: strict_composite,
    }
    if tee not in makers:
        raise ConfigurationError(
            f"there is no strict policy for {tee}",
            code="policy.strict",
            expected=" or ".join(makers),
            mend="give a policy file",
        )
    return makers[tee]()
