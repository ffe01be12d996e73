"""Who is told of events: in the decision's own transaction, signed, in order, by one replica."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook as TheirWebhook

from aigovtool.custodian import delivering, vault
from aigovtool.custodian.delivering import CLAIM_S, MAX_TRIES, Delivering, wait_after
from aigovtool.custodian.records import DeliveryState, Webhook
from aigovtool.custodian.vault import Vault
from aigovtool.custodian.webhooks import KINDS, Webhooks, check_url
from aigovtool.errors import MalformedError, NotFoundError, UnavailableError
from tests.custodian.house import open_house
from tests.custodian.ledgers import Bench

URL = "http://127.0.0.1:1/hook"
STOPS = ("loan.stopped", "loan.resumed")


@pytest.fixture
def keeper() -> Vault:
    return Vault(vault._parse(vault.write_master_key(vault.new_master_key()), "here"))


@pytest.fixture
def hooks(ledger: Bench, keeper: Vault) -> Webhooks:
    return Webhooks(ledger=ledger.ledger, keep=keeper.keep_webhook_secret)


def sender(ledger: Bench, keeper: Vault) -> Delivering:
    pool = ThreadPoolExecutor(1)
    return Delivering(ledger=ledger.ledger, secret_of=keeper.webhook_secret, pool=pool)


def waiting(ledger: Bench) -> list[str]:
    """The kinds that are due, one for each webhook."""
    with ledger.ledger.read() as tx:
        return [one.kind for one in tx.due_deliveries(ledger.clock.now(), 100)]


def states(ledger: Bench, webhook: Webhook) -> dict[DeliveryState, int]:
    with ledger.ledger.read() as tx:
        return dict(tx.count_deliveries(webhook.webhook))


def test_only_what_was_asked_for_is_told_and_no_text_of_a_person(
    ledger: Bench, hooks: Webhooks
) -> None:
    hook, _ = hooks.add(URL, STOPS, actor="test")
    loan = ledger.lend(10).loan
    ledger.loans.stop(loan, reason="fragespecht", actor="test")
    ledger.grants.grant(loan, 5, actor="test", reason="fragespecht")
    assert states(ledger, hook) == {DeliveryState.WAITING: 1}
    with ledger.ledger.read() as tx:
        (message,) = tx.due_deliveries(ledger.clock.now(), 10)
    told = json.loads(message.body)
    assert (told["type"], told["data"]["loan"]) == ("loan.stopped", loan)
    assert b"fragespecht" not in message.body


@pytest.mark.parametrize("how", ["lost", "kept"])
def test_an_event_that_did_not_happen_is_not_told(ledger: Bench, hooks: Webhooks, how: str) -> None:
    hook, _ = hooks.add(URL, STOPS, actor="test")
    loan = ledger.lend(10).loan
    ledger.store.next = how
    with pytest.raises(UnavailableError):
        ledger.loans.stop(loan, reason="", actor="test")
    ledger.reopen()
    assert states(ledger, hook) == ({DeliveryState.WAITING: 1} if how == "kept" else {})


def test_each_webhook_is_told_in_order_and_a_dead_message_lets_the_next_go(
    ledger: Bench, hooks: Webhooks, keeper: Vault
) -> None:
    hook, _ = hooks.add(URL, STOPS, actor="test")
    loan = ledger.lend(10).loan
    ledger.loans.stop(loan, reason="", actor="test")
    ledger.loans.resume(loan, actor="test")
    mine = sender(ledger, keeper)
    for tries in range(1, MAX_TRIES + 1):
        ((message, _),) = mine.claim()
        assert (message.kind, message.tries) == ("loan.stopped", tries - 1)
        mine.settle(message, 500, "HTTP 500")
        if tries < MAX_TRIES:
            assert mine.claim() == []  # neither again too soon, nor the next one before it
            ledger.clock.forward(wait_after(tries).total_seconds())
    ((message, _),) = mine.claim()
    assert message.kind == "loan.resumed"
    mine.settle(message, 204, "HTTP 204")
    assert states(ledger, hook) == {DeliveryState.DEAD: 1, DeliveryState.DELIVERED: 1}
    assert mine.outcomes == {"failed": MAX_TRIES - 1, "dead": 1, "delivered": 1}


def test_of_two_replicas_one_delivers_and_a_dead_ones_claim_ends(
    ledger: Bench, hooks: Webhooks, keeper: Vault
) -> None:
    hook, _ = hooks.add(URL, STOPS, actor="test")
    ledger.loans.stop(ledger.lend(10).loan, reason="", actor="test")
    one, other = sender(ledger, keeper), sender(ledger, keeper)
    ((first, _),) = one.claim()
    assert other.claim() == []
    ledger.clock.forward(CLAIM_S)  # the first one died
    ((again, _),) = other.claim()
    assert again.message == first.message  # so that the receiver can tell a repetition
    other.settle(again, 200, "HTTP 200")
    one.settle(first, 500, "HTTP 500")  # it was only slow: what was delivered stays so
    assert states(ledger, hook) == {DeliveryState.DELIVERED: 1}


def test_a_low_budget_is_told_once_until_it_is_not_low(ledger: Bench, hooks: Webhooks) -> None:
    hook, _ = hooks.add(URL, ("budget.low",), actor="test")
    loan = ledger.lend(10).loan
    hooks.set_low_mark(loan, 8, actor="test")
    assert states(ledger, hook) == {}
    enclave = ledger.enclave(loan)
    ledger.leasing.report(enclave.session, enclave.report(want=4))
    assert states(ledger, hook) == {DeliveryState.WAITING: 1}
    ledger.leasing.report(enclave.session, enclave.report(want=1))
    assert states(ledger, hook) == {DeliveryState.WAITING: 1}
    ledger.grants.grant(loan, 100, actor="test")
    hooks.set_low_mark(loan, 1000, actor="test")  # at once, when it is low already
    assert states(ledger, hook) == {DeliveryState.WAITING: 2}
    hooks.set_low_mark(loan, 0, actor="test")
    ledger.grants.grant(loan, 1, actor="test")
    assert states(ledger, hook) == {DeliveryState.WAITING: 2}


def test_who_is_removed_is_told_nothing_more(ledger: Bench, hooks: Webhooks) -> None:
    hook, _ = hooks.add(URL, STOPS, actor="test")
    loan = ledger.lend(10).loan
    ledger.loans.stop(loan, reason="", actor="test")
    hooks.remove(hook.webhook, actor="test")
    ledger.loans.resume(loan, actor="test")
    assert waiting(ledger) == []
    assert states(ledger, hook) == {DeliveryState.DEAD: 1}
    for again in (hooks.remove, lambda name, actor: hooks.test(name)):
        with pytest.raises(NotFoundError):
            again(hook.webhook, actor="test")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/x",
        "http://169.254.169.254/latest",
        "http://127.0.0.1@example.com/",
        "https://user:word@example.com/",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "https://",
        "https://exa mple.com/",
        "https://example.com:99999/",
        "https://example.com/#x",
        "https://example.com/\r\nX: y",
        "https://[::1",
        "https://example.com/" + "x" * 3000,
        "",
    ],
)
def test_an_address_that_a_webhook_may_not_have(hooks: Webhooks, url: str) -> None:
    with pytest.raises(MalformedError):
        hooks.add(url, STOPS, actor="test")


def test_addresses_and_events_that_may_be() -> None:
    for url in ("https://example.com/x?y", "http://127.0.0.1:8/x", "http://[::1]/", URL):
        assert check_url(url) == url


def test_an_event_that_never_comes_is_refused(hooks: Webhooks) -> None:
    for kinds in ((), ("loan.stoped",), ("lease.granted",)):
        with pytest.raises(MalformedError):
            hooks.add(URL, kinds, actor="test")
    assert len(set(KINDS)) == len(KINDS)


def test_the_secret_is_wrapped_and_bound_to_its_webhook(
    ledger: Bench, hooks: Webhooks, keeper: Vault
) -> None:
    hook, shown = hooks.add(URL, STOPS, actor="test")
    other, _ = hooks.add(URL, STOPS, actor="test")
    secret = base64.b64decode(shown.removeprefix("whsec_"))
    assert keeper.webhook_secret(hook) == secret
    assert secret not in hook.wrapped_secret
    swapped = Webhook(
        webhook=other.webhook,
        url=URL,
        kinds=STOPS,
        wrapped_secret=hook.wrapped_secret,
        created=hook.created,
    )
    with pytest.raises(Exception, match="does not open"):
        keeper.webhook_secret(swapped)


@contextlib.asynccontextmanager
async def receiver(handler) -> AsyncIterator[str]:  # type: ignore[no-untyped-def]
    app = web.Application()
    app.router.add_post("/hook", handler)
    app.router.add_post("/elsewhere", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    finally:
        await runner.cleanup()


async def test_a_running_custodian_tells_and_their_library_verifies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(delivering, "FIRST_WAIT_S", 0.05)
    came: asyncio.Queue[tuple[str, dict[str, str], bytes]] = asyncio.Queue()
    answers = [302, 500, 200, 200]

    async def take(request: web.Request) -> web.Response:
        names = {name.lower(): value for name, value in request.headers.items()}
        came.put_nowait((request.path, names, await request.read()))
        status = answers.pop(0)
        return web.Response(
            status=status, headers={"Location": "/elsewhere"} if status == 302 else {}
        )

    async with receiver(take) as url, open_house(tmp_path) as (made, _):
        app = made.app
        hook, secret = await asyncio.to_thread(app.webhooks.add, url, STOPS, actor="test")
        loan = made.lent.loan.loan
        begin = datetime.now(UTC)
        await asyncio.to_thread(app.loans.stop, loan, reason="why", actor="test")
        await asyncio.to_thread(app.webhooks.test, hook.webhook)
        async with asyncio.timeout(30):
            seen = [await came.get() for _ in range(4)]
        assert [path for path, _, _ in seen] == ["/hook"] * 4  # no redirect was followed
        their = TheirWebhook(secret)
        told = [their.verify(body, headers) for _, headers, body in seen]
        assert [one["type"] for one in told] == ["loan.stopped"] * 3 + ["webhook.test"]
        assert len({headers["webhook-id"] for _, headers, _ in seen[:3]}) == 1
        assert told[0]["data"] == {"loan": loan}
        assert abs((datetime.fromisoformat(told[0]["timestamp"]) - begin).total_seconds()) < 5
        async with asyncio.timeout(30):
            while True:
                with app.ledger.read() as tx:
                    counted = tx.count_deliveries(hook.webhook)
                if counted == {DeliveryState.DELIVERED: 2}:
                    break
                await asyncio.sleep(0.02)


async def test_a_receiver_that_never_answers_holds_up_no_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivering, "LOOK_EVERY_S", 0.02)
    asked, ended = asyncio.Event(), asyncio.Event()

    async def silent(request: web.Request) -> web.Response:
        asked.set()
        await ended.wait()
        return web.Response()

    async with receiver(silent) as url, open_house(tmp_path) as (made, _):
        app, loan = made.app, made.lent.loan.loan
        await asyncio.to_thread(app.webhooks.add, url, STOPS, actor="test")
        async with asyncio.timeout(30):
            await asyncio.to_thread(app.loans.stop, loan, reason="", actor="test")
            await asked.wait()
            for _ in range(3):
                await asyncio.to_thread(app.loans.resume, loan, actor="test")
                await asyncio.to_thread(app.loans.stop, loan, reason="", actor="test")
        ended.set()
