"""A sample of ONNX's node tests through an enclave; `make nodes` runs all of them."""

from __future__ import annotations

import re

import onnx
import onnxruntime
import pytest

from . import nodes

IN_A_RUN = 10


@pytest.fixture(scope="module")
def page() -> str:
    return nodes.PAGE.read_text()


async def test_a_sample_gives_through_an_enclave_what_it_gives_here() -> None:
    said = await nodes.run(nodes.sample(IN_A_RUN))
    assert not [verdict for verdict in said.values() if verdict.differences], said


def test_the_page_says_of_every_node_test_whether_it_goes_through_and_why_not(page: str) -> None:
    assert f"onnx {onnx.__version__} brings" in page, "run `make nodes`"
    assert f"onnxruntime {onnxruntime.__version__}," in page, "run `make nodes`"
    found = nodes.not_served()
    ran = [node for node in nodes.every_node() if nodes.why_not(node) is None]
    placed = re.search(r"was tried:\n\n\d+: (.*)\n", page)
    assert placed is not None
    names = [] if placed[1] == "none" else placed[1].split(", ")
    assert set(names) <= {node.name for node in ran}
    randoms = [node.name for node in ran if node.is_random]
    assert nodes.page(len(ran), randoms, names, found) == page, "run `make nodes`"


def test_other_values_are_noticed_and_not_taken_for_another_placement() -> None:
    (node,) = [one for one in nodes.every_node() if one.name == "test_reduce_sum_keepdims_random"]
    session = nodes.local(node)
    came = nodes.compute(node.inputs(session), session)
    assert nodes.judged(node, session, came) == nodes.Verdict()
    name, array = next(iter(came.items()))
    array[0] += 1e-3
    assert nodes.judged(node, session, came).differences == (f"{name}: {nodes.VALUES}",)
    assert nodes.judged(node, session, {name: array.astype(float)}).differences
    assert nodes.judged(node, session, {name: array[:1]}).differences
