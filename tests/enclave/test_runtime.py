"""Every datatype of the protocol goes through a model and comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.runtime.onnx import OnnxModel
from aigovtool.errors import BadTensorError, MalformedError, UnavailableError, VerificationError
from aigovtool.wire.oip import HEADER_LENGTH, decode_infer_response, encode_infer_request
from aigovtool.wire.tensors import DTYPES

from . import models
from .conftest import INFER, running_enclave
from .custodian import FakeCustodian

TEXTS = [b"plain", "Größe €".encode(), b""]


def samples() -> dict[str, np.ndarray]:
    tensors = {}
    for name, dtype in DTYPES.items():
        if name == "BYTES":
            array = np.empty(3, object)
            array[:] = TEXTS
        elif name == "BOOL":
            array = np.array([True, False, True])
        elif dtype.kind == "f":
            array = np.array([0.5, -1.25, 65504.0], dtype)
        else:
            limits = np.iinfo(dtype)
            array = np.array([limits.min, 1, limits.max], dtype)
        tensors[f"in_{name}"] = array
    return tensors


@pytest.mark.parametrize("binary", [True, False])
async def test_every_datatype_both_ways(key: SigningKey, tmp_path: Path, binary: bool) -> None:
    model = models.sealed(tmp_path, key, models.every_type())
    tensors = samples()
    if not binary:
        del tensors["in_FP16"]  # the protocol has no JSON form of it
    async with (
        FakeCustodian(key, model, budget=5) as custodian,
        running_enclave(custodian) as enclave,
    ):
        body = encode_infer_request(samples(), binary=True)
        payload, headers = b"".join(body.chunks), dict(body.headers)
        if not binary:
            wanted = [{"name": "out" + name[2:]} for name in tensors]
            head = json.loads(payload[: body.header_length])
            del head["parameters"]
            head["outputs"] = wanted
            extended = json.dumps(head).encode()
            payload = extended + payload[body.header_length :]
            headers |= {HEADER_LENGTH: str(len(extended)), "Content-Length": str(len(payload))}
        async with enclave.http.post(
            INFER, data=payload, headers=custodian.alice.authorization | headers
        ) as answer:
            assert answer.status == 200, await answer.text()
            length = answer.headers.get(HEADER_LENGTH)
            response = decode_infer_response(
                await answer.read(), header_length=None if length is None else int(length)
            )
        assert (length is not None) is binary
    for name, sent in tensors.items():
        came = response.outputs["out" + name[2:]]
        assert came.dtype == sent.dtype, name
        assert came.tolist() == sent.tolist(), name


def loaded(tmp_path: Path, key: SigningKey, model: tuple) -> OnnxModel:
    sealed = models.sealed(tmp_path, key, model)
    return OnnxModel.load(sealed.verified.manifest, model[0]["model.onnx"], {}, intra_op_threads=1)


def test_text_that_is_no_text_is_refused_before_the_charge(tmp_path: Path, key: SigningKey) -> None:
    model = loaded(tmp_path, key, models.every_type())
    tensors = samples()
    tensors["in_BYTES"][0] = b"\xff\xfe"
    with pytest.raises(BadTensorError):
        model.prepare(tensors)


def test_a_model_whose_tensors_are_not_the_manifests_is_refused(
    tmp_path: Path, key: SigningKey
) -> None:
    sealed = models.sealed(tmp_path, key, models.every_type())
    with pytest.raises(VerificationError):
        OnnxModel.load(
            sealed.verified.manifest,
            models.doubling()[0]["model.onnx"],
            {},
            intra_op_threads=1,
        )


def test_what_is_no_model_is_refused(tmp_path: Path, key: SigningKey) -> None:
    sealed = models.sealed(tmp_path, key, models.doubling())
    with pytest.raises(MalformedError) as caught:
        OnnxModel.load(sealed.verified.manifest, b"no model at all", {}, intra_op_threads=1)
    assert "no model at all" not in str(caught.value)


def test_a_terminated_run_ends(tmp_path: Path, key: SigningKey) -> None:
    model = loaded(tmp_path, key, models.slow())
    run = model.new_run()
    run.terminate()
    with pytest.raises(UnavailableError):
        run.execute({"x": np.ones(1, np.float32)}, ["y"])


def test_a_closed_model_runs_nothing(tmp_path: Path, key: SigningKey) -> None:
    model = loaded(tmp_path, key, models.doubling())
    model.close()
    with pytest.raises(UnavailableError):
        model.new_run()
