"""
Webhooks: which events of the ledger somebody is told over HTTPS, and who.

Rule 1: what is to be told is written in the decision's own transaction, and told after it: an event
        that happened is told at least once, one that did not never.
Rule 2: a message holds ids and numbers, and no text of a person: who is told may look it up.
Rule 3: a webhook's secret is wrapped by the vault and shown once.

Messages are those of Standard Webhooks 1.0 (https://www.standardwebhooks.com): ``type``,
``timestamp``, ``data``; the id stays the same however often one is sent, so that a receiver can
tell a repetition.
"""

from __future__ import annotations

import base64
import ipaddress
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from aigovtool.custodian.records import Webhook, WebhookId
from aigovtool.errors import MalformedError, NotFoundError
from aigovtool.ids import LoanId, new_id

if TYPE_CHECKING:
    from aigovtool.custodian.ledger import Ledger
    from aigovtool.custodian.store.base import Reading

BUDGET_LOW = "budget.low"
TEST = "webhook.test"
KINDS = (
    BUDGET_LOW,
    "appraisal.refused",
    "consumer.blocked",
    "consumer.unblocked",
    "credits.granted",
    "credits.refunded",
    "extraction.alarm",
    "lease.forfeited",
    "lease.settled_late",
    "ledger.held",
    "loan.closed",
    "loan.created",
    "loan.expired",
    "loan.model_replaced",
    "loan.resumed",
    "loan.stopped",
    "report.refused",
    "request.approved",
    "request.denied",
    "request.opened",
    "session.ended",
    "session.lapsed",
    "session.stop_proof",
    "tcb.refused",
    "tcb.warning",
)
TOLD = frozenset(KINDS)
SECRET_BYTES = 32
SECRET_PREFIX = "whsec_"  # noqa: S105 - of the specification, and no secret
MAX_URL_CHARACTERS = 2000
MAX_WEBHOOKS = 50

Keep = Callable[[bytes, str], bytes]


def body_of(kind: str, when: datetime, about: Mapping[str, str | None], detail: Any) -> bytes:
    """Return the message that tells of an event: its ids, and the numbers of its *detail*."""
    numbers = {name: value for name, value in detail.items() if type(value) is int}
    ids = {name: value for name, value in about.items() if value is not None}
    return msgspec.json.encode({"type": kind, "timestamp": when, "data": {**numbers, **ids}})


def check_url(url: str) -> str:
    """Return *url*; raises MalformedError unless it is HTTPS, or plain HTTP on loopback."""
    wrong = MalformedError(
        "not an address for a webhook",
        code="webhook.url",
        expected="https://HOST/PATH, or http:// on loopback, without user or password",
        came=ascii(url[:80]),
    )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise wrong from None
    local = parts.scheme == "http" and _is_loopback(host)
    plain = url.isascii() and url.isprintable() and " " not in url
    if not host or not (parts.scheme == "https" or local) or not plain or "@" in parts.netloc:
        raise wrong
    if len(url) > MAX_URL_CHARACTERS or parts.fragment:
        raise wrong
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Webhooks:
    """
    Makes and removes webhooks.

    Args:
        keep: wraps the secret of the webhook of an id, for the database.
    """

    def __init__(self, *, ledger: Ledger, keep: Keep) -> None:
        self._ledger = ledger
        self._keep = keep

    def add(self, url: str, kinds: tuple[str, ...], *, actor: str) -> tuple[Webhook, str]:
        """
        Make a webhook and return it with its secret, which is shown this once.

        Raises:
            MalformedError: an address or an event that cannot be.
        """
        check_url(url)
        unknown = sorted(set(kinds) - TOLD)
        if unknown or not kinds:
            raise MalformedError(
                "no such event for a webhook",
                code="webhook.event",
                expected="some of " + ", ".join(KINDS),
                came=ascii(", ".join(unknown)[:80]),
            )
        secret = secrets.token_bytes(SECRET_BYTES)
        webhook = WebhookId(new_id("hook"))
        wrapped = self._keep(secret, webhook)
        with self._ledger.write(while_held=True) as entry:
            if len(entry.tx.webhooks()) >= MAX_WEBHOOKS:
                raise MalformedError("too many webhooks", expected=f"at most {MAX_WEBHOOKS}")
            row = Webhook(
                webhook=webhook,
                url=url,
                kinds=tuple(sorted(set(kinds))),
                wrapped_secret=wrapped,
                created=entry.now,
            )
            entry.tx.insert_webhook(row)
            entry.event("webhook.added", actor=actor, webhook=webhook, events=row.kinds)
        return row, SECRET_PREFIX + base64.b64encode(secret).decode()

    def remove(self, webhook: WebhookId, *, actor: str) -> Webhook:
        """Tell it nothing more; raises NotFoundError."""
        with self._ledger.write(while_held=True) as entry:
            row = webhook_of(entry.tx, webhook)
            entry.tx.remove_webhook(webhook, entry.now)
            entry.event("webhook.removed", actor=actor, webhook=webhook)
        return row

    def test(self, webhook: WebhookId) -> Webhook:
        """Have it told a `TEST`, in its turn; raises NotFoundError."""
        with self._ledger.write(while_held=True) as entry:
            row = webhook_of(entry.tx, webhook)
            body = body_of(TEST, entry.now, {"webhook": webhook}, {})
            entry.tx.queue_delivery(webhook, new_id("msg"), TEST, body, entry.now)
        return row

    def set_low_mark(self, loan: LoanId, credits: int, *, actor: str) -> None:
        """Have `BUDGET_LOW` told when fewer than *credits* of a loan are left; 0 for never."""
        with self._ledger.write(while_held=True) as entry:
            found = entry.tx.loan(loan)
            if found is None:
                raise NotFoundError(f"there is no loan {loan!r}")
            if credits:
                entry.tx.set_low_mark(loan, credits, low=False)
            else:
                entry.tx.drop_low_mark(loan)
            entry.event("budget.low_mark", actor=actor, loan=loan, credits=credits)


def webhook_of(tx: Reading, webhook: WebhookId) -> Webhook:
    """Return the webhook; raises NotFoundError when there is none or it was removed."""
    found = tx.webhook(webhook)
    if found is None or found.removed is not None:
        raise NotFoundError(
            f"there is no webhook {webhook!r}", mend="aigovtool custodian webhook list"
        )
    return found
