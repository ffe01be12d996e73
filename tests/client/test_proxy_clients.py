"""Other people's clients, unchanged, through the proxy; skipped where they are not installed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from aigovtool.wire.codec import encode
from aigovtool.wire.oip import ModelMetadata, TensorSignature
from tests.channel.stand_in import API_KEY, Asked, Platform, Session, StandIn, World, answer
from tests.client.test_proxy import Running

METADATA = ModelMetadata(
    name="double",
    versions=("1",),
    platform="onnx",
    inputs=(TensorSignature(name="x", datatype="FP32", shape=(-1, 3)),),
    outputs=(TensorSignature(name="y", datatype="FP32", shape=(-1, 3)),),
)


@pytest.fixture
def enclave() -> Iterator[StandIn]:
    with StandIn(Session(World.make(Platform.make()))) as stand_in:
        yield stand_in


@pytest.fixture
def proxy(enclave: StandIn) -> Iterator[Running]:
    with Running(enclave) as running:
        yield running


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient(enclave: StandIn, proxy: Running, binary: bool) -> None:
    triton = pytest.importorskip("tritonclient.http")

    def reply(asked: Asked) -> bytes | None:
        if asked.target == "/v2/models/double":
            return answer(encode(METADATA))
        return enclave.infer(asked)

    enclave.reply = reply
    client = triton.InferenceServerClient(f"127.0.0.1:{proxy.port}")
    try:
        assert client.is_server_live()
        assert client.is_model_ready("double")
        assert client.get_model_metadata("double")["inputs"][0]["shape"] == [-1, 3]
        tensor = triton.InferInput("x", [1, 3], "FP32")
        tensor.set_data_from_numpy(np.array([[1, 2, 3]], np.float32), binary_data=binary)
        wanted = triton.InferRequestedOutput("y", binary_data=binary)
        came = client.infer("double", [tensor], outputs=[wanted])
        np.testing.assert_array_equal(came.as_numpy("y"), [[2, 4, 6]])
        enclave.reply = lambda asked: enclave.problem(enclave.exhausted())
        with pytest.raises(Exception, match="the budget is used up"):
            client.infer("double", [tensor])
    finally:
        client.close()
    assert enclave.queries[0].headers["authorization"] == f"Bearer {API_KEY}"
