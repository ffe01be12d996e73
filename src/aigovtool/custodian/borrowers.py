"""
What a borrower may do here: read its loan, and ask for more. Nothing else.

Rule 1: a token is of one loan, kept by its hash, and ends when it is revoked.
Rule 2: the borrower has at most one open request for a loan; a second says nothing new and is not
        kept. A person decides on it as on a consumer's; what is approved is the loan's.
"""

from __future__ import annotations

from collections.abc import Sequence

from aigovtool.custodian.grants import check_credits, open_request
from aigovtool.custodian.ledger import Ledger, is_active, loan_of
from aigovtool.custodian.records import (
    Borrower,
    BorrowerId,
    MoreRequest,
)
from aigovtool.custodian.tokens import BORROWER, hash_token, new_token
from aigovtool.errors import ConflictError, NotFoundError, UnauthenticatedError
from aigovtool.ids import LoanId, new_id
from aigovtool.wire.words import plain


class Borrowers:
    """Makes and revokes borrowers' tokens, and takes what they ask for."""

    def __init__(self, *, ledger: Ledger) -> None:
        self._ledger = ledger

    def create(self, loan: LoanId, *, note: str, actor: str) -> tuple[Borrower, str]:
        """Return a new token of a loan, and its secret, said once; raises NotFoundError."""
        token = new_token(BORROWER)
        with self._ledger.write() as entry:
            loan_of(entry.tx, loan)
            row = Borrower(
                borrower=BorrowerId(new_id("borrower")),
                loan=loan,
                note=plain(note),
                token_sha256=hash_token(token),
                created=entry.now,
            )
            entry.tx.insert_borrower(row)
            entry.event(
                "borrower.token_made",
                actor=actor,
                loan=loan,
                borrower=row.borrower,
                note=row.note,
            )
        return row, token

    def revoke(self, borrower: BorrowerId, *, actor: str) -> Borrower:
        """End a token; raises NotFoundError, or ConflictError when that was done before."""
        with self._ledger.write(while_held=True) as entry:
            row = entry.tx.borrower(borrower)
            if row is None:
                raise NotFoundError(
                    f"there is no borrower's token {borrower!r}",
                    mend="aigovtool custodian borrower-token --list",
                )
            if row.revoked is not None:
                raise ConflictError(f"the token {borrower} was revoked before")
            entry.tx.revoke_borrower(borrower, entry.now)
            entry.event("borrower.token_revoked", actor=actor, loan=row.loan, borrower=borrower)
        with self._ledger.read() as tx:
            revoked = tx.borrower(borrower)
        assert revoked is not None
        return revoked

    def of_loan(self, loan: LoanId, limit: int) -> Sequence[Borrower]:
        """Return the tokens of a loan, the newest first; raises NotFoundError."""
        with self._ledger.read() as tx:
            return tx.borrowers_of_loan(loan_of(tx, loan).loan, limit)

    def find(self, tokens: Sequence[str]) -> Borrower:
        """Return whose one of *tokens* is; raises UnauthenticatedError if nobody's or revoked."""
        with self._ledger.read() as tx:
            for token in tokens:
                if (found := tx.borrower_of_token(hash_token(token))) is not None:
                    return found
        raise UnauthenticatedError(
            "not the admin token", mend="it is in admin.token in the custodian's data folder"
        )

    def ask(self, borrower: Borrower, credits: int, *, reason: str) -> MoreRequest:
        """
        Keep the borrower's request for more, or find the one that is open.

        Raises:
            MalformedError: not a number of credits that one may ask for.
            ConflictError: the loan is not active.
        """
        check_credits(credits)
        with self._ledger.write() as entry:
            loan = loan_of(entry.tx, borrower.loan)
            if not is_active(loan, entry.now):
                raise ConflictError(f"the loan is {loan.state}", code="loan.over")
            if (found := entry.tx.open_request_of_borrower(loan.loan)) is not None:
                return found
            return open_request(
                entry,
                actor=borrower.borrower,
                loan=loan.loan,
                borrower=borrower.borrower,
                credits=credits,
                reason=reason,
            )
