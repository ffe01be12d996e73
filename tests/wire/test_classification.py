"""Scores become classes: in which order, in which words, and what holds no scores."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aigovtool.errors import BadTensorError
from aigovtool.wire.classification import best_classes, check_classes
from aigovtool.wire.tensors import DTYPES

NUMBERS = sorted(set(DTYPES) - {"BOOL", "BYTES"})


def test_the_best_come_first_in_the_words_of_the_extension() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], np.float32)
    found = best_classes("y", scores, 2, ["cat", "dog"])
    assert found.tolist() == [
        [b"0.700000:1:dog", b"0.200000:2"],
        [b"0.500000:0:cat", b"0.250000:1:dog"],
    ]


def test_whole_numbers_are_written_as_such_and_equals_keep_their_order() -> None:
    assert best_classes("y", np.array([3, -128, 3], np.int8), 9).tolist() == [
        b"3:0", b"3:2", b"-128:1",
    ]  # fmt: skip
    assert best_classes("y", np.array([0, 2**64 - 1], np.uint64), 1).tolist() == [
        b"18446744073709551615:1"
    ]


def test_nan_is_never_the_best() -> None:
    found = best_classes("y", np.array([np.nan, -np.inf, 1], np.float64), 3).tolist()
    assert found == [b"1.000000:2", b"-inf:1", b"nan:0"]


@pytest.mark.parametrize(
    ("shape", "left"), [((0,), (0,)), ((2, 0), (2, 0)), ((0, 5), (0, 2)), ((2, 1, 5), (2, 1, 2))]
)
def test_the_last_axis_is_that_of_the_classes(
    shape: tuple[int, ...], left: tuple[int, ...]
) -> None:
    assert best_classes("y", np.zeros(shape, np.float32), 2).shape == left


@given(
    scores=st.sampled_from(NUMBERS).flatmap(
        lambda name: hnp.arrays(DTYPES[name], hnp.array_shapes(min_dims=1, max_dims=3, max_side=5))
    ),
    count=st.integers(1, 7),
)
def test_no_class_that_is_left_out_is_better(scores: np.ndarray, count: int) -> None:
    found = best_classes("y", scores, count)
    for row, texts in zip(
        scores.reshape(-1, scores.shape[-1]), found.reshape(-1, found.shape[-1]), strict=True
    ):
        indices = [int(text.split(b":")[1]) for text in texts]
        assert len(set(indices)) == len(indices) == min(count, len(row))
        taken = [row[index] for index in indices]
        left = [value for index, value in enumerate(row) if index not in indices]
        ordered = [value for value in taken if value == value]
        assert all(a >= b for a, b in itertools.pairwise(ordered))
        assert not any(value > taken[-1] for value in left)


def test_what_holds_no_scores_is_refused() -> None:
    assert check_classes("y", 3, datatype="FP32", rank=1) == 3
    for value, datatype, rank in (
        (0, "FP32", 1), (-1, "FP32", 1), (True, "FP32", 1), ("3", "FP32", 1), (1.0, "FP32", 1),
        (3, "BYTES", 1), (3, "BOOL", 1), (3, "FP32", 0),
    ):  # fmt: skip
        with pytest.raises(BadTensorError):
            check_classes("y", value, datatype=datatype, rank=rank)
    with pytest.raises(BadTensorError):
        best_classes("y", np.float32(1).reshape(()), 1)
