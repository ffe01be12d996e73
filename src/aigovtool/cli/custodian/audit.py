"""``custodian audit``: the ledger's events, whole, for auditors."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import click

from aigovtool.cli.custodian.group import custodian
from aigovtool.cli.custodian.remote import V1, Remote, loan_option, one_loan, with_remote
from aigovtool.cli.output import Time, exits, json_option, print_json, talk


@custodian.group()
def audit() -> None:
    """Every decision, for auditors."""


@audit.command("export")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="One JSON object a line, or CSV whose cells no spreadsheet computes.",
)
@loan_option
@click.option("--since", type=Time(), help="Those from then on.")
@click.option("--until", type=Time(), help="Those before then.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file, whole or not there at all, instead of stdout.",
)
@with_remote
@json_option
@exits
def audit_export(
    *,
    form: str,
    loan: str | None,
    since: datetime | None,
    until: datetime | None,
    output: Path | None,
    remote: Remote,
    as_json: bool,
) -> None:
    """Write all events as the ledger has them, the oldest first; all loans unless one is named."""
    from aigovtool.custodian.api import views
    from aigovtool.custodian.audit import events_of, lines
    from aigovtool.errors import ConfigurationError

    if as_json and output is None:
        raise ConfigurationError("--json tells of a file", mend="name one with --output")
    client = remote.client()
    of = None if loan is None else one_loan(client, loan)

    def page(after: int, limit: int) -> list[views.EventView]:
        return client.get(f"{V1}/events", list[views.EventView], loan=of, after=after, limit=limit)

    newest = client.get(f"{V1}/events", list[views.EventView], loan=of, limit=1)
    last = newest[-1].number if newest else 0
    count = 0
    with _sink(output) as sink:
        for line in lines(events_of(page, last=last, since=since, until=until), form):
            sink.write(line)
            count += 1
    count -= form == "csv"  # its heading
    if as_json:
        print_json({"events": count, "last": last, "output": str(output)})
    elif output is not None:
        talk.print(f"wrote {count} events to {output}")


@contextlib.contextmanager
def _sink(output: Path | None) -> Iterator[BinaryIO]:
    """Lend where lines go; a file appears under its name only when it is whole."""
    from aigovtool.custodian import files

    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = output.with_name(output.name + ".part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(output)
    except OSError as error:
        raise files.unwritable(output, error) from None
    finally:
        part.unlink(missing_ok=True)
