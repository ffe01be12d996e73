"""A custodian's statement: the honest one holds for years, and every lie in it is named."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from aigovtool.cli.log_source import open_log
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.meter import Charge
from aigovtool.errors import MalformedError, NotFoundError, PromiseBrokenError, VerificationError
from aigovtool.ids import LoanId, sha256
from aigovtool.proof.logged import Log
from aigovtool.proof.receipts import Checked
from aigovtool.proof.statement import Verified
from aigovtool.wire.codec import Signed, decode, encode, sign
from aigovtool.wire.control import Settlement
from aigovtool.wire.grants import GrantNotice, GrantSeen
from aigovtool.wire.receipt import Receipt, from_header
from aigovtool.wire.statement import LeaseLine, SessionLine, Statement, read_file
from tests.custodian.ledgers import BEGIN
from tests.proof.lending import (
    YEARS_LATER,
    Enclave,
    Lending,
    content,
    lending,
    rearchived,
    resigned,
)


@pytest.fixture
def lent(tmp_path: Path) -> Iterator[Lending]:
    with lending(tmp_path) as made:
        yield made


@dataclass
class Month:
    """What happened, and the papers that everybody holds afterwards."""

    lent: Lending
    file: bytes
    mine: list[Signed]
    receipts: Checked
    first: Enclave
    lost: LeaseLine

    def lie(self, change) -> Verified:  # type: ignore[no-untyped-def]
        return self.lent.verify(self.lent.liar(self.file, change), receipts=self.receipts)


@pytest.fixture
def month(lent: Lending) -> Month:
    """Two enclaves: one serves, settles thrice and stops; the other dies and is refunded."""
    first, second = lent.enclave(), lent.enclave()
    kept = lent.kept_session(first), lent.kept_session(second)
    mine: list[Signed] = []
    for _ in range(3):
        lease = first.report(want=10)
        assert lease is not None
        mine += [first.serve(cost=2), first.serve()]
        first.serve(lent.other)
        lent.clock.forward(1)
        first.close(lease.lease)
    first.report()
    lent.made.app.grants.grant(lent.loan, 50, actor="admin", reason="november")
    first.counter_sign()
    lost = second.report(want=10)
    assert lost is not None
    mine.append(second.serve())
    lent.made.app.sessions.disconnect(second.session)
    lent.clock.forward(3600)
    assert lent.made.app.sessions.sweep()
    lent.made.app.grants.refund(lost.lease, actor="admin", reason="it burnt down")
    lent.made.app.loans.stop(lent.loan, reason="the end", actor="admin")
    first.stop()
    file = lent.statement()
    (line,) = [line for line in content(file).leases if line.lease == lost.lease]
    return Month(lent, file, mine, lent.checked(mine, *kept), first, line)


def codes(verified: Verified) -> set[str]:
    return {finding.code for finding in verified.findings}


# --- the honest one ------------------------------------------------------------------------------


def test_an_honest_statement_holds_and_accounts_for_every_receipt(month: Month) -> None:
    verified = month.lent.verify(month.file, receipts=month.receipts, policy=month.lent.policy)
    assert not verified.findings
    assert verified.covered is not None
    assert (verified.covered.counted, verified.covered.outside) == (7, 0)
    said = verified.statement
    assert said.used == {month.lent.consumer: 9, month.lent.other: 3}
    with month.lent.made.app.ledger.read() as tx:
        loan = tx.loan(month.lent.loan)
    assert loan is not None
    assert said.closing.granted == loan.account.granted == 150 + month.lost.credits
    assert (said.closing.spent, said.closing.forfeited) == (12, month.lost.credits)
    assert [line.kind for line in said.grants] == ["grant", "grant", "refund"]
    kinds = {line.kind for line in said.decisions}
    assert {"loan.stopped", "session.stop_proof", "session.ended"} <= kinds


def test_it_holds_years_later_with_certificates_long_expired(month: Month) -> None:
    assert not month.lent.verify(month.file).findings  # nothing in it looks at the clock
    late = month.lent.verify(month.file, as_of=YEARS_LATER)
    assert codes(late) == {"evidence.refused"}
    soon = month.lent.clock.now() + timedelta(days=1)
    assert not month.lent.verify(month.file, as_of=soon).findings


def test_a_statement_names_nobody(month: Month) -> None:
    for word in (b"somebody else", b'"me"', month.lent.made.lent.loan.name.encode()):
        assert word not in content(month.file).__repr__().encode()


def test_spans_follow_each_other_without_a_gap(lent: Lending) -> None:
    enclave = lent.enclave()
    session = lent.kept_session(enclave)
    enclave.report(want=10)
    mine = [enclave.serve()]
    middle = lent.clock.now() + timedelta(seconds=0.5)
    first = lent.statement(end=middle)
    mine.append(enclave.serve())
    enclave.close()
    enclave.report(want=5)
    mine.append(enclave.serve())
    enclave.close()
    enclave.report()
    second = lent.statement(begin=middle)
    receipts = lent.checked(mine, session)
    for file, settled in ((first, 0), (second, 2)):
        verified = lent.verify(file, receipts=receipts)
        assert not verified.findings
        assert len(verified.settlements) == settled
    assert content(first).closing == content(second).opening
    assert content(first).closing.leased == 10
    assert content(second).sessions[0].before is None


def test_a_later_span_is_chained_to_the_settlement_before_it(lent: Lending) -> None:
    enclave = lent.enclave()
    for _ in range(2):
        enclave.report(want=5)
        enclave.serve()
        enclave.close()
    enclave.report()
    lent.clock.forward(1)
    middle = lent.clock.now()
    lent.clock.forward(1)
    enclave.report(want=5)
    enclave.serve()
    enclave.close()
    enclave.report()
    file = lent.statement(begin=middle)
    (session,) = content(file).sessions
    assert session.before is not None
    assert decode(session.before.payload, Settlement).number == 2
    assert not lent.verify(file).findings

    def without(said: Statement) -> Statement:
        return replace(said, sessions=(replace(session, before=None),))

    assert "settlement.chain" in codes(lent.verify(lent.liar(file, without)))


def test_a_lease_that_is_settled_late_moves_from_forfeited_to_spent(lent: Lending) -> None:
    enclave = lent.enclave()
    enclave.report(want=10)
    enclave.serve()
    lent.made.app.sessions.disconnect(enclave.session)
    lent.clock.forward(3600)
    lent.made.app.sessions.sweep()
    middle = lent.clock.now() + timedelta(seconds=0.5)
    first = lent.statement(end=middle)
    lent.made.app.sessions.connect(enclave.session)
    enclave.close()
    enclave.report()
    second = lent.statement(begin=middle)
    for file in (first, second, lent.statement()):
        assert not lent.verify(file).findings
    assert content(first).closing.forfeited == 10
    assert (content(second).closing.forfeited, content(second).closing.spent) == (0, 1)


def test_an_empty_span_or_an_unknown_loan_is_refused(lent: Lending) -> None:
    with pytest.raises(MalformedError):
        lent.statement(begin=YEARS_LATER, end=YEARS_LATER + timedelta(days=1))
    with pytest.raises(NotFoundError):
        lent.made.app.accounting.statement(LoanId("loan_x"), begin=BEGIN, end=YEARS_LATER)


def test_a_ledger_that_does_not_add_up_is_not_signed(lent: Lending) -> None:
    connection = sqlite3.connect(lent.made.app.folder.ledger)
    connection.execute("UPDATE loans SET granted = granted + 1, remaining = remaining + 1")
    connection.commit()
    connection.close()
    with pytest.raises(PromiseBrokenError):
        lent.statement()


# --- whoever is not the custodian ----------------------------------------------------------------


def test_another_key_and_a_changed_byte_are_refused(month: Month) -> None:
    forged = resigned(month.file, SigningKey.generate(), lambda said: said)
    with pytest.raises(VerificationError):
        month.lent.verify(forged)
    relabelled = read_relabelled(month)
    with pytest.raises(VerificationError):
        month.lent.verify(relabelled)
    with pytest.raises(VerificationError):
        month.lent.verify(month.file, loan=LoanId("loan_other"))


def read_relabelled(month: Month) -> bytes:
    """A statement of the same bytes, signed for another purpose."""
    opened = read_file(month.file)
    signed = sign(content(month.file), month.lent.made.app.key, Label.SESSION_STATEMENT)
    return encode(replace(opened, statement=signed))


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b'{"format":"aigovtool-statement"}'])
def test_what_is_no_statement_is_malformed(lent: Lending, data: bytes) -> None:
    with pytest.raises(MalformedError):
        lent.verify(data)


def test_a_changed_or_missing_document_is_named(month: Month) -> None:
    def changed(archive: dict[str, bytes]) -> dict[str, bytes]:
        name = next(iter(archive))
        return archive | {name: archive[name] + b" "}

    assert "archive.digest" in codes(month.lent.verify(rearchived(month.file, changed)))
    found = codes(month.lent.verify(rearchived(month.file, lambda _: {})))
    assert {"evidence.refused", "statement.model"} <= found


# --- a custodian that lies -----------------------------------------------------------------------


def by_name(said: Statement, first: Enclave) -> tuple[SessionLine, SessionLine]:
    """Return the lines of the enclave *first* and of the other one."""
    one, other = sorted(said.sessions, key=lambda line: line.session != first.session)
    return one, other


def settled(said: Statement) -> list[LeaseLine]:
    return [line for line in said.leases if line.settlement is not None]


def without_lease(said: Statement, lost: LeaseLine, used: int) -> Statement:
    """Leave a settled lease out, with every total made to fit."""
    consumers = decode(lost.settlement.signed.payload, Settlement).by_consumer  # type: ignore[union-attr]
    return replace(
        said,
        leases=tuple(line for line in said.leases if line.lease != lost.lease),
        closing=replace(
            said.closing, spent=said.closing.spent - used, left=said.closing.left + used
        ),
        used={name: said.used[name] - consumers.get(name, 0) for name in said.used},
    )


@pytest.mark.parametrize("which", [0, 1])
def test_a_settlement_left_out_breaks_the_chain(month: Month, which: int) -> None:
    def lie(said: Statement) -> Statement:
        return without_lease(said, settled(said)[which], 4)

    assert {"settlement.chain", "settlement.uncounted", "receipt.uncounted"} <= codes(
        month.lie(lie)
    )


def test_the_last_settlement_left_out_shows_by_the_stop_proof_and_the_receipts(
    month: Month,
) -> None:
    def lie(said: Statement) -> Statement:
        return without_lease(said, settled(said)[2], 4)

    assert codes(month.lie(lie)) == {"settlement.uncounted", "receipt.uncounted"}


def test_use_that_is_understated_is_named(month: Month) -> None:
    def lie(said: Statement) -> Statement:
        closing = replace(said.closing, spent=said.closing.spent - 4, left=said.closing.left + 4)
        return replace(said, closing=closing, used={month.lent.consumer: 5, month.lent.other: 3})

    assert codes(month.lie(lie)) == {"statement.sum", "statement.use"}


def test_use_that_is_inflated_is_named(month: Month) -> None:
    def lie(said: Statement) -> Statement:
        closing = replace(said.closing, spent=said.closing.spent + 4, left=said.closing.left - 4)
        return replace(said, closing=closing, used={month.lent.consumer: 13, month.lent.other: 3})

    assert codes(month.lie(lie)) == {"statement.sum", "statement.use"}


def test_a_settlement_that_the_session_did_not_sign_is_forged(month: Month) -> None:
    def lie(said: Statement) -> Statement:
        line = settled(said)[0]
        assert line.settlement is not None
        own = decode(line.settlement.signed.payload, Settlement)
        forged = sign(replace(own, used=9), month.lent.made.app.key, Label.SETTLEMENT)
        other = replace(line, settlement=replace(line.settlement, signed=forged))
        leases = tuple(other if each.lease == line.lease else each for each in said.leases)
        return replace(said, leases=leases)

    assert "settlement.forged" in codes(month.lie(lie))


def test_one_settlement_for_two_leases_is_named(month: Month) -> None:
    def lie(said: Statement) -> Statement:
        one, other, *_ = settled(said)
        copied = replace(one, settlement=other.settlement)
        leases = tuple(copied if each.lease == one.lease else each for each in said.leases)
        return replace(said, leases=leases)

    assert "settlement.lease" in codes(month.lie(lie))


def test_a_lease_left_out_is_named(month: Month) -> None:
    def lie(said: Statement) -> Statement:
        return replace(said, leases=said.leases[1:])

    assert {"statement.sum", "settlement.chain"} <= codes(month.lie(lie))


def test_an_altered_grant_is_named(month: Month) -> None:
    def less(said: Statement) -> Statement:
        return replace(said, grants=(replace(said.grants[0], credits=40), *said.grants[1:]))

    assert codes(month.lie(less)) == {"statement.sum", "grant.forged", "grant.seen"}
    with pytest.raises(VerificationError):
        month.lent.verify(resigned(month.file, SigningKey.generate(), less))


def test_grants_carry_what_enclaves_were_told_and_counter_signed(month: Month) -> None:
    verified = month.lent.verify(month.file)
    assert (len(verified.statement.grants), verified.counter_signed) == (3, 2)
    told = [decode(line.notice.payload, GrantNotice) for line in verified.statement.grants]  # type: ignore[union-attr]
    assert [one.place for one in told] == [1, 2, 3]
    assert [one.granted for one in told] == [100, 150, 150 + month.lost.credits]


def test_a_statement_without_notices_is_of_an_older_program(month: Month) -> None:
    def older(said: Statement) -> Statement:
        lines = tuple(replace(line, notice=None, seen=None) for line in said.grants)
        return replace(said, grants=lines)

    verified = month.lie(older)
    assert (verified.findings, verified.counter_signed) == ((), 0)


def test_a_grant_between_two_others_left_out_is_named(month: Month) -> None:
    def forgotten(said: Statement) -> Statement:
        closing = replace(
            said.closing, granted=said.closing.granted - 50, left=said.closing.left - 50
        )
        return replace(said, grants=(said.grants[0], said.grants[2]), closing=closing)

    assert codes(month.lie(forgotten)) == {"grant.gap"}


@pytest.mark.parametrize(
    "change",
    [
        lambda month, line, other: {"notice": None},
        lambda month, line, other: {"notice": other.notice},
        lambda month, line, other: {
            "notice": sign(
                decode(line.notice.payload, GrantNotice),
                month.first.side.signing,
                Label.GRANT_NOTICE,
            )
        },
        lambda month, line, other: {
            "notice": sign(
                replace(decode(line.notice.payload, GrantNotice), credits=1),
                month.lent.made.app.key,
                Label.GRANT_NOTICE,
            )
        },
    ],
    ids=["dropped", "of another grant", "by another key", "of other credits"],
)
def test_a_forged_notice_of_a_grant_is_named(month: Month, change) -> None:  # type: ignore[no-untyped-def]
    def lie(said: Statement) -> Statement:
        first, second, third = said.grants
        forged = replace(third, **change(month, third, second))
        return replace(said, grants=(first, second, forged))

    assert codes(month.lie(lie)) == {"grant.forged"}


@pytest.mark.parametrize(
    "lies",
    [
        {"session": "session_of_nobody"},
        {"number": 99},
        {"notice_sha256": bytes(32)},
        {"loan": "loan_of_others"},
        {"key": SigningKey.generate()},
        {"received": BEGIN - timedelta(days=1)},
    ],
    ids=lambda lies: next(iter(lies)),
)
def test_a_forged_counter_signature_is_named(month: Month, lies: dict[str, Any]) -> None:
    def lie(said: Statement) -> Statement:
        first, second, *others = said.grants
        assert second.seen is not None
        told = dict(lies)
        key, received = told.pop("key", month.first.side.signing), told.pop("received", None)
        signed = sign(
            replace(decode(second.seen.signed.payload, GrantSeen), **told), key, Label.GRANT_SEEN
        )
        seen = replace(second.seen, signed=signed, received=received or second.seen.received)
        return replace(said, grants=(first, replace(second, seen=seen), *others))

    verified = month.lie(lie)
    assert codes(verified) == {"grant.seen"}
    assert verified.counter_signed == 1


@pytest.mark.parametrize("evidence", [True, False])
def test_a_lease_said_to_be_recovered_needs_a_reconciliation(month: Month, evidence: bool) -> None:
    """Else it would be a way around what a receipt says of its balance, and around evidence."""

    def lie(said: Statement) -> Statement:
        leases = [
            replace(line, recovered=True) if line.lease == month.lost.lease else line
            for line in said.leases
        ]
        sessions = [
            replace(line, appraisals=())
            if not evidence and line.session == month.lost.session
            else line
            for line in said.sessions
        ]
        return replace(said, leases=tuple(leases), sessions=tuple(sessions))

    assert codes(month.lie(lie)) == {"statement.recovered"}


def test_a_refund_left_out_is_named(month: Month) -> None:
    def out(said: Statement) -> Statement:
        return replace(said, grants=said.grants[:-1])

    assert codes(month.lie(out)) == {"statement.sum", "statement.refund"}

    def out_and_made_to_fit(said: Statement) -> Statement:
        credits = month.lost.credits
        closing = replace(
            said.closing,
            granted=said.closing.granted - credits,
            left=said.closing.left - credits,
        )
        return replace(out(said), closing=closing)

    assert codes(month.lie(out_and_made_to_fit)) == {"statement.refund"}


def test_a_refund_of_what_was_not_forfeited_is_named(month: Month) -> None:
    def lie(said: Statement) -> Statement:
        refund = replace(said.grants[-1], lease=settled(said)[0].lease)
        return replace(said, grants=(*said.grants[:-1], refund))

    assert codes(month.lie(lie)) == {"statement.refund"}


def test_a_forfeit_is_named_and_accounts_for_what_its_enclave_served(month: Month) -> None:
    verified = month.lent.verify(month.file, receipts=month.receipts)
    (lost,) = [line for line in verified.statement.leases if line.forfeited is not None]
    assert (lost.settlement, lost.refunded is not None) == (None, True)

    def forgotten(said: Statement) -> Statement:
        """The lease that was lost was never leased, and its refund never made."""
        credits = lost.credits
        closing = replace(
            said.closing,
            granted=said.closing.granted - credits,
            forfeited=0,
        )
        leases = tuple(line for line in said.leases if line.lease != lost.lease)
        return replace(said, leases=leases, grants=said.grants[:-1], closing=closing)

    assert codes(month.lie(forgotten)) == {"receipt.uncounted"}


@pytest.mark.parametrize("field", ["granted", "received"])
def test_backdated_leases_and_settlements_are_named(month: Month, field: str) -> None:
    early = BEGIN - timedelta(days=1)

    def lie(said: Statement) -> Statement:
        line = settled(said)[0]
        assert line.settlement is not None
        other = (
            replace(line, granted=early)
            if field == "granted"
            else replace(line, settlement=replace(line.settlement, received=early))
        )
        leases = tuple(other if each.lease == line.lease else each for each in said.leases)
        return replace(said, leases=leases)

    assert "statement.time" in codes(month.lie(lie))


def test_a_backdated_statement_is_named(month: Month) -> None:
    assert "statement.time" in codes(month.lie(lambda said: replace(said, issued=BEGIN)))
    late = month.lent.clock.now() + timedelta(days=1)
    assert "statement.time" in codes(month.lie(lambda said: replace(said, end=late)))


def test_a_backdated_appraisal_is_refused(month: Month) -> None:
    """Judged before its endorsements were issued: nobody can have had them."""

    def lie(said: Statement) -> Statement:
        session = said.sessions[0]
        early = replace(session.appraisals[0], judged=BEGIN - timedelta(days=3650))
        return replace(said, sessions=(replace(session, appraisals=(early,)), *said.sessions[1:]))

    assert "evidence.refused" in codes(month.lie(lie))


def test_swapped_evidence_is_refused(month: Month) -> None:
    def lie(said: Statement) -> Statement:
        one, other = said.sessions
        swapped = replace(one, appraisals=other.appraisals)
        return replace(said, sessions=(swapped, other))

    verified = month.lie(lie)
    assert codes(verified) == {"evidence.refused"}
    assert "(binding)" in verified.findings[0].message


def test_a_key_that_no_evidence_binds_is_refused(month: Month) -> None:
    """The custodian signs settlements itself, with a key that it calls the session's."""
    own = SigningKey.generate()

    def lie(said: Statement) -> Statement:
        session, other = by_name(said, month.first)
        keys = replace(session.keys, signing_key=own.public_key)
        leases = []
        for line in said.leases:
            came = line.settlement
            if came is not None:
                signed = sign(decode(came.signed.payload, Settlement), own, Label.SETTLEMENT)
                line = replace(line, settlement=replace(came, signed=signed))  # noqa: PLW2901
            leases.append(line)
        mine = replace(session, keys=keys, stop_proof=None)
        return replace(said, leases=tuple(leases), sessions=(mine, other))

    assert codes(month.lie(lie)) == {"evidence.refused", "receipt.key", "grant.seen"}


def test_a_session_without_evidence_is_named(month: Month) -> None:
    def lie(said: Statement) -> Statement:
        first, *others = said.sessions
        return replace(said, sessions=(replace(first, appraisals=()), *others))

    assert codes(month.lie(lie)) == {"evidence.missing"}


def test_a_policy_that_accepts_less_than_the_archived_one_is_the_readers_to_choose(
    month: Month, tmp_path: Path
) -> None:
    with lending(tmp_path / "stricter") as other:
        strict = replace_accept(month.lent, other)
    assert codes(month.lent.verify(month.file, policy=strict)) == {"evidence.refused"}


def replace_accept(lent: Lending, other: Lending):  # type: ignore[no-untyped-def]
    return dataclasses.replace(lent.policy, accept=other.policy.accept)


def test_another_measurement_than_the_evidence_says_is_named(month: Month) -> None:
    def lie(said: Statement) -> Statement:
        first, *others = said.sessions
        return replace(said, sessions=(replace(first, measurement="00" * 48), *others))

    assert codes(month.lie(lie)) == {"evidence.refused"}


def test_another_model_is_named(month: Month) -> None:
    found = codes(month.lie(lambda said: replace(said, model_digest=sha256(b"another"))))
    assert "statement.model" in found


def test_a_stop_that_was_not_signed_is_named(month: Month) -> None:
    def lie(said: Statement) -> Statement:
        first, other = by_name(said, month.first)
        return replace(said, sessions=(first, replace(other, stop_proof=first.stop_proof)))

    assert codes(month.lie(lie)) == {"stop.forged"}


# --- what a consumer shows -----------------------------------------------------------------------


def test_a_receipt_that_is_not_counted_is_named(lent: Lending) -> None:
    """The enclave settles less than it served; only its own key could."""
    enclave = lent.enclave()
    session = lent.kept_session(enclave)
    lease = enclave.report(want=10)
    assert lease is not None
    mine = [enclave.serve(), enclave.serve()]
    enclave.till.meter._live[0].used[lent.consumer] = 1  # type: ignore[attr-defined]
    enclave.till.meter._live[0].left += 1  # type: ignore[attr-defined]
    enclave.till.meter._live[0].booked -= 1  # type: ignore[attr-defined]
    enclave.close()
    enclave.report()
    verified = lent.verify(lent.statement(), receipts=lent.checked(mine, session))
    assert codes(verified) == {"receipt.uncounted", "settlement.uncounted"}


def test_a_charge_without_a_receipt_is_named_when_nothing_of_mine_is_missing(
    lent: Lending,
) -> None:
    enclave = lent.enclave()
    session = lent.kept_session(enclave)
    enclave.report(want=10)
    mine = [enclave.serve()]
    enclave.till.meter._live[0].used[lent.consumer] = 3  # type: ignore[attr-defined]
    enclave.till.meter._live[0].left -= 2  # type: ignore[attr-defined]
    enclave.till.meter._live[0].booked += 2  # type: ignore[attr-defined]
    enclave.close()
    enclave.report(want=10)
    mine.append(enclave.serve())
    enclave.close()
    enclave.report()
    file = lent.statement()
    assert codes(lent.verify(file, receipts=lent.checked(mine, session))) == {"receipt.overcharged"}
    # without the second it may be that the receipts of two more are on their way
    assert not lent.verify(file, receipts=lent.checked(mine[:1], session)).findings


def test_a_clone_of_a_session_is_a_fork(month: Month) -> None:
    """A copied enclave goes on from the same state: its receipts are in no settlement."""
    lent, first = month.lent, month.first
    receipts = first.till.receipts
    clone = type(receipts)(
        loan=lent.loan,
        session=first.session,
        model_digest=lent.made.lent.model.digest,
        key=first.side.signing,
        clock=lent.clock,
    )
    clone.count, clone.chain = receipts.count - 1, b"x" * 32
    lease = settled(content(month.file))[2].lease
    cloned = from_header(clone.header(clone.draw_up(Charge(lease, 1, 10, 9), lent.consumer)))
    lent.clock.time = BEGIN  # while the custodian's statement on the session was fresh
    kept = lent.kept_session(first)
    verified = lent.verify(month.file, receipts=lent.checked([cloned], kept))
    assert "receipt.fork" in codes(verified)


# --- what the log shows --------------------------------------------------------------------------


def published(month: Month) -> Log:
    """A copy of the log, as the custodian publishes it."""
    app = month.lent.made.app
    app.logbook.run()
    return open_log(str(app.folder.log), app.key.public_key)


def test_the_log_says_what_an_honest_statement_says(month: Month) -> None:
    verified = month.lent.verify(month.file, receipts=month.receipts, log=published(month))
    assert not verified.findings
    assert verified.logged


def test_what_is_left_out_so_that_everything_fits_is_in_the_log(month: Month) -> None:
    """No receipt and no stop proof of the lease is shown: only the log knows of it."""

    def forgotten(said: Statement) -> Statement:
        closing = replace(
            said.closing, granted=said.closing.granted - month.lost.credits, forfeited=0
        )
        leases = tuple(line for line in said.leases if line.lease != month.lost.lease)
        sessions = tuple(line for line in said.sessions if line.session != month.lost.session)
        return replace(
            said, leases=leases, sessions=sessions, grants=said.grants[:-1], closing=closing
        )

    forged = month.lent.liar(month.file, forgotten)
    assert not month.lent.verify(forged).findings
    found = month.lent.verify(forged, log=published(month)).findings
    assert {finding.code for finding in found} == {"log.unaccounted"}
    assert len(found) == 3  # the lease, its forfeit, its refund


def test_a_grant_that_was_altered_so_that_everything_fits_is_in_the_log(month: Month) -> None:
    def less(said: Statement) -> Statement:
        # as a program that puts no notices into its statements
        first, second, *others = [replace(one, notice=None, seen=None) for one in said.grants]
        grants = [first, replace(second, credits=40), *others]
        closing = replace(
            said.closing, granted=said.closing.granted - 10, left=said.closing.left - 10
        )
        return replace(said, grants=tuple(grants), closing=closing)

    forged = month.lent.liar(month.file, less)
    assert not month.lent.verify(forged).findings
    found = codes(month.lent.verify(forged, log=published(month)))
    assert found == {"log.unaccounted", "log.missing"}


def test_a_log_that_is_not_whole_or_anothers_is_refused(month: Month) -> None:
    log = published(month)
    with pytest.raises(VerificationError):
        open_log(str(month.lent.made.app.folder.log), SigningKey.generate().public_key)
    (entries,) = (month.lent.made.app.folder.log / "tile/entries").glob("000*")
    (part,) = [path for path in entries.rglob("*") if path.is_file()] or [entries]
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.chmod(0o600)
    part.write_bytes(data)
    assert month.lent.verify(month.file, log=log).findings


def test_a_receipt_whose_lease_was_never_logged_is_named(month: Month) -> None:
    log = published(month)
    stranger = decode(month.mine[0].payload, Receipt)
    said = replace(stranger, lease="lease_of_nobody", number=99, own_number=1)
    receipt = sign(said, month.first.side.signing, Label.RECEIPT)
    month.lent.clock.time = BEGIN
    checked = month.lent.checked([receipt], month.lent.kept_session(month.first))
    found = codes(month.lent.verify(month.file, receipts=checked, log=log))
    assert "receipt.unlogged" in found
