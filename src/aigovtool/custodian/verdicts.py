"""
What the custodian made of an enclave's evidence, as a token for those who rely on its word.

Rule 1: an enclave never waits for its token, nor is refused for want of one: the ledger's event
        holds the verdict either way.
Rule 2: the token is signed by the custodian's key, over a JWS signing input, which no other
        signature of that key is over (`SigningKey.sign_envelope`).
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from aigovtool.attestation.appraise import AttestationResult
from aigovtool.attestation.ear.issue import issue_ear
from aigovtool.attestation.ear.token import EarForm
from aigovtool.attestation.evidence import Evidence
from aigovtool.crypto.signing import SigningKey
from aigovtool.errors import AppraisalError, MalformedError, VerificationError

LIFE = timedelta(days=1)
"""Of a token: who relies on it asks the custodian at times when the enclave is long admitted."""

_log = logging.getLogger(__name__)


class Verdicts:
    """Signs verdicts."""

    def __init__(self, *, key: SigningKey) -> None:
        self._key = key

    def token(
        self,
        verdict: AttestationResult | AppraisalError | VerificationError,
        *,
        evidence: Evidence,
        policy: bytes,
        now: datetime,
    ) -> str:
        """Return the EAR (JWT) that says *verdict*, or nothing when none can say it (Rule 1)."""
        try:
            return issue_ear(
                verdict,
                evidence=evidence,
                policy=policy,
                key=self._key,
                form=EarForm.JWT,
                now=now,
                life=LIFE,
            ).decode("ascii")
        except (MalformedError, VerificationError) as error:
            # reasons too long for a token, or endorsements that end this very second
            _log.warning("a verdict without a token: %s", error)
            return ""
