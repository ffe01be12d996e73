"""Two custodian replicas on one PostgreSQL, as real processes, with an enclave at each."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook as TheirWebhook

from aigovtool.custodian.store.postgres import PostgresStore
from aigovtool.demo.stage import Process, Stage, free_port
from aigovtool.demo.story import ASSETS
from aigovtool.errors import BudgetExhaustedError, LoanNotActiveError, UnavailableError
from aigovtool.wire.ticket import read_ticket, to_toml
from tests import postgresql
from tests.custodian.test_webhooks import receiver
from tests.system.test_faults import ask, connect

PUSH_LIMIT_S = 1.0
LEASE_S = 5.0
RESUME_LIMIT_S = 40.0


@dataclass
class Pair:
    """A stage with replicas `a` and `b`; the ticket names both."""

    stage: Stage
    ports: tuple[int, int]
    admins: tuple[int, int]
    server: postgresql.Server
    a: Process
    b: Process

    def ticket(self, *order: int) -> Path:
        """Return a ticket that names the replicas in this order."""
        ticket = read_ticket(self.stage.data / "loan.toml")
        names = ",".join(f"127.0.0.1:{self.ports[index]}" for index in order)
        path = self.stage.folder / f"loan-{'-'.join(map(str, order))}.toml"
        path.write_text(to_toml(msgspec.structs.replace(ticket, custodian=names)))
        return path

    def serve(self, index: int) -> Process:
        return self.stage.serve_custodian(
            name=f"custodian-{index}", port=self.ports[index], admin_port=self.admins[index]
        )

    def account(self, index: int) -> dict[str, int]:
        (loan,) = self.stage.custodian("loan", "list", admin_port=self.admins[index]).json()
        seen = loan["account"]
        assert seen["granted"] == seen["left"] + seen["leased"] + seen["spent"] + seen["forfeited"]
        return dict(seen)

    def settled(self, index: int, limit_s: float = 60.0) -> dict[str, int]:
        begin = time.monotonic()
        while (seen := self.account(index))["leased"]:
            assert time.monotonic() - begin < limit_s, f"leases stay open: {seen}"
            time.sleep(0.2)
        return seen


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    postgresql.server_or_skip()
    server = postgresql.Server()  # of its own: it is killed
    try:
        url = server.url(server.new_database(empty=True))
        with Stage(tmp_path, database=url) as stage:
            made = stage.init()
            assert made.code == 0, made.stderr
            ports, admins = (free_port(), free_port()), (free_port(), free_port())
            both = ",".join(f"127.0.0.1:{port}" for port in ports)
            a = stage.serve_custodian(
                "--upload", str(ASSETS / "digits.onnx"),
                "--interface", str(ASSETS / "interface.json"),
                "--num-requests", "200", "--advertise", both,
                name="custodian-0", port=ports[0], admin_port=admins[0],
            )  # fmt: skip
            made_pair = Pair(stage, ports, admins, server, a, a)
            made_pair.b = made_pair.serve(1)
            yield made_pair
    finally:
        server.close()


async def until_served(client: object, limit_s: float = RESUME_LIMIT_S) -> float:
    begin = time.monotonic()
    while await ask(client) is not None:  # type: ignore[arg-type]
        assert time.monotonic() - begin < limit_s, "leases did not resume"
        await asyncio.sleep(0.2)
    return time.monotonic() - begin


@pytest.mark.slow
async def test_a_stop_at_one_replica_reaches_the_enclave_at_the_other(pair: Pair) -> None:
    _, port = pair.stage.serve_enclave("at-b", ticket=pair.ticket(1))
    async with await connect(pair.stage, port) as client:
        assert await ask(client) is None
        stopping = asyncio.create_task(
            asyncio.to_thread(
                pair.stage.custodian, "loan", "stop", "--reason", "now", admin_port=pair.admins[0]
            )
        )
        refused: list[float] = []
        while not refused:
            if await ask(client) in (LoanNotActiveError, UnavailableError):
                refused.append(time.monotonic())
        stopped = await stopping
        assert stopped.code == 0, stopped.stderr
        stopped_at = time.monotonic()
        assert refused[0] - stopped_at < PUSH_LIMIT_S
        assert await ask(client) in (LoanNotActiveError, UnavailableError)


@pytest.mark.slow
async def test_enclaves_at_both_replicas_never_serve_more_than_was_granted(pair: Pair) -> None:
    ports = [
        pair.stage.serve_enclave(f"at-{index}", ticket=pair.ticket(index))[1] for index in (0, 1)
    ]
    async with (
        await connect(pair.stage, ports[0]) as first,
        await connect(pair.stage, ports[1]) as second,
    ):
        outcomes = Counter(
            await asyncio.gather(*(ask(client) for client in (first, second) for _ in range(200)))
        )
        for client in (first, second):
            while await ask(client) is None:
                outcomes[None] += 1
    assert outcomes[None] <= 200
    assert set(outcomes) <= {None, BudgetExhaustedError, UnavailableError}
    for index in (0, 1):
        assert pair.settled(index)["forfeited"] == 0
    assert pair.account(0)["spent"] == outcomes[None]


@pytest.mark.slow
async def test_an_enclave_goes_on_when_its_replica_or_the_database_is_killed(pair: Pair) -> None:
    _, port = pair.stage.serve_enclave("enclave", ticket=pair.ticket(0, 1))
    served = 0
    async with await connect(pair.stage, port) as client:
        assert await ask(client) is None
        pair.a.kill()
        taken_over_s = await until_served(client)
        served += 2
        # leases of the replica that died serve on; renewed ones come from the other
        begin = time.monotonic()
        while time.monotonic() - begin < LEASE_S + 1:
            served += await ask(client) is None
            await asyncio.sleep(0.25)
        await until_served(client)
        pair.server.restart()
        await until_served(client)
        pair.a = pair.serve(0)
        await until_served(client)  # the enclave may be between two connections just now
        served += 3
        assert taken_over_s < RESUME_LIMIT_S
    seen = pair.settled(0)
    assert (seen["spent"], seen["forfeited"]) == (served, 0)
    assert pair.stage.database is not None
    store = PostgresStore.open(pair.stage.database)
    try:
        with store.read() as tx:
            assert "replica.gone" in {event.kind for event in tx.last_events(None, 1000)}
    finally:
        store.close()


@pytest.mark.slow
async def test_each_message_of_a_webhook_is_taken_once_of_two_replicas(pair: Pair) -> None:
    """The first answer is a 500: that message comes again, the same, and in its turn."""
    came: list[tuple[str, str, int]] = []
    secret: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    done = asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        told = TheirWebhook(await secret).verify(await request.read(), headers)
        status = 200 if came else 500
        came.append((headers["webhook-id"], told["type"], status))
        if told["type"] == "webhook.test":
            done.set()
        return web.Response(status=status)

    async def command(admin: int, *arguments: str) -> Any:
        outcome = await asyncio.to_thread(
            pair.stage.custodian, *arguments, admin_port=pair.admins[admin]
        )
        assert outcome.code == 0, outcome.stderr
        return outcome.json()

    async with receiver(take) as url:
        kinds = ("--event", "loan.stopped", "--event", "loan.resumed")
        added = await command(0, "webhook", "add", url, *kinds)
        secret.set_result(added["secret"])
        for turn in range(3):
            await command(turn % 2, "loan", "stop", "--reason", "why")
            await command((turn + 1) % 2, "loan", "resume")
        await command(1, "webhook", "test", added["webhook"]["webhook"])
        async with asyncio.timeout(120):
            await done.wait()
    failed, *taken = came
    assert failed[2] == 500
    assert taken[0][:2] == failed[:2]
    assert [status for _, _, status in taken] == [200] * 7
    assert [kind for _, kind, _ in taken] == ["loan.stopped", "loan.resumed"] * 3 + ["webhook.test"]
    assert len({message for message, _, _ in taken}) == 7
