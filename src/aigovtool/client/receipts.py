"""A receipt is believed when the attested key signed it, about this loan, session and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from aigovtool.channel.connect import AttestedChannel
from aigovtool.channel.judge import VerifiedEnclave
from aigovtool.errors import VerificationError
from aigovtool.ids import sha256
from aigovtool.proof.receipt_signature import open_receipt
from aigovtool.wire.codec import Signed
from aigovtool.wire.receipt import Receipt, from_header


class OtherSessionError(VerificationError):
    """Signed by the attested key, about this loan, and for a session that was not judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReceipt:
    """
    A receipt whose signature held.

    Args:
        receipt: what it says.
        signed: as it came, to keep: it proves the same to anybody later.
        enclave: whose attested key signed it, as it was judged.
    """

    receipt: Receipt
    signed: Signed
    enclave: VerifiedEnclave = field(repr=False)


def verify_receipt(header: bytes | None, enclave: VerifiedEnclave) -> VerifiedReceipt:
    """
    Check the value of the header ``Aigovtool-Receipt`` that came with an answer of *enclave*.

    Raises:
        MalformedError: not a receipt.
        OtherSessionError: the enclave enrolled anew since it was judged; judge it again.
        VerificationError: there is none, or it is not signed by the enclave's attested key, or it
            is about another loan, session or model, or its sum is wrong.
    """
    if header is None:
        raise VerificationError(
            "the answer came without a receipt",
            code="receipt.missing",
            mend="do not use the answer: nothing shows what it was charged to",
        )
    signed = from_header(header.decode("latin-1"))
    receipt = open_receipt(signed, public_key=enclave.keys.signing_key)
    came = (receipt.loan, receipt.session, receipt.model_digest)
    expected = (enclave.loan, enclave.statement.session, enclave.model.digest)
    if came != expected:
        anew = receipt.loan == enclave.loan and receipt.session != enclave.statement.session
        raise (OtherSessionError if anew else VerificationError)(
            "the receipt is about another loan, session or model",
            code="receipt.subject",
            expected=_show(*expected),
            came=_show(*came),
        )
    receipt.check_sum()
    return VerifiedReceipt(receipt=receipt, signed=signed, enclave=enclave)


def check_order(receipts: Sequence[VerifiedReceipt]) -> None:
    """
    Raise VerificationError unless the receipts of one answer follow each other.

    Receipts of other answers may lie between them. Where none does, one names the one before it.
    """
    for before, after in pairwise(receipts):
        then, now = before.receipt, after.receipt
        digest = sha256(before.signed.payload)
        follows = (
            (now.session, now.consumer) == (then.session, then.consumer)
            and now.number > then.number
            and now.own_number > then.own_number
            and (now.number > then.number + 1 or now.previous == digest)
            and (now.own_number > then.own_number + 1 or now.own_previous == digest)
        )
        if not follows:
            raise VerificationError(
                "the receipts of the answer are not of one chain",
                code="receipt.order",
                expected=f"one of {then.consumer} in {then.session} after number {then.number}",
                came=f"number {now.number} of {now.consumer} in {now.session}",
            )


def check_price(receipt: Receipt, price: int) -> None:
    """Raise VerificationError unless *receipt* charges what the custodian's manifest says."""
    if receipt.cost != price:
        raise VerificationError(
            "the query was charged another price than its batch has",
            code="receipt.price",
            expected=f"{price} credits, one for each item",
            came=str(receipt.cost),
        )


async def receipt_of(
    header: bytes | None, enclave: VerifiedEnclave, channel: AttestedChannel
) -> VerifiedReceipt:
    """
    Check a receipt as `verify_receipt`, judging the enclave again if it enrolled anew since.

    A loan that is stopped and resumed gives the same process, with the same TLS key, another
    session.
    """
    try:
        return verify_receipt(header, enclave)
    except OtherSessionError:
        return verify_receipt(header, await channel.rejudge())


def _show(loan: str, session: str, model_digest: bytes) -> str:
    return f"{loan}, {session}, model {model_digest.hex()}"
