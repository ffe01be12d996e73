"""The protocol over gRPC: tritonclient.grpc, unchanged, on the enclave itself."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from aigovtool.channel import grpc_door
from aigovtool.channel.grpc_door import Door, opened
from aigovtool.crypto.tls import spki_sha256_of
from aigovtool.enclave.config import Limits
from aigovtool.errors import ConfigurationError
from aigovtool.wire.receipt import from_header

from .conftest import RunningEnclave, running_enclave
from .custodian import Consumer, FakeCustodian

NAME = "AIGovTool enclave"  # in the certificate, which is the same as on HTTPS
ONE = np.array([[1.5, -2.0]], np.float32)
INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass
class Grpc:
    """An enclave with a gRPC door, and a client of it that pins its certificate."""

    enclave: RunningEnclave
    client: tritonclient.grpc.aio.InferenceServerClient
    channel: grpc.aio.Channel

    @property
    def key(self) -> dict[str, str]:
        return key_of(self.enclave.custodian.alice)

    async def call(self, message: bytes, **metadata: str) -> tuple[bytes, grpc.aio.Metadata]:
        """Make a call with a message of any bytes."""
        given = self.key | {name.replace("_", "-"): text for name, text in metadata.items()}
        call = self.channel.unary_unary(INFER)(message, metadata=tuple(given.items()))
        return await call, await call.trailing_metadata()

    async def remaining(self) -> int:
        _, view, _ = await self.enclave.get("/v1/budget", self.enclave.custodian.alice)
        return int(view["remaining"])


def key_of(consumer: Consumer) -> dict[str, str]:
    return {"authorization": consumer.authorization["Authorization"]}


def certificate(address: str) -> bytes:
    host, port = address.split(":")
    return ssl.get_server_certificate((host, int(port))).encode()


@pytest.fixture
async def door(custodian: FakeCustodian) -> AsyncIterator[Grpc]:
    async with running_enclave(custodian, grpc_listen="127.0.0.1:0") as enclave:
        pem = await asyncio.to_thread(certificate, enclave.grpc_address)
        options = [("grpc.ssl_target_name_override", NAME)]
        credentials = grpc.ssl_channel_credentials(pem)
        async with (
            tritonclient.grpc.aio.InferenceServerClient(
                enclave.grpc_address, ssl=True, creds=credentials, channel_args=options
            ) as client,
            grpc.aio.secure_channel(enclave.grpc_address, credentials, options=options) as channel,
        ):
            yield Grpc(enclave, client, channel)


def rows(array: np.ndarray = ONE) -> list[triton.InferInput]:
    tensor = triton.InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    return [tensor]


def message(**changed: object) -> service_pb2.ModelInferRequest:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])
    given: dict = {
        "model_name": "tiny",
        "inputs": [tensor],
        "raw_input_contents": [ONE.tobytes()],
    }
    return service_pb2.ModelInferRequest(**given | changed)


async def test_it_is_the_identity_of_https(door: Grpc) -> None:
    one = await asyncio.to_thread(certificate, door.enclave.address)
    other = await asyncio.to_thread(certificate, door.enclave.grpc_address)
    assert one == other
    (session,) = door.enclave.custodian.sessions.values()
    assert spki_sha256_of(other) == session.keys.tls_spki_sha256  # which the evidence names


async def test_who_is_here(door: Grpc) -> None:
    client, key = door.client, door.key
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("tiny", headers=key)
    assert await client.is_model_ready("tiny", "1", headers=key)
    assert not await client.is_model_ready("tiny", "2", headers=key)
    assert not await client.is_model_ready("other", headers=key)
    server = await client.get_server_metadata(headers=key)
    assert (server.name, list(server.extensions)) == (
        "aigovtool-enclave",
        ["binary_tensor_data", "classification"],
    )
    model = await client.get_model_metadata("tiny", "1", headers=key)
    assert (model.name, list(model.versions), list(model.inputs[0].shape)) == (
        "tiny", ["1"], [-1, 2],
    )  # fmt: skip
    (entry,) = (await client.get_model_repository_index(headers=key)).models
    assert (entry.name, entry.version, entry.state) == ("tiny", "1", "READY")


async def test_a_query_is_answered_charged_and_receipted_in_the_trailer(door: Grpc) -> None:
    came = await door.client.infer(
        "tiny", rows(), request_id="seven", headers=door.key, model_version="1"
    )
    np.testing.assert_array_equal(came.as_numpy("y"), 2 * ONE)
    assert came.get_response().id == "seven"
    body, trailer = await door.call(message().SerializeToString())
    answer = service_pb2.ModelInferResponse.FromString(body)
    assert answer.raw_output_contents[0] == (2 * ONE).tobytes()
    assert (answer.model_name, answer.model_version) == ("tiny", "1")
    from_header(str(trailer["aigovtool-receipt"]))
    assert trailer["aigovtool-remaining"] == "8"


async def test_the_two_faces_share_one_budget_and_one_memory_of_keys(door: Grpc) -> None:
    whole = message().SerializeToString()
    first, _ = await door.call(whole, idempotency_key="one")
    again, trailer = await door.call(whole, idempotency_key="one")
    assert first == again
    assert trailer["aigovtool-replayed"] == "1"
    assert (await door.enclave.infer())[0] == 200
    assert await door.remaining() == 8


async def test_typed_contents_and_classes(door: Grpc) -> None:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="x",
        datatype="FP32",
        shape=[1, 2],
        contents=service_pb2.InferTensorContents(fp32_contents=[1.0, 2.0]),
    )
    body, _ = await door.call(message(inputs=[tensor], raw_input_contents=[]).SerializeToString())
    answer = service_pb2.ModelInferResponse.FromString(body)
    assert answer.raw_output_contents[0] == np.array([2, 4], np.float32).tobytes()
    wanted = [triton.InferRequestedOutput("y", class_count=1)]
    came = await door.client.infer("tiny", rows(), outputs=wanted, headers=door.key)
    assert came.as_numpy("y").tolist() == [[b"3.000000:0"]]


async def code_of(call: object) -> str:
    with pytest.raises(InferenceServerException) as caught:
        await call
    assert caught.value.message()
    return caught.value.status().removeprefix("StatusCode.")


async def test_refusals_are_the_codes_that_clients_expect_and_uncharged(door: Grpc) -> None:
    client, key = door.client, door.key
    stranger = {"authorization": "Bearer nobody"}
    wrong = np.ones((1, 3), np.float32)
    for code, call in (
        ("UNAUTHENTICATED", client.infer("tiny", rows())),
        ("UNAUTHENTICATED", client.infer("tiny", rows(), headers=stranger)),
        ("UNAUTHENTICATED", client.get_model_metadata("tiny")),
        ("UNAUTHENTICATED", client.get_server_metadata()),
        ("NOT_FOUND", client.infer("other", rows(), headers=key)),
        ("NOT_FOUND", client.infer("../../v1/budget", rows(), headers=key)),
        ("NOT_FOUND", client.get_model_metadata("tiny", "..", headers=key)),
        ("INVALID_ARGUMENT", client.infer("tiny", rows(wrong), headers=key)),
        ("INVALID_ARGUMENT", client.infer("tiny", rows(), sequence_id=1, headers=key)),
        ("UNIMPLEMENTED", client.load_model("tiny", headers=key)),
        ("UNIMPLEMENTED", client.get_model_config("tiny", headers=key)),
        ("UNIMPLEMENTED", client.infer("tiny", rows(), headers=key, compression_algorithm="gzip")),
    ):
        assert await code_of(call) == code
    blocked = door.enclave.custodian.add_consumer("bob")
    blocked.blocked = True
    await door.enclave.custodian.set_roster()
    assert await code_of(client.infer("tiny", rows(), headers=key_of(blocked))) in (
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",  # until the roster has come
    )
    assert await door.remaining() == 10


async def test_streams_are_not_implemented(door: Grpc) -> None:
    stream = door.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream(iter([b""]), metadata=tuple(door.key.items())).read()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_malformed_messages_are_refused_uncharged(door: Grpc) -> None:
    tensor = message().inputs[0]
    full = service_pb2.ModelInferRequest.InferInputTensor()
    full.CopyFrom(tensor)
    full.contents.fp32_contents.extend([1, 2])
    other = service_pb2.ModelInferRequest.InferInputTensor()
    other.CopyFrom(tensor)
    other.contents.int_contents.extend([1, 2])
    nothing = message()
    nothing.parameters["x"].SetInParent()
    for broken in (
        b"\xff\xff\xff",
        message().SerializeToString()[:-1],
        message(raw_input_contents=[]).SerializeToString(),
        message(raw_input_contents=[b"x"] * 2).SerializeToString(),
        message(raw_input_contents=[b"x"]).SerializeToString(),
        message(inputs=[full]).SerializeToString(),
        message(inputs=[other], raw_input_contents=[]).SerializeToString(),
        message(inputs=[], raw_input_contents=[]).SerializeToString(),
        nothing.SerializeToString(),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await door.call(broken)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, broken
    assert await door.remaining() == 10


async def test_with_nothing_left_the_trailer_says_when_to_ask_again(door: Grpc) -> None:
    for _ in range(10):
        await door.client.infer("tiny", rows(), headers=door.key)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.call(message().SerializeToString())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailer = caught.value.trailing_metadata()
    assert int(str(trailer["retry-after"])) >= 1
    assert trailer["aigovtool-remaining"] == "0"
    held = asyncio.ensure_future(door.call(message().SerializeToString(), prefer="wait=30"))
    await door.enclave.custodian.until(lambda: bool(door.enclave.custodian.wanted))
    await door.enclave.custodian.grant(1)
    body, _ = await held
    assert service_pb2.ModelInferResponse.FromString(body).outputs[0].name == "y"


async def waiting(door: Grpc) -> int:
    _, view, _ = await door.enclave.get("/v1/budget", door.enclave.custodian.alice)
    return int(view["waiting"])


async def test_who_gives_up_while_waiting_is_not_charged(door: Grpc) -> None:
    for _ in range(10):
        await door.client.infer("tiny", rows(), headers=door.key)
    call = door.channel.unary_unary(INFER)(
        message().SerializeToString(), metadata=(*door.key.items(), ("prefer", "wait=60"))
    )
    await door.enclave.custodian.until(lambda: bool(door.enclave.custodian.wanted))
    assert call.cancel()
    async with asyncio.timeout(30):
        while await waiting(door):  # noqa: ASYNC110 - only the enclave knows
            await asyncio.sleep(0.01)
    await door.enclave.custodian.grant(1)
    assert (await door.enclave.infer())[0] == 200


async def test_without_a_key_not_even_the_message_is_read(custodian: FakeCustodian) -> None:
    limits = Limits(max_body_bytes=1 << 20, body_time_s=0.5)
    async with running_enclave(custodian, limits=limits, grpc_listen="127.0.0.1:0") as enclave:
        pem = await asyncio.to_thread(certificate, enclave.grpc_address)
        async with grpc.aio.secure_channel(
            enclave.grpc_address,
            grpc.ssl_channel_credentials(pem),
            options=[("grpc.ssl_target_name_override", NAME)],
        ) as channel:
            # a message that never comes: with no key, the refusal does not wait for it
            call = channel.stream_unary(INFER)()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            metadata = tuple(key_of(custodian.alice).items())
            slow = channel.stream_unary(INFER)(metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await slow
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(INFER)(bytes(3 << 20), metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            big = message(raw_input_contents=[bytes((1 << 20) + 1)]).SerializeToString()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(INFER)(big, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_one_consumer_does_not_take_all_calls(
    door: Grpc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_door, "MAX_CALLS_EACH", 2)
    bob = door.enclave.custodian.add_consumer("bob")
    await door.enclave.custodian.set_roster()
    assert (await door.enclave.infer(consumer=bob))[0] == 200  # the roster has come
    metadata = tuple(door.key.items())
    held = []
    async with asyncio.timeout(30):
        # the asking is a call too, and may have crowded out the last one held
        while not await crowded_out(door, door.key):
            held.append(door.channel.stream_unary(INFER)(metadata=metadata))
        assert not await crowded_out(door, key_of(bob))
        for call in held:
            call.cancel()
        while await crowded_out(door, door.key):
            pass


async def crowded_out(door: Grpc, key: dict[str, str]) -> bool:
    try:
        return not await door.client.is_model_ready("tiny", headers=key)
    except InferenceServerException as error:
        return error.status() == "StatusCode.UNAVAILABLE"


async def test_a_compressed_bomb_is_refused_and_not_blown_up(door: Grpc) -> None:
    call = door.channel.unary_unary(INFER)(
        bytes(64 << 20), metadata=tuple(door.key.items()), compression=grpc.Compression.Gzip
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert len(gzip.compress(bytes(64 << 20))) < 1 << 20  # within every limit as it comes


async def test_an_address_that_is_taken_is_said(door: Grpc) -> None:
    host, port = door.enclave.grpc_address.split(":")
    nobody = Door(door.client.infer, admit=lambda _: "", message_time_s=1)
    with pytest.raises(ConfigurationError, match="cannot listen"):
        async with opened(
            nobody, host=host, port=int(port), identity=None, max_message_bytes=1 << 20
        ):
            pass
