"""
``serve --upload``: from a model file to a loan, a consumer, and the files for both, in one go.

Rule 1: the same command again finds what it made and grants nothing; what it wrote is completed
        where something is missing.
Rule 2: files of another loan in the folder are never replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from aigovtool.custodian import files
from aigovtool.custodian.app import App
from aigovtool.custodian.documents import manifest_text, ticket_text
from aigovtool.custodian.lifecycle import LoanState
from aigovtool.custodian.records import Loan, LoanTerms, Model
from aigovtool.custodian.tokens import same_token
from aigovtool.custodian.upload import Upload
from aigovtool.errors import ConfigurationError, ConflictError
from aigovtool.sealing.chunked import Progress
from aigovtool.wire.ticket import Ticket, read_ticket, to_toml

ADMIN = "admin"
CONSUMER_NAME = "consumer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lent:
    """What there is now; `again` when it was there before."""

    model: Model
    loan: Loan
    again: bool


def lend(
    app: App,
    wanted: Upload,
    *,
    credits: int,
    terms: LoanTerms,
    policy: str,
    address: str,
    progress: Callable[[int], Progress] | None = None,
) -> Lent:
    """
    Seal a model, lend it, and write ``loan.toml``, ``consumer.key`` and ``manifest.toml``.

    Args:
        policy: text of the appraisal policy of a new loan.
        address: where enclaves dial.

    Raises:
        ConflictError: the folder holds another loan's ticket, or another model has this name.
        ConfigurationError, MalformedError, UnavailableError: as `Uploads.upload` and `Loans`.
    """
    ticket = _ticket_here(app)
    model = app.uploads.upload(wanted, actor=ADMIN, progress=progress)
    with app.ledger.read() as tx:
        known = [
            loan
            for loan in tx.loans()
            if loan.name == model.name and loan.state is not LoanState.CLOSED
        ]
    loan = known[0] if known else None
    if ticket is not None and (loan is None or ticket.loan != loan.loan):
        raise ConflictError(
            f"{app.folder.ticket} is the ticket of another loan",
            code="data.ticket",
            came=ticket.loan,
            mend="move it away, or lend more models with `aigovtool custodian loan create`",
        )
    if loan is not None:
        if loan.model != model.digest:
            raise ConflictError(
                f"the loan named {loan.name!r} is of another model", mend="choose --model-name"
            )
        _complete(app, loan, ticket, address)
        return Lent(model=model, loan=loan, again=True)
    made = app.loans.create(
        name=model.name,
        model=model.digest,
        policy=policy,
        terms=terms,
        credits=credits,
        actor=ADMIN,
    )
    _write_ticket(app, made.row, made.secret, address)
    _add_consumer(app, made.row)
    _write_manifest(app, made.row)
    return Lent(model=model, loan=made.row, again=False)


def _ticket_here(app: App) -> Ticket | None:
    return read_ticket(app.folder.ticket) if app.folder.ticket.exists() else None


def _complete(app: App, loan: Loan, ticket: Ticket | None, address: str) -> None:
    """Write again what a crash or a person removed, and a new address into the ticket."""
    if ticket is None or not same_token(ticket.token, loan.token_sha256):
        _write_ticket(app, loan, app.loans.new_ticket(loan.loan, actor=ADMIN).secret, address)
    elif ticket.custodian != address:
        moved = msgspec.structs.replace(ticket, custodian=address)
        files.write_whole(app.folder.ticket, to_toml(moved))
    with app.ledger.read() as tx:
        consumers = tx.consumers_of_loan(loan.loan)
    if not app.folder.consumer_key.exists():
        if consumers:
            raise ConfigurationError(
                f"{app.folder.consumer_key} is gone, and its key is kept as a hash only",
                code="data.consumer_key",
                mend="serve without --upload, then `aigovtool custodian consumer create`",
            )
        _add_consumer(app, loan)
    if not app.folder.manifest.exists():
        _write_manifest(app, loan)


def _write_ticket(app: App, loan: Loan, token: str, address: str) -> None:
    text = ticket_text(app.identity, loan.loan, token=token, address=address)
    files.write_whole(app.folder.ticket, text)


def _add_consumer(app: App, loan: Loan) -> None:
    made = app.loans.add_consumer(loan.loan, name=CONSUMER_NAME, budget=None, actor=ADMIN)
    files.write_whole(app.folder.consumer_key, made.secret + "\n")


def _write_manifest(app: App, loan: Loan) -> None:
    with app.ledger.read() as tx:
        policy = tx.loan_policy(loan.loan)
    text = manifest_text(app.identity, loan.loan, policy=policy)
    files.write_whole(app.folder.manifest, text, mode=0o644)
