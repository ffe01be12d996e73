"""
A consumer's receipts, held against the custodian's statement.

1. A receipt of the span is of a session and a lease that the statement lists, under the key that
   the consumer itself saw attested.
2. The lease accounts for it: it was settled for at least what this consumer's receipts of it cost,
   refunds taken off, after that many receipts; or it was forfeited, and charged whole; or it is
   still open. A refund may not have reached the consumer: where the settlement says that there
   were any, and its own receipts are not whole, as much less may be settled.
3. Where a settlement or a proof of stopping names the very receipt as its last, the digests agree.
   Of a lease that was recovered after its ledger was put back from a copy, it is enough that it is
   charged for what the receipts cost.
4. A lease for which this consumer was charged more than it holds receipts for is named when it
   holds the later ones without a gap: nothing of its own is missing that could account for it.

A receipt is of the span by its time, by the enclave's clock: near the span's ends it may belong to
the next statement, and a lease that is not listed there proves nothing (`CLOCK_SKEW`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from aigovtool.channel.judge import VerifiedEnclave
from aigovtool.crypto.tls import CLOCK_SKEW
from aigovtool.errors import AIGovToolError
from aigovtool.ids import ConsumerId, LeaseId, SessionId
from aigovtool.proof.chains import GenuineReceipt
from aigovtool.proof.findings import Findings
from aigovtool.wire.codec import decode
from aigovtool.wire.control import Settlement, StopProof
from aigovtool.wire.statement import LeaseLine, SessionLine, Statement

UNCOUNTED = "receipt.uncounted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Covered:
    """How many receipts the statement accounts for, and how many are of another span."""

    counted: int
    outside: int


def check_covered(
    statement: Statement,
    settlements: Mapping[LeaseId, Settlement],
    receipts: Sequence[GenuineReceipt],
    enclaves: Mapping[SessionId, VerifiedEnclave],
    findings: Findings,
) -> Covered:
    """Check that genuine *receipts*, of sessions judged as *enclaves*, are accounted for."""
    leases = {line.lease: line for line in statement.leases}
    sessions = {line.session: line for line in statement.sessions}
    counted: list[GenuineReceipt] = []
    own: defaultdict[tuple[SessionId, ConsumerId], dict[int, int]] = defaultdict(dict)
    outside = 0
    for each in receipts:
        said = each.receipt
        own[said.session, said.consumer][said.own_number] = said.number
        line, session = leases.get(said.lease), sessions.get(said.session)
        if said.loan != statement.loan:
            findings.add(
                "receipt.foreign", str(each), "it is of another loan",
                expected=statement.loan, came=said.loan,
            )  # fmt: skip
        elif line is None or session is None or line.session != said.session:
            if statement.begin + CLOCK_SKEW <= said.time < statement.end - CLOCK_SKEW:
                findings.add(
                    UNCOUNTED,
                    str(each),
                    "it is of the span, and its lease is not in the statement",
                    expected=said.lease,
                    came="no such lease of this session",
                )
            else:
                outside += 1
        elif session.keys.signing_key != enclaves[said.session].keys.signing_key:
            findings.add(
                "receipt.key",
                str(each),
                "the statement names another key for its session than the enclave showed",
                expected=enclaves[said.session].keys.signing_key.hex(),
                came=session.keys.signing_key.hex(),
            )
        else:
            counted.append(each)
    _check_leases(leases, settlements, counted, own, findings)
    _check_heads(statement, settlements, counted, findings)
    return Covered(counted=len(counted), outside=outside)


def _check_leases(
    leases: Mapping[LeaseId, LeaseLine],
    settlements: Mapping[LeaseId, Settlement],
    receipts: Iterable[GenuineReceipt],
    own: Mapping[tuple[SessionId, ConsumerId], Mapping[int, int]],
    findings: Findings,
) -> None:
    of_lease: defaultdict[tuple[LeaseId, ConsumerId], list[GenuineReceipt]] = defaultdict(list)
    for each in receipts:
        of_lease[each.receipt.lease, each.receipt.consumer].append(each)
    for (lease, consumer), held in of_lease.items():
        cost = sum(each.receipt.cost for each in held)
        settled, line = settlements.get(lease), leases[lease]
        most = max(max(each.receipt.balance_before, each.receipt.balance_after) for each in held)
        if line.recovered:  # of what was shown: it may have held more
            if settled is None and cost > line.credits:
                findings.add(
                    UNCOUNTED, f"{lease}, {consumer}",
                    "its receipts cost more than was recovered of their lease",
                    expected=f"at least {cost}", came=line.credits,
                )  # fmt: skip
        elif most > line.credits:
            findings.add(
                "receipt.balance", lease, "a receipt finds more in it than it held",
                expected=f"at most {line.credits}", came=most,
            )  # fmt: skip
        if settled is None:
            continue
        whole = _is_whole(own[line.session, consumer], settled.receipts)
        charged = settled.by_consumer.get(consumer, 0)
        # refunds that are not here may have taken back what these receipts charged
        taken_back = 0 if whole else sum(settled.refunded.values())
        if cost > charged + taken_back:
            findings.add(
                UNCOUNTED,
                f"{lease}, {consumer}",
                "its receipts cost more than the lease was settled for",
                expected=f"at least {cost - taken_back}",
                came=charged,
            )
        last = max(each.receipt.number for each in held)
        if last > settled.receipts:
            findings.add(
                UNCOUNTED,
                f"receipt {last} of {line.session}",
                "it was issued after its lease was settled",
                expected=f"at most number {settled.receipts}",
                came=last,
            )
        if charged > cost and whole:
            findings.add(
                "receipt.overcharged",
                f"{lease}, {consumer}",
                "it was settled for more than this consumer's receipts, of which none is missing",
                expected=cost,
                came=charged,
            )


def _is_whole(own: Mapping[int, int], receipts: int) -> bool:
    """Whether own numbers run from 1 without a gap, beyond the session's receipt *receipts*."""
    return len(own) == max(own) and max(own.values()) > receipts


def _check_heads(
    statement: Statement,
    settlements: Mapping[LeaseId, Settlement],
    receipts: Iterable[GenuineReceipt],
    findings: Findings,
) -> None:
    heads = {(session, count): chain for session, count, chain in _heads(statement, settlements)}
    for each in receipts:
        head = heads.get((each.receipt.session, each.receipt.number))
        if head is not None and head != each.digest:
            findings.add(
                "receipt.fork",
                str(each),
                "what its session settled names another receipt of this number",
                expected=head.hex(),
                came=each.digest.hex(),
            )


def _heads(
    statement: Statement, settlements: Mapping[LeaseId, Settlement]
) -> Iterator[tuple[SessionId, int, bytes]]:
    for said in settlements.values():
        yield said.session, said.receipts, said.receipt_chain
    for session in statement.sessions:
        yield from _stopped(session)


def _stopped(session: SessionLine) -> Iterator[tuple[SessionId, int, bytes]]:
    if session.stop_proof is not None:
        try:
            said = decode(session.stop_proof.signed.payload, StopProof)
        except AIGovToolError:
            return  # `settled` has named it
        yield session.session, said.receipts, said.receipt_chain
