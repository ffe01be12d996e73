"""The files that a custodian hands out: the borrower's ticket and the consumers' manifest."""

from __future__ import annotations

import dataclasses

from aigovtool.attestation.policy import Custodian as Named
from aigovtool.attestation.policy import parse_policy, write_policy
from aigovtool.crypto.signing import format_public_key
from aigovtool.custodian.records import Custodian
from aigovtool.ids import LoanId
from aigovtool.wire.ticket import Ticket, to_toml

MANIFEST_PREFACE = """AIGovTool manifest: which enclave may see your data, and under whose loan.
The client verifies the enclave against it before it sends anything.
It holds nothing secret; take it from the custodian by a way that you trust."""


def ticket_text(identity: Custodian, loan: LoanId, *, token: str, address: str) -> str:
    """Return the text of a ``loan.toml``; *address* is where enclaves dial."""
    return to_toml(
        Ticket(
            version=1,
            loan=loan,
            custodian=address,
            custodian_key=format_public_key(identity.public_key),
            custodian_certificate=identity.certificate_pem.decode(),
            token=token,
        )
    )


def manifest_text(identity: Custodian, loan: LoanId, *, policy: str) -> str:
    """Return the text of a ``manifest.toml``: the loan's own policy, and whose loan it is."""
    parsed = parse_policy(policy.encode())
    named = Named(public_key=identity.public_key, loan=loan)
    return write_policy(dataclasses.replace(parsed, custodian=named), preface=MANIFEST_PREFACE)
