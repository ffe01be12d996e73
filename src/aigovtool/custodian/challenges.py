"""
Nonces for enrolment: 32 random bytes, good for one loan, one use and a short time.

They are in the ledger, since the steps of one enrolment may come to different replicas. Their
number is bounded for each loan, the oldest giving way, so that a ticket's holder can only crowd out
itself.
"""

from __future__ import annotations

import secrets
from datetime import timedelta

from aigovtool.attestation.binding import NONCE_BYTES
from aigovtool.custodian.ledger import Ledger
from aigovtool.errors import VerificationError
from aigovtool.ids import LoanId

CHALLENGE_LIFE_S = 60.0
MAX_CHALLENGES_PER_LOAN = 64


class Challenges:
    """The nonces that are out."""

    def __init__(self, *, ledger: Ledger) -> None:
        self._ledger = ledger

    def issue(self, loan: LoanId) -> bytes:
        """Return a fresh nonce."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        with self._ledger.write() as entry:
            entry.tx.insert_challenge(
                loan,
                nonce,
                now=entry.now,
                expires=entry.now + timedelta(seconds=CHALLENGE_LIFE_S),
                most=MAX_CHALLENGES_PER_LOAN,
            )
        return nonce

    def redeem(self, loan: LoanId, nonce: bytes) -> None:
        """
        Take *nonce* back; it is void from now on, whatever comes of the enrolment.

        Raises:
            VerificationError: not issued for this loan, used before, or too old.
        """
        with self._ledger.write() as entry:
            good = entry.tx.take_challenge(loan, nonce, entry.now)
        if not good:
            raise VerificationError(
                "the nonce is not one that was issued to this loan and is still good",
                code="enrolment.nonce",
                expected=f"a nonce younger than {CHALLENGE_LIFE_S:g} s, used once",
                mend="ask for a new challenge",
            )
