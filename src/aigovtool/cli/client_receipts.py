"""``aigovtool client receipts``: what was kept, and whether it holds together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aigovtool.cli.output import REFUSED, exits, json_option, print_json, result, warn_simulated

if TYPE_CHECKING:
    from aigovtool.attestation.policy import Policy
    from aigovtool.channel.judge import VerifiedEnclave
    from aigovtool.proof.receipts import Checked
    from aigovtool.wire.receipt import Receipt

LISTED = 50

receipts_option = click.option(
    "--receipts",
    "folder",
    envvar="AIGOVTOOL_RECEIPTS",
    show_envvar=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to keep receipts in.  [default: aigovtool/receipts in XDG_STATE_HOME]",
)


@click.group(invoke_without_command=True)
@receipts_option
@json_option
@click.pass_context
@exits
def receipts(context: click.Context, *, folder: Path | None, as_json: bool) -> None:
    """Show the receipts that were kept, and check them offline."""
    if context.invoked_subcommand is None:
        _list(folder, LISTED, as_json=as_json)


@receipts.command("list")
@receipts_option
@click.option(
    "--limit", type=click.IntRange(min=1), default=LISTED, show_default=True, help="The newest."
)
@json_option
@exits
def list_(*, folder: Path | None, limit: int, as_json: bool) -> None:
    """List the newest receipts, the newest last; they are shown, not checked."""
    _list(folder, limit, as_json=as_json)


@receipts.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="[FILES/DIR]...")
@receipts_option
@click.option(
    "--manifest",
    envvar="AIGOVTOOL_MANIFEST",
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Judge the sessions by this manifest.toml, instead of the one kept with each; without "
    "FILES, look at the receipts of its loan only.",
)
@click.option(
    "--log",
    "log_where",
    metavar="DIR|URL",
    help="The custodian's transparency log, or a copy of it: every lease must be in it. "
    "Needs --manifest, which says by whose key.",
)
@json_option
@exits
def check(
    *,
    paths: tuple[Path, ...],
    folder: Path | None,
    manifest: Path | None,
    log_where: str | None,
    as_json: bool,
) -> None:
    """
    Check receipts offline: signatures by attested keys, balances, gaps, forks.

    Exit codes: 0 all in order, 1 something is not (each is named), 2 malformed or misused.
    """
    from aigovtool.client.receipt_store import find_files, read_files
    from aigovtool.client.session import read_manifest
    from aigovtool.errors import ConfigurationError
    from aigovtool.proof.receipts import check_receipts

    policy = None if manifest is None else read_manifest(manifest)
    files = find_files(paths or (_kept(folder, policy),))
    kept, sessions = read_files(files)
    if not kept:
        raise ConfigurationError("there are no receipts to check", came=f"{len(files)} files")
    checked = check_receipts(kept, sessions, policy=policy)
    if log_where is not None:
        checked = _logged(checked, policy, log_where)
    if as_json:
        print_json(as_json_value(checked))
    else:
        _tell(checked)
    sys.exit(REFUSED if checked.findings else 0)


def _logged(checked: Checked, policy: Policy | None, where: str) -> Checked:
    """Hold receipts against the log of the custodian that the manifest names."""
    from dataclasses import replace

    from aigovtool.cli.log_source import open_log
    from aigovtool.errors import ConfigurationError
    from aigovtool.proof.findings import Findings
    from aigovtool.proof.logged import check_receipts_logged, read_log

    if policy is None:
        raise ConfigurationError("by whose key is the log?", mend="give --manifest")
    custodian = policy.require_custodian()
    log = open_log(where, custodian.public_key)
    findings = Findings()
    logged = read_log(log, custodian.loan, findings)
    check_receipts_logged(checked.genuine, logged, findings)
    return replace(checked, findings=(*checked.findings, *findings.all()))


def as_json_value(checked: Checked) -> dict[str, Any]:
    """Return what came of a check, for programs."""
    return {
        "ok": not checked.findings,
        "receipts": len(checked.genuine),
        "cost": checked.cost,
        "sessions": [_session(checked, enclave) for enclave in checked.sessions.values()],
        "findings": checked.findings,
    }


def _session(checked: Checked, enclave: VerifiedEnclave) -> dict[str, Any]:
    from aigovtool.crypto.signing import format_public_key

    session = enclave.statement.session
    of_it = [each.receipt for each in checked.genuine if each.receipt.session == session]
    return {
        "session": session,
        "loan": enclave.loan,
        "custodian": format_public_key(enclave.custodian_key),
        "model": enclave.model.digest.hex(),
        "tee": enclave.attestation.tee,
        "simulated": enclave.simulated,
        "measurement": enclave.attestation.measurement,
        "judged": enclave.judged,
        "receipts": len(of_it),
        "cost": sum(one.cost for one in of_it),
    }


def _tell(checked: Checked) -> None:
    from aigovtool.cli.findings import count_of, tell
    from aigovtool.crypto.signing import fingerprint

    if any(enclave.simulated for enclave in checked.sessions.values()):
        warn_simulated()
    for enclave in checked.sessions.values():
        of_it = _session(checked, enclave)
        result.print(
            f"{of_it['session']}: {of_it['receipts']} receipts, {of_it['cost']} credits, custodian "
            f"{fingerprint(enclave.custodian_key)}",
            markup=False,
        )
    tell(checked.findings)
    if checked.findings:
        result.print(count_of(checked.findings), style="bold red")
    else:
        result.print(f"{len(checked.genuine)} receipts, {checked.cost} credits: all in order")


def _list(folder: Path | None, limit: int, *, as_json: bool) -> None:
    from aigovtool.client.receipt_store import find_files, read_files
    from aigovtool.errors import MalformedError
    from aigovtool.wire.codec import decode
    from aigovtool.wire.receipt import Receipt, to_header

    where = _kept(folder, None)
    kept, _ = read_files(find_files([where]) if where.exists() else [])
    found: list[tuple[Receipt, str]] = []
    for each in kept:
        try:
            if each.signed is not None:
                found.append((decode(each.signed.payload, Receipt), to_header(each.signed)))
        except MalformedError:
            continue  # `check` names it
    found.sort(key=lambda pair: (pair[0].time, pair[0].number))
    del found[:-limit]
    if as_json:
        print_json([{"receipt": said, "header": header} for said, header in found])
        return
    for said, _ in found:
        result.print(
            f"{said.time:%FT%TZ}  {said.loan}  {said.session}  #{said.number} ({said.own_number} "
            f"of {said.consumer})  cost {said.cost}  {said.balance_after} left in {said.lease}",
            markup=False,
        )
    if not found:
        result.print(f"no receipts in {where}", markup=False)


def _kept(folder: Path | None, policy: Policy | None) -> Path:
    from aigovtool.client.receipt_store import default_folder

    base = folder or default_folder()
    return base if policy is None else base / policy.require_custodian().loan
