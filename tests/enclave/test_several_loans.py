"""One enclave server, two loans of two custodians: neither sees, pays for or ends the other."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.config import Limits
from aigovtool.errors import ConfigurationError
from aigovtool.ids import LoanId

from . import models
from .conftest import RunningEnclave, query, running_enclave
from .custodian import Consumer, FakeCustodian
from .test_rpc import NAME, certificate

ADD = "/v2/models/adder/infer"
NONCE = secrets.token_hex(32)


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[FakeCustodian]:
    """Another custodian, of another model, whose one consumer has the same pseudonym."""
    folder, key = tmp_path / "other", SigningKey.generate()
    folder.mkdir()
    model = models.sealed(folder, key, models.adding(), name="adder")
    async with FakeCustodian(key, model, budget=3, loan=LoanId("loan_other")) as running:
        yield running


@asynccontextmanager
async def both(
    custodian: FakeCustodian, other: FakeCustodian, **settings: object
) -> AsyncIterator[RunningEnclave]:
    async with running_enclave(custodian, beside=[other], **settings) as enclave:
        for one in (custodian, other):
            ready = f"/v2/models/{one.model.verified.manifest.name}/ready"
            while (await enclave.get(ready, one.alice))[0] != 200:
                await one.until(lambda one=one: bool(one.sockets))
        yield enclave


async def add(
    enclave: RunningEnclave, who: Consumer, *, path: str = ADD, **headers: str
) -> tuple[int, dict]:
    inputs = [query([[1.0, 2.0]], name=name)["inputs"][0] for name in ("a", "b")]
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    async with enclave.http.post(
        path, json={"inputs": inputs}, headers=who.authorization | names
    ) as answer:
        return answer.status, await answer.json(content_type=None)


async def test_a_key_says_whose_model_answers_and_which_budget_pays(
    custodian: FakeCustodian, other: FakeCustodian
) -> None:
    async with both(custodian, other) as enclave:
        for _ in range(2):
            status, told, _ = await enclave.infer(value=4.0)
            assert (status, told["outputs"][0]["data"]) == (200, [8.0, 8.0])
        served = [await add(enclave, other.alice) for _ in range(4)]
        assert [status for status, _ in served] == [200, 200, 200, 429]
        assert served[0][1]["outputs"][0]["data"] == [2.0, 4.0]
        assert (await enclave.infer())[0] == 200  # the other's budget is not this one's
        for one, name, left in ((custodian, "tiny", 7), (other, "adder", 0)):
            _, index, _ = await enclave.get("/v2/repository/index", one.alice)
            assert [entry["name"] for entry in index] == [name]
            assert (await enclave.get("/v1/budget", one.alice))[1]["remaining"] == left
    assert (custodian.spent, custodian.left) == (3, 7)
    assert (other.spent, other.left) == (3, 0)
    for one in (custodian, other):
        one.check()


async def test_a_key_opens_no_other_loans_model(
    custodian: FakeCustodian, other: FakeCustodian
) -> None:
    async with both(custodian, other) as enclave:
        status, problem = await add(enclave, custodian.alice)
        assert status == 404
        assert "tiny" in str(problem)
        assert "adder" not in str(problem)
        assert (await enclave.infer(consumer=other.alice))[0] == 404
        stranger = Consumer(custodian.alice.id, "nobody's", budget=None)
        assert (await enclave.infer(consumer=stranger))[0] == 401
        assert (await enclave.get("/v1/budget"))[0] == 401
    assert (custodian.spent, other.spent) == (0, 0)


async def test_a_stop_of_one_loan_leaves_the_other_served(
    custodian: FakeCustodian, other: FakeCustodian
) -> None:
    async with both(custodian, other) as enclave:
        await custodian.set_state("stopped", "enough")
        await custodian.until(lambda: bool(custodian.proofs))
        status, problem, _ = await enclave.infer()
        assert status == 503
        assert "enough" in str(problem)
        assert (await add(enclave, other.alice))[0] == 200
        assert (await enclave.get("/v2/health/ready"))[0] == 200
        assert not other.proofs
        await other.set_state("stopped")
        await other.until(lambda: bool(other.proofs))
        assert (await enclave.get("/v2/health/ready"))[0] == 503
    assert other.spent == 1


async def test_evidence_is_about_the_loan_that_is_asked_about(
    custodian: FakeCustodian, other: FakeCustodian
) -> None:
    async with both(custodian, other) as enclave:

        async def asked(**headers: str) -> tuple[int, str | None]:
            path = f"/.well-known/attestation?nonce={NONCE}"
            names = {name.replace("_", "-"): text for name, text in headers.items()}
            async with enclave.http.get(path, headers=names) as answer:
                return answer.status, (await answer.json(content_type=None)).get("loan")

        for one in (custodian, other):
            assert await asked(Aigovtool_Loan=one.loan) == (200, one.loan)
        assert await asked() == (200, custodian.loan)
        # whoever asked judges that it is another one
        assert await asked(Aigovtool_Loan="loan_third") == (200, custodian.loan)
        await custodian.set_state("stopped")
        await custodian.until(lambda: bool(custodian.proofs))
        assert (await asked(Aigovtool_Loan=custodian.loan))[0] == 503
        assert await asked(Aigovtool_Loan=other.loan) == (200, other.loan)
        assert await asked() == (200, other.loan)


async def test_while_one_custodian_is_away_its_consumers_are_told_to_wait_and_others_served(
    custodian: FakeCustodian, other: FakeCustodian
) -> None:
    other.accepts = False  # it enrols, and does not say who its consumers are
    async with running_enclave(custodian, beside=[other]) as enclave:
        assert (await enclave.infer())[0] == 200
        assert (await add(enclave, other.alice))[0] == 503
        other.accepts = True
        async with asyncio.timeout(30):
            while (await add(enclave, other.alice))[0] != 200:
                pass


async def test_what_is_blocked_at_one_custodian_is_not_at_the_other_of_the_same_name(
    custodian: FakeCustodian, other: FakeCustodian
) -> None:
    async with both(custodian, other) as enclave:
        custodian.alice.blocked = True
        await custodian.set_roster()
        async with asyncio.timeout(30):
            while (await enclave.infer())[0] != 403:
                pass
        assert (await add(enclave, other.alice))[0] == 200


async def test_a_retrys_key_is_nothing_to_the_other_loan(
    custodian: FakeCustodian, other: FakeCustodian
) -> None:
    async with both(custodian, other) as enclave:
        assert (await enclave.infer(Idempotency_Key="the-same"))[0] == 200
        status, told = await add(enclave, other.alice, Idempotency_Key="the-same")
        assert (status, told["model_name"]) == (200, "adder")
    assert (custodian.spent, other.spent) == (1, 1)


async def test_one_limit_for_bodies_holds_for_all_loans_together(
    custodian: FakeCustodian, other: FakeCustodian
) -> None:
    limits = Limits(max_body_bytes=1 << 20, max_bodies_bytes=2 << 20)
    async with both(custodian, other, limits=limits) as enclave:
        hold, held = asyncio.Event(), asyncio.Event()

        async def half() -> AsyncIterator[bytes]:
            yield bytes((1 << 20) - 1)
            held.set()
            await hold.wait()

        async def asks(path: str, who: Consumer) -> int:
            headers = who.authorization | {"Content-Length": str(1 << 20)}
            async with enclave.http.post(path, data=half(), headers=headers) as answer:
                return answer.status

        tasks = []
        for _ in range(2):
            held.clear()
            tasks.append(asyncio.create_task(asks("/v2/models/tiny/infer", custodian.alice)))
            await held.wait()
        async with asyncio.timeout(30):
            # with a key it is not served in the step in which it came, but read like a large one
            while (await add(enclave, other.alice, Idempotency_Key="a"))[0] != 503:
                pass
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(30):
            while (await add(enclave, other.alice, Idempotency_Key="a"))[0] != 200:
                pass


async def test_calls_by_grpc_go_to_their_loan_too(
    custodian: FakeCustodian, other: FakeCustodian
) -> None:
    async with both(custodian, other, grpc_listen="127.0.0.1:0") as enclave:
        pem = await asyncio.to_thread(certificate, enclave.grpc_address)
        credentials = grpc.ssl_channel_credentials(pem)
        async with triton.InferenceServerClient(
            enclave.grpc_address,
            ssl=True,
            creds=credentials,
            channel_args=[("grpc.ssl_target_name_override", NAME)],
        ) as client:
            for one, name, not_name in ((custodian, "tiny", "adder"), (other, "adder", "tiny")):
                key = {k.lower(): v for k, v in one.alice.authorization.items()}
                assert await client.is_model_ready(name, headers=key)
                with pytest.raises(InferenceServerException):
                    await client.get_model_metadata(not_name, headers=key)


async def test_two_tickets_for_one_loan_are_refused(custodian: FakeCustodian) -> None:
    with pytest.raises(ConfigurationError, match="same loan"):
        async with running_enclave(custodian, beside=[custodian]):
            pass


async def test_the_end_settles_with_both_custodians(
    custodian: FakeCustodian, other: FakeCustodian
) -> None:
    async with both(custodian, other) as enclave:
        assert (await enclave.infer())[0] == 200
        assert (await add(enclave, other.alice))[0] == 200
    for one in (custodian, other):
        assert (one.spent, one.leased, len(one.proofs)) == (1, 0, 1)
        one.check()
