"""The demo's model is as good as we say, from held-out data and from the pictures that ship."""

from __future__ import annotations

import json
import runpy
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from aigovtool.client.answer import read_answer
from aigovtool.client.inputs import read_inputs
from aigovtool.sealing.interface import decode_interface
from aigovtool.sealing.signature import onnx_datatype, onnx_shape
from aigovtool.wire.oip import ModelMetadata, TensorSignature

ASSETS = Path(str(files("aigovtool.demo"))) / "assets"
SCRIPT = Path(__file__).parents[2] / "scripts" / "train_digits.py"
SAMPLES = sorted((ASSETS / "samples").glob("*.png"))
INTERFACE = decode_interface((ASSETS / "interface.json").read_bytes())
ACCURACY = json.loads((ASSETS / "accuracy.json").read_bytes())


@pytest.fixture(scope="module")
def session() -> Any:
    return onnxruntime.InferenceSession(
        (ASSETS / "digits.onnx").read_bytes(), providers=["CPUExecutionProvider"]
    )


def metadata(session: Any) -> ModelMetadata:
    def signatures(tensors: Any) -> tuple[TensorSignature, ...]:
        return tuple(
            TensorSignature(name=one.name, datatype=onnx_datatype(one), shape=onnx_shape(one))
            for one in tensors
        )

    return ModelMetadata(
        name="digits",
        platform="onnx_onnxv1",
        inputs=signatures(session.get_inputs()),
        outputs=signatures(session.get_outputs()),
    )


def ask(session: Any, picture: Path) -> dict[str, Any]:
    model = metadata(session)
    scores = session.run(None, read_inputs(picture, model=model, interface=INTERFACE))
    names = [one.name for one in model.outputs]
    return read_answer(dict(zip(names, scores, strict=True)), INTERFACE).to_dict()


def test_there_is_a_sample_of_every_digit_and_the_model_is_small() -> None:
    assert [path.name for path in SAMPLES] == [f"digit-{digit}-a.png" for digit in range(10)]
    assert (ASSETS / "digits.onnx").stat().st_size < 200_000


@pytest.mark.parametrize("picture", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_is_read_as_what_it_shows(session: Any, picture: Path) -> None:
    assert ask(session, picture)["label"] == picture.stem.split("-")[1]


def test_the_stated_accuracy_is_measured_again_on_the_held_out_data(
    session: Any, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, which ships the data, is not installed")
    pytest.importorskip("onnx", reason="onnx, which the training script needs, is not installed")
    script = runpy.run_path(str(SCRIPT))
    _, pictures, _, digits = script["held_out_split"]()
    assert len(digits) == ACCURACY["held_out"]
    assert ACCURACY["held_out_accuracy"] == round(ACCURACY["held_out_right"] / len(digits), 4)

    values = (pictures / script["SHADES"]).astype(np.float32).reshape(-1, 8, 8)
    (scores,) = session.run(None, {"image": values})
    answers = scores.argmax(axis=1)
    # another processor may add floats in another order: one picture on the edge may tip over
    assert abs(int((answers == digits).sum()) - ACCURACY["held_out_right"]) <= 1

    # a picture file made as the samples are is read as the data it was made from
    for index in range(0, len(digits), 10):
        script["to_picture"](pictures[index]).save(tmp_path / "one.png")
        assert ask(session, tmp_path / "one.png")["label"] == str(answers[index])


def test_the_committed_interface_is_the_script_s() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn, which ships the data, is not installed")
    pytest.importorskip("onnx", reason="onnx, which the training script needs, is not installed")
    assert runpy.run_path(str(SCRIPT))["interface"]() == INTERFACE
