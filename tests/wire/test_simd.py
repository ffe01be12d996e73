"""Large JSON requests are read by another parser, which must say what the plain way says."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigovtool.errors import AIGovToolError
from aigovtool.wire import oip, simd
from aigovtool.wire.oip import ModelMetadata, RequestReader, TensorSignature
from aigovtool.wire.tensors import DTYPES

NUMBERS = [name for name in DTYPES if name not in ("BOOL", "BYTES")]


def model_of(tensors: Sequence[tuple[str, int]]) -> ModelMetadata:
    return ModelMetadata(
        name="m",
        platform="p",
        inputs=tuple(
            TensorSignature(name=f"x{n}", datatype=datatype, shape=(-1,) * rank)
            for n, (datatype, rank) in enumerate(tensors)
        ),
        outputs=(TensorSignature(name="y", datatype="FP32", shape=(-1,)),),
    )


def outcome(
    body: bytes, model: ModelMetadata, *, least: int, before: bytes | None = None
) -> tuple[object, ...]:
    """
    Return all that comes of a request, or all that is said of it.

    Args:
        before: what the same reader has read before, so that it may know the text.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(oip, "LEAST_BYTES", least)
        patched.setattr(simd, "LEAST_BYTES", least)
        patched.setattr(simd, "LEAST_ROW", 2)
        patched.setattr(simd, "PIECE_BYTES", 24)
        reader = RequestReader(model)
        if before is not None:
            with contextlib.suppress(AIGovToolError):
                reader.read(before, header_length=None)
        try:
            request = reader.read(body, header_length=None)
        except AIGovToolError as error:
            return type(error).__name__, str(error), repr(error.reasons)
    arrays = {
        name: (array.dtype.str, array.shape, array.tobytes())
        for name, array in request.inputs.items()
    }
    return request.id, request.parameters, request.outputs, arrays


def agreed(body: bytes, model: ModelMetadata, *, before: bytes | None = None) -> tuple[object, ...]:
    plain = outcome(body, model, least=1 << 40)
    assert outcome(body, model, least=0) == plain
    assert outcome(body, model, least=0, before=before or body) == plain
    return plain


def is_read(body: bytes, datatype: str, shape: Sequence[int]) -> bool:
    """Whether it is the quick parser that reads this request's one input."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(simd, "LEAST_BYTES", 0)
        try:
            numbers = simd.Numbers(memoryview(body))
            (tensor,) = json.loads(numbers.rest.replace(b"[-0e-0]", b'"[-0e-0]"'))["inputs"]
            return numbers.take(tensor["data"].encode(), datatype, shape) is not None
        except simd.DoubtError:
            return False


def request(datatype: str, shape: Sequence[int], data: object, **more: object) -> bytes:
    tensor = {"name": "x0", "datatype": datatype, "shape": list(shape), "data": data}
    return json.dumps({"inputs": [tensor]} | more).encode()


def values(datatype: str) -> st.SearchStrategy:
    dtype = DTYPES[datatype]
    if dtype.kind == "f":
        return st.floats(width=dtype.itemsize * 8, allow_nan=False, allow_infinity=False)
    bounds = np.iinfo(dtype)
    return st.integers(int(bounds.min), int(bounds.max))


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, ModelMetadata]:
    described, inputs = [], []
    for number in range(draw(st.integers(1, 2))):
        datatype = draw(st.sampled_from(NUMBERS))
        shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        shape[-1] *= draw(st.sampled_from([1, 8]))
        count = int(np.prod(shape))
        numbers = draw(st.lists(values(datatype), min_size=count, max_size=count))
        flat = np.array(numbers, dtype=object)
        data = (flat.reshape(shape) if draw(st.booleans()) else flat).tolist()
        described.append((datatype, len(shape)))
        inputs.append({"name": f"x{number}", "datatype": datatype, "shape": shape, "data": data})
    message: dict[str, object] = {"inputs": inputs}
    if draw(st.booleans()):
        message["id"] = "[7"
        message["parameters"] = {"a": 1, "b": 1.0, "c": True, "d": "e"}
    if draw(st.booleans()):
        message["outputs"] = [{"name": "y", "parameters": {"binary_data": True}}]
    return json.dumps(message).encode(), model_of(described)


@given(requests())
@settings(max_examples=300)
def test_both_ways_read_the_same(made: tuple[bytes, ModelMetadata]) -> None:
    assert isinstance(agreed(*made)[-1], dict)


TOKENS = [
    b"null", b"true", b'"7"', b"-0", b"-0.0", b"1e400", b"1e39", b"1.5", b"01", b"[]", b"[1]",
    b"{}", b"[1,2]", b"18446744073709551616", b"9223372036854775808", b"-1", b"300", b",", b"]",
    b"[", b"}", b'"data":[1],', b'"name":"x0",', b'"shape":[1],', b"\xff", b"\\ud800", b"1.0",
    b" ", b"\n", b"", b"NaN", b"3.4028236e38", b"65520", b"1E2", b'"\\u0078"',
]  # fmt: skip


@given(requests(), st.data())
@settings(max_examples=500)
def test_both_ways_say_the_same_of_whatever_is_damaged(
    made: tuple[bytes, ModelMetadata], data: st.DataObject
) -> None:
    whole, model = made
    body = whole
    for _ in range(data.draw(st.integers(1, 2))):
        pieces = re.split(rb"([\[\]{},:]|\s)", body)
        at = data.draw(st.integers(0, len(pieces) - 1))
        token = data.draw(st.sampled_from(TOKENS))
        pieces[at] = token if data.draw(st.booleans()) else pieces[at] + token
        body = b"".join(pieces)
    agreed(body, model, before=whole)


def test_a_text_that_is_known_is_read_with_its_own_numbers() -> None:
    model, reader = model_of([("FP32", 1)]), RequestReader(model_of([("FP32", 1)]))
    first, second = (request("FP32", [20], list(range(start, start + 20))) for start in (0, 10))
    reader.read(first, header_length=None)
    assert len(reader._kept_texts) == 1
    with pytest.MonkeyPatch.context() as patched:
        patched.delattr(RequestReader, "_read")  # nothing is looked for again
        for body, start in ((second, 10), (first, 0)):
            got = reader.read(body, header_length=None).inputs["x0"]
            assert got.tolist() == list(range(start, start + 20))
    assert outcome(second, model, least=64) == outcome(second, model, least=1 << 40)


@pytest.mark.parametrize(
    "more", [{"id": "mine"}, {"parameters": {"mine": 1}}, {"inputs": "two, one of them short"}]
)
def test_of_a_text_with_something_of_one_query_nothing_is_kept(more: dict[str, object]) -> None:
    short = {"name": "x1", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    message = json.loads(request("FP32", [20], list(range(20))))
    two = "inputs" in more
    message |= {"inputs": [*message["inputs"], short]} if two else more
    reader = RequestReader(model_of([("FP32", 1)] * (2 if two else 1)))
    for _ in range(2):
        got = reader.read(json.dumps(message).encode(), header_length=None)
        assert got.inputs["x0"].tolist() == list(range(20))
        assert (got.id, got.parameters) == (more.get("id", ""), more.get("parameters", {}))
    assert reader._kept_texts == {}


def test_texts_that_are_kept_are_bounded() -> None:
    reader = RequestReader(model_of([("FP32", 1)]))
    for count in range(20, 20 + 3 * oip.KEPT_HEADS):
        body = request("FP32", [count], [0.5] * count)
        assert reader.read(body, header_length=None).inputs["x0"].shape == (count,)
        assert 1 <= len(reader._kept_texts) <= oip.KEPT_HEADS
    body = request("FP32", [20], [0.5] * 20) + b" " * oip.MAX_KEPT_BYTES
    reader._kept_texts.clear()
    reader.read(body, header_length=None)
    assert reader._kept_texts == {}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("datatype", NUMBERS)
def test_it_is_the_quick_way_that_reads_what_is_plain(datatype: str, nested: bool) -> None:
    array = np.arange(96).reshape(2, 3, 16)
    body = request(datatype, array.shape, (array if nested else array.ravel()).tolist())
    assert is_read(body, datatype, array.shape)
    agreed(body, model_of([(datatype, 3)]))


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("FP32", [1, None]),
        ("FP32", [True, 1]),
        ("FP32", [1, "1"]),
        ("FP32", [3.5e38, 1]),
        ("FP16", [65520, 1]),
        ("INT64", [2**63, 1]),
        ("INT8", [128, 1]),
        ("UINT8", [-1, 1]),
        ("INT32", [1.5, 1]),
        ("INT32", [1.0, 1]),
        ("FP32", [1]),
        ("FP32", [1, 2, 3]),
        ("FP32", [[1], [2]]),
        ("FP32", [1, [2]]),
        ("FP32", {"a": 1}),
        ("FP32", None),
        ("FP32", "12"),
        ("BOOL", [True, False]),
        ("BYTES", ["a", "b"]),
        ("FP8", [1, 2]),
    ],
)
def test_what_is_doubtful_is_left_to_the_plain_way(datatype: str, data: object) -> None:
    body = request(datatype, [2], data)
    assert not is_read(body, datatype, [2])
    agreed(body, model_of([(datatype, 1)]))


@pytest.mark.parametrize(
    "data",
    [
        [[1] * 8, [1] * 7 + [[1, 1]], [1] * 7],
        [[1] * 7 + [[1, 2]], [1] * 7 + [[]], [1] * 8],
        [[1] * 9, [1] * 7, [1] * 8],
        [[[1] * 8], [1] * 8, [1] * 8],
    ],
)
def test_rows_that_only_add_up_are_refused_in_the_plain_way_s_words(data: object) -> None:
    body = request("FP32", [3, 8], data)
    assert not is_read(body, "FP32", [3, 8])
    assert agreed(body, model_of([("FP32", 2)]))[0] == "BadTensorError"


@pytest.mark.parametrize("key", ['x\\"data', "data2", "parameters"])
def test_numbers_that_are_no_tensors_data_are_read_as_before(key: str) -> None:
    long = json.dumps(list(range(40)))
    body = (
        f'{{"inputs":[{{"name":"x0","datatype":"FP32","shape":[40],"data":{long},"{key}":{long}}}]}}'
    ).encode()
    agreed(body, model_of([("FP32", 1)]))


def test_data_given_twice_is_read_as_before() -> None:
    first, second = (json.dumps([number] * 40) for number in (1, 2))
    body = (
        f'{{"inputs":[{{"name":"x0","datatype":"FP32","shape":[40],"data":{first},"data":{second}}}]}}'
    ).encode()
    found = agreed(body, model_of([("FP32", 1)]))[-1]
    assert isinstance(found, dict)
    assert set(np.frombuffer(found["x0"][2], np.float32)) == {2.0}


def test_text_like_our_marks_is_read_as_before() -> None:
    body = request("FP32", [40], list(range(40)), id="[-0e-0]")
    agreed(body, model_of([("FP32", 1)]))
    two = b'{"inputs":[{"name":"x0","datatype":"FP32","shape":[1],"data":[-0e-0]},%s]}'
    more = b'{"name":"x1","datatype":"FP32","shape":[40],"data":[' + b"1," * 39 + b"1]}"
    agreed(two % more, model_of([("FP32", 1), ("FP32", 1)]))


def test_a_large_integer_is_exact() -> None:
    exact = [2**53 + 1, -(2**63), 2**63 - 1]
    body = request("INT64", [3], exact)
    assert is_read(body, "INT64", [3])
    found = agreed(body, model_of([("INT64", 1)]))[-1]
    assert isinstance(found, dict)
    assert np.frombuffer(found["x0"][2], np.int64).tolist() == exact
