"""Events, consumption, the worst case, and the live table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aigovtool.cli.custodian.group import custodian
from aigovtool.cli.custodian.remote import (
    V1,
    Remote,
    loan_option,
    show,
    with_remote,
)
from aigovtool.cli.output import exits, json_option, print_json, result

if TYPE_CHECKING:
    pass


@custodian.command()
@loan_option
@click.option("--after", type=click.IntRange(min=0), help="Those after this number.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=500, show_default=True)
@with_remote
@json_option
@exits
def events(loan: str | None, after: int | None, limit: int, remote: Remote, as_json: bool) -> None:
    """List decisions, the newest last."""
    from aigovtool.cli.custodian import tables
    from aigovtool.custodian.api import views

    found = remote.client().get(
        f"{V1}/events", list[views.EventView], loan=loan, after=after, limit=limit
    )
    show(found, lambda: tables.events(found), as_json=as_json)


@custodian.command()
@loan_option
@with_remote
@json_option
@exits
def consumption(loan: str | None, remote: Remote, as_json: bool) -> None:
    """Show how much was used and by whom."""
    from aigovtool.cli.custodian import tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/consumption", list[views.ConsumptionView], loan=loan)
    show(found, lambda: tables.consumption(found), as_json=as_json)


@custodian.command()
@loan_option
@with_remote
@json_option
@exits
def exposure(loan: str | None, remote: Remote, as_json: bool) -> None:
    """Show the worst case: what can still be used if a loan is stopped now."""
    from aigovtool.cli.custodian import tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/consumption", list[views.ConsumptionView], loan=loan)
    if as_json:
        print_json([{"loan": one.loan, "exposure": one.exposure} for one in found])
        return
    for one in found:
        result.print(f"{one.name}: {tables.worst_case(one.exposure)}")


@custodian.command()
@with_remote
@json_option
@exits
def watch(remote: Remote, as_json: bool) -> None:
    """Follow consumption live until Ctrl-C; with --json one snapshot a line."""
    from aigovtool.custodian.api import views

    snapshots = remote.client().follow(f"{V1}/watch", views.Snapshot)
    if as_json:
        import msgspec

        for now in snapshots:
            click.echo(msgspec.json.encode(now).decode())
        return
    from rich.live import Live

    from aigovtool.cli.custodian import tables

    with Live(console=result, auto_refresh=False, screen=result.is_terminal) as live:
        for now in snapshots:
            live.update(tables.snapshot(now), refresh=True)
