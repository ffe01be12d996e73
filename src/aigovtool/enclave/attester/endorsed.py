"""
An attester whose endorsements are complete: what the platform has of its own, and what its vendors
publish, so that neither custodian nor consumers need a network to judge the evidence.
"""

from __future__ import annotations

from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.clock import Clock
from aigovtool.enclave.attester.base import Attester
from aigovtool.endorsements.courier import Courier


class EndorsedAttester:
    """
    *attester*, completed by *courier*.

    What vendors publish is about the platform and not about one piece of evidence, so it is asked
    for by the newest that was made, whoever made it.
    """

    def __init__(self, attester: Attester, *, courier: Courier, clock: Clock) -> None:
        self._attester = attester
        self._courier = courier
        self._clock = clock
        self._newest: Evidence | None = None

    @property
    def tee(self) -> Tee:
        return self._attester.tee

    def describe(self) -> str:
        return self._attester.describe()

    def evidence(self, report_data: bytes) -> Evidence:
        """Return fresh evidence; as the platform's own attester does."""
        self._newest = self._attester.evidence(report_data)
        return self._newest

    def endorsements(self) -> Endorsements:
        """Return what can be had now; complete only once evidence was made."""
        have = self._attester.endorsements()
        if self._newest is None:
            return have
        return self._courier.complete(self._newest, have, now=self._clock.now())
