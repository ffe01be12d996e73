"""The SDK against a stand-in enclave: answers, receipts, waiting, restarts, limits."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

import aigovtool
from aigovtool.attestation.policy import write_policy
from aigovtool.channel.address import Address
from aigovtool.channel.http1 import Connection, ConnectionLostError, open_connection
from aigovtool.client.session import AsyncClient, connect_async, read_manifest
from aigovtool.crypto.signing import SigningKey
from aigovtool.errors import (
    AppraisalError,
    BadTensorError,
    BlockedError,
    BudgetExhaustedError,
    ConfigurationError,
    LoanNotActiveError,
    MalformedError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    VerificationError,
)
from aigovtool.ids import ConsumerId, LoanId, SessionId
from aigovtool.wire.budget import WaitingView
from aigovtool.wire.codec import encode
from aigovtool.wire.control import MoreDecided
from aigovtool.wire.headers import RECEIPT, WAITING_PATH
from tests.channel.stand_in import (
    API_KEY,
    Asked,
    Platform,
    Session,
    StandIn,
    World,
    answer,
    other_session,
)

X = np.array([[1, 2, 3]], np.float32)


@pytest.fixture(scope="module")
def world() -> World:
    return World.make(Platform.make())


@pytest.fixture
def enclave(world: World) -> Iterator[StandIn]:
    with StandIn(Session(world)) as stand_in:
        yield stand_in


@pytest.fixture
async def client(enclave: StandIn, world: World) -> AsyncIterator[AsyncClient]:
    client = await connect_async(
        enclave.address, manifest=world.policy, api_key=API_KEY, timeout_s=5
    )
    async with client:
        yield client


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the stand-in's thread does."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  the other thread has no event of this loop
            await asyncio.sleep(0.005)


async def test_infer(enclave: StandIn, client: AsyncClient, world: World) -> None:
    result = await client.infer({"x": X})
    np.testing.assert_array_equal(result.outputs["y"], X * 2)
    assert result.outputs["y"].dtype == np.float32
    assert result.remaining == 4
    assert result.receipt.receipt.cost == 1
    assert result.receipt.receipt.model_digest == world.model.digest
    (asked,) = enclave.queries
    assert asked.target == "/v2/models/double/infer"
    assert asked.headers["authorization"] == f"Bearer {API_KEY}"
    assert len(asked.headers["idempotency-key"]) == 32
    assert "prefer" not in asked.headers


async def test_what_was_verified_is_shown(client: AsyncClient, world: World) -> None:
    seen = client.attestation
    assert seen.simulated
    assert seen.loan == world.loan
    assert seen.attestation.measurement == "11" * 48
    assert client.model.name == "double"
    assert client.model.inputs[0].shape == (-1, 3)


async def test_budget_costs_nothing(enclave: StandIn, client: AsyncClient) -> None:
    view = await client.budget()
    assert view.remaining == 5
    assert enclave.credits == 5


async def test_connections_are_reused_and_calls_run_side_by_side(
    enclave: StandIn, client: AsyncClient
) -> None:
    enclave.credits = 100
    for _ in range(3):
        await client.infer({"x": X})
    assert len(enclave.received) == 2  # one that asked for the document, one that is kept
    results = await asyncio.gather(*(client.infer({"x": X * i}) for i in range(20)))
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result.outputs["y"], X * i * 2)


async def test_large_tensors_go_both_ways(enclave: StandIn, client: AsyncClient) -> None:
    enclave.price = 1 << 20
    large = np.random.default_rng(0).random((1 << 20, 3), np.float32)  # 12 MiB
    result = await client.infer({"x": large})
    np.testing.assert_array_equal(result.outputs["y"], large * 2)


# --- refusals of the server come back as what they were ------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        UnauthenticatedError("nobody knows this key"),
        BlockedError("the consumer is blocked"),
        BadTensorError("a tensor does not fit", expected="[1, 3]", came="[2]"),
        LoanNotActiveError("the loan was stopped"),
    ],
    ids=lambda error: error.code,
)
async def test_errors_keep_their_kind(
    enclave: StandIn, client: AsyncClient, error: aigovtool.errors.AIGovToolError
) -> None:
    enclave.reply = lambda asked: enclave.problem(error)
    with pytest.raises(type(error)) as caught:
        await client.infer({"x": X})
    assert caught.value.reasons == error.reasons
    assert len(enclave.queries) == 1


async def test_budget_used_up(enclave: StandIn, client: AsyncClient) -> None:
    enclave.credits = 0
    with pytest.raises(BudgetExhaustedError):
        await client.infer({"x": X})
    assert len(enclave.queries) == 1


# --- waiting -------------------------------------------------------------------------------------


async def test_a_query_waits_for_credits_and_goes_on(enclave: StandIn, client: AsyncClient) -> None:
    enclave.credits = 0
    told = []

    def serve(asked: Asked) -> bytes | None:
        if "prefer" in asked.headers:
            enclave.credits = 1  # as if a grant came while the answer was held
        return enclave.infer(asked)

    enclave.reply = serve
    result = await client.infer(
        {"x": X},
        wait_s=math.inf,
        reason="für die Visite",
        on_wait=lambda error, waited_s: told.append((error.code, waited_s)),
    )
    assert result.remaining == 0
    assert [code for code, _ in told] == ["budget.exhausted"]
    first, second = enclave.queries
    assert "prefer" not in first.headers
    assert second.headers["prefer"] == "wait=600"
    assert second.headers["aigovtool-reason"] == "für die Visite"
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


@pytest.mark.parametrize(
    ("age_s", "approved", "told"), [(0.0, True, ["for once"]), (900.0, True, []), (0.0, False, [])]
)
async def test_who_waited_is_told_what_was_granted_meanwhile_and_why(
    enclave: StandIn, client: AsyncClient, age_s: float, approved: bool, told: list[str]
) -> None:
    """An older decision, of another wait, is not told; a denial is an error of its own."""
    enclave.credits = 0
    decision = MoreDecided(
        consumer=ConsumerId("cons_1"), approved=approved, credits=3, reason="for once", age_s=age_s
    )

    def serve(asked: Asked) -> bytes | None:
        if asked.target == WAITING_PATH:
            view = WaitingView(waiting=0, queries=(), asked=False, decided=decision, again_s=9.0)
            return answer(encode(view))
        if "prefer" in asked.headers:
            enclave.credits = 1
        return enclave.infer(asked)

    enclave.reply = serve
    decided: list[MoreDecided] = []
    result = await client.infer({"x": X}, wait_s=math.inf, on_decided=decided.append)
    assert result.remaining == 0
    assert [one.reason for one in decided] == told


async def test_waiting_ends(enclave: StandIn, client: AsyncClient) -> None:
    enclave.credits = 0
    begin_s = asyncio.get_running_loop().time()
    with pytest.raises(BudgetExhaustedError):
        await client.infer({"x": X}, wait_s=0.3)
    assert asyncio.get_running_loop().time() - begin_s < 20
    # the enclave did not hold its answers, and was not asked in a loop for that
    assert len(enclave.queries) <= 3
    assert enclave.queries[1].headers["prefer"] == "wait=1"


@pytest.mark.parametrize("reason", ["x" * 501, "two\nlines", "\x1b[2J"])
async def test_a_reason_that_is_none_is_not_sent(
    enclave: StandIn, client: AsyncClient, reason: str
) -> None:
    with pytest.raises(ConfigurationError):
        await client.infer({"x": X}, reason=reason)
    assert not enclave.queries


# --- receipts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forge", "code"),
    [
        (lambda e: e.receipt(key=SigningKey.generate()), "signature"),
        (lambda e: e.receipt(loan=LoanId("loan_x")), "receipt.subject"),
        (lambda e: e.receipt(session=SessionId("sess_x")), "receipt.subject"),
        (lambda e: e.receipt(model_digest=bytes(32)), "receipt.subject"),
        (lambda e: e.receipt(cost=2), "receipt.sum"),
        (lambda e: e.receipt(cost=2, balance_after=e.credits - 1), "receipt.price"),
        (lambda e: e.receipt(cost=-1, balance_after=e.credits + 2), "receipt.sum"),
        (lambda e: "nonsense", "malformed"),
        (lambda e: "", "malformed"),
        (None, "receipt.missing"),
    ],
    ids=[
        "key",
        "loan",
        "session",
        "model",
        "sum",
        "price",
        "negative",
        "nonsense",
        "empty",
        "missing",
    ],
)
async def test_no_answer_without_a_genuine_receipt(
    enclave: StandIn, client: AsyncClient, forge: object, code: str
) -> None:
    def serve(asked: Asked) -> bytes | None:
        honest = enclave.infer(asked)
        assert honest is not None
        head, _, body = honest.partition(b"\r\n\r\n")
        lines = [one for one in head.split(b"\r\n") if not one.startswith(RECEIPT.encode())]
        if callable(forge):
            lines.append(f"{RECEIPT}: {forge(enclave)}".encode())
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    enclave.reply = serve
    with pytest.raises((VerificationError, MalformedError)) as caught:
        await client.infer({"x": X})
    assert caught.value.reasons[0].code == code


# --- restarts and broken connections -------------------------------------------------------------


async def test_a_restarted_enclave_is_judged_again(
    enclave: StandIn, client: AsyncClient, world: World
) -> None:
    await client.infer({"x": X})
    before = client.attestation
    enclave.restart(other_session(enclave.session))
    result = await client.infer({"x": X})
    assert result.receipt.receipt.session == "sess_2"
    assert client.attestation.keys != before.keys
    assert sum("attestation" in one.target for one in enclave.asked) == 2


async def test_a_restarted_enclave_with_other_code_is_refused(
    enclave: StandIn, client: AsyncClient, world: World
) -> None:
    await client.infer({"x": X})
    changed = replace(world, platform=replace(world.platform, mr_td=b"\x33" * 48))
    enclave.restart(other_session(replace(enclave.session, world=changed)))
    with pytest.raises(AppraisalError):
        await client.infer({"x": X})
    assert len(enclave.queries) == 1
    # and it is not taken on trust later, either
    with pytest.raises(AppraisalError):
        await client.infer({"x": X})
    assert len(enclave.queries) == 1


async def test_a_query_cut_off_is_asked_again_under_its_key(
    enclave: StandIn, client: AsyncClient
) -> None:
    def serve(asked: Asked) -> bytes | None:
        return None if len(enclave.queries) == 1 else enclave.infer(asked)

    enclave.reply = serve
    await client.infer({"x": X})
    first, second = enclave.queries
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


async def test_a_query_cut_off_twice_is_given_up(enclave: StandIn, client: AsyncClient) -> None:
    enclave.reply = lambda asked: None
    with pytest.raises(ConnectionLostError):
        await client.infer({"x": X})
    assert len(enclave.queries) == 2


async def test_a_query_cut_off_by_a_restart_is_not_asked_again(
    enclave: StandIn, client: AsyncClient
) -> None:
    """The old session may have charged it, and the new one does not know its key."""
    restarted = threading.Event()

    def serve(asked: Asked) -> bytes | None:
        if len(enclave.queries) == 1:
            threading.Thread(target=restart).start()
            return b"HTTP/1.1 100 Continue\r\n\r\n"
        return enclave.infer(asked)

    def restart() -> None:
        enclave.restart(other_session(enclave.session))
        restarted.set()

    enclave.reply = serve
    with pytest.raises(UnavailableError):
        await client.infer({"x": X})
    await asyncio.to_thread(restarted.wait, 5)
    assert len(enclave.queries) == 1
    await client.infer({"x": X})


async def test_idle_connections_that_the_server_closed_are_not_used(
    enclave: StandIn, client: AsyncClient
) -> None:
    await client.infer({"x": X})
    enclave.drop_connections()
    await asyncio.sleep(0)
    await client.infer({"x": X})
    assert enclave.credits == 3


async def test_an_old_judgement_is_renewed(
    enclave: StandIn, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aigovtool.channel.connect.JUDGEMENT_LIFE_S", 0.0)
    client = await connect_async(enclave.address, manifest=world.policy, api_key=API_KEY)
    async with client:
        await client.infer({"x": X})
    assert sum("attestation" in one.target for one in enclave.asked) == 2


async def test_verify_again(enclave: StandIn, client: AsyncClient) -> None:
    before = client.attestation.judged
    assert (await client.verify()).judged > before


# --- answers that are none -----------------------------------------------------------------------


async def test_no_answer(enclave: StandIn, world: World) -> None:
    client = await connect_async(
        enclave.address, manifest=world.policy, api_key=API_KEY, timeout_s=0.2
    )
    enclave.reply = lambda asked: b""
    async with client:
        with pytest.raises(UnavailableError, match="no answer"):
            await client.infer({"x": X})


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (answer(b"", 302, {"Location": "/elsewhere"}), UnavailableError),
        (answer(b"{}", 201), UnavailableError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n", UnavailableError),
        (b"garbage\r\n\r\n", MalformedError),
        (answer(b"x" * (65 << 10), 429), TooLargeError),
    ],
    ids=["redirect", "created", "cut off", "garbage", "long problem"],
)
async def test_answers_that_are_none(
    enclave: StandIn, world: World, reply: bytes, kind: type[Exception]
) -> None:
    client = await connect_async(
        enclave.address, manifest=world.policy, api_key=API_KEY, timeout_s=0.5
    )
    enclave.reply = lambda asked: reply
    async with client:
        with pytest.raises(kind):
            await client.infer({"x": X})


async def test_closing_ends_what_is_under_way(enclave: StandIn, client: AsyncClient) -> None:
    enclave.reply = lambda asked: b""
    query = asyncio.create_task(client.infer({"x": X}))
    await until(lambda: bool(enclave.queries))
    await client.aclose()
    with pytest.raises(ConnectionLostError):
        await query
    assert len(enclave.queries) == 1


async def test_closing_while_a_query_connects_sends_nothing(
    enclave: StandIn, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting, closed = asyncio.Event(), asyncio.Event()

    async def late(address: Address, context: ssl.SSLContext) -> Connection:
        connecting.set()
        await closed.wait()
        return await open_connection(address, context)

    monkeypatch.setattr("aigovtool.channel.connect.open_connection", late)
    query = asyncio.create_task(client.infer({"x": X}))
    await connecting.wait()
    await client.aclose()
    closed.set()
    with pytest.raises(ConfigurationError):
        await query
    assert not enclave.queries
    await until(lambda: not enclave.alive)


async def test_cancelling_closes_the_connection(enclave: StandIn, client: AsyncClient) -> None:
    enclave.reply = lambda asked: b""
    query = asyncio.create_task(client.infer({"x": X}))
    await until(lambda: bool(enclave.queries))
    query.cancel()
    with pytest.raises(asyncio.CancelledError):
        await query
    await until(lambda: not enclave.alive)  # the enclave sees it, and can stop computing


# --- the blocking face ---------------------------------------------------------------------------


def test_blocking(enclave: StandIn, world: World) -> None:
    with aigovtool.connect(enclave.address, manifest=world.policy, api_key=API_KEY) as client:
        assert client.attestation.simulated
        assert client.model.name == "double"
        result = client.infer({"x": X})
        np.testing.assert_array_equal(result.outputs["y"], X * 2)
        assert client.budget().remaining == 4
        assert client.verify().loan == world.loan
    with pytest.raises(ConfigurationError, match="closed"):
        client.budget()
    client.close()


async def test_blocking_inside_a_running_loop(enclave: StandIn, world: World) -> None:
    """As in a notebook, whose cells run on a loop."""
    with aigovtool.connect(enclave.address, manifest=world.policy, api_key=API_KEY) as client:
        assert client.infer({"x": X}).remaining == 4


def test_blocking_from_several_threads(enclave: StandIn, world: World) -> None:
    enclave.credits = 40
    with aigovtool.connect(enclave.address, manifest=world.policy, api_key=API_KEY) as client:
        threads = [
            threading.Thread(target=lambda: [client.infer({"x": X}) for _ in range(10)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert enclave.credits == 0


def test_a_refused_connection_leaves_no_thread(enclave: StandIn, world: World) -> None:
    before = set(threading.enumerate())
    with pytest.raises(ConfigurationError):
        aigovtool.connect(enclave.address, manifest="no-such-file.toml", api_key=API_KEY)
    assert set(threading.enumerate()) == before
    assert not enclave.received


def test_manifest_from_a_file(enclave: StandIn, world: World, tmp_path: object) -> None:
    path = tmp_path / "manifest.toml"  # type: ignore[operator]
    path.write_text(write_policy(world.policy))
    assert read_manifest(path) == world.policy
    with aigovtool.connect(enclave.address, manifest=str(path), api_key=API_KEY) as client:
        assert client.infer({"x": X}).remaining == 4


def test_importing_the_package_is_cheap() -> None:
    """The servers and the command line import it too."""
    code = "import sys, aigovtool, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert not {"numpy", "uvloop", "cryptography", "asyncio"} & set(json.loads(done.stdout))
    assert {"connect", "connect_async"} <= set(aigovtool.__all__)
    with pytest.raises(AttributeError):
        aigovtool.no_such_name  # noqa: B018
