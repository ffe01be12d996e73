"""What several commands of ``aigovtool client`` have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aigovtool.cli.output import talk

if TYPE_CHECKING:
    from rich.status import Status

    from aigovtool.errors import BudgetExhaustedError
    from aigovtool.wire.enrolment import TokenPrice

MAX_KEY_FILE_BYTES = 4096

address_option = click.option(
    "--address",
    required=True,
    envvar="AIGOVTOOL_ADDRESS",
    show_envvar=True,
    metavar="HOST[:9924]",
    help="Where the enclave listens.",
)
manifest_option = click.option(
    "--manifest",
    required=True,
    envvar="AIGOVTOOL_MANIFEST",
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The custodian's manifest.toml: which enclave may have your data.",
)
key_file_type = click.Path(path_type=Path, dir_okay=False)
api_key_option = click.option(
    "--api-key-file",
    required=True,
    envvar="AIGOVTOOL_API_KEY_FILE",
    show_envvar=True,
    type=key_file_type,
    help="File with your consumer key.",
)


def read_key(path: Path) -> str:
    """Return the consumer key in the file *path*; raises ConfigurationError."""
    from aigovtool.client.session import check_api_key
    from aigovtool.errors import ConfigurationError

    try:
        with path.open("rb") as file:
            text = file.read(MAX_KEY_FILE_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the API key file {path}: {error.strerror or type(error).__name__}",
            mend="the custodian gives it out: `consumer.key` in its data folder",
        ) from None
    return check_api_key(text.strip())


@contextmanager
def waiting_said(why: str) -> Iterator[Callable[[BudgetExhaustedError, float], None]]:
    """Say on stderr that one waits, and *why*: a spinner for people, one line for logs."""
    status: Status | None = None
    said = False

    def on_wait(error: BudgetExhaustedError, waited_s: float) -> None:
        nonlocal status, said
        text = f"{why}: waiting until the custodian frees more"
        if error.place is not None:
            text += f", place {error.place[0]} of {error.place[1]}"
        if not talk.is_terminal:
            if not said:
                talk.print(text)
        elif status is None:
            status = talk.status(f"{text} (Ctrl-C gives up)")
            status.start()
        else:
            status.update(f"{text}, {waited_s:.0f} s by now (Ctrl-C gives up)")
        said = True

    try:
        yield on_wait
    finally:
        if status is not None:
            status.stop()


def left(remaining: int, price: TokenPrice | None = None) -> str:
    """Say what *remaining* credits are good for; *price* is a language model's."""
    if price is None:
        return f"{remaining} {'query' if remaining == 1 else 'queries'} left"
    if price.input == price.output == 1:
        return f"{remaining} {'token' if remaining == 1 else 'tokens'} left"
    return f"{remaining} credits left, for {remaining // price.output} tokens of output"
