"""``aigovtool statement``: check what a custodian signed about a loan, from its file alone."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aigovtool.cli.output import (
    REFUSED,
    Time,
    exits,
    json_option,
    print_json,
    result,
    warn_simulated,
)

if TYPE_CHECKING:
    from aigovtool.attestation.policy import Policy
    from aigovtool.ids import LoanId
    from aigovtool.proof.receipts import Checked
    from aigovtool.proof.statement import Verified

_file = click.Path(path_type=Path, dir_okay=False)


@click.group()
def statement() -> None:
    """Check a custodian's signed account of a loan, offline."""


@statement.command()
@click.argument("file", type=_file)
@click.option(
    "--custodian-key",
    metavar="ed25519:…",
    help="The custodian's public key, if neither --policy nor --ticket says it.",
)
@click.option(
    "--policy",
    envvar="AIGOVTOOL_MANIFEST",
    show_envvar=True,
    type=_file,
    help="Your manifest.toml: names custodian and loan, and judges the evidence instead of the "
    "policy in the file.",
)
@click.option(
    "--ticket",
    envvar="AIGOVTOOL_TICKET",
    show_envvar=True,
    type=_file,
    help="Your loan.toml, as the borrower: names custodian and loan.",
)
@click.option(
    "--receipts",
    "receipt_paths",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="Receipts that you kept: each must be accounted for.",
)
@click.option(
    "--log",
    "log_where",
    metavar="DIR|URL",
    help="The custodian's transparency log, or a copy of it: it must say the same.",
)
@click.option(
    "--as-of",
    type=Time(),
    help="Judge evidence as of this time, instead of as of when the custodian judged it.",
)
@json_option
@exits
def verify(
    *,
    file: Path,
    custodian_key: str | None,
    policy: Path | None,
    ticket: Path | None,
    receipt_paths: tuple[Path, ...],
    as_of: datetime | None,
    log_where: str | None,
    as_json: bool,
) -> None:
    """
    Check a statement: signatures, sums, evidence, and the receipts that you hold.

    Exit codes: 0 all in order, 1 something is not (each is named), 2 malformed or misused.
    """
    from aigovtool.cli.log_source import open_log
    from aigovtool.proof.statement import verify_statement

    manifest = _manifest(policy)
    key, loan = _whose(custodian_key, manifest, ticket)
    verified = verify_statement(
        _read(file),
        custodian_key=key,
        loan=loan,
        policy=manifest,
        as_of=as_of,
        receipts=_receipts(receipt_paths, manifest),
        log=None if log_where is None else open_log(log_where, key),
    )
    if as_json:
        print_json(as_json_value(verified))
    else:
        _tell(verified)
    sys.exit(REFUSED if verified.findings else 0)


def _read(file: Path) -> bytes:
    from aigovtool.errors import ConfigurationError
    from aigovtool.wire.statement import MAX_STATEMENT_BYTES

    try:
        with file.open("rb") as opened:
            return opened.read(MAX_STATEMENT_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}", came=error.strerror) from None


def _manifest(policy: Path | None) -> Policy | None:
    from aigovtool.client.session import read_manifest

    return None if policy is None else read_manifest(policy)


def _whose(
    custodian_key: str | None, manifest: Policy | None, ticket: Path | None
) -> tuple[bytes, LoanId | None]:
    """Return the custodian's key, and the loan if it is said; all that is given must agree."""
    from aigovtool.crypto.signing import parse_public_key
    from aigovtool.errors import ConfigurationError
    from aigovtool.wire.ticket import read_ticket

    keys: set[bytes] = set()
    loans: set[LoanId] = set()
    if custodian_key is not None:
        keys.add(parse_public_key(custodian_key))
    if manifest is not None and manifest.custodian is not None:
        keys.add(manifest.custodian.public_key)
        loans.add(manifest.custodian.loan)
    if ticket is not None:
        given = read_ticket(ticket)
        keys.add(parse_public_key(given.custodian_key))
        loans.add(given.loan)
    if len(keys) != 1 or len(loans) > 1:
        raise ConfigurationError(
            "whose statement must it be?",
            expected="one custodian and loan, by --policy, --ticket or --custodian-key",
            came=f"{len(keys)} custodians, {len(loans)} loans",
            mend="a statement's own word on who signed it proves nothing",
        )
    return keys.pop(), loans.pop() if loans else None


def _receipts(paths: tuple[Path, ...], manifest: Policy | None) -> Checked | None:
    from aigovtool.client.receipt_store import find_files, read_files
    from aigovtool.proof.receipts import check_receipts

    if not paths:
        return None
    kept, sessions = read_files(find_files(paths))
    return check_receipts(kept, sessions, policy=manifest)


def as_json_value(verified: Verified) -> dict[str, Any]:
    """Return what came of a check, for programs."""
    said = verified.statement
    return {
        "ok": not verified.findings,
        "loan": said.loan,
        "begin": said.begin,
        "end": said.end,
        "issued": said.issued,
        "opening": said.opening,
        "closing": said.closing,
        "used": said.used,
        "grants": len(said.grants),
        "counter_signed": verified.counter_signed,
        "leases": len(said.leases),
        "settlements": len(verified.settlements),
        "forfeited": [_forfeited(line) for line in _all_forfeited(verified)],
        "recovered": [line.lease for line in said.leases if line.recovered],
        "decisions": said.decisions,
        "sessions": [
            {
                "session": line.session,
                "tee": line.tee,
                "measurement": line.measurement,
                "attested": line.session in verified.evidence,
                "simulated": line.session in verified.evidence
                and verified.evidence[line.session].simulated,
                "stopped": line.stop_proof is not None,
            }
            for line in said.sessions
        ],
        "receipts": verified.covered,
        "logged": verified.logged,
        "findings": verified.findings,
    }


def _forfeited(line: Any) -> dict[str, Any]:
    return {
        "lease": line.lease,
        "session": line.session,
        "credits": line.credits,
        "forfeited": line.forfeited,
        "refunded": line.refunded,
        "settled": line.settlement is not None,
    }


def _all_forfeited(verified: Verified) -> list[Any]:
    return [line for line in verified.statement.leases if line.forfeited is not None]


def _tell(verified: Verified) -> None:
    from aigovtool.cli.findings import count_of, plain, tell

    said = verified.statement
    if any(seen.simulated for seen in verified.evidence.values()):
        warn_simulated()

    def line(label: str, text: str) -> None:
        result.print(plain(f"{label:<10} {text}"))

    line("loan", f"{said.loan}, from {said.begin:%FT%TZ} to {said.end:%FT%TZ}")
    for label, balance in (("opening", said.opening), ("closing", said.closing)):
        line(
            label,
            f"{balance.granted} granted = {balance.left} left + {balance.leased} leased + "
            f"{balance.spent} spent + {balance.forfeited} forfeited",
        )
    line(
        "moves",
        f"{len(said.grants)} grants, {verified.counter_signed} of them counter-signed by enclaves, "
        f"{len(said.leases)} leases, "
        f"{len(verified.settlements)} signed settlements, {sum(said.used.values())} credits used",
    )
    for lease in _all_forfeited(verified):
        after = "settled late" if lease.settlement else "refunded" if lease.refunded else "charged"
        line("forfeited", f"{lease.lease}: {lease.credits} credits, {after}")
    for lease in said.leases:
        if lease.recovered:
            word = "settled" if lease.settlement else "charged"
            line("recovered", f"{lease.lease}: {lease.credits} credits, {word}, by reconciliation")
    for decision in said.decisions:
        reason = decision.detail.get("reason", "")
        who = decision.session or decision.consumer or ""
        line("decided", f"{decision.time:%FT%TZ} {decision.kind} {who} {reason}".rstrip())
    line("sessions", f"{len(said.sessions)}, {len(verified.evidence)} with evidence that holds")
    if verified.covered is not None:
        outside = verified.covered.outside
        line(
            "receipts",
            f"{verified.covered.counted} accounted for"
            + (f", {outside} of other spans" if outside else ""),
        )
    if verified.logged is not None:
        line("log", f"{verified.logged} entries of this loan")
    tell(verified.findings)
    if verified.findings:
        result.print(count_of(verified.findings), style="bold red")
    else:
        result.print("all in order", style="green")
