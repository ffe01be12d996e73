"""Weights stay where they were decrypted, are found there by the runtime, and go with a stop."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.runtime.onnx import OnnxModel
from aigovtool.enclave.runtime.weights import ALIGNMENT, LENT_BYTES, lend_weights
from aigovtool.errors import MalformedError
from aigovtool.sealing.manifest import ModelSignature, TensorSpec
from aigovtool.sealing.memory import anonymous_memory
from aigovtool.sealing.protobuf import fields, read_varint, varint

from . import models

NAME = "model.onnx"
ROWS = 128  # of float32: with as many columns exactly LENT_BYTES


def chain(*names: str, rows: int = ROWS, raw: bool = True) -> onnx.ModelProto:
    """y = x @ w1 @ w2 …, the weights all different."""
    dice = np.random.default_rng(3)
    weights = []
    for name in names:
        array = dice.random((rows, rows), np.float32) / rows
        if raw:
            weights.append(numpy_helper.from_array(array, name))
        else:
            weights.append(helper.make_tensor(name, TensorProto.FLOAT, array.shape, array.flat))
    tensors = ["x", *(f"t{n}" for n in range(1, len(names))), "y"]
    nodes = [
        helper.make_node("MatMul", [tensors[n], name], [tensors[n + 1]])
        for n, name in enumerate(names)
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [None, rows])],
        [value("y", TensorProto.FLOAT, [None, rows])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def signature_of(rows: int) -> ModelSignature:
    def both(name: str) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name=name, datatype="FP32", shape=(-1, rows)),)

    return ModelSignature(inputs=both("x"), outputs=both("y"))


def in_memory(model: bytes) -> memoryview:
    memory = anonymous_memory(len(model))
    memory[:] = model
    return memory


def tensors_of(model: onnx.ModelProto) -> dict[str, bytes]:
    return {one.name: numpy_helper.to_array(one).tobytes() for one in model.graph.initializer}


def lent(graph: bytes, memory: memoryview) -> dict[str, bytes]:
    """Read the lent weights as onnxruntime will."""
    found = {}
    for one in onnx.load_from_string(graph).graph.initializer:
        if one.data_location == TensorProto.EXTERNAL:
            about = {entry.key: entry.value for entry in one.external_data}
            assert about["location"] == NAME
            start = int(about["offset"])
            assert start % ALIGNMENT == 0
            found[one.name] = bytes(memory[start : start + int(about["length"])])
    return found


@pytest.mark.parametrize("longer", range(9))  # each remainder of the alignment, for each tensor
def test_every_weight_is_found_whole_at_an_aligned_place(longer: int) -> None:
    model = chain("a", "b" * (longer + 1), "c")
    model.producer_name = "p" * longer
    memory = in_memory(model.SerializeToString())
    graph, size = lend_weights(memory, NAME)
    assert lent(graph, memory) == tensors_of(model)
    assert size == 3 * LENT_BYTES
    assert len(graph) < 1000
    del model.graph.initializer[:]
    stripped = onnx.load_from_string(graph)
    del stripped.graph.initializer[:]
    assert stripped == model  # nothing else was touched


def test_small_and_unusual_tensors_stay_in_the_graph() -> None:
    for model in (chain("a", rows=ROWS - 1), chain("a", raw=False)):
        memory = in_memory(model.SerializeToString())
        assert lend_weights(memory, NAME) == (model.SerializeToString(), 0)


def test_a_graph_in_two_pieces_is_left_alone() -> None:
    """A protobuf reader merges them; nobody but an attacker writes them."""
    model = chain("a").SerializeToString()
    twice = model + onnx.ModelProto(graph=onnx.GraphProto(name="g")).SerializeToString()
    assert lend_weights(in_memory(twice), NAME) == (twice, 0)


def test_bytes_given_twice_are_left_alone() -> None:
    model = chain("a")
    body = model.graph.initializer[0].SerializeToString()
    again = TensorProto(raw_data=b"\1" * LENT_BYTES).SerializeToString()
    rest = chain("a")
    del rest.graph.initializer[:]
    graph = rest.graph.SerializeToString()
    tensor = body + again
    graph += b"\x2a" + varint(len(tensor)) + tensor
    del rest.graph.node[:]
    rest.ClearField("graph")
    whole = rest.SerializeToString() + b"\x3a" + varint(len(graph)) + graph
    assert lend_weights(in_memory(whole), NAME)[1] == 0


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_no_bytes_make_it_raise_anything_else(data: bytes) -> None:
    try:
        graph, size = lend_weights(memoryview(bytearray(data)), NAME)
    except MalformedError:
        return
    assert (graph, size) == (data, 0)


@given(st.integers(0, 2**64 - 1), st.binary(max_size=3))
def test_varints_round_trip_and_end_where_they_end(value: int, tail: bytes) -> None:
    encoded = varint(value)
    assert read_varint(memoryview(encoded + tail), 0) == (value, len(encoded))
    for cut in range(len(encoded)):
        with pytest.raises(MalformedError):
            read_varint(memoryview(encoded[:cut]), 0)


def test_a_field_that_ends_after_its_message_is_refused() -> None:
    message = onnx.ModelProto(producer_name="abc").SerializeToString()
    for cut in range(1, len(message)):
        with pytest.raises(MalformedError):
            list(fields(memoryview(message[:cut])))


@pytest.mark.parametrize("packed", [True, False])
def test_a_lent_model_answers_as_the_plain_one_and_is_overwritten_when_closed(
    tmp_path: Path, key: SigningKey, packed: bool
) -> None:
    import onnxruntime

    model = chain("a", "bb", "ccc")
    signature = signature_of(ROWS)
    sealed = models.sealed(tmp_path, key, ({NAME: model.SerializeToString()}, signature))
    memory = in_memory(model.SerializeToString())
    graph, _ = lend_weights(memory, NAME)
    wiped: list[bool] = []
    loaded = OnnxModel.load(
        sealed.verified.manifest,
        graph,
        {NAME: memory},
        intra_op_threads=1,
        packed=packed,
        wipe=lambda: wiped.append(True),
    )
    x = np.random.default_rng(1).random((5, ROWS), np.float32)
    plain = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    answer = loaded.new_run().execute({"x": x}, ["y"])["y"]
    np.testing.assert_allclose(answer, plain.run(None, {"x": x})[0], rtol=1e-5)
    assert wiped == []
    loaded.close()
    assert wiped == [True]


IN_A_FRESH_PROCESS = """
import asyncio, gc, json, sys
from pathlib import Path
from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.cache import BodyCache
from aigovtool.enclave.loader import Loader
from aigovtool.enclave.progress import LoggedProgress
from aigovtool.enclave.runtime.base import RuntimeOptions
from aigovtool.heap import keep_freed_memory, return_freed_memory
from aigovtool.sealing.manifest import verify_manifest

folder, custodian, key = Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
half = bytes.fromhex(sys.argv[4]), bytes.fromhex(sys.argv[5])  # whole in the model only

class Source:
    async def body(self, digest, *, offset, size):
        with (folder / "body").open("rb") as file:
            file.seek(offset)
            while piece := file.read(1 << 20):
                yield piece

BLOCK = bytearray(1 << 20)

def holds(memory, low, high):
    for start in range(low, high, len(BLOCK) - 32):  # blocks overlap: the canary has 32 bytes
        BLOCK[:] = bytes(len(BLOCK))  # else the next block would find what this one read
        memory.seek(start)
        memory.readinto(memoryview(BLOCK)[: min(len(BLOCK), high - start)])
        at = BLOCK.find(half[0])
        while at >= 0:
            if BLOCK[at + 16 : at + 32] == half[1]:
                BLOCK[:] = bytes(len(BLOCK))
                return True
            at = BLOCK.find(half[0], at + 1)
    return False

def where():
    'Mappings that hold the canary: their file, and whether a core dump would hold them.'
    maps, found = [], []
    with open("/proc/self/smaps") as smaps:
        for words in map(str.split, smaps):
            if "-" in words[0]:
                maps.append([words[0], words[1], " ".join(words[5:]), ()])
            elif words[0] == "VmFlags:":
                maps[-1][3] = words[1:]
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        for span, mode, file, flags in maps:
            if "r" in mode and not file.startswith("[v"):
                if holds(memory, *(int(part, 16) for part in span.split("-"))):
                    found.append({"file": file, "dumped": "dd" not in flags})
    return found

def peak():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) * 1024

async def main():
    verified = verify_manifest((folder / "manifest").read_bytes(), custodian)
    loader = Loader(source=Source(), cache=BodyCache(folder / "cache"),
                    options=RuntimeOptions(intra_op_threads=1), progress=LoggedProgress())
    before = peak()
    model = await loader.load(verified, key)
    loaded = peak()
    held = where()
    model.close()
    del model
    gc.collect()
    return_freed_memory()
    print(json.dumps({"rose": loaded - before, "held": held, "left": where()}))

keep_freed_memory()
asyncio.run(main())
"""


@pytest.mark.parametrize("external", [False, True])
def test_plaintext_is_once_in_memory_never_in_a_file_and_gone_after_a_stop(
    tmp_path: Path, key: SigningKey, external: bool
) -> None:
    """Searched: all memory of a fresh process, and all files that it could write."""
    size = 64 << 20
    model = chain("a", "b", rows=2896)  # 2 x 32 MiB
    canary = tensors_of(model)["b"][1_000_000:1_000_032]
    source = tmp_path / "source"
    source.mkdir()
    onnx.save(
        model,
        str(source / NAME),
        save_as_external_data=external,
        location="weights.bin" if external else None,
    )
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    signature = signature_of(2896)
    folder = tmp_path / "enclave"
    folder.mkdir()
    sealed = models.sealed(folder, key, (files, signature))
    (folder / "manifest").write_bytes(sealed.verified.signed)
    done = subprocess.run(
        [
            sys.executable, "-c", IN_A_FRESH_PROCESS, str(folder), key.public_key.hex(),
            sealed.content_key.hex(), canary[:16].hex(), canary[16:].hex(),
        ],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["held"] == [{"file": "", "dumped": False}]  # anonymous, and in no core dump
    assert seen["left"] == []
    # held twice it would be 2; pages of the runtime's library are in it, as many as the kernel maps
    assert seen["rose"] < 1.75 * size
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".sealed" for path in written)
    assert [path for path in written if canary in path.read_bytes()] == []
