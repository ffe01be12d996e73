"""
Train the demo's model: handwritten digits, on the data that scikit-learn ships.

    python scripts/train_digits.py

writes into ``src/aigovtool/demo/assets``: ``digits.onnx``, ``interface.json``, ten held-out
pictures in ``samples``, and ``accuracy.json``. Needs scikit-learn and onnx. The seeds are fixed, so
that the same versions (they are in ``accuracy.json``) on the same kind of processor give the same
model.

The data: "Optical Recognition of Handwritten Digits" of the UCI repository (E. Alpaydin,
C. Kaynak), 1,797 pictures of 8 x 8 pixels in 17 shades. A quarter of them, drawn by lot with the
same share of every digit, is held out: it is neither trained on nor used to choose anything about
the model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import sklearn
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from aigovtool.sealing.interface import (
    ClassificationOutput,
    ImageInput,
    ModelInterface,
    encode_interface,
)

ASSETS = Path(__file__).parents[1] / "src" / "aigovtool" / "demo" / "assets"
SEED = 0
SIDE = 8  # pixels of a picture
SHADES = 16  # 0 is paper, 16 is ink
BLOCK = 8  # a pixel becomes a block of 8 x 8, so that people see something
HIDDEN = 128
OPSET, IR_VERSION = 17, 8  # old enough for every onnxruntime of the last years
INPUT, OUTPUT = "image", "scores"


def held_out_split() -> tuple[Any, Any, Any, Any]:
    """Return training pictures, held-out pictures (values 0 to 16), and the digits of each."""
    pictures, digits = load_digits(return_X_y=True)
    parts = train_test_split(pictures, digits, test_size=0.25, random_state=SEED, stratify=digits)
    return parts[0], parts[1], parts[2], parts[3]


def train(pictures: Any, digits: Any) -> MLPClassifier:
    """Fit one hidden layer of `HIDDEN` units."""
    model = MLPClassifier((HIDDEN,), alpha=1e-2, max_iter=400, random_state=SEED)
    return model.fit(pictures / SHADES, digits)


def to_onnx(model: MLPClassifier) -> onnx.ModelProto:
    """Write the two layers as a graph: [N, 8, 8] of 0 to 1 in, [N, 10] logits out."""
    weights = []
    for index, (matrix, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        for name, array in (("weight", matrix), ("bias", bias)):
            weights.append(numpy_helper.from_array(array.astype(np.float32), f"{name}_{index}"))
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", [INPUT], ["flat"], axis=1),
            helper.make_node("Gemm", ["flat", "weight_0", "bias_0"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("Gemm", ["active", "weight_1", "bias_1"], [OUTPUT]),
        ],
        "digits",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", SIDE, SIDE])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", 10])],
        initializer=weights,
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="aigovtool scripts/train_digits.py",
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def interface() -> ModelInterface:
    """Describe the model: dark ink on light paper, shrunk to 8 x 8, 1 is ink."""
    return ModelInterface(
        title="handwritten digits",
        inputs=(
            ImageInput(
                name=INPUT,
                width=SIDE,
                height=SIDE,
                channels="grayscale",
                centre_crop=True,
                resize="box",
                invert=True,
                scale=1 / 255,
                layout="NHW",
            ),
        ),
        outputs=(
            ClassificationOutput(name=OUTPUT, labels=tuple("0123456789"), softmax=True, top_k=3),
        ),
    )


def to_picture(values: Any) -> Image.Image:
    """
    Draw a picture of the data as blocks, dark on light.

    Averaging the blocks, inverting and dividing by 255 gives its values over `SHADES` again, to
    within half a shade of 256.
    """
    shades = np.rint(255 - values.reshape(SIDE, SIDE) * 255 / SHADES).astype(np.uint8)
    return Image.fromarray(shades.repeat(BLOCK, 0).repeat(BLOCK, 1))


def main() -> None:
    """Train, measure on the held-out pictures with onnxruntime, and write all files."""
    train_pictures, pictures, train_digits, digits = held_out_split()
    model = to_onnx(train(train_pictures, train_digits)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (scores,) = session.run(
        None, {INPUT: (pictures / SHADES).astype(np.float32).reshape(-1, SIDE, SIDE)}
    )
    right = scores.argmax(axis=1) == digits

    samples = ASSETS / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    for digit in range(10):
        first = np.flatnonzero((digits == digit) & right)[0]
        to_picture(pictures[first]).save(samples / f"digit-{digit}-a.png", optimize=True)
    (ASSETS / "digits.onnx").write_bytes(model)
    (ASSETS / "interface.json").write_bytes(encode_interface(interface()))
    measured = {
        "data": "scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits, test set",
        "trained_on": len(train_digits),
        "held_out": len(digits),
        "held_out_right": int(right.sum()),
        "held_out_accuracy": round(float(right.mean()), 4),
        "split": f"train_test_split(test_size=0.25, random_state={SEED}, stratify=digits)",
        "measured_with": f"onnxruntime {onnxruntime.__version__}",
        "trained_with": f"scikit-learn {sklearn.__version__}, numpy {np.__version__}",
    }
    (ASSETS / "accuracy.json").write_text(json.dumps(measured, indent=2) + "\n")
    sys.stdout.write(f"{right.sum()} of {len(digits)} held-out digits right, {len(model)} bytes\n")


if __name__ == "__main__":
    main()
