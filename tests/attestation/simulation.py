"""A simulated platform at a fixed time, and everything that its honest evidence needs."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from aigovtool.attestation.appraise import AttestationResult
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.policy import Policy
from aigovtool.attestation.verify import judge
from aigovtool.simulation.measure import Measurement
from aigovtool.simulation.platform import SimulatedPlatform
from aigovtool.simulation.policy import simulated_policy

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
MEASUREMENT = Measurement(mr_td=bytes(range(48)), lines=("a line",))
REPORT_DATA = bytes(range(64))


@cache
def platform(name: str = "honest") -> SimulatedPlatform:
    """Return one platform for each *name*, each with a root of its own."""
    return SimulatedPlatform.in_memory(now=NOW)


def evidence_of(quote: bytes) -> Evidence:
    return Evidence(tee=Tee.SIMULATED, documents={"quote": quote})


def honest_evidence() -> Evidence:
    return evidence_of(platform().quote(MEASUREMENT.mr_td, REPORT_DATA))


def changed(endorsements: Endorsements, **documents: bytes) -> Endorsements:
    """Return *endorsements* with some documents replaced."""
    return Endorsements(tee=endorsements.tee, documents={**endorsements.documents, **documents})


def policy() -> Policy:
    """Return the policy that accepts the honest platform with `MEASUREMENT`."""
    alternative = simulated_policy(platform().root_sha256, MEASUREMENT)
    return Policy(accept=(alternative,), custodian=None)


def judged(
    *,
    evidence: Evidence | None = None,
    endorsements: Endorsements | None = None,
    accept: Policy | None = None,
    report_data: bytes = REPORT_DATA,
    now: datetime = NOW,
) -> AttestationResult:
    """Judge honest evidence, but for what is given."""
    return judge(
        evidence or honest_evidence(),
        endorsements or platform().endorsements(NOW),
        accept or policy(),
        expected_report_data=report_data,
        now=now,
    )
