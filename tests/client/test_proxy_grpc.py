"""The proxy's gRPC door: tritonclient.grpc, unchanged, and what the stand-in enclave saw of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from aigovtool.channel.address import parse_address
from aigovtool.channel.connect import AttestedChannel, open_channel
from aigovtool.client.receipt_store import ReceiptStore
from aigovtool.client.rpc import grpc_door
from aigovtool.clock import SystemClock
from aigovtool.crypto.signing import SigningKey
from aigovtool.errors import ConfigurationError
from tests.channel.stand_in import (
    API_KEY,
    Platform,
    Session,
    StandIn,
    World,
    answer,
    other_session,
)


@dataclass
class Proxied:
    client: tritonclient.grpc.aio.InferenceServerClient
    channel: AttestedChannel
    receipts: Path

    def kept(self) -> int:
        return sum(file.stat().st_size for file in self.receipts.rglob("*") if file.is_file())


@pytest.fixture
def enclave() -> Iterator[StandIn]:
    with StandIn(Session(World.make(Platform.make()))) as stand_in:
        yield stand_in


@asynccontextmanager
async def proxying(
    enclave: StandIn, receipts: Path, *, listen: str = "127.0.0.1:0"
) -> AsyncIterator[Proxied]:
    policy = enclave.session.world.policy
    channel = await open_channel(parse_address(enclave.address), policy, clock=SystemClock())
    store = ReceiptStore(receipts, manifest=policy)
    try:
        async with (
            grpc_door(
                channel,
                api_key=API_KEY,
                store=store,
                listen=parse_address(listen),
                dangerously_beyond_loopback=False,
            ) as port,
            tritonclient.grpc.aio.InferenceServerClient(f"127.0.0.1:{port}") as client,
        ):
            yield Proxied(client, channel, receipts)
    finally:
        await channel.aclose()
        store.close()


def rows() -> list[triton.InferInput]:
    tensor = triton.InferInput("x", [1, 3], "FP32")
    tensor.set_data_from_numpy(np.array([[1, 2, 3]], np.float32))
    return [tensor]


async def refused(proxied: Proxied) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        await proxied.client.infer("double", rows())
    return caught.value


async def test_a_query_goes_to_the_judged_enclave_with_the_users_key(
    enclave: StandIn, tmp_path: Path
) -> None:
    async with proxying(enclave, tmp_path / "receipts") as proxied:
        assert await proxied.client.is_server_live()
        came = await proxied.client.infer("double", rows())
        np.testing.assert_array_equal(came.as_numpy("y"), [[2, 4, 6]])
        await proxied.client.infer("double", rows(), headers={"authorization": "Bearer mine"})
        assert proxied.kept() > 0
    assert [one.headers["authorization"] for one in enclave.queries[1:]] == [
        f"Bearer {API_KEY}",
        "Bearer mine",
    ]
    assert enclave.queries[1].target == "/v2/models/double/infer"


async def test_an_error_of_the_enclave_is_the_clients(enclave: StandIn, tmp_path: Path) -> None:
    enclave.credits = 0
    async with proxying(enclave, tmp_path / "receipts") as proxied:
        error = await refused(proxied)
    assert error.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert "the budget is used up" in error.message()


async def test_another_enclave_that_takes_its_place_gets_nothing(
    enclave: StandIn, tmp_path: Path
) -> None:
    async with proxying(enclave, tmp_path / "receipts") as proxied:
        await proxied.client.infer("double", rows())
        stranger = Session(World.make(Platform.make()))
        enclave.restart(stranger)
        error = await refused(proxied)
        assert error.status() == "StatusCode.PERMISSION_DENIED"
        assert len(enclave.queries) == 1
        enclave.restart(other_session(enclave.session))


async def test_an_answer_without_a_receipt_or_at_another_price_is_kept_from_the_client(
    enclave: StandIn, tmp_path: Path
) -> None:
    async with proxying(enclave, tmp_path / "receipts") as proxied:
        enclave.price = 2
        assert "price" in (await refused(proxied)).message()
        enclave.price = 1
        forged = enclave.receipt(key=SigningKey.generate())
        enclave.reply = lambda _: answer(b"{}", headers={"Aigovtool-Receipt": forged})
        assert (await refused(proxied)).status() == "StatusCode.PERMISSION_DENIED"
        enclave.reply = lambda _: answer(b'{"model_name":"double","outputs":[]}')
        assert "receipt" in (await refused(proxied)).message()


async def test_an_answer_that_is_none_is_an_error(enclave: StandIn, tmp_path: Path) -> None:
    async with proxying(enclave, tmp_path / "receipts") as proxied:
        for body in (
            b"{",
            b'{"model_name":"double","outputs":[{"name":"y","datatype":"FP32","shape":[1]}]}',
        ):
            enclave.reply = lambda _, body=body: answer(
                body, headers={"Aigovtool-Receipt": enclave.receipt()}
            )
            assert (await refused(proxied)).status() == "StatusCode.INVALID_ARGUMENT"


async def test_other_machines_cannot_use_the_key(enclave: StandIn, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="other machines"):
        async with proxying(enclave, tmp_path / "receipts", listen="0.0.0.0:0"):
            pass
