"""COVID-Net-CXR-2's signature, with the stand-in: from a picture to an answer that says so."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from aigovtool.client.answer import read_answer
from aigovtool.client.inputs import read_inputs
from aigovtool.sealing.interface import decode_interface
from aigovtool.sealing.signature import onnx_datatype, onnx_shape
from aigovtool.wire.oip import ModelMetadata, TensorSignature

FOLDER = Path(__file__).parents[2] / "examples" / "covidnet"


def test_the_stand_in_answers_and_says_what_it_is(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx, which makes the stand-in, is not installed")
    runpy.run_path(str(FOLDER / "make_stand_in.py"))["write"](tmp_path)
    session = onnxruntime.InferenceSession((tmp_path / "stand-in.onnx").read_bytes())
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.type, taken.shape) == ("tensor(float)", [1, 480, 480, 3])
    assert (given.type, given.shape) == ("tensor(float)", [1, 2])

    model = ModelMetadata(
        name="stand-in",
        platform="onnx_onnxv1",
        inputs=(
            TensorSignature(
                name=taken.name, datatype=onnx_datatype(taken), shape=onnx_shape(taken)
            ),
        ),
        outputs=(),
    )
    interface = decode_interface((tmp_path / "interface.json").read_bytes())
    inputs = read_inputs(tmp_path / "not-an-x-ray.png", model=model, interface=interface)
    (scores,) = session.run(None, inputs)
    assert np.isclose(scores.sum(), 1)
    answer = read_answer({given.name: scores}, interface)
    assert answer.to_dict()["label"] in ("negative", "positive")
    assert "stand-in, not COVID-Net" in answer.to_text()


def test_the_real_model_s_interface_has_its_signature_and_its_warning() -> None:
    interface = decode_interface((FOLDER / "interface.json").read_bytes())
    (image,), (scores,) = interface.inputs, interface.outputs
    assert (image.name, image.datatype, image.shape) == ("input_1:0", "FP32", (1, 480, 480, 3))
    assert (scores.name, scores.labels) == ("norm_dense_2/Softmax:0", ("negative", "positive"))
    assert "not for diagnosis" in interface.notice
