"""
The classification extension: instead of scores, the names of the best classes.

A requested output with the parameter ``classification: N`` comes back as a ``BYTES`` tensor whose
elements read ``SCORE:INDEX`` or ``SCORE:INDEX:LABEL``, the best class first. The scores are the
model's own, as C's ``%f`` writes them; no softmax is applied.

Rule 1: classes lie along the last axis, which becomes min(N, classes) long; the axes before it
        stay, so that each item of a batch has its own. Triton instead takes all axes but that of
        the batch as one; for the usual ``[classes]`` and ``[batch, classes]`` it is the same.
Rule 2: of equal scores the one with the lower index comes first; NaN comes last.

Source: triton-inference-server, `extension_classification.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aigovtool.errors import BadTensorError
from aigovtool.wire.tensors import BYTES, Array

CLASSIFICATION = "classification"
_NO_SCORES = ("BOOL", BYTES)


def check_classes(name: str, value: object, *, datatype: str, rank: int) -> int:
    """
    Return how many classes of output *name* are asked for.

    Raises:
        BadTensorError: *value* is not a count, or the output holds no scores.
    """
    if type(value) is not int or value < 1:
        raise BadTensorError(
            f"the parameter {CLASSIFICATION!r} of output {name!r} is not a count of classes",
            code="bad_tensor.parameter",
            expected="a whole number from 1",
        )
    if not has_scores(datatype, rank):
        raise BadTensorError(
            f"the output {name!r} holds no scores that could be put in order",
            code="bad_tensor.classification",
            expected="numbers, of one dimension or more",
            came=f"{datatype}, of {rank} dimensions",
        )
    return value


def read_classes(name: str, array: Array) -> list[list[tuple[float, int]]]:
    """
    Return score and index of each class in *array*, which `best_classes` made, row by row.

    Raises:
        BadTensorError: it is something else.
    """
    try:
        rows = array.reshape(-1, array.shape[-1]).tolist()
        return [[_read_class(element) for element in row] for row in rows]
    except (ValueError, IndexError, AttributeError, TypeError):
        raise BadTensorError(
            f"the output {name!r} holds no classes",
            code="bad_tensor.classification",
            expected="texts SCORE:INDEX or SCORE:INDEX:LABEL",
        ) from None


def _read_class(element: bytes) -> tuple[float, int]:
    score, index, *_ = element.split(b":", 2)
    return float(score), int(index)


def has_scores(datatype: str, rank: int) -> bool:
    """Return whether a tensor can hold scores: numbers, of one dimension or more."""
    return datatype not in _NO_SCORES and rank > 0


def best_classes(name: str, scores: Array, count: int, labels: Sequence[str] = ()) -> Array:
    """
    Return the *count* best classes of *scores*, as a BYTES array.

    Args:
        labels: of the classes, in their order; classes beyond them have none.

    Raises:
        BadTensorError: *scores*, as computed, has no axis of classes.
    """
    if scores.ndim == 0:
        raise BadTensorError(
            f"the output {name!r} holds no scores that could be put in order",
            code="bad_tensor.classification",
        )
    classes = scores.shape[-1]
    rows = scores.reshape(-1, classes) if classes else scores.reshape(0, 0)
    # ascending by what falls as the score rises: ~x has no overflow, -x keeps NaN at the end
    falling = -rows if rows.dtype.kind == "f" else ~rows
    best = np.argsort(falling, axis=-1, kind="stable")[:, :count]
    form = "%f:%d" if rows.dtype.kind == "f" else "%d:%d"
    texts = [
        (form % (row[index], index)).encode()
        + (b":" + labels[index].encode() if index < len(labels) else b"")
        for row, indices in zip(rows, best.tolist(), strict=True)
        for index in indices
    ]
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape((*scores.shape[:-1], min(count, classes)))
