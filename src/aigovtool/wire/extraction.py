"""
Blind limits on extraction: how much of a model one consumer may draw out of its answers.

The enclave enforces them, and tells the custodian numbers: how many tokens were produced, how many
queries there were and how many were alike. Nothing that is made of an input or output leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from aigovtool.errors import MalformedError
from aigovtool.wire.codec import Message

MAX_COUNT = 1_000_000_000
MAX_DIGITS = 17  # no more of a FP64 mean anything

AlarmKind = Literal["alike", "output", "queries"]


class ExtractionLimits(Message, frozen=True, kw_only=True):
    """
    What one consumer gets of a model; None for no limit. Days are those of UTC.

    Args:
        top_logprobs: log probabilities of so many tokens for each place, 0 for none at all.
        output_tokens_per_day: of a language model, before it is refused until the day ends.
        alike_per_day: prompts that are near-duplicates of earlier ones, before an alarm.
        queries_per_day: queries of a language model, before an alarm.
        output_digits: significant decimal digits of the numbers that a model of tensors gives.
        top_labels: a model of tensors gives the names of so many of the best classes, and nothing
            else.
    """

    top_logprobs: int | None = None
    output_tokens_per_day: int | None = None
    alike_per_day: int | None = None
    queries_per_day: int | None = None
    output_digits: int | None = None
    top_labels: int | None = None


NO_EXTRACTION_LIMITS = ExtractionLimits()

BOUNDS: Mapping[str, tuple[int, int]] = {
    "top_logprobs": (0, 1000),
    "output_tokens_per_day": (1, MAX_COUNT),
    "alike_per_day": (1, MAX_COUNT),
    "queries_per_day": (1, MAX_COUNT),
    "output_digits": (1, MAX_DIGITS),
    "top_labels": (1, MAX_COUNT),
}
"""The least and the most that each limit may be."""


def check_extraction(limits: ExtractionLimits) -> None:
    """Raise MalformedError unless *limits* are ones that can be kept."""
    for name, (low, high) in BOUNDS.items():
        value = getattr(limits, name)
        if value is not None and not low <= value <= high:
            raise MalformedError(
                f"{name} is out of bounds",
                code="limit.form",
                expected=f"{low} to {high}",
                came=str(value),
            )
