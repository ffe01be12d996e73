"""
The simulated TEE: TDX quotes of version 4 under a root that somebody made on a machine.

It protects nothing from the owner of that machine, who has the root's private key. What it is good
for is that everything else runs as on real hardware: this module adds the root to what `dcap`
checks, and nothing besides. The root comes with the endorsements, since it proves nothing by
itself: a policy must name its fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from msgspec import Meta

from aigovtool.attestation.dcap.claims import TdxClaims
from aigovtool.attestation.dcap.policy import Bytes32, TdRules, appraise_td
from aigovtool.attestation.dcap.verify import INTEL_ROOT_SHA256, verify_tdx
from aigovtool.attestation.evidence import Endorsements, Evidence
from aigovtool.errors import Reason, VerificationError
from aigovtool.ids import sha256

ROOT_CA = "root_ca"
"""Endorsement: the simulation's root certificate, DER."""

WARNING = "simulated TEE: it protects nothing from the owner of the machine it runs on"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedClaims:
    """
    A verified quote of a software platform.

    Args:
        td: what a TDX quote of the same bytes would say.
        root_sha256: fingerprint of the root under which it was verified, 32 bytes.
    """

    td: TdxClaims
    root_sha256: bytes

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the simulated trust domain put into its report."""
        return self.td.report_data

    @property
    def measurement(self) -> str:
        """MRTD in hex: the digest of the code that runs (`simulation.measure`)."""
        return self.td.measurement

    @property
    def platform_id(self) -> str:
        """The PPID of the software platform in hex."""
        return self.td.platform_id


def verify(evidence: Evidence, endorsements: Endorsements, *, now: datetime) -> SimulatedClaims:
    """
    Check a simulated quote under the root that came with it.

    Raises:
        MalformedError: a document is missing or cannot be read.
        VerificationError: something is not genuine under that root, or not valid at *now*, or the
            root is Intel's: a real quote is never simulated.
    """
    root_sha256 = sha256(endorsements.document(ROOT_CA))
    if root_sha256 == INTEL_ROOT_SHA256:
        raise VerificationError(
            "a real TDX quote came as simulated evidence",
            code="simulated.root",
            mend="send it as tdx",
        )
    td = verify_tdx(evidence, endorsements, now=now, root_sha256=root_sha256)
    return SimulatedClaims(td=td, root_sha256=root_sha256)


class SimulatedPolicy(
    TdRules,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="tee",
    tag="simulated",
):
    """One acceptable simulation: the rules of TDX, and the one root that may vouch for it."""

    root_sha256: Annotated[
        Bytes32,
        Meta(description="fingerprint of the simulation's root (hex, 32 bytes)"),
    ]


def appraise(claims: SimulatedClaims, policy: SimulatedPolicy) -> list[Reason]:
    """Return every reason why *claims* do not satisfy *policy*; none means accepted."""
    reasons = []
    if claims.root_sha256.hex() != policy.root_sha256:
        reasons.append(
            Reason(
                code="simulated.root",
                message="the simulation has another root",
                expected=policy.root_sha256,
                came=claims.root_sha256.hex(),
                mend="run the simulation that the policy names, or name this root in it",
            )
        )
    return [*reasons, *appraise_td(claims.td, policy)]
