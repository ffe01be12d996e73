"""Models, loans and consumers: what is lent, to whom, on which terms."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aigovtool.cli.custodian.group import custodian
from aigovtool.cli.custodian.options import ModelTerms, OrNone, with_model_terms
from aigovtool.cli.custodian.remote import (
    POLICY_MEND,
    V1,
    Remote,
    data_option,
    database_option,
    hand_out,
    loan_argument,
    loan_option,
    loan_text,
    mark_option,
    master_key_option,
    model_digest,
    one_consumer,
    one_loan,
    reason_option,
    sealing_bar,
    show,
    with_remote,
)
from aigovtool.cli.output import exits, json_option, print_json, talk

if TYPE_CHECKING:
    from aigovtool.custodian.api import views
    from aigovtool.custodian.upload import Upload

SEALING_S = 3600.0  # for the server to seal a model

DATES = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"])
rate_option = click.option(
    "--rate", metavar="N/UNIT", help="At most N credits per s, min, hour or day, on all enclaves."
)
concurrency_option = click.option(
    "--concurrency", type=click.IntRange(min=1), help="Queries at one time, on all enclaves."
)
evictable_option = click.option(
    "--evictable/--no-evictable",
    default=None,
    help="Whether an enclave may let the idle model make room for another loan's (by default not).",
)


def _given(**options: object) -> dict[str, object]:
    """Return the options that were given, with None for the word that takes one away."""
    return {
        name: None
        if value == ""
        else value.replace(tzinfo=UTC)
        if isinstance(value, datetime)
        else value
        for name, value in options.items()
        if value is not None
    }


set_rate_option = click.option(
    "--rate", type=OrNone(click.STRING, "none"), help="N/s, N/min, N/hour, N/day, or none."
)
set_concurrency_option = click.option(
    "--concurrency",
    type=OrNone(click.IntRange(min=1), "none"),
    help="Queries at one time, on all enclaves, or none.",
)
set_expires_option = click.option(
    "--expires", type=OrNone(DATES, "never"), help="In UTC, or never."
)


@custodian.group()
def model() -> None:
    """Sealed models."""


@model.command("seal")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@data_option
@master_key_option
@mark_option
@click.option("--interface", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model-name", help="Instead of the file's name.")
@click.option("--model-version", default="1", show_default=True)
@database_option
@json_option
@exits
def model_seal(
    *,
    path: Path,
    data: Path,
    master_key_file: Path | None,
    mark: Path | None,
    interface: Path | None,
    model_name: str | None,
    model_version: str,
    database: str | None,
    as_json: bool,
) -> None:
    """Seal an ONNX or GGUF model and register it; a server on the folder does it itself."""
    from aigovtool.clock import SystemClock
    from aigovtool.custodian import files
    from aigovtool.custodian.api import views
    from aigovtool.custodian.app import open_custodian
    from aigovtool.custodian.data import DataFolder
    from aigovtool.custodian.upload import Upload
    from aigovtool.errors import ConflictError

    wanted = Upload(path=path, name=model_name, version=model_version, interface=interface)
    try:
        with (
            open_custodian(
                DataFolder(data),
                clock=SystemClock(),
                environ=os.environ,
                master_key_file=master_key_file,
                mark=mark,
                database=database,
            ) as app,
            sealing_bar(path) as progress,
        ):
            view = views.model_view(app.uploads.upload(wanted, actor="admin", progress=progress))
    except ConflictError as error:
        if error.reasons[0].code != files.FOLDER_IN_USE:
            raise
        talk.print("the server that runs on this folder seals it")
        view = _sealed_by_server(data, wanted)
    show(view, f"sealed {view.name}: {view.model}", as_json=as_json)


def _sealed_by_server(data: Path, wanted: Upload) -> views.ModelView:
    from aigovtool.custodian.api import views

    remote = Remote(data=data, admin=None, token_file=None, authority=None)
    described = {
        "path": str(wanted.path.resolve()),
        "name": wanted.name,
        "version": wanted.version,
        "interface": None if wanted.interface is None else str(wanted.interface.resolve()),
    }
    client = remote.client(timeout_s=SEALING_S)
    return client.post(f"{V1}/models", described, views.ModelView)


@model.command("list")
@with_remote
@json_option
@exits
def model_list(remote: Remote, as_json: bool) -> None:
    """List sealed models."""
    from aigovtool.cli.custodian import tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/models", list[views.ModelView])
    show(found, lambda: tables.models(found), as_json=as_json)


@custodian.group()
def loan() -> None:
    """Loans: what is lent to whom, under which terms."""


@loan.command("create")
@click.option("--name", required=True, help="For people; one loan has it.")
@click.option("--model", "model_wanted", required=True, help="Name, NAME:VERSION or digest.")
@click.option("--credits", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--policy", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--expires", type=DATES, help="In UTC.")
@click.option("--max-enclaves", type=click.IntRange(min=1))
@click.option("--max-lease-credits", type=click.IntRange(min=1))
@click.option("--lease-duration", type=click.FloatRange(min=0), help="Seconds.")
@click.option("--settle-grace", type=click.FloatRange(min=0), help="Seconds.")
@click.option("--wipe-after", type=click.FloatRange(min=1), help="Seconds.")
@click.option(
    "--reattest-interval",
    type=click.FloatRange(min=0),
    help="Seconds after which an enclave proves again what it is; 0 for never.",
)
@rate_option
@concurrency_option
@with_model_terms(change=False)
@evictable_option
@click.option("--ticket", "ticket_file", type=click.Path(path_type=Path), help="Write loan.toml.")
@click.option("--manifest", "manifest_file", type=click.Path(path_type=Path))
@with_remote
@json_option
@exits
def loan_create(
    *,
    name: str,
    model_wanted: str,
    credits: int,
    policy: Path | None,
    expires: datetime | None,
    max_enclaves: int | None,
    max_lease_credits: int | None,
    lease_duration: float | None,
    settle_grace: float | None,
    wipe_after: float | None,
    reattest_interval: float | None,
    rate: str | None,
    concurrency: int | None,
    model_terms: ModelTerms,
    evictable: bool | None,
    ticket_file: Path | None,
    manifest_file: Path | None,
    remote: Remote,
    as_json: bool,
) -> None:
    """Lend a sealed model; prints or writes the ticket, which is shown this once."""
    from aigovtool.custodian import files
    from aigovtool.custodian.api import views

    client = remote.client()
    wanted = {
        "name": name,
        "model": model_digest(client, model_wanted),
        "credits": credits,
        "policy": None if policy is None else files.read_text(policy, mend=POLICY_MEND),
        "expires": None if expires is None else expires.replace(tzinfo=UTC),
        "max_enclaves": max_enclaves,
        "max_lease_credits": max_lease_credits,
        "lease_duration_s": lease_duration,
        "settle_grace_s": settle_grace,
        "wipe_after_s": wipe_after,
        "reattest_interval_s": reattest_interval,
        "rate": rate,
        "concurrency": concurrency,
        **model_terms.to_json(),
        "evictable": evictable,
    }
    given = {field: value for field, value in wanted.items() if value is not None}
    made = client.post(f"{V1}/loans", given, views.MadeLoan)
    for path, text, mode in (
        (ticket_file, made.ticket, files.PRIVATE),
        (manifest_file, made.manifest, 0o644),
    ):
        if path is not None:
            files.write_whole(path, text, mode=mode)
    if as_json:
        print_json(made)
        return
    talk.print(f"lent as {made.loan.loan}")
    if ticket_file is None:
        click.echo(made.ticket, nl=False)


@loan.command("list")
@with_remote
@json_option
@exits
def loan_list(remote: Remote, as_json: bool) -> None:
    """List loans with their accounts."""
    from aigovtool.cli.custodian import tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/loans", list[views.LoanView])
    show(found, lambda: tables.loans(found), as_json=as_json)


@loan.command("show")
@loan_argument
@with_remote
@json_option
@exits
def loan_show(loan: str | None, remote: Remote, as_json: bool) -> None:
    """Show one loan, and the worst case if it is stopped now."""
    from aigovtool.custodian.api import views

    client = remote.client()
    found = client.get(f"{V1}/loans/{one_loan(client, loan)}", views.LoanView)
    show(found, lambda: loan_text(found), as_json=as_json)


@loan.command("set")
@loan_argument
@set_rate_option
@set_concurrency_option
@set_expires_option
@click.option("--lease-duration", type=click.FloatRange(min=0), help="Seconds.")
@click.option("--max-lease-credits", type=click.IntRange(min=1))
@click.option("--max-enclaves", type=click.IntRange(min=1))
@with_model_terms(change=True)
@evictable_option
@with_remote
@json_option
@exits
def loan_set(
    *,
    loan: str | None,
    rate: str | None,
    concurrency: object,
    expires: object,
    lease_duration: float | None,
    max_lease_credits: int | None,
    max_enclaves: int | None,
    model_terms: ModelTerms,
    evictable: bool | None,
    remote: Remote,
    as_json: bool,
) -> None:
    """Change a loan's terms from now on; leases that live, live on."""
    from aigovtool.custodian.api import views

    client = remote.client()
    wanted = _given(
        rate=rate,
        concurrency=concurrency,
        expires=expires,
        lease_duration_s=lease_duration,
        max_lease_credits=max_lease_credits,
        max_enclaves=max_enclaves,
        evictable=evictable,
    )
    wanted |= model_terms.to_json()
    changed = client.post(f"{V1}/loans/{one_loan(client, loan)}/terms", wanted, views.LoanView)
    show(changed, lambda: loan_text(changed), as_json=as_json)


@loan.command("replace-model")
@loan_argument
@click.option("--model", "model_wanted", required=True, help="Name, NAME:VERSION or digest.")
@click.option(
    "--retire-after",
    default=3600.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds for which the older one may still be served; 0 for not at all.",
)
@click.option("--reason", default="", help="For the ledger and its log.")
@with_remote
@json_option
@exits
def loan_replace_model(
    *,
    loan: str | None,
    model_wanted: str,
    retire_after: float,
    reason: str,
    remote: Remote,
    as_json: bool,
) -> None:
    """
    Lend another sealed model from now on.

    An enclave that serves the older one fetches and loads the other beside it, and then takes it
    over without failing a query.
    """
    from aigovtool.custodian.api import views

    client = remote.client()
    wanted = {
        "model": model_digest(client, model_wanted),
        "retire_after_s": retire_after,
        "reason": reason,
    }
    changed = client.post(f"{V1}/loans/{one_loan(client, loan)}/model", wanted, views.LoanView)
    show(
        changed,
        lambda: f"{changed.name} lends {changed.model_name} {changed.model_version} from now on",
        as_json=as_json,
    )


@loan.command("ticket")
@loan_argument
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Instead of stdout.")
@with_remote
@json_option
@exits
def loan_ticket(loan: str | None, out: Path | None, remote: Remote, as_json: bool) -> None:
    """Replace a loan's ticket; the old one opens nothing more."""
    from aigovtool.custodian.api import views

    client = remote.client()
    made = client.post(f"{V1}/loans/{one_loan(client, loan)}/ticket", {}, views.TicketView)
    hand_out(made, made.ticket, out, as_json=as_json, mode=0o600)


@loan.command("manifest")
@loan_argument
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Instead of stdout.")
@with_remote
@json_option
@exits
def loan_manifest(loan: str | None, out: Path | None, remote: Remote, as_json: bool) -> None:
    """Print the manifest.toml for a loan's consumers."""
    from aigovtool.custodian.api import views

    client = remote.client()
    found = client.get(f"{V1}/loans/{one_loan(client, loan)}/manifest", views.ManifestView)
    hand_out(found, found.manifest, out, as_json=as_json, mode=0o644)


def _loan_command(name: str, about: str, *, has_reason: bool) -> None:
    """Make a command that moves a loan: under ``loan``, and the same one under ``custodian``."""

    def move(loan: str | None, remote: Remote, as_json: bool, reason: str = "") -> None:
        from aigovtool.custodian.api import views

        client = remote.client()
        path = f"{V1}/loans/{one_loan(client, loan)}/{name}"
        moved = client.post(path, {"reason": reason}, views.LoanView)
        show(moved, lambda: loan_text(moved), as_json=as_json)

    move.__doc__ = about
    made = loan_argument(with_remote(json_option(exits(move))))
    made = reason_option(made) if has_reason else made
    command = click.command(name)(made)
    for group in (loan, custodian):
        group.add_command(command)


_loan_command("stop", "Stop a loan: its enclaves wipe the model at once.", has_reason=True)
_loan_command("resume", "Let enclaves enrol again under a stopped loan.", has_reason=False)
_loan_command("close", "End a loan for good.", has_reason=True)


@custodian.group()
def consumer() -> None:
    """Consumers: who may query."""


@consumer.command("create")
@click.option("--name", required=True, help="For people; one consumer of the loan has it.")
@click.option("--budget", type=click.IntRange(min=0), help="Credits of its own within the loan's.")
@click.option(
    "--per",
    type=click.Choice(["day", "month"]),
    help="Begin that budget anew with each day or month, in UTC.",
)
@rate_option
@concurrency_option
@click.option("--expires", type=DATES, help="From when on it is refused, in UTC.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the key here.")
@loan_option
@with_remote
@json_option
@exits
def consumer_create(
    *,
    name: str,
    budget: int | None,
    per: str | None,
    rate: str | None,
    concurrency: int | None,
    expires: datetime | None,
    out: Path | None,
    loan: str | None,
    remote: Remote,
    as_json: bool,
) -> None:
    """Make a consumer; prints or writes its API key, which is shown this once."""
    from aigovtool.custodian.api import views

    wanted = {
        "name": name,
        "budget": budget,
        "loan": loan,
        "per": per,
        "rate": rate,
        "concurrency": concurrency,
        "expires": None if expires is None else expires.replace(tzinfo=UTC),
    }
    made = remote.client().post(f"{V1}/consumers", wanted, views.MadeConsumer)
    if not as_json:
        talk.print(f"made {made.consumer.consumer}")
    hand_out(made, made.api_key + "\n", out, as_json=as_json, mode=0o600)


@consumer.command("set")
@click.argument("consumer")
@click.option("--budget", type=click.IntRange(min=0), help="Of each period, from the next one on.")
@click.option(
    "--per",
    type=OrNone(click.Choice(["day", "month"]), "never"),
    help="Begin its budget anew with each day or month, in UTC, or never.",
)
@set_rate_option
@set_concurrency_option
@set_expires_option
@with_remote
@json_option
@exits
def consumer_set(
    *,
    consumer: str,
    budget: int | None,
    per: object,
    rate: str | None,
    concurrency: object,
    expires: object,
    remote: Remote,
    as_json: bool,
) -> None:
    """Change a consumer's (id or name) terms; its limits and date from now on."""
    from aigovtool.cli.custodian import tables
    from aigovtool.custodian.api import views

    client = remote.client()
    wanted = _given(budget=budget, per=per, rate=rate, concurrency=concurrency, expires=expires)
    path = f"{V1}/consumers/{one_consumer(client, consumer)}/terms"
    changed = client.post(path, wanted, views.ConsumerView)
    show(changed, lambda: tables.consumers([changed]), as_json=as_json)


@consumer.command("list")
@loan_option
@with_remote
@json_option
@exits
def consumer_list(loan: str | None, remote: Remote, as_json: bool) -> None:
    """List consumers, blocked ones too."""
    from aigovtool.cli.custodian import tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/consumers", list[views.ConsumerView], loan=loan)
    show(found, lambda: tables.consumers(found), as_json=as_json)


def _consumer_command(name: str, about: str, *, has_reason: bool) -> None:
    """Make a command on a consumer: under ``consumer``, and the same one under ``custodian``."""

    def change(consumer: str, remote: Remote, as_json: bool, reason: str = "") -> None:
        from aigovtool.custodian.api import views

        client = remote.client()
        path = f"{V1}/consumers/{one_consumer(client, consumer)}/{name}"
        changed = client.post(path, {"reason": reason}, views.ConsumerView)
        show(changed, f"{changed.name} ({changed.consumer}) is {name}ed", as_json=as_json)

    change.__doc__ = about
    made = click.argument("consumer")(with_remote(json_option(exits(change))))
    made = reason_option(made) if has_reason else made
    command = click.command(name)(made)
    for group in (consumer, custodian):
        group.add_command(command)


_consumer_command("block", "Refuse a consumer (id or name) from now on.", has_reason=True)
_consumer_command("unblock", "Serve a blocked consumer again.", has_reason=False)
