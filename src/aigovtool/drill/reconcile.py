"""
The consumers' receipts held against the ledger: were I1 and I3 kept?

1. Served is at most granted.
2. Every receipt is of a lease that the ledger knows, of the same session and loan.
3. No two receipts share a number in a session, and neighbours are chained.
4. A settled lease was charged at least what its receipts say, and at most its size. What it was
   charged beyond that, all leases together, is no more than the queries that brought no receipt.
5. A forfeited or open lease holds at least what its receipts say.
6. The account adds up, and is the sum of the leases: spent of the settled ones, forfeited and
   leased of the others.

Pure: rows and receipts in, findings out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from aigovtool.custodian.budget import Account
from aigovtool.custodian.records import LeaseRow, LeaseState
from aigovtool.ids import LeaseId, SessionId, sha256
from aigovtool.wire.codec import Signed
from aigovtool.wire.receipt import NO_RECEIPT_BEFORE, Receipt


class Reconciliation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What was counted, and every way in which it is not as it must be.

    Args:
        granted: credits ever granted to the loan.
        served: credits of the answers that consumers hold receipts for.
        settled: credits charged by settlements.
        unseen: of these, those for which no consumer holds a receipt.
        forfeited: credits in leases that were charged whole.
        in_forfeited: credits of receipts that are of such a lease.
        leased: credits in leases that are still open.
        left: credits that nobody was leased.
    """

    granted: int
    served: int
    settled: int
    unseen: int
    forfeited: int
    in_forfeited: int
    leased: int
    left: int
    receipts: int
    leases: int
    sessions: int
    wrong: tuple[str, ...]


def reconcile(
    account: Account,
    leases: Sequence[LeaseRow],
    receipts: Sequence[tuple[Receipt, Signed]],
    *,
    failed: int,
) -> Reconciliation:
    """
    Hold *receipts* against the loan's *leases* and *account*.

    Args:
        failed: queries that brought no receipt and may have been charged all the same.
    """
    wrong: list[str] = []
    by_lease: dict[str, int] = defaultdict(int)
    for receipt, _ in receipts:
        by_lease[receipt.lease] += receipt.cost
    served = sum(by_lease.values())
    if served > account.granted:
        wrong.append(f"{served} credits were served and {account.granted} were ever granted")
    rows = {row.lease: row for row in leases}
    wrong += _strangers(rows, receipts)
    wrong += _chains(receipts)
    unseen = 0
    for row in leases:
        seen = by_lease[row.lease]
        if row.state is LeaseState.SETTLED:
            assert row.used is not None
            unseen += row.used - seen
            if not seen <= row.used <= row.credits:
                wrong.append(
                    f"lease {row.lease} of {row.credits} was settled with {row.used} used, and "
                    f"receipts for {seen} are of it"
                )
        elif seen > row.credits:
            wrong.append(
                f"lease {row.lease} of {row.credits} is {row.state}, and receipts for {seen} "
                "are of it"
            )
    if unseen > failed:
        wrong.append(
            f"{unseen} credits were charged without a receipt that a consumer holds, and only "
            f"{failed} queries brought none"
        )
    settled = sum(row.used or 0 for row in leases if row.state is LeaseState.SETTLED)
    forfeited = [row for row in leases if row.state is LeaseState.FORFEITED]
    lost = sum(row.credits for row in forfeited if row.refunded is None)
    leased = sum(row.credits for row in leases if row.state is LeaseState.OPEN)
    for name, said, counted in (
        ("spent", account.spent, settled),
        ("forfeited", account.forfeited, sum(row.credits for row in forfeited)),
        ("leased", account.leased, leased),
    ):
        if said != counted:
            wrong.append(f"the account says {said} {name}, and the leases add up to {counted}")
    return Reconciliation(
        granted=account.granted,
        served=served,
        settled=settled,
        unseen=unseen,
        forfeited=lost,
        in_forfeited=sum(by_lease[row.lease] for row in forfeited),
        leased=leased,
        left=account.left,
        receipts=len(receipts),
        leases=len(leases),
        sessions=len({row.session for row in leases}),
        wrong=tuple(wrong),
    )


def _strangers(
    rows: dict[LeaseId, LeaseRow], receipts: Sequence[tuple[Receipt, Signed]]
) -> list[str]:
    wrong = []
    for receipt, _ in receipts:
        row = rows.get(receipt.lease)
        if row is None:
            wrong.append(f"receipt {receipt.number} of {receipt.session} names no lease known here")
        elif (row.session, row.loan) != (receipt.session, receipt.loan):
            wrong.append(f"receipt {receipt.number} of {receipt.session} names another's lease")
    return wrong


def _chains(receipts: Sequence[tuple[Receipt, Signed]]) -> list[str]:
    wrong = []
    sessions: dict[SessionId, dict[int, tuple[Receipt, bytes]]] = defaultdict(dict)
    for receipt, signed in receipts:
        digest = sha256(signed.payload)
        known = sessions[receipt.session].setdefault(receipt.number, (receipt, digest))
        if known[0] is not receipt:
            wrong.append(f"two receipts of {receipt.session} have the number {receipt.number}")
    for session, numbered in sessions.items():
        for number, (receipt, _) in numbered.items():
            before = numbered.get(number - 1)
            previous = NO_RECEIPT_BEFORE if number == 1 else before and before[1]
            if previous is not None and receipt.previous != previous:
                wrong.append(f"receipt {number} of {session} is not chained to the one before")
    return wrong
