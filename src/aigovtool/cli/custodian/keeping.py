"""``backup``, ``restore`` and ``reconcile``: keep a ledger, and make one safe that was put back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aigovtool.cli.custodian.group import custodian
from aigovtool.cli.custodian.remote import (
    V1,
    Remote,
    data_option,
    mark_option,
    master_key_option,
    reason_option,
    show,
    with_remote,
)
from aigovtool.cli.output import exits, json_option, talk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from aigovtool.custodian.evidence import Shown
    from aigovtool.custodian.reconciling import Reconciled

LOOK_EVERY_S = 0.5


@custodian.command()
@data_option
@click.option(
    "--output",
    "to",
    required=True,
    type=click.Path(path_type=Path),
    help="A new folder.",
)
@json_option
@exits
def backup(data: Path, to: Path, as_json: bool) -> None:
    """Copy ledger, tokens and sealed models into a folder, while the server may run."""
    from aigovtool.custodian.backup import back_up
    from aigovtool.custodian.data import DataFolder

    size = back_up(DataFolder(data), to)
    show({"backup": str(to), "bytes": size}, f"backed up to {to} ({size} bytes)", as_json=as_json)
    talk.print("the master key is not in it: keep a copy of that elsewhere, and apart")


@custodian.command()
@click.argument("backup", type=click.Path(path_type=Path, exists=True, file_okay=False))
@data_option
@json_option
@exits
def restore(backup: Path, data: Path, as_json: bool) -> None:
    """Put BACKUP into a new data folder. Nothing is lent from it until it is reconciled."""
    from aigovtool.clock import SystemClock
    from aigovtool.custodian.backup import restore as put_back
    from aigovtool.custodian.data import DataFolder

    put_back(backup, DataFolder(data), now=SystemClock().now())
    show({"data": str(data), "held": True}, f"restored into {data}", as_json=as_json)
    talk.print(f"put the master key beside it, then: aigovtool custodian serve --data {data}")
    talk.print(
        "what was leased since the backup is not known: the ledger is held, until "
        f"aigovtool custodian reconcile --data {data}"
    )


@custodian.command()
@data_option
@master_key_option
@mark_option
@click.option(
    "--receipts",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Receipts that consumers kept: a file, or a folder of them. May be repeated.",
)
@click.option(
    "--wait",
    "wait_s",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds to wait for enclaves to hand in settlements, while the custodian serves.",
)
@click.option("--apply", is_flag=True, help="Do it. Without this, only show what it would do.")
@reason_option
@json_option
@exits
def reconcile(
    *,
    data: Path,
    master_key_file: Path | None,
    mark: Path | None,
    receipts: tuple[Path, ...],
    wait_s: float,
    apply: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Charge what a rolled-back ledger may have leased, and let it be served again."""
    from aigovtool.cli.custodian import tables

    shown = _read(receipts)
    with _reconciler(data, mark, master_key_file, wait_s=wait_s) as run:
        done = run(shown, apply, reason)

    def told() -> RenderableType:
        return tables.reconciled(done)

    show(done, told, as_json=as_json)
    if done.applied:
        talk.print("the ledger is served again; its loans are stopped until you resume them:")
        talk.print(
            "  look at consumers, blocks and tickets first, since changes may have been lost"
        )
        talk.print(f"  then aigovtool custodian loan resume LOAN --data {data}")
    else:
        talk.print("nothing was changed; add --apply --reason TEXT to do it")


@contextmanager
def _reconciler(
    data: Path, mark: Path | None, master_key_file: Path | None, *, wait_s: float
) -> Iterator[Callable[[Shown, bool, str], Reconciled]]:
    """Lend what reconciles: the running server by its API, else the folder itself."""
    from aigovtool.clock import SystemClock
    from aigovtool.custodian import files
    from aigovtool.custodian.api import views
    from aigovtool.custodian.app import open_custodian
    from aigovtool.custodian.data import DataFolder
    from aigovtool.custodian.reconciling import Reconciled
    from aigovtool.errors import ConflictError

    try:
        with open_custodian(
            DataFolder(data),
            clock=SystemClock(),
            environ=os.environ,
            master_key_file=master_key_file,
            mark=mark,
        ) as app:

            def here(shown: Shown, apply: bool, reason: str) -> Reconciled:
                done = app.reconciling.run(shown, apply=apply, actor="admin", reason=reason)
                if done.applied:
                    app.adopt_log(actor="admin")
                return done

            yield here
            return
    except ConflictError as error:
        if error.reasons[0].code != files.FOLDER_IN_USE:
            raise
    client = Remote(data, None, None, None).client()

    def there(shown: Shown, apply: bool, reason: str) -> Reconciled:
        def ask(really: bool) -> Reconciled:
            return client.post(
                f"{V1}/reconciliation",
                views.Reconcile(apply=really, reason=reason, shown=shown),
                Reconciled,
            )

        seen, until_s = ask(False), time.monotonic() + wait_s
        while time.monotonic() < until_s:
            time.sleep(LOOK_EVERY_S)
            now = ask(False)
            if now.handed_in > seen.handed_in:
                talk.print(f"{now.handed_in} settlements were handed in")
            seen = now
        return ask(True) if apply else seen

    yield there


def _read(paths: tuple[Path, ...]) -> Shown:
    from aigovtool.client.receipt_store import find_files, read_files
    from aigovtool.custodian.evidence import Shown
    from aigovtool.wire.codec import MAX_MESSAGE_BYTES, decode
    from aigovtool.wire.enrolment import AttestationDocument

    receipts, sessions = read_files(find_files(paths))
    statements = [
        decode(kept.document, AttestationDocument, max_bytes=MAX_MESSAGE_BYTES).statement
        for kept in sessions.values()
    ]
    return Shown(
        receipts=tuple(one.signed for one in receipts if one.signed is not None),
        statements=tuple(statements),
    )


@custodian.command()
@with_remote
@json_option
@exits
def hold(remote: Remote, as_json: bool) -> None:
    """Say whether the ledger is held because it was rolled back, and why."""
    from aigovtool.custodian.api import views

    now = remote.client().get(f"{V1}/hold", views.HoldView)
    show(now, f"held: {now.reason}" if now.held else "not held", as_json=as_json)
