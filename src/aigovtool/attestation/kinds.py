"""
Every kind of TEE, in one table: who verifies it, what may be demanded of it, who holds the two
together. A new kind is one line here and one member of `Tee`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from aigovtool.attestation import composite, simulated
from aigovtool.attestation.azure import policy as azure_policy
from aigovtool.attestation.azure import verify as azure_verify
from aigovtool.attestation.azure.claims import AzureSnpClaims, AzureTdxClaims
from aigovtool.attestation.claims import Claims
from aigovtool.attestation.dcap.claims import SgxClaims, TdxClaims
from aigovtool.attestation.dcap.policy import SgxPolicy, TdxPolicy, appraise_sgx, appraise_tdx
from aigovtool.attestation.dcap.verify import verify_sgx, verify_tdx
from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.nitro import policy as nitro_policy
from aigovtool.attestation.nitro import verify as nitro_verify
from aigovtool.attestation.nitro.claims import NitroClaims
from aigovtool.attestation.nvidia import policy as nvidia_policy
from aigovtool.attestation.nvidia import verify as nvidia_verify
from aigovtool.attestation.nvidia.claims import NvidiaClaims
from aigovtool.attestation.simulated import SimulatedClaims, SimulatedPolicy
from aigovtool.attestation.snp import policy as snp_policy
from aigovtool.attestation.snp import verify as snp_verify
from aigovtool.attestation.snp.claims import SnpClaims
from aigovtool.attestation.tpm2 import policy as tpm2_policy
from aigovtool.attestation.tpm2 import verify as tpm2_verify
from aigovtool.errors import PromiseBrokenError, Reason


@dataclass(frozen=True, slots=True)
class Kind:
    """
    One kind of TEE.

    Args:
        verify: evidence, endorsements and ``now`` in; claims out, or an exception.
        claims: the class that `verify` returns.
        policy: the struct of its ``[[accept]]`` table; its tag is the TEE's name.
        appraise: claims and policy in; every reason against out.
    """

    verify: Callable[..., Claims]
    claims: type
    policy: type[Struct]
    # Each appraiser takes its own two classes; `appraise_claims` sees to it that they meet.
    appraise: Callable[[Any, Any], list[Reason]]


KINDS: Mapping[Tee, Kind] = {
    Tee.SIMULATED: Kind(simulated.verify, SimulatedClaims, SimulatedPolicy, simulated.appraise),
    Tee.SGX: Kind(verify_sgx, SgxClaims, SgxPolicy, appraise_sgx),
    Tee.TDX: Kind(verify_tdx, TdxClaims, TdxPolicy, appraise_tdx),
    Tee.SNP: Kind(snp_verify.verify, SnpClaims, snp_policy.SnpPolicy, snp_policy.appraise),
    Tee.NITRO: Kind(
        nitro_verify.verify, NitroClaims, nitro_policy.NitroPolicy, nitro_policy.appraise
    ),
    Tee.AZURE_SNP: Kind(
        azure_verify.verify, AzureSnpClaims, azure_policy.AzureSnpPolicy, azure_policy.appraise
    ),
    Tee.AZURE_TDX: Kind(
        azure_verify.verify, AzureTdxClaims, azure_policy.AzureTdxPolicy, azure_policy.appraise
    ),
    Tee.TPM2: Kind(
        tpm2_verify.verify, tpm2_verify.Tpm2Claims, tpm2_policy.Tpm2Policy, tpm2_policy.appraise
    ),
    Tee.NVIDIA: Kind(
        nvidia_verify.verify, NvidiaClaims, nvidia_policy.NvidiaPolicy, nvidia_policy.appraise
    ),
    Tee.COMPOSITE: Kind(
        composite.verify, composite.CompositeClaims, composite.CompositePolicy, composite.appraise
    ),
}


def tee_of(claims: Claims) -> Tee:
    """Return the kind of TEE whose verifier made *claims*."""
    for tee, kind in KINDS.items():
        if isinstance(claims, kind.claims):
            return tee
    raise PromiseBrokenError("claims of a kind that nobody appraises", came=type(claims).__name__)


def tee_named(alternative: Struct) -> Tee:
    """Return the kind of TEE that an alternative of a policy is about."""
    return Tee(str(alternative.__struct_config__.tag))


def appraise_claims(claims: Claims, alternative: Struct) -> list[Reason]:
    """Return every reason why *claims* do not satisfy one alternative of the same TEE."""
    kind = KINDS[tee_named(alternative)]
    if not isinstance(claims, kind.claims):
        raise PromiseBrokenError(
            "claims and alternative of different kinds",
            expected=kind.claims.__name__,
            came=type(claims).__name__,
        )
    return kind.appraise(claims, alternative)
