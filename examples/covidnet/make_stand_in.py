"""
Make a stand-in for COVID-Net-CXR-2: the same signature, and no medicine in it.

    python examples/covidnet/make_stand_in.py FOLDER

writes ``stand-in.onnx``, the ``interface.json`` of this folder with a notice that says what it is,
and a grey picture to ask it with. FP32 (1, 480, 480, 3) in, FP32 (1, 2) out, as the real model;
what comes out depends on nothing but the mean brightness. It serves to try the whole way from
picture to answer without the real model, which this repository neither has nor may pass on. Needs
onnx.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from aigovtool.sealing.interface import decode_interface, encode_interface

INPUT, OUTPUT = "input_1:0", "norm_dense_2/Softmax:0"  # as in the published checkpoint
NOTICE = "a stand-in, not COVID-Net: it measures brightness and knows nothing about X-rays"


def stand_in() -> onnx.ModelProto:
    """Return a model whose two outputs are a softmax of the mean brightness and its opposite."""
    weights = np.array([[-4, 4]] * 3, np.float32) / 3
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", [INPUT], ["brightness"], axes=[1, 2], keepdims=0),
            helper.make_node("Gemm", ["brightness", "weights", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], [OUTPUT], axis=1),
        ],
        "stand_in_for_covid_net_cxr_2",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [1, 480, 480, 3])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [1, 2])],
        initializer=[
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([2, -2], np.float32), "bias"),
        ],
        doc_string=NOTICE,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def write(folder: Path) -> None:
    """Write model, interface and picture into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    interface = decode_interface((Path(__file__).parent / "interface.json").read_bytes())
    interface = msgspec.structs.replace(
        interface, title="stand-in for COVID-Net-CXR-2", notice=NOTICE
    )
    (folder / "stand-in.onnx").write_bytes(stand_in().SerializeToString())
    (folder / "interface.json").write_bytes(encode_interface(interface))
    ramp = np.tile(np.linspace(0, 255, 600).astype(np.uint8), (700, 1))
    Image.fromarray(ramp).save(folder / "not-an-x-ray.png", optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/covidnet/make_stand_in.py FOLDER")
    write(Path(sys.argv[1]))
