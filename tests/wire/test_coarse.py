"""Fewer digits, and only the best classes."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.errors import BadTensorError
from aigovtool.wire.classification import best_classes, read_classes
from aigovtool.wire.coarse import rounded
from aigovtool.wire.oip import (
    InferRequest,
    ModelMetadata,
    RequestedOutput,
    TensorSignature,
    only_best,
)

MODEL = ModelMetadata(
    name="m",
    versions=("1",),
    platform="onnx",
    inputs=(),
    outputs=(
        TensorSignature(name="scores", datatype="FP32", shape=(-1, 5)),
        TensorSignature(name="text", datatype="BYTES", shape=(-1,)),
        TensorSignature(name="flag", datatype="BOOL", shape=(1,)),
        TensorSignature(name="one", datatype="FP32", shape=()),
    ),
)


def asked(*outputs: RequestedOutput) -> InferRequest:
    return InferRequest(id="", parameters={}, inputs={}, outputs=outputs)


@given(
    st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: x == 0 or abs(x) > 1e-280),
    st.integers(1, 12),
)
def test_no_number_has_more_digits_than_it_may(value: float, digits: int) -> None:
    (found,) = rounded(np.array([value]), digits).tolist()
    assert math.isfinite(found)
    assert abs(found - value) <= abs(value) * 0.51 * 10 ** (1 - digits)
    if abs(found) < 1e308:  # the largest number stands for what would round beyond it
        shown = Decimal(f"{found:.15g}").normalize()
        assert len(shown.as_tuple().digits) <= digits


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_datatype_and_what_is_no_number_stay(dtype: type) -> None:
    array = np.array([[np.inf, -np.inf, np.nan], [0.0, -1.2345, 1234.5]], dtype)
    found = rounded(array, 2)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_allclose(
        found.astype(float), [[np.inf, -np.inf, np.nan], [0, -1.2, 1200]], rtol=1e-3
    )
    assert array[1, 2] == dtype(1234.5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_largest_numbers_stay_finite(dtype: type) -> None:
    most = np.finfo(dtype).max
    assert np.isfinite(rounded(np.array([most, -most], dtype), 1)).all()


def test_whole_numbers_and_texts_stay_as_they_are() -> None:
    for array in (np.array([123456]), np.array([b"abc"], object), np.array([True])):
        assert rounded(array, 1) is array


def test_every_output_becomes_its_best_classes_and_never_more() -> None:
    request = only_best(
        asked(
            RequestedOutput(name="scores", binary=True),
            RequestedOutput(name="scores", binary=False, classes=2),
            RequestedOutput(name="scores", binary=False, classes=5),
        ),
        MODEL,
        3,
    )
    assert [one.classes for one in request.outputs] == [3, 2, 3]
    assert request.outputs[0].binary


@pytest.mark.parametrize("name", ["text", "flag", "one"])
def test_an_output_without_scores_is_refused(name: str) -> None:
    with pytest.raises(BadTensorError) as caught:
        only_best(asked(RequestedOutput(name=name, binary=False)), MODEL, 3)
    assert caught.value.reasons[0].code == "extraction.labels"


def test_classes_are_read_as_they_were_written() -> None:
    scores = np.array([[0.25, 0.5], [2.0, -1.0]])
    made = best_classes("y", scores, 2, ["a:b", "c"])
    assert read_classes("y", made) == [[(0.5, 1), (0.25, 0)], [(2.0, 0), (-1.0, 1)]]
    for other in (np.array([b"x"], object), np.array(["0.5:1"], object), np.array(7)):
        with pytest.raises(BadTensorError):
            read_classes("y", other)
