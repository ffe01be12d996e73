"""
Nonces for enrolment: 32 random bytes, good for one loan, one use and a short time.

They live in memory: a challenge that a restart forgets is asked for again. Their number is bounded
for each loan, the oldest giving way, so that a ticket's holder can only crowd out itself.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict

from aigovtool.attestation.binding import NONCE_BYTES
from aigovtool.clock import Clock
from aigovtool.errors import VerificationError
from aigovtool.ids import LoanId

CHALLENGE_LIFE_S = 60.0
MAX_CHALLENGES_PER_LOAN = 64


class Challenges:
    """The nonces that are out."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._out: dict[LoanId, OrderedDict[bytes, float]] = {}

    def issue(self, loan: LoanId) -> bytes:
        """Return a fresh nonce."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        with self._lock:
            of_loan = self._out.setdefault(loan, OrderedDict())
            of_loan[nonce] = self._clock.monotonic_s() + CHALLENGE_LIFE_S
            while len(of_loan) > MAX_CHALLENGES_PER_LOAN:
                of_loan.popitem(last=False)
        return nonce

    def redeem(self, loan: LoanId, nonce: bytes) -> None:
        """
        Take *nonce* back; it is void from now on, whatever comes of the enrolment.

        Raises:
            VerificationError: not issued for this loan, used before, or too old.
        """
        with self._lock:
            of_loan = self._out.get(loan)
            expires_s = None if of_loan is None else of_loan.pop(nonce, None)
        if expires_s is None or self._clock.monotonic_s() >= expires_s:
            raise VerificationError(
                "the nonce is not one that was issued to this loan and is still good",
                code="enrolment.nonce",
                expected=f"a nonce younger than {CHALLENGE_LIFE_S:g} s, used once",
                mend="ask for a new challenge",
            )
