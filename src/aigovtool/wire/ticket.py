"""
The loan ticket, ``loan.toml``: all that a borrower needs to start an enclave.

It holds a token that lets its bearer ask for a challenge and be appraised; it lets nobody have the
model, since that takes acceptable evidence. Keep it as one keeps a password all the same.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import tomli_w

from aigovtool.errors import ConfigurationError
from aigovtool.ids import LoanId

MAX_TICKET_BYTES = 64 << 10


class Ticket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    Args:
        version: of this layout, 1.
        loan: which loan this is.
        custodian: ``host:port`` that the enclave dials; several, with commas, are tried in turn.
        custodian_key: the custodian's public key, ``ed25519:…``; its statements are signed by it.
        custodian_certificate: PEM, self-signed by that key; the one TLS trust anchor.
        token: bearer token of this loan's borrower.
    """

    version: int
    loan: LoanId
    custodian: str
    custodian_key: str
    custodian_certificate: str
    token: str

    def __post_init__(self) -> None:
        if self.version != 1:
            raise ValueError(f"version {self.version} is not known; this program reads 1")
        if not all(self.addresses):
            raise ValueError("custodian is not host:port, or several of them with commas")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the custodian is, each on its own."""
        return tuple(address.strip() for address in self.custodian.split(","))


def to_toml(ticket: Ticket) -> str:
    """Return the text of ``loan.toml``."""
    head = "# AIGovTool loan ticket: give it to the borrower; keep it as you keep a password.\n"
    return head + tomli_w.dumps(msgspec.to_builtins(ticket), multiline_strings=True)


def read_ticket(path: Path) -> Ticket:
    """
    Read a ticket.

    Raises:
        ConfigurationError: no such file, not readable, or not a ticket.
    """
    try:
        data = path.read_bytes()[:MAX_TICKET_BYTES]
        return msgspec.toml.decode(data, type=Ticket)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the loan ticket {path}: {error.strerror}",
            mend="the custodian gives it out: `loan.toml` in its data folder",
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path} is not a loan ticket: {error}",
            mend="give the `loan.toml` that the custodian gave out",
        ) from None
