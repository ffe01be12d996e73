"""Messages are strict and bounded, errors survive the trip, and nothing foreign leaves a parser."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool import errors
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey
from aigovtool.ids import ConsumerId, LeaseId, LoanId, SessionId
from aigovtool.wire import control, problem, receipt, ticket
from aigovtool.wire.codec import Message, decode, encode, open_signed, sign
from aigovtool.wire.enrolment import Keys, LedgerHead, SessionStatement, Terms

KEY = SigningKey.from_seed(bytes(32))
RECEIPT = receipt.Receipt(
    loan=LoanId("loan_1"),
    session=SessionId("session_1"),
    lease=LeaseId("lease_1"),
    consumer=ConsumerId("consumer_1"),
    model_digest=bytes(32),
    number=1,
    previous=receipt.NO_RECEIPT_BEFORE,
    own_number=1,
    own_previous=receipt.NO_RECEIPT_BEFORE,
    cost=1,
    balance_before=10,
    balance_after=9,
    time=datetime(2026, 1, 2, tzinfo=UTC),
)
TICKET = ticket.Ticket(
    version=1,
    loan=LoanId("loan_1"),
    custodian="127.0.0.1:7000",
    custodian_key="ed25519:x",
    custodian_certificate="-----BEGIN CERTIFICATE-----\nx\n",
    token="t",
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
TERMS = Terms(lease_duration_s=5.0, wipe_after_s=60.0, expires=NOW)
STATEMENT = SessionStatement(
    loan=LoanId("loan_1"),
    session=SessionId("session_1"),
    keys=Keys(tls_spki_sha256=bytes(32), signing_key=bytes(32), hpke_key=bytes(1216)),
    model_digest=bytes(32),
    lease=None,
    left=0,
    head=LedgerHead(incarnation=bytes(16), event=1, digest=bytes(32)),
    issued=NOW,
    expires=NOW,
)
PROOF = control.StopProof(
    loan=LoanId("loan_1"),
    session=SessionId("session_1"),
    receipts=0,
    receipt_chain=bytes(32),
    cancelled=0,
    reason="stopped",
    wiped=NOW,
)


def test_unknown_field_is_malformed() -> None:
    with pytest.raises(errors.MalformedError, match="more"):
        decode(
            b'{"type":"loan-changed","state":"active","reason":"","more":1}', control.LoanChanged
        )


def test_message_of_another_kind_is_malformed() -> None:
    body = encode(control.CreditsFreed(left=3))
    assert decode(body, control.FromCustodian) == control.CreditsFreed(left=3)
    with pytest.raises(errors.MalformedError):
        decode(body, control.FromEnclave)


def test_too_long_is_refused_unread() -> None:
    with pytest.raises(errors.TooLargeError):
        decode(b" " * 11, control.CreditsFreed, max_bytes=10)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_message_or_our_error(data: bytes) -> None:
    for kind in (control.FromEnclave, control.FromCustodian, receipt.Receipt):
        with pytest.raises(errors.MalformedError):
            decode(data, kind)


def test_deep_nesting_is_malformed_not_a_crash() -> None:
    with pytest.raises(errors.MalformedError):
        decode(b'{"type":' + b"[" * 100_000, control.FromEnclave)


def test_signed_payload_is_read_only_under_the_right_key_and_label() -> None:
    signed = sign(RECEIPT, KEY, Label.RECEIPT)
    assert (
        open_signed(signed, receipt.Receipt, public_key=KEY.public_key, label=Label.RECEIPT)
        == RECEIPT
    )
    with pytest.raises(errors.VerificationError):
        open_signed(signed, receipt.Receipt, public_key=KEY.public_key, label=Label.SETTLEMENT)
    other = SigningKey.generate().public_key
    with pytest.raises(errors.VerificationError):
        open_signed(signed, receipt.Receipt, public_key=other, label=Label.RECEIPT)


def test_receipt_header_round_trips() -> None:
    signed = sign(RECEIPT, KEY, Label.RECEIPT)
    assert receipt.from_header(receipt.to_header(signed)) == signed


@given(st.text(max_size=100))
def test_any_header_gives_a_receipt_or_our_error(value: str) -> None:
    try:
        signed = receipt.from_header(value)
    except errors.MalformedError:
        return
    with pytest.raises(errors.AIGovToolError):
        open_signed(signed, receipt.Receipt, public_key=KEY.public_key, label=Label.RECEIPT)


RAISED = [
    (errors.MalformedError("m"), 400),
    (errors.TooLargeError("m"), 413),
    (errors.VerificationError("m"), 403),
    (errors.UnauthenticatedError("m"), 401),
    (errors.BlockedError("m"), 403),
    (errors.NotFoundError("m"), 404),
    (errors.BadTensorError("m"), 422),
    (errors.BudgetExhaustedError("m", retry_after_s=7), 429),
    (errors.MoreDeniedError("m", retry_after_s=7), 429),
    (errors.AppraisalError("m"), 403),
    (errors.RefusedError("m"), 403),
    (errors.LoanNotActiveError("m", retry_after_s=7), 503),
    (errors.UnavailableError("m", retry_after_s=7), 503),
    (errors.ConflictError("m"), 409),
]


@pytest.mark.parametrize(("error", "status"), RAISED, ids=lambda x: type(x).__name__)
def test_error_survives_the_trip(error: errors.AIGovToolError, status: int) -> None:
    told = problem.problem_of(error)
    assert told.status == status
    assert told.error == told.detail == str(error)
    back = problem.error_of(status, encode(told), retry_after_s=7.0)
    assert type(back) is type(error)
    assert back.reasons == error.reasons
    assert getattr(back, "retry_after_s", None) == getattr(error, "retry_after_s", None)


def test_every_reason_survives_the_trip() -> None:
    first = errors.Reason(code="a.b", message="m", expected="e", came="c", mend="d")
    error = errors.AppraisalError(first, others=[errors.Reason(code="x", message="y")])
    back = problem.error_of(403, encode(problem.problem_of(error)))
    assert back.reasons == error.reasons
    assert "to mend: d" in str(back)
    assert "; and y" in str(back)


@pytest.mark.parametrize(
    "error", [errors.ConfigurationError("path"), errors.PromiseBrokenError("inner state")]
)
def test_our_own_fault_says_nothing_of_the_inside(error: errors.AIGovToolError) -> None:
    assert problem.problem_of(error) is problem.INTERNAL


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"status":1}', b"x" * 100_000])
def test_answer_without_a_problem_is_unavailable(body: bytes) -> None:
    assert isinstance(problem.error_of(502, body), errors.UnavailableError)


def test_retry_after_is_whole_and_never_zero() -> None:
    assert problem.headers_of(errors.UnavailableError("m", retry_after_s=0.01)) == {
        "Retry-After": "1"
    }
    assert problem.headers_of(errors.UnauthenticatedError("m")) == {"WWW-Authenticate": "Bearer"}
    assert problem.headers_of(errors.MalformedError("m")) == {}


def test_ticket_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "loan.toml"
    path.write_text(ticket.to_toml(TICKET))
    assert ticket.read_ticket(path) == TICKET


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("version = 1", "version = 2"), "version 2"),
        (("token", "tokem"), "tokem"),
        (('loan = "loan_1"\n', ""), "loan"),
        (("version = 1", "version = "), "not a loan ticket"),
    ],
)
def test_damaged_ticket_is_named(tmp_path: Path, change: tuple[str, str], named: str) -> None:
    path = tmp_path / "loan.toml"
    path.write_text(ticket.to_toml(TICKET).replace(*change))
    with pytest.raises(errors.ConfigurationError, match=named):
        ticket.read_ticket(path)


def test_missing_ticket_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigurationError, match=r"loan\.toml"):
        ticket.read_ticket(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (RECEIPT, "time"),
        (STATEMENT, "issued"),
        (STATEMENT, "expires"),
        (TERMS, "expires"),
        (PROOF, "wiped"),
    ],
)
def test_a_time_without_a_zone_is_malformed(message: Message, field: str) -> None:
    """Each peer would read it by its own clock's zone."""
    naive = msgspec.structs.replace(message, **{field: NOW.replace(tzinfo=None)})
    assert decode(encode(message), type(message)) == message
    with pytest.raises(errors.MalformedError, match=field):
        decode(encode(naive), type(message))
