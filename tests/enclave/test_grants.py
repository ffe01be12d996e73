"""What a borrower keeps of grants, and what it convicts a custodian of."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from aigovtool.cli import main
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey, format_public_key
from aigovtool.enclave.grants import GrantsKept, check_kept
from aigovtool.errors import ConfigurationError, VerificationError
from aigovtool.ids import LoanId, SessionId, sha256
from aigovtool.wire.codec import Signed, open_signed, sign
from aigovtool.wire.grants import GrantNotice, GrantSeen
from aigovtool.wire.ticket import Ticket, to_toml

LOAN = LoanId("loan_1")


class Borrower:
    """An enclave's cache, and a custodian that may lie."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.custodian, self.key = SigningKey.generate(), SigningKey.generate()
        self.kept = GrantsKept(
            folder=self.cache,
            loan=LOAN,
            session=SessionId("session_1"),
            key=self.key,
            custodian_key=self.custodian.public_key,
        )

    def notice(self, place: int, credits: int, granted: int, **more: object) -> Signed:
        made = GrantNotice(
            loan=LOAN,
            number=100 + place,
            place=place,
            credits=credits,
            consumer=None,
            kind="grant",
            granted=granted,
            made=datetime(2026, 3, 1, tzinfo=UTC),
        )
        return sign(msgspec.structs.replace(made, **more), self.custodian, Label.GRANT_NOTICE)

    def files(self) -> list[Path]:
        return sorted(self.cache.rglob("*.json"))

    def faults(self, said: int | None = None) -> list[str]:
        (account,) = check_kept(self.cache, self.custodian.public_key, said=said)
        return [each.code for each in account.faults]


@pytest.fixture
def borrower(tmp_path: Path) -> Borrower:
    return Borrower(tmp_path)


async def test_a_notice_is_kept_and_counter_signed(borrower: Borrower) -> None:
    notices = [borrower.notice(1, 10, 10), borrower.notice(2, 5, 15)]
    notices.append(borrower.notice(3, 4, 15, consumer="consumer_1"))  # within the loan's
    for signed in notices:
        answer = await borrower.kept.counter_sign(signed)
        seen = open_signed(
            answer.seen, GrantSeen, public_key=borrower.key.public_key, label=Label.GRANT_SEEN
        )
        assert seen.notice_sha256 == sha256(signed.payload)
    await borrower.kept.counter_sign(notices[0])  # told again after a reconnection
    assert len(borrower.files()) == 3
    (account,) = check_kept(borrower.cache, borrower.custodian.public_key, said=15)
    assert (account.granted, account.notices, account.faults) == (15, 3, [])


async def test_a_custodian_that_denies_a_grant_is_convicted(borrower: Borrower) -> None:
    await borrower.kept.counter_sign(borrower.notice(7, 5, 115))  # the only one that was kept
    assert borrower.faults(said=110) == ["grant.withheld"]
    assert borrower.faults(said=115) == []


async def test_a_custodian_that_signs_two_histories_is_convicted(borrower: Borrower) -> None:
    await borrower.kept.counter_sign(borrower.notice(1, 10, 10))
    await borrower.kept.counter_sign(borrower.notice(1, 3, 3))
    assert len(borrower.files()) == 2  # nothing was overwritten
    assert borrower.faults() == ["grant.equivocation"]


async def test_sums_that_do_not_add_up_are_named(borrower: Borrower) -> None:
    await borrower.kept.counter_sign(borrower.notice(1, 10, 10))
    await borrower.kept.counter_sign(borrower.notice(2, 5, 12))
    assert borrower.faults() == ["grant.sum"]


async def test_what_the_custodian_did_not_sign_is_neither_kept_nor_counter_signed(
    borrower: Borrower,
) -> None:
    good = borrower.notice(1, 10, 10)
    stranger = sign(borrower.notice(1, 99, 99), SigningKey.generate(), Label.GRANT_NOTICE)
    for bad in (
        Signed(payload=good.payload.replace(b"10", b"99"), signature=good.signature),
        Signed(payload=good.payload, signature=bytes(64)),
        stranger,
        borrower.notice(1, 10, 10, loan="loan_2"),
        Signed(
            payload=good.payload,
            signature=borrower.custodian.sign(Label.SESSION_STATEMENT, good.payload),
        ),
    ):
        with pytest.raises(VerificationError):
            await borrower.kept.counter_sign(bad)
    assert borrower.files() == []


async def test_what_cannot_be_kept_is_not_counter_signed(borrower: Borrower) -> None:
    borrower.cache.write_text("not a folder")
    with pytest.raises(ConfigurationError):
        await borrower.kept.counter_sign(borrower.notice(1, 10, 10))


async def test_a_borrower_that_forges_a_notice_convicts_only_itself(borrower: Borrower) -> None:
    await borrower.kept.counter_sign(borrower.notice(1, 10, 10))
    (path,) = borrower.files()
    forged = path.with_name("00000002-0000000000000000.json")
    forged.write_bytes(path.read_bytes()[:-10] + b'AAAAAAA="}')
    assert borrower.faults(said=10) == ["grant.forged"]


async def test_the_command_says_so_and_exits_so(borrower: Borrower, tmp_path: Path) -> None:
    ticket = tmp_path / "loan.toml"
    made = Ticket(
        version=1,
        loan=LOAN,
        custodian="127.0.0.1:7000",
        custodian_key=format_public_key(borrower.custodian.public_key),
        custodian_certificate="",
        token="t",
    )
    ticket.write_text(to_toml(made))

    def run(*more: str) -> tuple[int, Any]:
        arguments = ["enclave", "grants", "--cache", str(borrower.cache), "--ticket", str(ticket)]
        came = CliRunner().invoke(main, [*arguments, *more, "--json"])
        return came.exit_code, json.loads(came.stdout)

    assert run()[0] == 2  # nothing is kept there
    await borrower.kept.counter_sign(borrower.notice(1, 10, 10))
    code, said = run("--said", "10")
    assert (code, said["proven"], said["loans"][0]["granted"]) == (0, True, 10)
    code, said = run("--said", "9")
    assert (code, said["proven"]) == (1, False)
