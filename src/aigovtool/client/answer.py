"""
What the model said, for people and for programs.

The interface tells which outputs are scores of labels; the others are given as tensors. Whatever
reaches a terminal is made printable first: labels and texts are other people's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from aigovtool.errors import BadTensorError
from aigovtool.sealing.interface import ClassificationOutput, ModelInterface
from aigovtool.wire.classification import read_classes
from aigovtool.wire.tensors import BYTES, Array, datatype_of

SHOWN_ELEMENTS = 24  # of a tensor, to people; programs get all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A label and its score: a probability from 0 to 1 when `is_probability`."""

    label: str
    score: float
    is_probability: bool

    def __str__(self) -> str:
        shown = f"{self.score:.1%}" if self.is_probability else f"{self.score:.4g}"
        return f"{printable(self.label)}  {shown}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """The best labels of one output, best first, for each row of its batch."""

    name: str
    rows: tuple[tuple[Choice, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tensor:
    """An output that is given as it is."""

    name: str
    array: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """All outputs that are shown, in order, and the custodian's notice."""

    outputs: tuple[Classification | Tensor, ...]
    notice: str

    def to_text(self) -> str:
        """Return lines for people."""
        lines = []
        for output in self.outputs:
            if isinstance(output, Classification):
                for row in output.rows:
                    lines.append(str(row[0]))
                    lines.extend(f"  {choice}" for choice in row[1:])
            else:
                lines.append(f"{printable(output.name)} {list(output.array.shape)}")
                lines.append(_show(output))
        if self.notice:
            lines.append(printable(self.notice))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """
        Return what JSON can carry, all of it.

        With one classified row, its `label`, `score` and `top` stand at the head. NaN and
        infinities are None; bytes that are not UTF-8 are escaped with backslashes.
        """
        answer: dict[str, Any] = {}
        for output in self.outputs:
            if isinstance(output, Classification) and len(output.rows) == 1:
                answer |= _row(output.rows[0])
                break
        answer["outputs"] = {
            output.name: {"rows": [_row(row) for row in output.rows]}
            if isinstance(output, Classification)
            else {
                "datatype": datatype_of(output.name, output.array),
                "shape": list(output.array.shape),
                "data": _plain(output.array),
            }
            for output in self.outputs
        }
        if self.notice:
            answer["notice"] = self.notice
        return answer


def read_answer(outputs: Mapping[str, Array], interface: ModelInterface | None) -> Answer:
    """
    Read the outputs as *interface* says; without one all are tensors.

    Raises:
        BadTensorError: an output is missing, its scores are not as many as the labels, or one is
            not a number.
    """
    if interface is None:
        tensors = tuple(Tensor(name=name, array=array) for name, array in outputs.items())
        return Answer(outputs=tensors, notice="")
    read: list[Classification | Tensor] = []
    for spec in interface.outputs:
        if spec.name not in outputs:
            raise BadTensorError(
                "the answer lacks an output that the interface describes",
                code="answer.missing",
                expected=repr(spec.name),
                came=", ".join(map(repr, outputs)) or "none",
            )
        array = outputs[spec.name]
        if isinstance(spec, ClassificationOutput):
            read.append(Classification(name=spec.name, rows=_rank(array, spec)))
        else:
            read.append(Tensor(name=spec.name, array=array))
    return Answer(outputs=tuple(read), notice=interface.notice)


def printable(text: str) -> str:
    """Return *text* with what could steer a terminal escaped."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _rank(array: Array, spec: ClassificationOutput) -> tuple[tuple[Choice, ...], ...]:
    if array.dtype.kind == "O":
        return _best(array, spec)
    if array.ndim == 0 or array.shape[-1] != len(spec.labels) or array.dtype.kind not in "fiu":
        raise BadTensorError(
            f"the output {spec.name!r} is not one score for each label",
            code="answer.labels",
            expected=f"{len(spec.labels)} numbers along the last axis",
            came=f"{datatype_of(spec.name, array)} {list(array.shape)}",
        )
    scores = array.reshape(-1, len(spec.labels)).astype(np.float64)
    if not np.isfinite(scores).all():
        raise BadTensorError(
            f"the output {spec.name!r} has a score that is not a finite number",
            code="answer.not_finite",
        )
    if spec.softmax:
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = powers / powers.sum(axis=1, keepdims=True)
    # stable, so that equal scores keep the order of the labels
    best = np.argsort(-scores, axis=1, kind="stable")[:, : spec.top_k]
    is_probability = bool(((scores >= 0) & (scores <= 1)).all())
    return tuple(
        tuple(
            Choice(
                label=spec.labels[index],
                score=float(scores[row, index]),
                is_probability=is_probability,
            )
            for index in order
        )
        for row, order in enumerate(best.tolist())
    )


def _best(array: Array, spec: ClassificationOutput) -> tuple[tuple[Choice, ...], ...]:
    """Read the best classes, where the loan gives nothing else; their scores as they are."""
    rows = read_classes(spec.name, array)
    if not all(rows) or not all(
        math.isfinite(score) and 0 <= index < len(spec.labels)
        for row in rows
        for score, index in row
    ):
        raise BadTensorError(
            f"the output {spec.name!r} names a class without a label, or a score that is no number",
            code="answer.labels",
            expected=f"{len(spec.labels)} labels",
        )
    # with a softmax to come, they are what it would be taken of
    is_probability = not spec.softmax and all(0 <= score <= 1 for row in rows for score, _ in row)
    return tuple(
        tuple(
            Choice(label=spec.labels[index], score=score, is_probability=is_probability)
            for score, index in row[: spec.top_k]
        )
        for row in rows
    )


def _show(output: Tensor) -> str:
    if datatype_of(output.name, output.array) == BYTES:
        elements = output.array.ravel()[:SHOWN_ELEMENTS].tolist()
        return "\n".join(printable(_text(element)) for element in elements)
    return np.array2string(output.array, threshold=SHOWN_ELEMENTS, precision=6, separator=", ")


def _row(row: tuple[Choice, ...]) -> dict[str, Any]:
    return {
        "label": row[0].label,
        "score": row[0].score,
        "top": [{"label": choice.label, "score": choice.score} for choice in row],
    }


def _plain(array: Array) -> list[Any]:
    elements: list[Any] = array.ravel().tolist()
    if array.dtype.kind == "f":
        return [one if np.isfinite(one) else None for one in elements]
    return [_text(one) if isinstance(one, str | bytes) else one for one in elements]


def _text(element: str | bytes) -> str:
    return element if isinstance(element, str) else element.decode(errors="backslashreplace")
