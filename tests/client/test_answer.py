"""What the model said reaches people and programs as it was said."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from aigovtool.client.answer import printable, read_answer
from aigovtool.errors import BadTensorError
from aigovtool.sealing.interface import (
    ClassificationOutput,
    ModelInterface,
    TensorInput,
    TensorOutput,
)


def interface(*outputs: Any, notice: str = "") -> ModelInterface:
    return ModelInterface(
        notice=notice,
        inputs=(TensorInput(name="x", datatype="FP32", shape=(1,)),),
        outputs=outputs,
    )


def scores(**fields: Any) -> ClassificationOutput:
    return ClassificationOutput(
        **({"name": "y", "labels": ("cat", "dog", "cow"), "softmax": True, "top_k": 2} | fields)
    )


LOGITS = np.array([[1.0, 3.0, 2.0]], np.float32)


def test_logits_become_probabilities_best_first() -> None:
    answer = read_answer({"y": LOGITS}, interface(scores(), notice="a toy"))
    seen = answer.to_dict()
    assert (seen["label"], seen["notice"]) == ("dog", "a toy")
    assert [one["label"] for one in seen["top"]] == ["dog", "cow"]
    assert seen["score"] == pytest.approx(np.exp(3) / (np.exp(1) + np.exp(2) + np.exp(3)))
    assert answer.to_text() == "dog  66.5%\n  cow  24.5%\na toy"
    json.dumps(seen, allow_nan=False)


def test_logits_of_any_size_do_not_overflow() -> None:
    seen = read_answer({"y": LOGITS * np.float32(1e30)}, interface(scores())).to_dict()
    assert (seen["label"], seen["score"]) == ("dog", 1.0)


def test_scores_that_are_no_probabilities_are_not_shown_as_percent() -> None:
    assert read_answer({"y": LOGITS}, interface(scores(softmax=False))).to_text() == (
        "dog  3\n  cow  2"
    )
    ready = read_answer({"y": np.array([0.1, 0.7, 0.2])}, interface(scores(softmax=False)))
    assert ready.to_text() == "dog  70.0%\n  cow  20.0%"


def test_equal_scores_keep_the_order_of_the_labels() -> None:
    seen = read_answer({"y": np.zeros((1, 3))}, interface(scores(top_k=3))).to_dict()
    assert [one["label"] for one in seen["top"]] == ["cat", "dog", "cow"]


def test_a_batch_has_a_row_for_each_and_no_label_for_all() -> None:
    seen = read_answer({"y": np.eye(3, dtype=np.float32)}, interface(scores())).to_dict()
    assert "label" not in seen
    assert [row["label"] for row in seen["outputs"]["y"]["rows"]] == ["cat", "dog", "cow"]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 2)),
        np.array(1.0),
        np.array([["a", "b", "c"]]),
        np.array([[True, False, True]]),
        np.array([[np.nan, 0, 0]]),
        np.array([[np.inf, 0, 0]]),
    ],
)
def test_scores_that_are_not_one_number_a_label_are_refused(array: Any) -> None:
    with pytest.raises(BadTensorError):
        read_answer({"y": array}, interface(scores()))


def test_a_described_output_that_is_missing_is_refused() -> None:
    with pytest.raises(BadTensorError, match="lacks an output"):
        read_answer({"z": LOGITS}, interface(scores()))


def test_tensors_are_given_whole_to_programs_and_short_to_people() -> None:
    array = np.arange(1000, dtype=np.int32).reshape(10, 100)
    answer = read_answer({"y": array, "z": array}, interface(TensorOutput(name="y")))
    seen = answer.to_dict()
    assert list(seen["outputs"]) == ["y"]
    assert seen["outputs"]["y"] == {
        "datatype": "INT32",
        "shape": [10, 100],
        "data": list(range(1000)),
    }
    assert len(answer.to_text()) < 300


def test_without_an_interface_all_outputs_are_tensors_that_json_can_carry() -> None:
    outputs = {
        "f": np.array([np.nan, np.inf, 0.5], np.float16),
        "s": np.array([b"\xff", "é".encode()], object),
        "e": np.empty((0, 3), np.float32),
    }
    answer = read_answer(outputs, None)
    seen = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert seen["outputs"]["f"]["data"] == [None, None, 0.5]
    assert seen["outputs"]["s"]["data"] == ["\\xff", "é"]
    assert seen["outputs"]["e"] == {"datatype": "FP32", "shape": [0, 3], "data": []}
    assert answer.to_text().startswith("f [3]\n[nan, inf, 0.5]\ns [2]\n")


def test_labels_notices_and_texts_cannot_steer_a_terminal() -> None:
    evil = "\x1b[2J\r\n\u202e"
    labels = (f"cat{evil}", "dog", "cow")
    shown = [
        read_answer({"y": LOGITS[:, ::-1]}, interface(scores(labels=labels), notice=evil)),
        read_answer({f"y{evil}": np.array([evil.encode()], object)}, None),
    ]
    for answer in shown:
        assert all(one.isprintable() or one == "\n" for one in answer.to_text())
    assert printable("é\t") == "é\\t"


BEST = np.empty((1, 2), object)
BEST[0] = [b"0.700000:1:dog", b"0.200000:2:cow"]


def test_best_classes_that_a_loan_gives_instead_of_scores_are_read() -> None:
    answer = read_answer({"y": BEST}, interface(scores(softmax=False)))
    assert answer.to_text() == "dog  70.0%\n  cow  20.0%"
    assert read_answer({"y": BEST}, interface(scores(top_k=1))).to_text() == "dog  0.7"


@pytest.mark.parametrize("element", [b"0.5:3", b"0.5:-1", b"nan:0", b"text", b""])
def test_best_classes_without_a_label_or_score_are_refused(element: bytes) -> None:
    array = np.empty((1, 1), object)
    array[0] = [element]
    with pytest.raises(BadTensorError):
        read_answer({"y": array}, interface(scores()))
