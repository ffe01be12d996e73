"""``custodian log``: the transparency log from its keeper's side."""

from __future__ import annotations

import os
from pathlib import Path

import click

from aigovtool.cli.custodian.group import custodian
from aigovtool.cli.custodian.remote import (
    V1,
    Remote,
    data_option,
    hand_out,
    master_key_option,
    show,
    with_remote,
)
from aigovtool.cli.output import exits, json_option, print_json, talk


@custodian.group()
def log() -> None:
    """See how far the transparency log is, and open its entries to whoever is entitled."""


@log.command()
@with_remote
@json_option
@exits
def status(remote: Remote, as_json: bool) -> None:
    """Show how much of the ledger is signed and published, and the log's key."""
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/log", views.LogStatusView)
    published = "none" if found.published is None else str(found.published)
    show(
        found,
        f"{found.size} entries signed, {published} published, {found.pending} events to come\n"
        f"root {found.root}\nkey  {found.key}",
        as_json=as_json,
    )


@log.command()
@click.argument("event", type=click.IntRange(min=1))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it there (*.tlog-proof), instead of to stdout.",
)
@with_remote
@json_option
@exits
def opening(event: int, out: Path | None, remote: Remote, as_json: bool) -> None:
    """Prove that EVENT is in the log, and show what its entry hides: who, whose, why.

    Give the file to whom the event concerns; `aigovtool log verify-proof` checks it offline.
    """
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/log/proofs/{event}", views.LogProofView)
    hand_out(found, found.proof, out, as_json=as_json, mode=0o600)


@log.command()
@data_option
@master_key_option
@click.option("--database", metavar="URL", help="The ledger, instead of DIR/ledger.db.")
@json_option
@exits
def adopt(data: Path, master_key_file: Path | None, database: str | None, as_json: bool) -> None:
    """Take back from DIR/log what a ledger restored from an older copy has lost of it.

    While no server runs. The published entries are checked, whole, before any is taken; the log
    then goes on and never forks. It brings back no credits, leases or grants.
    """
    from aigovtool.clock import SystemClock
    from aigovtool.custodian.app import open_custodian
    from aigovtool.custodian.data import DataFolder

    with open_custodian(
        DataFolder(data),
        clock=SystemClock(),
        environ=os.environ,
        master_key_file=master_key_file,
        database=database,
    ) as app:
        back = app.logbook.adopt(actor="admin")
    if as_json:
        print_json({"adopted": back})
    elif back:
        talk.print(f"{back} entries that the ledger had lost are in its log again")
    else:
        talk.print("nothing to take back: the ledger has all that was published")
