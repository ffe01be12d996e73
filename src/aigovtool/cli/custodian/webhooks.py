"""Webhooks: who is told of events over HTTPS."""

from __future__ import annotations

import click

from aigovtool.cli.custodian.group import custodian
from aigovtool.cli.custodian.remote import (
    V1,
    Remote,
    loan_option,
    loan_text,
    one_loan,
    show,
    with_remote,
)
from aigovtool.cli.output import exits, json_option


@custodian.group()
def webhook() -> None:
    """Webhooks: who is told of requests, stops, forfeits and the like."""


@webhook.command("add")
@click.argument("url")
@click.option("--event", "events", multiple=True, required=True, help="May be given repeatedly.")
@with_remote
@json_option
@exits
def webhook_add(url: str, events: tuple[str, ...], remote: Remote, as_json: bool) -> None:
    """Have URL told of events, signed as Standard Webhooks; prints the secret, once.

    URL is https://, or http:// on loopback.
    """
    from aigovtool.custodian.api import views

    made = remote.client().post(
        f"{V1}/webhooks", {"url": url, "events": list(events)}, views.MadeWebhook
    )
    text = f"{made.webhook.webhook}\nsecret, shown this once: {made.secret}"
    show(made, text, as_json=as_json)


@webhook.command("list")
@with_remote
@json_option
@exits
def webhook_list(remote: Remote, as_json: bool) -> None:
    """List webhooks, and what became of their messages."""
    from aigovtool.cli.custodian import tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/webhooks", list[views.WebhookView])
    show(found, lambda: tables.webhooks(found), as_json=as_json)


@webhook.command("remove")
@click.argument("webhook")
@with_remote
@json_option
@exits
def webhook_remove(webhook: str, remote: Remote, as_json: bool) -> None:
    """Tell a webhook nothing more, nor what waits for it."""
    from aigovtool.custodian.api import views

    removed = remote.client().post(f"{V1}/webhooks/{webhook}/remove", {}, views.WebhookView)
    show(removed, f"removed {removed.webhook}", as_json=as_json)


@webhook.command("test")
@click.argument("webhook")
@with_remote
@json_option
@exits
def webhook_test(webhook: str, remote: Remote, as_json: bool) -> None:
    """Send a webhook an event webhook.test, in its turn; see `webhook list` for what came."""
    from aigovtool.custodian.api import views

    tested = remote.client().post(f"{V1}/webhooks/{webhook}/test", {}, views.WebhookView)
    show(tested, f"a test waits for {tested.url}", as_json=as_json)


@webhook.command("low-mark")
@click.argument("credits", type=click.IntRange(min=0))
@loan_option
@with_remote
@json_option
@exits
def webhook_low_mark(credits: int, loan: str | None, remote: Remote, as_json: bool) -> None:
    """Tell budget.low when a loan has fewer than CREDITS left; 0 for never."""
    from aigovtool.custodian.api import views

    client = remote.client()
    marked = client.post(
        f"{V1}/loans/{one_loan(client, loan)}/low-mark", {"credits": credits}, views.LoanView
    )
    show(marked, lambda: loan_text(marked), as_json=as_json)
