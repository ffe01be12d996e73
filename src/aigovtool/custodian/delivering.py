"""
Telling webhooks what the outbox holds: signed, in order, again until it is taken or given up.

Rule 1: nothing waits for a webhook: decisions only write the outbox, and what is slow or gone holds
        up its own messages alone.
Rule 2: a message is claimed for a time before it is sent, so that of several replicas one sends it;
        one that dies with it lets go by the clock. So a message may come twice, with the same id.
Rule 3: of each webhook the oldest goes first; after `MAX_TRIES` it is dead, and the next one goes.
Rule 4: no redirect is followed, no proxy asked, and of an answer only the status is read.

Signatures: Standard Webhooks 1.0, ``v1``, HMAC-SHA256 over ``id.timestamp.body``.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from datetime import timedelta

import aiohttp

from aigovtool.channel.plainly import why_it_failed
from aigovtool.custodian.api.http import off_loop
from aigovtool.custodian.ledger import Ledger
from aigovtool.custodian.records import Delivery, DeliveryState, Webhook
from aigovtool.errors import AIGovToolError
from aigovtool.telemetry.logs import event

LOOK_EVERY_S = 0.5
ANSWER_WITHIN_S = 10.0
CLAIM_S = 60.0  # much longer than a try takes
AT_ONCE = 8
MAX_TRIES = 8
FIRST_WAIT_S = 5.0
WAIT_GROWS = 3.0  # 5 s, 15 s, 45 s, … 1 h: dead after about an hour and a half
GONE = 410  # the receiver wants no more of this message

_log = logging.getLogger(__name__)


def signature(secret: bytes, message: str, timestamp_s: int, body: bytes) -> str:
    """Return the header ``webhook-signature``."""
    signed = f"{message}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def wait_after(tries: int) -> timedelta:
    """Return how long after its try number *tries* a message is tried again."""
    return timedelta(seconds=FIRST_WAIT_S * WAIT_GROWS ** (tries - 1))


class Delivering:
    """
    Delivers what the outbox holds; `run` is a task of the server.

    Args:
        secret_of: unwraps a webhook's secret.
    """

    def __init__(
        self, *, ledger: Ledger, secret_of: Callable[[Webhook], bytes], pool: Executor
    ) -> None:
        self._ledger = ledger
        self._secret_of = secret_of
        self._pool = pool
        self.outcomes: Counter[str] = Counter()

    async def run(self) -> None:
        """Deliver until cancelled; what is under way then is sent again later."""
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=ANSWER_WITHIN_S),
                trust_env=False,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            ) as http,
            asyncio.TaskGroup() as tasks,
        ):
            places = asyncio.Semaphore(AT_ONCE)
            while True:
                try:
                    claimed = await off_loop(self._pool, self.claim)
                except AIGovToolError as error:  # the database is away: later
                    _log.warning("webhooks wait: %s", error, extra=event("webhook.waits"))
                    claimed = []
                for delivery, webhook in claimed:
                    await places.acquire()
                    task = tasks.create_task(self._deliver(http, delivery, webhook))
                    task.add_done_callback(lambda _: places.release())
                await asyncio.sleep(LOOK_EVERY_S)

    def claim(self) -> list[tuple[Delivery, Webhook]]:
        """Return what is to be sent now, by nobody else until `CLAIM_S` are over."""
        now = self._ledger.clock.now()
        with self._ledger.read() as tx:
            if not tx.due_deliveries(now, AT_ONCE):
                return []
        with self._ledger.write(while_held=True) as entry:
            until = entry.now + timedelta(seconds=CLAIM_S)
            claimed = []
            for delivery in entry.tx.due_deliveries(entry.now, AT_ONCE):
                webhook = entry.tx.webhook(delivery.webhook)
                if webhook is not None and entry.tx.claim_delivery(
                    delivery.number, entry.now, until
                ):
                    claimed.append((delivery, webhook))
        return claimed

    async def _deliver(
        self, http: aiohttp.ClientSession, delivery: Delivery, webhook: Webhook
    ) -> None:
        try:
            status, answer = await self._send(http, delivery, webhook)
            await off_loop(self._pool, lambda: self.settle(delivery, status, answer))
        except AIGovToolError as error:  # its claim ends by the clock
            _log.warning("a webhook's message waits: %s", error, extra=event("webhook.waits"))

    async def _send(
        self, http: aiohttp.ClientSession, delivery: Delivery, webhook: Webhook
    ) -> tuple[int, str]:
        """Return the status of the answer, 0 without one, and in words what came."""
        timestamp_s = int(self._ledger.clock.now().timestamp())
        secret = self._secret_of(webhook)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery.message,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": signature(secret, delivery.message, timestamp_s, delivery.body),
        }
        try:
            async with http.post(
                webhook.url, data=delivery.body, headers=headers, allow_redirects=False
            ) as answered:
                answered.close()  # nobody reads what it says
                return answered.status, f"HTTP {answered.status}"
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return 0, why_it_failed(error)

    def settle(self, delivery: Delivery, status: int, answer: str) -> None:
        """Note what came of a try."""
        tries = delivery.tries + 1
        if 200 <= status < 300:
            state, outcome = DeliveryState.DELIVERED, "delivered"
        elif status == GONE or tries >= MAX_TRIES:
            state, outcome = DeliveryState.DEAD, "dead"
        else:
            state, outcome = DeliveryState.WAITING, "failed"
        with self._ledger.write(while_held=True) as entry:
            entry.tx.set_delivery(
                replace(
                    delivery,
                    state=state,
                    tries=tries,
                    due=entry.now + wait_after(tries),
                    answer=answer,
                )
            )
        self.outcomes[outcome] += 1
        if outcome != "delivered":
            _log.warning(
                "webhook %s did not take %s: %s",
                delivery.webhook,
                delivery.kind,
                answer,
                extra=event(
                    "webhook.failed", webhook=delivery.webhook, outcome=outcome, tries=tries
                ),
            )
