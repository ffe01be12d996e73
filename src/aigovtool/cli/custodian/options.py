"""Options of several commands: words that take a term away, and the terms of what a model gives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import click

F = TypeVar("F", bound=Callable[..., Any])

_LIMITS = (
    ("top_logprobs", "--max-top-logprobs", 0, "Log probabilities for each token; 0 for none."),
    (
        "output_tokens_per_day",
        "--max-output-tokens-per-day",
        1,
        "Tokens that a language model gives one consumer in a day (UTC).",
    ),
    (
        "alike_per_day",
        "--alarm-alike",
        1,
        "Alarm at so many prompts of a consumer in a day that are alike.",
    ),
    (
        "queries_per_day",
        "--alarm-queries",
        1,
        "Alarm at so many queries of a consumer to a language model in a day.",
    ),
    (
        "output_digits",
        "--output-digits",
        1,
        "Significant digits of the numbers that a model of tensors gives.",
    ),
    (
        "top_labels",
        "--top-labels",
        1,
        "Of a model of tensors only the names of so many best classes.",
    ),
)


class OrNone(click.ParamType[Any]):
    """What *kind* takes, or a word for none of it, which becomes ''."""

    def __init__(self, kind: click.ParamType[Any], word: str) -> None:
        self.name = f"{kind.name}|{word}"
        self._kind, self._word = kind, word

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        return "" if value == self._word else self._kind.convert(value, param, ctx)


@dataclass(frozen=True, slots=True)
class ModelTerms:
    """
    What was said of a model's terms, by the names of the API; only what was said is there.

    Args:
        price: credits of a token of ``input`` and ``output``.
        extraction: limits, None for one that is taken away.
    """

    price: dict[str, int]
    extraction: dict[str, int | None]
    shared_prefixes: bool | None

    def to_json(self) -> dict[str, object]:
        """Return the members of a request that say this; none when nothing was said."""
        members = {
            "token_price": self.price or None,
            "extraction": self.extraction or None,
            "shared_prefixes": self.shared_prefixes,
        }
        return {name: value for name, value in members.items() if value is not None}


def with_model_terms(*, change: bool) -> Callable[[F], F]:
    """Give a command the options of a model's terms, as `model_terms`; *change* may take away."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def run(
            *args: Any,
            price_input: int | None,
            price_output: int | None,
            share_prefixes: bool | None,
            **kwargs: Any,
        ) -> Any:
            said = {name: kwargs.pop(name) for name, *_ in _LIMITS}
            prices = {"input": price_input, "output": price_output}
            terms = ModelTerms(
                {name: value for name, value in prices.items() if value is not None},
                {
                    name: None if value == "" else value
                    for name, value in said.items()
                    if value is not None
                },
                share_prefixes,
            )
            return command(*args, model_terms=terms, **kwargs)

        made: Any = run
        for name, option, least, about in reversed(_LIMITS):
            number = click.IntRange(min=least)
            made = click.option(
                option,
                name,
                type=OrNone(number, "none") if change else number,
                help=f"{about[:-1]}, or none." if change else about,
            )(made)
        made = click.option(
            "--share-prefixes/--no-share-prefixes",
            default=None,
            help="Let what is kept of one consumer's prompt serve others, who can tell by the time "
            "it takes.  [default: no]",
        )(made)
        for side in ("output", "input"):
            made = click.option(
                f"--price-{side}",
                type=click.IntRange(min=1),
                help=f"Credits of a token of {side} of a language model.  [default: 1]",
            )(made)
        return cast("F", made)

    return decorate
