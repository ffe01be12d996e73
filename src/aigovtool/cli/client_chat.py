"""
``aigovtool client chat``: a conversation with a language model, at a terminal.

Rule 1: nothing is sent before the enclave was verified, and what was verified is shown.
Rule 2: the conversation is in memory only, and gone with the program.
Rule 3: a model's text may hold what steers a terminal; none of that reaches it.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from aigovtool.cli.client_receipts import receipts_option
from aigovtool.cli.client_shared import (
    address_option,
    api_key_option,
    left,
    manifest_option,
    read_key,
    waiting_said,
)
from aigovtool.cli.output import (
    exits,
    json_option,
    print_json_line,
    printable,
    talk,
    tell_error,
    warn_simulated,
)

if TYPE_CHECKING:
    from aigovtool.client.blocking import BlockingChatStream, Client
    from aigovtool.wire.control import MoreDecided
    from aigovtool.wire.enrolment import TokenPrice

PROMPT = "you> "
# beside what can be printed: lines, and what joins the parts of an emoji
TEXT_ALSO = "\n\t\u200d"
HELP = "/clear begins anew, /quit ends; Ctrl-C cuts an answer"


@click.command()
@address_option
@manifest_option
@api_key_option
@click.option(
    "--system",
    envvar="AIGOVTOOL_SYSTEM",
    show_envvar=True,
    metavar="TEXT",
    help="What the model is told before the conversation.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    envvar="AIGOVTOOL_MAX_TOKENS",
    show_envvar=True,
    help="The longest answer.  [default: what the enclave allows]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, max=2),
    envvar="AIGOVTOOL_TEMPERATURE",
    show_envvar=True,
    help="0 always takes the likeliest token.  [default: the enclave's]",
)
@click.option(
    "--once",
    envvar="AIGOVTOOL_ONCE",
    show_envvar=True,
    metavar="TEXT",
    help="Say this, print the answer, and end.",
)
@click.option(
    "--reason",
    envvar="AIGOVTOOL_REASON",
    show_envvar=True,
    help="Why you need more, for the custodian's operator, when too little is left.",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    envvar="AIGOVTOOL_WAIT",
    show_envvar=True,
    help="With too little left: wait for more (the default), or be refused.",
)
@receipts_option
@json_option
@exits
def chat(
    *,
    address: str,
    manifest: Path,
    api_key_file: Path,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    once: str | None,
    reason: str | None,
    wait: bool,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Talk with a language model, a line at a time.

    /clear begins anew, /quit ends. Ctrl-C cuts an answer, of which what was said is charged.
    With --json each answer is one line on stdout.
    """
    from aigovtool.client.blocking import connect

    with connect(
        address, manifest=manifest, api_key=read_key(api_key_file), receipts=folder
    ) as client:
        price = _greet(client)
        options = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "reason": reason,
            "wait_s": math.inf if wait else 0.0,
            "on_decided": _decided,
        }
        conversation = Conversation(client, price, options, system=system, as_json=as_json)
        if once is not None:
            conversation.say(once)
            return
        _converse(conversation)


def _greet(client: Client) -> TokenPrice:
    """Show what was verified, and return the price; raises ConfigurationError."""
    from aigovtool.cli.verified import as_lines
    from aigovtool.errors import ConfigurationError

    if client.attestation.simulated:
        warn_simulated()
    budget = client.budget()
    if budget.token_price is None:
        raise ConfigurationError(
            "this model takes tensors, and nobody can talk with it",
            mend="use `aigovtool client query`",
        )
    for line in as_lines(client.attestation, budget):
        talk.print(line)
    return budget.token_price


def _converse(conversation: Conversation) -> None:
    """Read lines until there are no more; a person's errors are told, a program's end it."""
    from aigovtool.errors import RefusedError, UnavailableError

    person = sys.stdin.isatty()
    if person:
        talk.print(HELP, style="dim")
    for line in _lines(person):
        match line.strip():
            case "":
                continue
            case "/quit":
                return
            case "/clear":
                conversation.clear()
            case command if command.startswith("/"):
                talk.print(HELP, style="dim")
            case said:
                try:
                    conversation.say(said)
                except KeyboardInterrupt:
                    if not person:
                        raise
                    conversation.tell_cut()
                except (RefusedError, UnavailableError) as error:
                    if not person:
                        raise
                    tell_error(error)


def _lines(person: bool) -> Iterator[str]:
    if not person:
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  lets `input` edit a line; it keeps none of them on a disk
    while True:
        try:
            if sys.stdout.isatty():
                yield input(PROMPT)
            else:  # `input` would write its prompt among the results
                talk.print(PROMPT, end="")
                yield input()
        except EOFError:
            talk.print()
            return
        except KeyboardInterrupt:
            talk.print(f"\n{HELP}", style="dim")


def _decided(decision: MoreDecided) -> None:
    why = f": {printable(decision.reason)}" if decision.reason else ""
    talk.print(f"the custodian granted {decision.credits} credits{why}", markup=False)


@dataclass
class Conversation:
    """
    What was said so far, and how more is asked.

    Args:
        price: of the tokens.
        options: of each question, as `ChatOptions`.
        system: what the model is told first.
        as_json: whether an answer is a line of JSON, and not its text as it comes.
    """

    client: Client
    price: TokenPrice
    options: dict[str, Any]
    system: str | None
    as_json: bool
    messages: list[dict[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget what was said."""
        self.messages = []
        if self.system is not None:
            self.messages.append({"role": "system", "content": self.system})

    def say(self, text: str) -> None:
        """
        Say *text*, and print what the model answers, and what that cost.

        What had come of an answer that was cut is remembered; one that had not begun is as if
        nothing had been said.

        Raises:
            KeyboardInterrupt, AIGovToolError: it was cut, or refused.
        """
        said = {"role": "user", "content": text}
        with contextlib.ExitStack() as holds:
            with waiting_said("too few credits left") as on_wait:
                asked = self.client.chat_stream(
                    [*self.messages, said], on_wait=on_wait, **self.options
                )
                stream = holds.enter_context(asked)
            watch = _Watch()
            try:
                for piece in stream:
                    watch.piece()
                    if not self.as_json:
                        click.echo(printable(piece, also=TEXT_ALSO), nl=False)
            finally:
                if stream.text and not self.as_json:
                    click.echo()
                if stream.text:
                    self.messages += [said, {"role": "assistant", "content": stream.text}]
                if stream.settled is not None:
                    self._tell(stream, watch)

    def tell_cut(self) -> None:
        """Say that the person cut an answer, and what is left, as far as it is known by now."""
        from aigovtool.errors import AIGovToolError

        told = "cut"
        with contextlib.suppress(AIGovToolError):
            told += f"; {left(self.client.budget().remaining, self.price)}, as far as is known yet"
        talk.print(told, style="dim")

    def _tell(self, stream: BlockingChatStream, watch: _Watch) -> None:
        settled = stream.settled
        assert settled is not None
        usage = settled.usage
        produced = 0 if usage is None else usage.completion_tokens
        rate = watch.rate(produced)
        if self.as_json:
            from aigovtool.wire.receipt import to_header

            print_json_line(
                {
                    "answer": stream.text,
                    "finish_reason": stream.finish_reason,
                    "usage": usage,
                    "cost": settled.cost,
                    "remaining": settled.remaining,
                    "tokens_per_s": rate,
                    "simulated": self.client.attestation.simulated,
                    "receipts": [to_header(each.signed) for each in settled.receipts],
                }
            )
            return
        parts = [] if usage is None else [f"{usage.prompt_tokens} + {produced} tokens"]
        if rate is not None:
            parts.append(f"{rate:.1f} tokens/s")
        if stream.finish_reason == "length":
            parts.append("cut at the longest answer")
        parts += [f"cost {settled.cost}", left(settled.remaining, self.price)]
        talk.print(Text(", ".join(parts), style="dim"))


class _Watch:
    """How fast an answer comes: the tokens after its first piece, by the time that they took."""

    def __init__(self) -> None:
        self._first_s: float | None = None
        self._last_s = 0.0

    def piece(self) -> None:
        self._last_s = time.monotonic()
        if self._first_s is None:
            self._first_s = self._last_s

    def rate(self, tokens: int) -> float | None:
        """Return *tokens* a second; None of an answer that came at once."""
        if self._first_s is None or tokens < 2 or self._last_s == self._first_s:
            return None
        return (tokens - 1) / (self._last_s - self._first_s)
