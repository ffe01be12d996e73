"""
The ONNX project's backend node tests, through a sealed model, an enclave and tritonclient.

Each is a model of one operator with inputs and the outputs that ONNX expects. Whether onnxruntime
gives what ONNX expects is not ours to judge: the enclave must give, bit for bit, what onnxruntime
gives for the same model in this process. The last bits of a sum depend on where in memory its
inputs begin (vectorised loops start at a multiple of 16 to 64 bytes), and over a network they begin
anywhere: where bits differ, they must be those of some other placement of the same inputs here.

    python -m tests.enclave.nodes            run all, and say what did not agree
    python -m tests.enclave.nodes --write    run all, and write docs/oip-nodes.md
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime as ort
import tritonclient.http.aio as triton
from onnx.backend.test.loader import load_model_tests
from tritonclient.utils import np_to_triton_dtype

from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian.onnxfile import read_signature
from aigovtool.errors import MalformedError
from aigovtool.sealing.signature import onnx_datatype

from . import models
from .conftest import running_enclave
from .custodian import FakeCustodian

PAGE = Path(__file__).parents[2] / "docs" / "oip-nodes.md"
NO_INPUT = "the model takes no input, and a query could ask nothing of it"
NOT_LOADED = "onnxruntime does not load it"
NOT_RUN = "onnxruntime does not run it"
RANDOM = "its outputs are random: shapes and types were compared, not values"
_TYPES = "the type `{}`, which the protocol or numpy does not have"
VALUES = "other values"
ALIGNED = 64  # bytes; no vectorised loop asks for more
PLACEMENTS = 500
_CREDITS = 100_000


@dataclass(frozen=True)
class Node:
    """A node test: the model, and its first set of inputs by name."""

    name: str
    model: onnx.ModelProto
    data: list[Any]

    def inputs(self, session: ort.InferenceSession) -> dict[str, np.ndarray]:
        names = [one.name for one in session.get_inputs()]
        return dict(zip(names, self.data, strict=False))

    @property
    def is_random(self) -> bool:
        """Whether an operator of it draws numbers, seeded or not."""
        ops = {node.op_type for node in self.model.graph.node} | {
            node.op_type for function in self.model.functions for node in function.node
        }
        draws = ops & {"Bernoulli", "Multinomial"} or any(op.startswith("Random") for op in ops)
        return bool(draws) or ("Dropout" in ops and "training" in self.name)


def _array(value: Any) -> Any:
    """ONNX gives some inputs in other forms, which onnxruntime does not take; sequences stay."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


@cache
def every_node() -> tuple[Node, ...]:
    """All node tests of the installed `onnx`, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, about what the tests mean to try
        cases = load_model_tests(kind="node")
    return tuple(
        Node(case.name, case.model, [_array(value) for value in case.data_sets[0][0]])
        for case in sorted(cases, key=lambda case: case.name)
    )


def local(node: Node) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return ort.InferenceSession(
        node.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def compute(inputs: dict[str, Any], session: ort.InferenceSession) -> dict[str, Any]:
    names = [one.name for one in session.get_outputs()]
    options = ort.RunOptions()
    options.log_severity_level = 4
    return dict(zip(names, session.run(names, inputs, options), strict=True))


def why_not(node: Node) -> str | None:
    """Say why this model cannot go through an enclave; None when it must."""
    try:
        session = local(node)
    except Exception:  # noqa: BLE001 - onnxruntime's exceptions share no base
        return NOT_LOADED
    for tensor in (*session.get_inputs(), *session.get_outputs()):
        try:
            onnx_datatype(tensor)
        except MalformedError:
            return _TYPES.format(tensor.type)
    if not session.get_inputs():
        return NO_INPUT
    try:
        compute(node.inputs(session), session)
    except Exception:  # noqa: BLE001
        return NOT_RUN
    return None


def not_served() -> dict[str, list[str]]:
    """The names of models that cannot go through, by the reason."""
    found: dict[str, list[str]] = defaultdict(list)
    for node in every_node():
        if (reason := why_not(node)) is not None:
            found[reason].append(node.name)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Verdict:
    """How outputs differ from ours, and whether they are those of another placement."""

    differences: tuple[str, ...] = ()
    placed: bool = False


async def tried(node: Node, folder: Path, key: SigningKey) -> Verdict:
    """Seal the model, ask an enclave that loaded it, and compare."""
    session = local(node)
    path = folder / "model.onnx"
    path.write_bytes(node.model.SerializeToString())
    signature, interface = read_signature(path)
    files = {"model.onnx": path.read_bytes()}
    sealed = models.sealed(folder, key, (files, signature), interface=interface)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    async with (
        FakeCustodian(key, sealed, budget=_CREDITS) as custodian,
        running_enclave(custodian, compute_threads=1) as enclave,
        triton.InferenceServerClient(enclave.address, ssl=True, ssl_context=tls) as client,
    ):
        custodian.max_lease = _CREDITS
        answer = await client.infer(
            "tiny",
            [given(name, array) for name, array in node.inputs(session).items()],
            headers=custodian.alice.authorization,
        )
        came = {one.name: answer.as_numpy(one.name) for one in session.get_outputs()}
    return judged(node, session, came)


def judged(node: Node, session: ort.InferenceSession, came: dict[str, Any]) -> Verdict:
    values = not node.is_random
    inputs = node.inputs(session)
    found = tuple(differing(compute(inputs, session), came, values=values))
    if not any(one.endswith(VALUES) for one in found):
        return Verdict(found)
    chance = random.Random(node.name)
    for _ in range(PLACEMENTS):
        moved = {name: at(array, chance.randrange(ALIGNED)) for name, array in inputs.items()}
        if not list(differing(compute(moved, session), came, values=values)):
            return Verdict(placed=True)
    return Verdict(found)


def at(value: np.ndarray, offset: int) -> np.ndarray:
    """Return a copy that begins *offset* bytes, or a little less, after a multiple of `ALIGNED`."""
    if value.dtype == object:
        return value
    room = np.zeros(value.nbytes + 2 * ALIGNED, np.uint8)
    start = -room.ctypes.data % ALIGNED + offset - offset % value.itemsize
    copy = room[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    copy[...] = value
    return copy


def given(name: str, value: Any) -> triton.InferInput:
    array = np.asarray(value)
    datatype = np_to_triton_dtype(array.dtype)
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def differing(wanted: dict[str, Any], came: dict[str, Any], *, values: bool) -> Iterator[str]:
    for name, value in wanted.items():
        ours, theirs = np.asarray(value), came[name]
        if theirs is None:
            yield f"{name}: not given"
        elif ours.shape != theirs.shape:
            yield f"{name}: {ours.shape} became {theirs.shape}"
        elif ours.dtype.kind in "OSU":
            if [str(one).encode() for one in ours.flat] != [bytes(one) for one in theirs.flat]:
                yield f"{name}: other text"
        elif ours.dtype != theirs.dtype:
            yield f"{name}: {ours.dtype} became {theirs.dtype}"
        elif values and ours.tobytes() != theirs.tobytes():
            yield f"{name}: {VALUES}"


def sample(count: int, seed: int = 20_26) -> list[Node]:
    """*count* of those that must go through, the same for a seed."""
    nodes = list(every_node())
    random.Random(seed).shuffle(nodes)
    return [node for _, node in zip(range(count), served(nodes), strict=False)]


def served(nodes: Iterable[Node]) -> Iterator[Node]:
    return (node for node in nodes if why_not(node) is None)


def page(ran: int, randoms: list[str], placed: list[str], reasons: dict[str, list[str]]) -> str:
    """The page of the documentation; all but the list of *placed* follows from the versions."""
    left = sum(map(len, reasons.values()))
    text = f"""# ONNX's own tests, through an enclave

onnx {onnx.__version__} brings {len(every_node())} node tests: models of one operator, or of the
few that it expands to, with inputs. With onnxruntime {ort.__version__}, {ran} of them went through
sealing, an enclave and `tritonclient`, and each gave, bit for bit, what onnxruntime gives for the
same model in the client's own process. The other {left} cannot, for the reasons below.
`make nodes` runs them all and writes this page; `make test` runs a sample, and checks that the
lists are right. Whether onnxruntime gives what ONNX expects is not judged here.

The last bits of a sum depend on where in memory its inputs begin, in this process as well. These
gave the bits of another placement of the same inputs than the first that was tried:

{len(placed)}: {", ".join(placed) or "none"}
"""
    for reason, names in ({RANDOM: randoms} | reasons).items():
        text += f"\n## {reason[0].upper()}{reason[1:]}\n\n{len(names)}: {', '.join(names)}\n"
    return text


async def run(nodes: Iterable[Node]) -> dict[str, Verdict]:
    """Run *nodes*; return what is to be said of them, by name."""
    key, said = SigningKey.generate(), {}
    for node in nodes:
        with tempfile.TemporaryDirectory() as folder:
            try:
                verdict = await tried(node, Path(folder), key)
            except Exception as error:  # noqa: BLE001 - the next is tried all the same
                verdict = Verdict((f"{type(error).__name__}: {error}",))
        if verdict.differences:
            print(node.name, *verdict.differences, sep="\n  ", flush=True)
        if verdict != Verdict():
            said[node.name] = verdict
    return said


def main() -> None:
    logging.disable()  # what each enclave says of its end
    nodes = list(served(every_node()))
    said = asyncio.run(run(nodes))
    failed = [name for name, verdict in said.items() if verdict.differences]
    placed = [name for name, verdict in said.items() if verdict.placed]
    print(
        f"{len(nodes)} went through; {len(placed)} like another placement, {len(failed)} otherwise"
    )
    if "--write" in sys.argv[1:] and not failed:
        randoms = [node.name for node in nodes if node.is_random]
        PAGE.write_text(page(len(nodes), randoms, placed, not_served()))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
