"""How the custodian commands find the running custodian, and what they share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from aigovtool.cli.output import print_json, result, talk

if TYPE_CHECKING:
    from rich.console import RenderableType

    from aigovtool.custodian.admin_client import AdminClient
    from aigovtool.sealing.chunked import Progress

V1 = "/api/v1"
PIPE_COLUMNS = 250
POLICY_MEND = (
    "write it (aigovtool enclave measure, where the enclave will run, prints it), or name one with "
    "--policy"
)

F = TypeVar("F", bound=Callable[..., Any])

data_option = click.option(
    "--data",
    envvar="AIGOVTOOL_DATA",
    show_envvar=True,
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The custodian's data folder.",
)
master_key_option = click.option(
    "--master-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Master key, instead of DIR/master.key or AIGOVTOOL_MASTER_KEY.",
)
mark_option = click.option(
    "--mark",
    envvar="AIGOVTOOL_MARK",
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="What remembers, outside DIR, how far the ledger is. Default: in $XDG_STATE_HOME.",
)


def _no_password(context: click.Context, parameter: click.Parameter, url: str | None) -> str | None:
    from aigovtool.custodian.store.postgres_connection import is_postgres, password_of

    if url is not None and is_postgres(url) and password_of(url):
        raise click.BadParameter(
            "everybody on this machine sees a password on the command line; put the URL into"
            " AIGOVTOOL_DATABASE, or the password into a passfile (~/.pgpass)",
            ctx=context,
            param=parameter,
        )
    return url


database_option = click.option(
    "--database",
    metavar="URL",
    callback=_no_password,
    help="The ledger: postgresql://USER@HOST/NAME, instead of AIGOVTOOL_DATABASE, what init noted,"
    " or DIR/ledger.db.",
)
reason_option = click.option(
    "--reason", default="", help="Why, for the events and whom it concerns."
)
loan_option = click.option("--loan", help="Which loan, when there are several.")
loan_argument = click.argument("loan", required=False)


@dataclass(frozen=True, slots=True)
class Remote:
    """How a command finds the running custodian; `client` reads files only when it is called."""

    data: Path | None
    admin: str | None
    token_file: Path | None
    authority: Path | None

    def client(self, *, timeout_s: float | None = None) -> AdminClient:
        from aigovtool.custodian import files
        from aigovtool.custodian.admin_client import TIMEOUT_S, AdminClient
        from aigovtool.custodian.data import DEFAULT_ADMIN_LISTEN, DataFolder
        from aigovtool.errors import ConfigurationError

        folder = None if self.data is None else DataFolder(self.data)
        token_file = self.token_file or (None if folder is None else folder.admin_token)
        if token_file is None:
            raise ConfigurationError(
                "which custodian?",
                expected="--data DIR, or --admin URL with --token-file FILE",
                mend="name its data folder with --data",
            )
        url = self.admin
        if url is None and folder is not None and folder.admin_url.exists():
            url = files.read_text(folder.admin_url, mend="name the API with --admin").strip()
        return AdminClient.of(
            url or f"http://{DEFAULT_ADMIN_LISTEN}",
            token_file,
            authority=self.authority,
            timeout_s=TIMEOUT_S if timeout_s is None else timeout_s,
        )


def with_remote(command: F) -> F:
    """Give a command the options by which it finds the custodian, as its argument `remote`."""

    @functools.wraps(command)
    def run(
        *args: Any,
        data: Path | None,
        admin: str | None,
        token_file: Path | None,
        admin_ca: Path | None,
        **kwargs: Any,
    ) -> Any:
        return command(*args, remote=Remote(data, admin, token_file, admin_ca), **kwargs)

    path = click.Path(path_type=Path, dir_okay=False)
    for option in (
        click.option("--admin-ca", type=path, help="PEM that certifies an https admin API."),
        click.option("--token-file", type=path, help="The admin token, instead of DIR's."),
        click.option("--admin", metavar="URL", help="The admin API, instead of DIR's."),
        click.option(
            "--data",
            envvar="AIGOVTOOL_DATA",
            show_envvar=True,
            type=click.Path(path_type=Path, file_okay=False),
            help="The custodian's data folder, which knows address and token.",
        ),
    ):
        run = option(run)
    return cast("F", run)


def show(value: Any, told: str | Callable[[], RenderableType], *, as_json: bool) -> None:
    """Print *value* as JSON, or to people what *told* is."""
    from rich.console import Console

    if as_json:
        print_json(value)
    else:
        console = result
        if not result.is_terminal:
            # a pipe has no width of its own, and folded identifiers help nobody
            console = Console(highlight=False, soft_wrap=True, width=PIPE_COLUMNS)
        console.print(told if isinstance(told, str) else told())


def hand_out(value: Any, text: str, out: Path | None, *, as_json: bool, mode: int) -> None:
    """Write *text* to a file, or print it."""
    from aigovtool.custodian import files

    if out is not None:
        files.write_whole(out, text, mode=mode)
        talk.print(f"wrote {out}")
    if as_json:
        print_json(value)
    elif out is None:
        click.echo(text, nl=False)


def loan_text(loan: Any) -> str:
    from aigovtool.cli.custodian import tables

    account = loan.account
    evictable = "its idle model may make room for another loan's\n" if loan.terms.evictable else ""
    return (
        f"{loan.name} ({loan.loan}) is {loan.state}: {account.left} of {account.granted} credits "
        f"left, {account.leased} leased, {account.spent} spent, {account.forfeited} forfeited\n"
        f"{evictable}{tables.worst_case(loan.exposure)}"
        + (f"\n{said}" if (said := tables.model_terms(loan.terms)) else "")
    )


def one_loan(client: AdminClient, wanted: str | None) -> str:
    """Return the id of the loan of this id or name, or of the only one when none is named."""
    from aigovtool.custodian.api import views

    found = client.get(f"{V1}/loans", list[views.LoanView])
    if wanted is None:
        found = [one for one in found if one.state != "closed"]
        return _only([one.loan for one in found], "loan", "name one of them")
    return _only(
        [one.loan for one in found if wanted in (one.loan, one.name)],
        f"loan {wanted!r}",
        "aigovtool custodian loan list",
    )


def one_consumer(client: AdminClient, wanted: str) -> str:
    """Return the id of the consumer of this id or name."""
    from aigovtool.custodian.api import views

    found = client.get(f"{V1}/consumers", list[views.ConsumerView])
    return _only(
        [one.consumer for one in found if wanted in (one.consumer, one.name)],
        f"consumer {wanted!r}",
        "aigovtool custodian consumer list",
    )


def model_digest(client: AdminClient, wanted: str) -> str:
    """Return the digest of the model of this digest, name or NAME:VERSION."""
    from aigovtool.custodian.api import views

    found = client.get(f"{V1}/models", list[views.ModelView])
    return _only(
        [
            one.model
            for one in found
            if wanted in (one.model, one.name, f"{one.name}:{one.version}")
        ],
        f"model {wanted!r}",
        "aigovtool custodian model list",
    )


def _only(found: Sequence[str], what: str, mend: str) -> str:
    from aigovtool.errors import ConflictError, NotFoundError

    if not found:
        raise NotFoundError(f"there is no {what}", mend=mend)
    if len(found) > 1:
        raise ConflictError(
            f"{what} is not the only one", expected="one of " + ", ".join(found), mend=mend
        )
    return found[0]


@contextmanager
def sealing_bar(path: Path) -> Iterator[Callable[[int], Progress]]:
    """Show a bar on a terminal while a model is sealed."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("sealing {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=talk,
        transient=True,
        disable=not talk.is_terminal,
    ) as bar:

        def begin(total: int) -> Progress:
            task = bar.add_task(path.name, total=total)
            return lambda done: bar.update(task, completed=done)

        yield begin
