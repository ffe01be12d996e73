"""Grants that neither side can deny: told until seen, the first counter-signature stays."""

from __future__ import annotations

import msgspec
import pytest

from aigovtool.crypto.labels import Label
from aigovtool.custodian.notices import Notices
from aigovtool.errors import NotFoundError, UnavailableError, VerificationError
from aigovtool.ids import SessionId, sha256
from aigovtool.wire.codec import Signed, decode, open_signed, sign
from aigovtool.wire.control import GrantMade
from aigovtool.wire.grants import GrantNotice, GrantSeen
from tests.custodian.ledgers import REFUSALS, Bench, FakeEnclave


class Telling:
    """A bench's notices, and what went out of them."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.notices = Notices(ledger=bench.ledger, key=bench.key, publisher=bench.told)

    def told(self, session: SessionId | None = None) -> list[GrantNotice]:
        return [self.read(signed) for signed in self.signed(session)]

    def signed(self, session: SessionId | None = None) -> list[Signed]:
        return [
            push.message.notice
            for push in self.bench.told.pushes
            if isinstance(push.message, GrantMade) and push.only == session
        ]

    def read(self, signed: Signed) -> GrantNotice:
        return open_signed(
            signed, GrantNotice, public_key=self.bench.key.public_key, label=Label.GRANT_NOTICE
        )


def seen_by(enclave: FakeEnclave, signed: Signed, **lies: object) -> Signed:
    seen = GrantSeen(
        loan=enclave.loan,
        session=enclave.session,
        number=decode(signed.payload, GrantNotice).number,
        notice_sha256=sha256(signed.payload),
    )
    return sign(msgspec.structs.replace(seen, **lies), enclave.key, Label.GRANT_SEEN)


@pytest.fixture
def telling(ledger: Bench) -> Telling:
    return Telling(ledger)


def test_every_grant_is_told_and_the_sums_are_in_the_notices(telling: Telling) -> None:
    bench = telling.bench
    loan = bench.lend(10).loan
    other = bench.lend(7).loan
    consumer = bench.consumer(loan, budget=3)
    bench.grants.grant(loan, 5, actor="a", reason="private words")
    telling.notices.sweep()
    telling.notices.sweep()  # nothing new, nothing twice
    mine = [each for each in telling.told() if each.loan == loan]
    assert [(each.place, each.credits, each.consumer, each.granted) for each in mine] == [
        (1, 10, None, 10),
        (2, 3, consumer, 10),
        (3, 5, None, 15),
    ]
    assert bench.loan(loan).account.granted == 15
    assert [each.granted for each in telling.told() if each.loan == other] == [7]
    assert b"private words" not in b"".join(each.payload for each in telling.signed())


def test_what_nobody_has_seen_is_told_after_a_reconnection_or_a_restart(telling: Telling) -> None:
    bench = telling.bench
    loan = bench.lend(10).loan
    telling.notices.sweep()
    first = telling.signed()
    enclave = bench.enclave(loan)
    again = Telling(bench)  # the custodian was started anew
    again.notices.connected(loan, enclave.session)
    assert again.signed(enclave.session) == first  # the same bytes, the same signature
    again.notices.seen(enclave.session, seen_by(enclave, first[0]))
    bench.told.pushes.clear()
    again.notices.connected(loan, enclave.session)
    assert bench.told.pushes == []
    assert "grant.seen" in bench.kinds()


@pytest.mark.parametrize("how", ["lost", "kept"])
def test_a_counter_signature_is_kept_once_whatever_breaks(telling: Telling, how: str) -> None:
    bench = telling.bench
    loan = bench.lend(10).loan
    telling.notices.sweep()
    enclave, other = bench.enclave(loan), bench.enclave(loan)
    (signed,) = telling.signed()
    bench.store.next = how
    with pytest.raises(UnavailableError):
        telling.notices.seen(enclave.session, seen_by(enclave, signed))
    telling.notices.seen(enclave.session, seen_by(enclave, signed))
    telling.notices.seen(other.session, seen_by(other, signed))  # the first one stays
    assert bench.kinds().count("grant.seen") == 1
    ((notice, seen),) = telling.notices.of_loan(loan, 10)
    assert notice == signed
    assert seen is not None
    assert seen.session == enclave.session
    said = open_signed(
        Signed(payload=seen.payload, signature=seen.signature),
        GrantSeen,
        public_key=enclave.key.public_key,
        label=Label.GRANT_SEEN,
    )
    assert said.notice_sha256 == sha256(signed.payload)
    for statement in ("DELETE FROM grant_seen", "UPDATE grant_seen SET received_us = 0"):
        with pytest.raises(REFUSALS):
            bench.run_sql(statement)


def test_a_false_counter_signature_is_refused(telling: Telling) -> None:
    bench = telling.bench
    loan, foreign = bench.lend(10).loan, bench.lend(5).loan
    telling.notices.sweep()
    enclave, stranger = bench.enclave(loan), bench.enclave(foreign)
    mine, theirs = telling.signed()
    before = bench.kinds()
    attacks: list[tuple[FakeEnclave, Signed, type[Exception]]] = [
        (enclave, seen_by(stranger, mine), VerificationError),
        (enclave, seen_by(enclave, mine, notice_sha256=bytes(32)), VerificationError),
        (enclave, seen_by(enclave, mine, session=stranger.session), VerificationError),
        (enclave, seen_by(enclave, theirs), NotFoundError),
        (enclave, seen_by(enclave, mine, number=99), NotFoundError),
        (stranger, seen_by(stranger, mine), NotFoundError),
        (
            enclave,
            sign(decode(seen_by(enclave, mine).payload, GrantSeen), enclave.key, Label.STOP_PROOF),
            VerificationError,
        ),
    ]
    for who, signed, kind in attacks:
        with pytest.raises(kind):
            telling.notices.seen(who.session, signed)
    assert bench.kinds() == before
