"""
What shows, after a rollback, how much was used: settlements that enclaves handed in, and receipts.

Rule 1: a session's key is believed because the custodian itself stated it, or because its ledger
        still has the session. Nothing else vouches for one.
Rule 2: evidence only ever raises what is charged. What was shown to be used by nobody is never
        taken as unused: for that there is the mark alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from aigovtool.crypto.labels import Label
from aigovtool.custodian.settling import OpenedSettlement, open_settlements
from aigovtool.custodian.store.base import Reading
from aigovtool.errors import AIGovToolError, MalformedError, VerificationError
from aigovtool.ids import LeaseId, LoanId, SessionId
from aigovtool.proof.receipt_signature import open_receipt
from aigovtool.wire.codec import Message, Signed, decode, open_signed
from aigovtool.wire.enrolment import Keys, SessionStatement
from aigovtool.wire.receipt import Receipt


class Shown(Message, frozen=True, kw_only=True):
    """
    Receipts that consumers kept, as they came, and the statements of the sessions that signed them.
    """

    receipts: tuple[Signed, ...] = ()
    statements: tuple[Signed, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A session and its keys, by the custodian's own word."""

    loan: LoanId
    session: SessionId
    keys: Keys


@dataclass(slots=True)
class LeaseEvidence:
    """
    What is shown of one lease.

    Args:
        settlements: signed by its session; more than one only if a session was cloned.
        costs: of its receipts, by their number.
    """

    signer: Signer
    settlements: list[OpenedSettlement] = field(default_factory=list)
    costs: dict[int, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """At least so much was used."""
        settled = max((each.settlement.used for each in self.settlements), default=0)
        return max(settled, sum(self.costs.values()))


@dataclass(frozen=True, slots=True)
class Evidence:
    """By lease; and how many receipts nobody vouches for."""

    leases: dict[LeaseId, LeaseEvidence]
    refused: int


def gather(tx: Reading, shown: Shown, *, custodian_key: bytes) -> Evidence:
    """Put together what was handed in and what is shown; what is not genuine is left out."""
    handed_in = tx.handed_in()
    signers = _signers(
        [each.statement for each in handed_in] + list(shown.statements), custodian_key
    )
    leases: dict[LeaseId, LeaseEvidence] = {}
    for each in handed_in:
        signer = signers[each.session]
        (opened,) = open_settlements([each.settlement], signer)
        leases.setdefault(each.lease, LeaseEvidence(signer)).settlements.append(opened)
    refused = 0
    for signed in shown.receipts:
        try:
            receipt, signer = _receipt(tx, signed, signers)
        except AIGovToolError:
            refused += 1
            continue
        found = leases.setdefault(receipt.lease, LeaseEvidence(signer))
        if found.signer.session != receipt.session:
            refused += 1
            continue
        found.costs[receipt.number] = max(found.costs.get(receipt.number, 0), receipt.cost)
    return Evidence(leases, refused)


def _signers(statements: Iterable[Signed], custodian_key: bytes) -> dict[SessionId, Signer]:
    signers = {}
    for signed in statements:
        try:
            said = open_signed(
                signed, SessionStatement, public_key=custodian_key, label=Label.SESSION_STATEMENT
            )
        except (VerificationError, MalformedError):
            continue  # of another custodian
        signers[said.session] = Signer(loan=said.loan, session=said.session, keys=said.keys)
    return signers


def _receipt(
    tx: Reading, signed: Signed, signers: dict[SessionId, Signer]
) -> tuple[Receipt, Signer]:
    # which session to ask is read before the signature holds, and believed after it
    claimed = _claimed(signed)
    signer = signers.get(claimed)
    if signer is None:
        known = tx.session(claimed)
        if known is None:
            raise VerificationError("nobody vouches for this session", code="receipt.session")
        signer = Signer(loan=known.loan, session=known.session, keys=known.keys)
    receipt = open_receipt(signed, public_key=signer.keys.signing_key)
    if (receipt.loan, receipt.session) != (signer.loan, signer.session) or receipt.cost < 0:
        raise VerificationError("a receipt about another session", code="receipt.session")
    return receipt, signer


def _claimed(signed: Signed) -> SessionId:
    return decode(signed.payload, Receipt).session


def settled_by(evidence: Sequence[OpenedSettlement]) -> OpenedSettlement | None:
    """Return the settlement that is applied: the one that says the most."""
    return max(evidence, key=lambda each: each.settlement.used, default=None)
