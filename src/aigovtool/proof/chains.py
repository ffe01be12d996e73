"""
The chains that receipts make, as far as one consumer's own show them.

1. Balances: each receipt adds up. Between two receipts of a lease with nothing between their
   numbers, what one leaves is what the next finds; with something between, charges and refunds of
   others may lie there.
2. Forks: one place in a chain, one receipt. Two that share a number, an own number, or the one
   before them are two histories of one session, both signed.
3. Refunds: each names a charge of the same consumer and lease, takes all of it back, and only once.
4. Gaps: own numbers without a hole from the first; each receipt names the own one before it. A hole
   is a receipt made in this consumer's name that is not here: an answer that was lost, a second
   user of its key, or a charge that nobody asked for.

What a consumer cannot see: receipts of others, and its own after the last that it holds. The first
are in the custodian's statement as heads of the session's chain, the second as use.

Pure. Receipts are taken as genuine: whoever calls has checked signatures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from aigovtool.errors import VerificationError
from aigovtool.ids import ConsumerId, LeaseId, sha256
from aigovtool.proof.findings import Findings
from aigovtool.wire.receipt import NO_RECEIPT_BEFORE, Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class GenuineReceipt:
    """
    A receipt whose signature held.

    Args:
        source: where it was found, for people.
        payload: what was signed.
    """

    receipt: Receipt
    payload: bytes
    source: str

    @property
    def digest(self) -> bytes:
        """SHA-256 of the payload, which the next receipt names."""
        return sha256(self.payload)

    def __str__(self) -> str:
        return f"receipt {self.receipt.number} of {self.receipt.session}"


def check_session(receipts: Iterable[GenuineReceipt], findings: Findings) -> None:
    """Check receipts of one session, of any of its consumers; copies of one count once."""
    distinct = {each.payload: each for each in receipts}
    ordered = sorted(distinct.values(), key=lambda each: each.receipt.number)
    _check_sums(ordered, findings)
    if _check_forks(ordered, findings):
        return  # which of two histories has a gap is not to be said
    _check_neighbours(ordered, findings)
    chains: defaultdict[ConsumerId, list[GenuineReceipt]] = defaultdict(list)
    for each in ordered:
        chains[each.receipt.consumer].append(each)
    for chain in chains.values():
        _check_gaps(chain, findings)
        _check_refunds(chain, findings)
    _check_leases(ordered, findings)


def _check_sums(receipts: Sequence[GenuineReceipt], findings: Findings) -> None:
    for each in receipts:
        said = each.receipt
        came = f"{said.balance_before} - {said.cost} = {said.balance_after}"
        if min(said.balance_before, said.balance_after) < 0:
            findings.add("receipt.balance", str(each), "a balance is negative", came=came)
            continue
        try:
            said.check_sum()
        except VerificationError as error:
            findings.add("receipt.balance", str(each), error.reasons[0].message, came=came)


_Place: TypeAlias = Callable[[Receipt], object]
_PLACES: tuple[tuple[str, _Place], ...] = (
    ("number", lambda said: said.number),
    ("receipt before it", lambda said: said.previous),
    ("own number", lambda said: (said.consumer, said.own_number)),
    ("own receipt before it", lambda said: (said.consumer, said.own_previous)),
)


def _check_forks(receipts: Sequence[GenuineReceipt], findings: Findings) -> bool:
    """Note different receipts in one place; say whether there were any."""
    before = len(findings)
    for what, place in _PLACES:
        places: defaultdict[object, list[GenuineReceipt]] = defaultdict(list)
        for each in receipts:
            places[place(each.receipt)].append(each)
        for sharing in places.values():
            if len(sharing) > 1:
                findings.add(
                    "receipt.fork",
                    " and ".join(f"{each} ({each.source})" for each in sharing),
                    f"different receipts of one session with the same {what}",
                )
    return len(findings) > before


def _check_neighbours(receipts: Sequence[GenuineReceipt], findings: Findings) -> None:
    for one, following in pairwise(receipts):
        adjacent = following.receipt.number == one.receipt.number + 1
        if adjacent and following.receipt.previous != one.digest:
            findings.add(
                "receipt.fork",
                str(following),
                "it does not follow the receipt with the number before it",
                expected=one.digest.hex(),
                came=following.receipt.previous.hex(),
            )


def _check_gaps(chain: Sequence[GenuineReceipt], findings: Findings) -> None:
    own, digest = 0, NO_RECEIPT_BEFORE
    for each in chain:
        said = each.receipt
        missing = said.own_number - own - 1
        if missing > 0:
            findings.add(
                "receipt.gap",
                str(each),
                f"{missing} of this consumer's receipts before it {_are(missing)} not here",
                expected=f"own number {own + 1}",
                came=f"own number {said.own_number}",
            )
        elif missing < 0 or said.own_previous != digest:
            findings.add(
                "receipt.fork",
                str(each),
                "it does not follow the own receipt before it",
                expected=f"own number {own + 1} after {digest.hex()}",
                came=f"own number {said.own_number} after {said.own_previous.hex()}",
            )
        own, digest = said.own_number, each.digest


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _check_refunds(chain: Sequence[GenuineReceipt], findings: Findings) -> None:
    """Check the refunds of one consumer; one whose charge is not here was found as a gap."""
    by_number = {each.receipt.number: each.receipt for each in chain}
    taken_back: dict[int, GenuineReceipt] = {}
    for each in chain:
        said = each.receipt
        if said.refund is None:
            continue
        charge = by_number.get(said.refund.number)
        if charge is not None and (charge.lease, charge.cost) != (said.lease, -said.cost):
            findings.add(
                "receipt.refund",
                str(each),
                "it takes back something else than was charged",
                expected=f"{charge.cost} credits of {charge.lease}",
                came=f"{-said.cost} credits of {said.lease}",
            )
        first = taken_back.setdefault(said.refund.number, each)
        if first is not each:
            findings.add(
                "receipt.refund",
                str(each),
                f"it takes back what {first} took back before",
                came=f"receipt {said.refund.number}",
            )


def _check_leases(receipts: Sequence[GenuineReceipt], findings: Findings) -> None:
    leases: defaultdict[LeaseId, list[GenuineReceipt]] = defaultdict(list)
    for each in receipts:
        leases[each.receipt.lease].append(each)
    for lease, charged in leases.items():
        for one, next_one in pairwise(charged):
            left, found = one.receipt.balance_after, next_one.receipt.balance_before
            adjacent = next_one.receipt.number == one.receipt.number + 1
            if adjacent and found != left:
                findings.add(
                    "receipt.balance",
                    str(next_one),
                    f"it finds more or less in {lease} than {one} left",
                    expected=str(left),
                    came=found,
                )


def check_leases_of_sessions(receipts: Iterable[GenuineReceipt], findings: Findings) -> None:
    """Check that no lease was charged by two sessions: a lease is in the hands of one."""
    owners: dict[LeaseId, GenuineReceipt] = {}
    for each in receipts:
        first = owners.setdefault(each.receipt.lease, each)
        if first.receipt.session != each.receipt.session:
            findings.add(
                "receipt.foreign",
                str(each),
                f"the lease {each.receipt.lease} is in the hands of another session",
                expected=first.receipt.session,
                came=each.receipt.session,
            )
