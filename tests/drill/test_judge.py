"""The judge against doctored measurements, and the sheet against whoever changes it."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey, format_public_key
from aigovtool.custodian.budget import Account
from aigovtool.custodian.records import LeaseRow, LeaseState
from aigovtool.drill.reconcile import Reconciliation, reconcile
from aigovtool.drill.sheet import (
    CutOff,
    Measured,
    Result,
    Sheet,
    SignedSheet,
    judge,
    read_sheet,
    write_sheet,
)
from aigovtool.errors import MalformedError, VerificationError
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId, sha256
from aigovtool.wire.codec import Signed, decode, encode, sign
from aigovtool.wire.receipt import NO_RECEIPT_BEFORE, Receipt

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LOAN, SESSION, LEASE = LoanId("loan_a"), SessionId("session_a"), LeaseId("lease_a")
GOOD_COUNT = Reconciliation(
    granted=10,
    served=4,
    settled=4,
    unseen=0,
    forfeited=0,
    in_forfeited=0,
    leased=0,
    left=6,
    receipts=4,
    leases=1,
    sessions=1,
    wrong=(),
)
GOOD_CUT = CutOff(after="a stop", measured_s=0.2, bound_s=1.0, tried=3)
GOOD = Measured(cut_offs=(GOOD_CUT,), count=GOOD_COUNT, checks=(("it held", True),))
replace = msgspec.structs.replace


def counted(**changed: object) -> Measured:
    return replace(GOOD, count=replace(GOOD_COUNT, **changed))


def cut(**changed: object) -> Measured:
    return replace(GOOD, cut_offs=(replace(GOOD_CUT, **changed),))


def test_what_is_as_promised_passes() -> None:
    assert judge(GOOD) == ()


@pytest.mark.parametrize(
    "doctored",
    [
        cut(measured_s=1.01),
        cut(measured_s=-0.1),
        cut(measured_s=float("nan")),
        cut(tried=0),
        counted(served=11),
        counted(served=0),
        counted(leased=1),
        counted(wrong=("something",)),
        replace(GOOD, count=None),
        replace(GOOD, checks=(("it held", False),)),
    ],
)
def test_what_is_not_as_promised_fails(doctored: Measured) -> None:
    assert judge(doctored)


# --- receipts against the ledger ---


def lease(credits: int, used: int | None, state: LeaseState = LeaseState.SETTLED) -> LeaseRow:
    return LeaseRow(
        lease=LEASE,
        session=SESSION,
        loan=LOAN,
        number=1,
        credits=credits,
        duration_s=5.0,
        granted=NOW,
        expires=NOW,
        state=state,
        used=used,
    )


def receipts(count: int, **changed: object) -> list[tuple[Receipt, Signed]]:
    """A session's first *count* receipts, chained; the last one *changed*."""
    made: list[tuple[Receipt, Signed]] = []
    previous = NO_RECEIPT_BEFORE
    for number in range(1, count + 1):
        receipt = Receipt(
            loan=LOAN,
            session=SESSION,
            lease=LEASE,
            consumer=ConsumerId("consumer_a"),
            model_digest=bytes(32),
            number=number,
            previous=previous,
            own_number=number,
            own_previous=previous,
            cost=1,
            balance_before=20 - number,
            balance_after=19 - number,
            time=NOW,
        )
        if number == count:
            receipt = replace(receipt, **changed)
        payload = encode(receipt)
        previous = sha256(payload)
        made.append((receipt, Signed(payload=payload, signature=bytes(64))))
    return made


SETTLED = Account(granted=10, left=6, spent=4)


def test_receipts_that_are_the_settled_use_reconcile() -> None:
    found = reconcile(SETTLED, [lease(10, 4)], receipts(4), failed=0)
    assert found == replace(GOOD_COUNT, receipts=4)


def test_a_lost_answer_is_accounted_for_and_two_are_not() -> None:
    assert reconcile(SETTLED, [lease(10, 4)], receipts(3), failed=1).wrong == ()
    assert "without a receipt" in reconcile(SETTLED, [lease(10, 4)], receipts(2), failed=1).wrong[0]


@pytest.mark.parametrize(
    ("rows", "held", "account", "says"),
    [
        ([lease(10, 4)], receipts(5), SETTLED, "was settled with 4 used"),
        ([], receipts(1), Account(granted=10, left=10), "no lease known here"),
        ([lease(10, 4)], receipts(4, session=SessionId("session_b")), SETTLED, "another's lease"),
        ([lease(10, 4)], receipts(4, previous=bytes([1]) * 32), SETTLED, "not chained"),
        ([lease(10, 4)], receipts(4, number=3), SETTLED, "have the number 3"),
        (
            [lease(3, None, LeaseState.FORFEITED)],
            receipts(4),
            Account(granted=10, left=7, forfeited=3),
            "is forfeited",
        ),
        (
            [lease(3, None, LeaseState.OPEN)],
            receipts(4),
            Account(granted=10, left=7, leased=3),
            "is open",
        ),
        ([lease(10, 4)], receipts(4), Account(granted=10, left=5, spent=5), "says 5 spent"),
        ([lease(10, 4)], receipts(4), Account(granted=3, left=0, spent=3), "3 were ever granted"),
    ],
)  # fmt: skip
def test_what_does_not_reconcile_is_named(
    rows: list[LeaseRow], held: list[tuple[Receipt, Signed]], account: Account, says: str
) -> None:
    assert any(says in wrong for wrong in reconcile(account, rows, held, failed=0).wrong)


# --- the sheet ---

KEY = SigningKey.generate()


def sheet(*measured: Measured, honest: bool = True) -> Sheet:
    return Sheet(
        version=1,
        software="aigovtool/test",
        tee="simulated",
        simulated=True,
        quick=True,
        began=NOW,
        ended=NOW,
        results=tuple(
            Result(
                name=f"s{number}",
                title="t",
                seconds=1.0,
                measured=one,
                wrong=judge(one) if honest else (),
            )
            for number, one in enumerate(measured)
        ),
    )


def test_a_sheet_is_read_back_and_says_who_signed_it() -> None:
    text = format_public_key(KEY.public_key)
    read, signer = read_sheet(write_sheet(sheet(GOOD), KEY), key=text)
    assert (read.passed, signer) == (True, text)
    assert not read_sheet(write_sheet(sheet(GOOD, cut(tried=0)), KEY))[0].passed


def test_a_changed_sheet_is_refused() -> None:
    file = decode(write_sheet(sheet(cut(measured_s=9.0)), KEY), SignedSheet)
    payload = file.signed.payload.replace(b"9.0", b"0.1")
    forged = encode(replace(file, signed=replace(file.signed, payload=payload)))
    with pytest.raises(VerificationError):
        read_sheet(forged)


def test_a_sheet_of_another_key_or_purpose_is_refused() -> None:
    other = format_public_key(SigningKey.generate().public_key)
    with pytest.raises(VerificationError, match="another key"):
        read_sheet(write_sheet(sheet(GOOD), KEY), key=other)
    purpose = SignedSheet(
        key=format_public_key(KEY.public_key), signed=sign(sheet(GOOD), KEY, Label.RECEIPT)
    )
    with pytest.raises(VerificationError):
        read_sheet(encode(purpose))


def test_a_verdict_that_its_measurements_do_not_bear_out_is_refused() -> None:
    with pytest.raises(VerificationError, match="did not pass"):
        read_sheet(write_sheet(sheet(cut(measured_s=9.0), honest=False), KEY))


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b'{"key": "x", "signed": {}}'])
def test_what_is_no_sheet_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        read_sheet(data)
