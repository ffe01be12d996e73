"""Credits, leases, sessions, and requests for more."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aigovtool.cli.custodian.group import custodian
from aigovtool.cli.custodian.remote import (
    V1,
    Remote,
    hand_out,
    loan_option,
    loan_text,
    one_consumer,
    one_loan,
    reason_option,
    show,
    with_remote,
)
from aigovtool.cli.output import exits, json_option

if TYPE_CHECKING:
    from aigovtool.custodian.api import views


class Credits(click.IntRange):
    """A number of credits; whoever names a loan there is told how to."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            if str(value).lstrip("-").isdecimal():
                raise
            self.fail(f"{value!r} is not a number; name the loan with --loan", param, ctx)


@custodian.command()
@click.argument("credits", type=Credits(min=1))
@loan_option
@click.option("--consumer", help="Id or name: add to its own budget instead of the loan's.")
@reason_option
@with_remote
@json_option
@exits
def grant(
    *,
    credits: int,
    loan: str | None,
    consumer: str | None,
    reason: str,
    remote: Remote,
    as_json: bool,
) -> None:
    """Add CREDITS to a loan, or to a consumer's own budget."""
    from aigovtool.custodian.api import views

    client = remote.client()
    whose = None if consumer is None else one_consumer(client, consumer)
    granted = client.post(
        f"{V1}/grants",
        {"credits": credits, "loan": loan, "consumer": whose, "reason": reason},
        views.LoanView,
        idempotency_key=secrets.token_urlsafe(16),
    )
    show(granted, lambda: loan_text(granted), as_json=as_json)


@custodian.group()
def lease() -> None:
    """Leases: blocks of credits in the hands of enclaves."""


@lease.command("list")
@loan_option
@with_remote
@json_option
@exits
def lease_list(loan: str | None, remote: Remote, as_json: bool) -> None:
    """List leases, the newest first."""
    from aigovtool.cli.custodian import tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/leases", list[views.LeaseView], loan=loan)
    show(found, lambda: tables.leases(found), as_json=as_json)


@lease.command("refund")
@click.argument("lease")
@click.option("--reason", required=True, help="Recorded with the refund.")
@with_remote
@json_option
@exits
def lease_refund(lease: str, reason: str, remote: Remote, as_json: bool) -> None:
    """Grant the credits of a forfeited lease again."""
    from aigovtool.custodian.api import views

    refunded = remote.client().post(
        f"{V1}/leases/{lease}/refund", {"reason": reason}, views.LoanView
    )
    show(refunded, lambda: loan_text(refunded), as_json=as_json)


@custodian.group()
def session() -> None:
    """Sessions: attested runs of enclaves."""


@session.command("list")
@loan_option
@with_remote
@json_option
@exits
def session_list(loan: str | None, remote: Remote, as_json: bool) -> None:
    """List sessions, the newest first."""
    from aigovtool.cli.custodian import tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/sessions", list[views.SessionView], loan=loan)
    show(found, lambda: tables.sessions(found), as_json=as_json)


@session.command("ear")
@click.argument("session")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Instead of stdout.")
@with_remote
@json_option
@exits
def session_ear(session: str, out: Path | None, remote: Remote, as_json: bool) -> None:
    """Print what a session's evidence came to, as a signed token (EAR, JWT) to hand on.

    `aigovtool attestation ear verify` checks it, with the custodian's public key.
    """
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/sessions/{session}/ear", views.EarView)
    hand_out(found, found.ear + "\n", out, as_json=as_json, mode=0o644)


@custodian.group()
def request() -> None:
    """Requests for more, from consumers whose budget is used up."""


@request.command("list")
@loan_option
@with_remote
@json_option
@exits
def request_list(loan: str | None, remote: Remote, as_json: bool) -> None:
    """List requests, the newest first."""
    from aigovtool.cli.custodian import tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/requests", list[views.RequestView], loan=loan)
    show(found, lambda: tables.requests(found), as_json=as_json)


@request.command("ask")
@click.argument("credits", type=click.IntRange(min=1))
@click.option("--reason", default="", help="Told to whoever decides.")
@with_remote
@json_option
@exits
def request_ask(credits: int, reason: str, remote: Remote, as_json: bool) -> None:
    """Ask for credits, as a borrower (--admin URL --token-file with its token)."""
    from aigovtool.custodian.api import views

    made = remote.client().post(
        f"{V1}/requests", {"credits": credits, "reason": reason}, views.RequestView
    )
    show(made, f"asked for {made.credits} credits: {made.request} is {made.state}", as_json=as_json)


@custodian.command("borrower-token")
@loan_option
@click.option("--note", default="", help="Whose it is, for the list.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the token there."
)
@click.option("--list", "listing", is_flag=True, help="List the tokens instead of making one.")
@click.option("--revoke", metavar="BORROWER", help="End a token instead of making one.")
@with_remote
@json_option
@exits
def borrower_token(
    *,
    loan: str | None,
    note: str,
    out: Path | None,
    listing: bool,
    revoke: str | None,
    remote: Remote,
    as_json: bool,
) -> None:
    """Make a token with which a borrower reads its loan and asks for more, and nothing else."""
    from aigovtool.cli.custodian import tables
    from aigovtool.custodian.api import views

    client = remote.client()
    if revoke is not None:
        ended = client.post(f"{V1}/borrowers/{revoke}/revoke", {}, views.BorrowerView)
        show(ended, f"revoked: {ended.borrower}", as_json=as_json)
        return
    if listing:
        found = client.get(f"{V1}/borrowers", list[views.BorrowerView], loan=loan)
        show(found, lambda: tables.borrowers(found), as_json=as_json)
        return
    wanted = None if loan is None else one_loan(client, loan)
    made = client.post(f"{V1}/borrowers", {"loan": wanted, "note": note}, views.MadeBorrower)
    hand_out(made, made.token + "\n", out, as_json=as_json, mode=0o600)


@request.command("approve")
@click.argument("request")
@click.option("--credits", type=click.IntRange(min=1), help="Instead of what was asked for.")
@reason_option
@with_remote
@json_option
@exits
def request_approve(
    request: str, credits: int | None, reason: str, remote: Remote, as_json: bool
) -> None:
    """Grant what a request asks for."""
    from aigovtool.custodian.api import views

    decided = remote.client().post(
        f"{V1}/requests/{request}/approve",
        {"credits": credits, "reason": reason},
        views.RequestView,
    )
    show(decided, f"approved: {decided.granted} credits{_for_whom(decided)}", as_json=as_json)


@request.command("deny")
@click.argument("request")
@click.option("--reason", default="", help="Told to the consumer.")
@with_remote
@json_option
@exits
def request_deny(request: str, reason: str, remote: Remote, as_json: bool) -> None:
    """Refuse a request."""
    from aigovtool.custodian.api import views

    decided = remote.client().post(
        f"{V1}/requests/{request}/deny", {"reason": reason}, views.RequestView
    )
    show(decided, f"denied{_for_whom(decided)}", as_json=as_json)


def _for_whom(decided: views.RequestView) -> str:
    """Say who waited for a decision."""
    if decided.waiting_since is None:
        return ""
    queries = "1 query" if decided.waiting == 1 else f"{decided.waiting} queries"
    since = f"{decided.waiting_since:%Y-%m-%d %H:%M:%S} UTC"
    return f"; {queries} of {decided.consumer} waited since {since}"
