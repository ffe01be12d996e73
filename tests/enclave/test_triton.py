"""tritonclient, unchanged, with its key as a header, on the enclave itself."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import ssl
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.config import Limits
from aigovtool.sealing.interface import ClassificationOutput, ModelInterface, TensorInput

from . import models
from .conftest import INFER, RunningEnclave, query, running_enclave
from .custodian import FakeCustodian

CODINGS = ["gzip", "deflate"]


def trusting() -> ssl.SSLContext:
    """What a consumer must not do before it has judged the enclave; that is not the matter here."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    return tls


@pytest.fixture
async def client(
    enclave: RunningEnclave,
) -> AsyncIterator[tritonclient.http.aio.InferenceServerClient]:
    async with tritonclient.http.aio.InferenceServerClient(
        enclave.address, ssl=True, ssl_context=trusting()
    ) as triton:
        yield triton


def rows(array: np.ndarray, *, binary: bool = True) -> list[tritonclient.http.InferInput]:
    tensor = tritonclient.http.InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return [tensor]


ONE = np.array([[1.5, -2.0]], np.float32)


async def test_who_is_here(
    enclave: RunningEnclave, client: tritonclient.http.aio.InferenceServerClient
) -> None:
    key = enclave.custodian.alice.authorization
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("tiny", headers=key)
    assert await client.is_model_ready("tiny", "1", headers=key)
    assert not await client.is_model_ready("tiny", "2", headers=key)
    assert not await client.is_model_ready("other", headers=key)
    assert not await client.is_model_ready("tiny")  # without a key nobody learns of it
    server = await client.get_server_metadata(headers=key)
    assert server["extensions"] == ["binary_tensor_data", "classification"]
    for version in ("", "1"):
        model = await client.get_model_metadata("tiny", version, headers=key)
        assert (model["name"], model["versions"]) == ("tiny", ["1"])
        assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    (entry,) = await client.get_model_repository_index(headers=key)
    assert entry == {"name": "tiny", "version": "1", "state": "READY", "reason": ""}


async def test_errors_are_what_the_client_prints(
    enclave: RunningEnclave, client: tritonclient.http.aio.InferenceServerClient
) -> None:
    key = enclave.custodian.alice.authorization
    for status, asking in (
        ("401", client.infer("tiny", rows(ONE))),
        ("404", client.infer("other", rows(ONE), headers=key)),
        ("422", client.infer("tiny", rows(np.ones((1, 3), np.float32)), headers=key)),
        ("422", client.infer("tiny", rows(ONE), headers=key, sequence_id=3)),
        ("404", client.get_model_config("tiny", headers=key)),
        ("403", client.load_model("tiny", headers=key)),
        ("403", client.unload_model("tiny", headers=key)),
        ("401", client.unload_model("tiny")),
    ):
        with pytest.raises(InferenceServerException) as caught:
            await asking
        assert caught.value.status() == status
        assert caught.value.message()
    assert (await enclave.get("/v1/budget", enclave.custodian.alice))[1]["remaining"] == 10


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("request_coding", [None, *CODINGS])
@pytest.mark.parametrize("answer_coding", [None, *CODINGS])
async def test_compressed_or_not(
    enclave: RunningEnclave,
    client: tritonclient.http.aio.InferenceServerClient,
    binary: bool,
    request_coding: str | None,
    answer_coding: str | None,
) -> None:
    came = await client.infer(
        "tiny",
        rows(ONE, binary=binary),
        outputs=[tritonclient.http.InferRequestedOutput("y", binary_data=binary)],
        request_id="seven",
        headers=enclave.custodian.alice.authorization,
        request_compression_algorithm=request_coding,
        response_compression_algorithm=answer_coding,
    )
    np.testing.assert_array_equal(came.as_numpy("y"), 2 * ONE)
    assert came.get_response()["id"] == "seven"


async def test_the_blocking_client(enclave: RunningEnclave) -> None:
    def ask() -> np.ndarray:
        with contextlib.closing(
            tritonclient.http.InferenceServerClient(
                enclave.address, ssl=True, ssl_context_factory=trusting, insecure=True
            )
        ) as triton:
            key = enclave.custodian.alice.authorization
            answer = triton.async_infer(  # it adds its own headers to those that it is given
                "tiny", rows(ONE), headers=dict(key), request_compression_algorithm="gzip"
            ).get_result()
            np.testing.assert_array_equal(answer.as_numpy("y"), 2 * ONE)
            return triton.infer(
                "tiny", rows(ONE), headers=key, response_compression_algorithm="deflate"
            ).as_numpy("y")

    np.testing.assert_array_equal(await asyncio.to_thread(ask), 2 * ONE)


async def test_nobody_gets_a_compressed_answer_unasked(enclave: RunningEnclave) -> None:
    for accepts, coding in (
        ("gzip", "gzip"),
        (" DEFLATE ", "deflate"),
        ("gzip, deflate", None),
        ("gzip;q=0", None),
        ("*", None),
        ("br", None),
    ):
        status, answer, headers = await enclave.infer(Accept_Encoding=accepts)
        assert (status, answer["outputs"][0]["data"]) == (200, [2.0, 2.0])
        assert headers.get("Content-Encoding") == coding, accepts
    status, answer, headers = await enclave.infer(body=b"{", Accept_Encoding="gzip")
    assert (status, "Content-Encoding" in headers) == (400, False)


def post(enclave: RunningEnclave, body: bytes, coding: str) -> object:
    return enclave.http.post(
        INFER,
        data=body,
        headers=enclave.custodian.alice.authorization | {"Content-Encoding": coding},
    )


async def test_a_bomb_is_refused_uncharged_before_it_fills_the_memory(
    custodian: FakeCustodian,
) -> None:
    limits = Limits(max_body_bytes=4 << 20, max_bodies_bytes=6 << 20)
    bomb = gzip.compress(bytes(1 << 28), 9)
    assert len(bomb) < 1 << 20
    async with running_enclave(custodian, limits=limits) as enclave:
        for _ in range(3):  # what each took of the room is given back
            async with post(enclave, bomb, "gzip") as answer:
                assert answer.status == 413
                assert (await answer.json(content_type=None))["error"]
        limited = json.dumps(query([[1.0, 1.0]])).encode() + b" " * (4 << 20)
        async with post(enclave, zlib.compress(limited), "deflate") as answer:
            assert answer.status == 413
        assert (await enclave.infer())[0] == 200
        assert (await enclave.get("/v1/budget", custodian.alice))[1]["remaining"] == 9


async def test_bombs_together_find_no_more_room_than_plain_bodies(
    custodian: FakeCustodian,
) -> None:
    limits = Limits(max_body_bytes=8 << 20, max_bodies_bytes=4 << 20)
    async with running_enclave(custodian, limits=limits) as enclave:
        async with post(enclave, gzip.compress(bytes(7 << 20)), "gzip") as answer:
            assert answer.status == 503
        assert (await enclave.infer())[0] == 200


async def test_what_is_no_such_stream_is_malformed_and_uncharged(enclave: RunningEnclave) -> None:
    whole = json.dumps(query([[1.0, 1.0]])).encode()
    packed = gzip.compress(whole)
    for coding, body in (
        ("gzip", whole),
        ("gzip", b""),
        ("gzip", packed[:-1]),
        ("gzip", packed + b"x"),
        ("gzip", packed + packed),
        ("gzip", packed[:-8] + bytes(8)),
        ("deflate", packed),
        ("deflate", zlib.compress(whole)[2:-4]),
        ("br", whole),
        ("gzip, gzip", gzip.compress(packed)),
    ):
        async with post(enclave, body, coding) as answer:
            assert answer.status == 400, (coding, len(body))
            assert (await answer.json(content_type=None))["kind"] == "malformed"
    assert (await enclave.get("/v1/budget", enclave.custodian.alice))[1]["remaining"] == 10


async def test_a_retry_may_come_in_another_coding(enclave: RunningEnclave) -> None:
    whole = json.dumps(query([[1.0, 1.0]])).encode()
    first = await enclave.infer(body=whole, Idempotency_Key="one")
    again = await enclave.infer(
        body=gzip.compress(whole),
        Idempotency_Key="one",
        Content_Encoding="gzip",
        Accept_Encoding="gzip",
    )
    assert (first[0], first[1]) == (again[0], again[1])
    assert again[2]["Aigovtool-Replayed"] == "1"
    assert (await enclave.get("/v1/budget", enclave.custodian.alice))[1]["remaining"] == 9


async def test_classification_by_the_labels_that_the_custodian_signed(
    key: SigningKey, tmp_path: Path
) -> None:
    interface = ModelInterface(
        inputs=(TensorInput(name="x", datatype="FP32", shape=(-1, 2)),),
        outputs=(ClassificationOutput(name="y", labels=("cat", "dog"), softmax=False),),
    )
    sealed = models.sealed(tmp_path, key, models.doubling(), interface=interface)
    async with (
        FakeCustodian(key, sealed, budget=5) as custodian,
        running_enclave(custodian) as enclave,
        tritonclient.http.aio.InferenceServerClient(
            enclave.address, ssl=True, ssl_context=trusting()
        ) as triton,
    ):
        for binary in (True, False):
            came = await triton.infer(
                "tiny",
                rows(np.array([[1, 2], [4, 3]], np.float32)),
                outputs=[
                    tritonclient.http.InferRequestedOutput("y", class_count=3, binary_data=binary)
                ],
                headers=custodian.alice.authorization,
            )
            found = [text if binary else text.encode() for text in came.as_numpy("y").ravel()]
            assert came.as_numpy("y").shape == (2, 2)
            assert found == [b"4.000000:1:dog", b"2.000000:0:cat", b"8.000000:0:cat",
                             b"6.000000:1:dog"]  # fmt: skip
