"""``aigovtool custodian``: lend models: serve, grant, watch, block, stop."""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from aigovtool.cli.output import exits, json_option, print_json, result, talk, warn_simulated

if TYPE_CHECKING:
    from rich.console import RenderableType

    from aigovtool.clock import Clock
    from aigovtool.custodian.admin_client import AdminClient
    from aigovtool.custodian.app import App
    from aigovtool.custodian.data import DataFolder, ServerConfig
    from aigovtool.custodian.lend import Lent
    from aigovtool.custodian.server import Doors
    from aigovtool.endorsements.courier import Courier
    from aigovtool.sealing.chunked import Progress

V1 = "/api/v1"
PIPE_COLUMNS = 250

F = TypeVar("F", bound=Callable[..., Any])

_data = click.option(
    "--data",
    envvar="AIGOVTOOL_DATA",
    show_envvar=True,
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The custodian's data folder.",
)
_master_key_file = click.option(
    "--master-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Master key, instead of DIR/master.key or AIGOVTOOL_MASTER_KEY.",
)
_reason = click.option("--reason", default="", help="Why, for the events and whom it concerns.")
_loan_option = click.option("--loan", help="Which loan, when there are several.")
_loan_argument = click.argument("loan", required=False)


@dataclass(frozen=True, slots=True)
class Remote:
    """How a command finds the running custodian; `client` reads files only when it is called."""

    data: Path | None
    admin: str | None
    token_file: Path | None
    authority: Path | None

    def client(self) -> AdminClient:
        from aigovtool.custodian import files
        from aigovtool.custodian.admin_client import AdminClient
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
            url or f"http://{DEFAULT_ADMIN_LISTEN}", token_file, authority=self.authority
        )


def _remote(command: F) -> F:
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


@click.group()
def custodian() -> None:
    """Lend models: make keys, serve, grant, watch, block, stop.

    Commands other than init, serve and model seal talk to the running custodian by its admin API.

    Exit codes: 0 done, 1 refused, 2 malformed or misused, 3 unavailable, 4 conflict, 70 internal.
    """


# --- making and serving -------------------------------------------------------------------------


@custodian.command()
@_data
@click.option(
    "--simulated",
    is_flag=True,
    help="Let new loans accept this machine's simulated TEE and the code installed here.",
)
@json_option
@exits
def init(data: Path, simulated: bool, as_json: bool) -> None:
    """Make the custodian's keys, database and admin token, once."""
    from aigovtool.clock import SystemClock
    from aigovtool.crypto.signing import fingerprint, format_public_key
    from aigovtool.custodian.app import initialise
    from aigovtool.custodian.data import DataFolder

    folder, clock = DataFolder(data), SystemClock()
    accept = (_simulated_alternative(clock.now()),) if simulated else ()
    key = initialise(folder, clock=clock, environ=os.environ, accept=accept)
    if simulated:
        warn_simulated()
    if as_json:
        print_json(
            {"data": str(data), "public_key": format_public_key(key), "simulated": simulated}
        )
        return
    talk.print(f"custodian {format_public_key(key)} (fingerprint {fingerprint(key)})")
    if folder.master_key.exists():
        talk.print(f"keep a copy of {folder.master_key} elsewhere: without it every key is lost")
    if not simulated:
        talk.print(
            f"write {folder.policy}: what evidence loans accept "
            "(aigovtool enclave measure, where the enclave will run, prints it)"
        )
    talk.print(f"next: aigovtool custodian serve --data {data} --upload MODEL.onnx")


def _simulated_alternative(now: datetime) -> Any:
    from aigovtool.errors import ConflictError
    from aigovtool.simulation.measure import measure
    from aigovtool.simulation.platform import SimulatedPlatform, platform_directory
    from aigovtool.simulation.policy import simulated_policy

    directory = platform_directory()
    if directory.is_dir():
        platform = SimulatedPlatform.load(directory)
    else:
        try:
            platform = SimulatedPlatform.create(directory, now=now)
        except ConflictError:  # another init was quicker
            platform = SimulatedPlatform.load(directory)
    return simulated_policy(platform.root_sha256, measure())


@custodian.command()
@_data
@_master_key_file
@click.option("--listen", default="127.0.0.1:7000", show_default=True, help="For enclaves (TLS).")
@click.option("--advertise", metavar="HOST:PORT", help="What tickets say, instead of --listen.")
@click.option(
    "--admin-listen", default="127.0.0.1:6000", show_default=True, help="For the admin API."
)
@click.option(
    "--admin-tls-certificate",
    type=click.Path(path_type=Path, dir_okay=False),
    help="PEM; needed when the admin API does not listen on loopback.",
)
@click.option("--admin-tls-key", type=click.Path(path_type=Path, dir_okay=False), help="Its key.")
@click.option("--database", metavar="URL", help="The ledger, instead of DIR/ledger.db.")
@click.option(
    "--upload",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Seal this ONNX model and lend it, with one consumer.",
)
@click.option(
    "--interface",
    type=click.Path(path_type=Path, dir_okay=False),
    help="interface.json of the model: how to ask it and read its answers.",
)
@click.option("--model-name", help="Instead of the file's name.")
@click.option("--model-version", default="1", show_default=True)
@click.option(
    "--num-requests",
    default=10,
    show_default=True,
    type=click.IntRange(min=0),
    help="Budget of the new loan.",
)
@click.option(
    "--lease-duration",
    default=5.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds a lease of the new loan lives; 0 authorises each query.",
)
@click.option(
    "--max-enclaves", default=16, show_default=True, type=click.IntRange(min=1), help="At a time."
)
@click.option(
    "--policy",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What evidence the new loan accepts, instead of DIR/policy.toml.",
)
@click.option(
    "--fetch-endorsements",
    is_flag=True,
    help="Ask TEE vendors for what enclaves do not send with their evidence. Default: dial nobody.",
)
@click.option("--pccs", metavar="URL", help="With --fetch-endorsements: a PCCS instead of Intel.")
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning"]))
@json_option
@exits
def serve(
    *,
    data: Path,
    master_key_file: Path | None,
    listen: str,
    advertise: str | None,
    admin_listen: str,
    admin_tls_certificate: Path | None,
    admin_tls_key: Path | None,
    database: str | None,
    upload: Path | None,
    interface: Path | None,
    model_name: str | None,
    model_version: str,
    num_requests: int,
    lease_duration: float,
    max_enclaves: int,
    policy: Path | None,
    fetch_endorsements: bool,
    pccs: str | None,
    log_level: str,
    as_json: bool,
) -> None:
    """Serve enclaves and the admin API until SIGTERM or Ctrl-C."""
    import asyncio

    import uvloop

    from aigovtool.clock import SystemClock
    from aigovtool.custodian import files
    from aigovtool.custodian.app import open_custodian
    from aigovtool.custodian.data import Address, DataFolder, ServerConfig
    from aigovtool.custodian.lend import lend
    from aigovtool.custodian.records import LoanTerms
    from aigovtool.custodian.server import Doors, Server, advertised
    from aigovtool.custodian.upload import Upload

    config = ServerConfig(
        listen=Address.parse(listen, option="--listen"),
        advertise=None
        if advertise is None
        else str(Address.parse(advertise, option="--advertise")),
        admin_listen=Address.parse(admin_listen, option="--admin-listen"),
        admin_certificate=admin_tls_certificate,
        admin_key=admin_tls_key,
    )
    _log_to_stderr(log_level)
    folder, clock = DataFolder(data), SystemClock()
    with (
        _courier(folder, clock, fetch=fetch_endorsements, pccs=pccs) as courier,
        open_custodian(
            folder,
            clock=clock,
            environ=os.environ,
            master_key_file=master_key_file,
            database=database,
            courier=courier,
        ) as app,
        closing(Doors.bind(config)) as doors,
    ):
        lent = None
        if upload is not None:
            with _sealing(upload) as progress:
                lent = lend(
                    app,
                    Upload(
                        path=upload, name=model_name, version=model_version, interface=interface
                    ),
                    credits=num_requests,
                    terms=LoanTerms(lease_duration_s=lease_duration, max_enclaves=max_enclaves),
                    policy=files.read_text(policy or folder.policy, mend=_POLICY_MEND),
                    address=advertised(config, doors),
                    progress=progress,
                )
        scheme = "http" if config.admin_certificate is None else "https"
        files.write_whole(folder.admin_url, f"{scheme}://{doors.admin_address}\n")
        server = Server(app=app, config=config, doors=doors)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(
                server.run(on_ready=lambda: _banner(app, config, doors, lent, as_json=as_json))
            )
    talk.print("custodian ended; its ledger is on the disk")


_POLICY_MEND = (
    "write it (aigovtool enclave measure, where the enclave will run, prints it), or name one with "
    "--policy"
)


@contextmanager
def _courier(
    folder: DataFolder, clock: Clock, *, fetch: bool, pccs: str | None
) -> Iterator[Courier | None]:
    """Lend who fetches endorsements, with its cache in the data folder; None unless it was said."""
    from aigovtool.endorsements.collector import Services
    from aigovtool.endorsements.courier import open_courier
    from aigovtool.errors import ConfigurationError

    if not fetch:
        if pccs is not None:
            raise ConfigurationError("--pccs says where to fetch", mend="add --fetch-endorsements")
        yield None
        return
    cache = folder.path / "endorsements"
    with open_courier(Services.by(pccs=pccs), cache=cache, clock=clock) as courier:
        yield courier


def _log_to_stderr(level: str) -> None:
    import logging

    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


@contextmanager
def _sealing(path: Path) -> Iterator[Callable[[int], Progress]]:
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


def _banner(
    app: App, config: ServerConfig, doors: Doors, lent: Lent | None, *, as_json: bool
) -> None:
    from aigovtool.crypto.signing import fingerprint, format_public_key
    from aigovtool.custodian.server import advertised

    folder, key = app.folder, app.identity.public_key
    if _accepts_simulated(app):
        warn_simulated()
    if as_json:
        print_json(
            {
                "listen": str(doors.enclave_address),
                "admin": folder.admin_url.read_text().strip(),
                "public_key": format_public_key(key),
                "loan": None if lent is None else lent.loan.loan,
                "model": None if lent is None else lent.model.digest,
            }
        )
        return
    talk.print(f"custodian {fingerprint(key)} serves", style="bold")
    talk.print(f"  enclaves   {doors.enclave_address}  (tickets say {advertised(config, doors)})")
    talk.print(
        f"  admin API  {folder.admin_url.read_text().strip()}  token in {folder.admin_token}"
    )
    if lent is not None:
        again = "lent before; its budget is as it was" if lent.again else "lent"
        talk.print(f"  model      {lent.model.name} {lent.model.digest.hex()} {again}")
        talk.print(f"  loan       {lent.loan.loan}, {lent.loan.account.left} credits left")
        talk.print(f"to the borrower:  aigovtool enclave serve --ticket {folder.ticket}")
        talk.print(
            f"to the consumer:  aigovtool client query --address HOST --manifest {folder.manifest} "
            f"--api-key-file {folder.consumer_key} --input FILE"
        )
    talk.print(f"to follow it:     aigovtool custodian watch --data {folder.path}")


def _accepts_simulated(app: App) -> bool:
    from aigovtool.attestation.evidence import Tee
    from aigovtool.attestation.kinds import tee_named
    from aigovtool.attestation.policy import parse_policy

    with app.ledger.read() as tx:
        policies = [tx.loan_policy(loan.loan) for loan in tx.loans()]
    return any(
        tee_named(alternative) is Tee.SIMULATED
        for text in policies
        for alternative in parse_policy(text.encode()).accept
    )


# --- models -------------------------------------------------------------------------------------


@custodian.group()
def model() -> None:
    """Sealed models."""


@model.command("seal")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@_data
@_master_key_file
@click.option("--interface", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model-name", help="Instead of the file's name.")
@click.option("--model-version", default="1", show_default=True)
@json_option
@exits
def model_seal(
    *,
    path: Path,
    data: Path,
    master_key_file: Path | None,
    interface: Path | None,
    model_name: str | None,
    model_version: str,
    as_json: bool,
) -> None:
    """Seal an ONNX model and register it, while no server runs on the folder."""
    from aigovtool.clock import SystemClock
    from aigovtool.custodian.api import views
    from aigovtool.custodian.app import open_custodian
    from aigovtool.custodian.data import DataFolder
    from aigovtool.custodian.upload import Upload

    wanted = Upload(path=path, name=model_name, version=model_version, interface=interface)
    with (
        open_custodian(
            DataFolder(data),
            clock=SystemClock(),
            environ=os.environ,
            master_key_file=master_key_file,
        ) as app,
        _sealing(path) as progress,
    ):
        view = views.model_view(app.uploads.upload(wanted, actor="admin", progress=progress))
    _show(view, f"sealed {view.name}: {view.model}", as_json=as_json)


@model.command("list")
@_remote
@json_option
@exits
def model_list(remote: Remote, as_json: bool) -> None:
    """List sealed models."""
    from aigovtool.cli import custodian_tables as tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/models", list[views.ModelView])
    _show(found, lambda: tables.models(found), as_json=as_json)


# --- loans --------------------------------------------------------------------------------------


@custodian.group()
def loan() -> None:
    """Loans: what is lent to whom, under which terms."""


@loan.command("create")
@click.option("--name", required=True, help="For people; one loan has it.")
@click.option("--model", "model_wanted", required=True, help="Name or digest of a sealed model.")
@click.option("--credits", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--policy", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--expires", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"]), help="In UTC.")
@click.option("--max-enclaves", type=click.IntRange(min=1))
@click.option("--max-lease-credits", type=click.IntRange(min=1))
@click.option("--lease-duration", type=click.FloatRange(min=0), help="Seconds.")
@click.option("--settle-grace", type=click.FloatRange(min=0), help="Seconds.")
@click.option("--wipe-after", type=click.FloatRange(min=1), help="Seconds.")
@click.option(
    "--reattest-interval",
    type=click.FloatRange(min=0),
    help="Seconds after which an enclave proves again what it is; 0 for never.",
)
@click.option("--ticket", "ticket_file", type=click.Path(path_type=Path), help="Write loan.toml.")
@click.option("--manifest", "manifest_file", type=click.Path(path_type=Path))
@_remote
@json_option
@exits
def loan_create(
    *,
    name: str,
    model_wanted: str,
    credits: int,
    policy: Path | None,
    expires: datetime | None,
    max_enclaves: int | None,
    max_lease_credits: int | None,
    lease_duration: float | None,
    settle_grace: float | None,
    wipe_after: float | None,
    reattest_interval: float | None,
    ticket_file: Path | None,
    manifest_file: Path | None,
    remote: Remote,
    as_json: bool,
) -> None:
    """Lend a sealed model; prints or writes the ticket, which is shown this once."""
    from aigovtool.custodian import files
    from aigovtool.custodian.api import views

    client = remote.client()
    wanted = {
        "name": name,
        "model": _model_digest(client, model_wanted),
        "credits": credits,
        "policy": None if policy is None else files.read_text(policy, mend=_POLICY_MEND),
        "expires": None if expires is None else expires.replace(tzinfo=UTC),
        "max_enclaves": max_enclaves,
        "max_lease_credits": max_lease_credits,
        "lease_duration_s": lease_duration,
        "settle_grace_s": settle_grace,
        "wipe_after_s": wipe_after,
        "reattest_interval_s": reattest_interval,
    }
    given = {field: value for field, value in wanted.items() if value is not None}
    made = client.post(f"{V1}/loans", given, views.MadeLoan)
    for path, text, mode in (
        (ticket_file, made.ticket, files.PRIVATE),
        (manifest_file, made.manifest, 0o644),
    ):
        if path is not None:
            files.write_whole(path, text, mode=mode)
    if as_json:
        print_json(made)
        return
    talk.print(f"lent as {made.loan.loan}")
    if ticket_file is None:
        click.echo(made.ticket, nl=False)


@loan.command("list")
@_remote
@json_option
@exits
def loan_list(remote: Remote, as_json: bool) -> None:
    """List loans with their accounts."""
    from aigovtool.cli import custodian_tables as tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/loans", list[views.LoanView])
    _show(found, lambda: tables.loans(found), as_json=as_json)


@loan.command("show")
@_loan_argument
@_remote
@json_option
@exits
def loan_show(loan: str | None, remote: Remote, as_json: bool) -> None:
    """Show one loan, and the worst case if it is stopped now."""
    from aigovtool.custodian.api import views

    client = remote.client()
    found = client.get(f"{V1}/loans/{_one_loan(client, loan)}", views.LoanView)
    _show(found, lambda: _loan_text(found), as_json=as_json)


@loan.command("ticket")
@_loan_argument
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Instead of stdout.")
@_remote
@json_option
@exits
def loan_ticket(loan: str | None, out: Path | None, remote: Remote, as_json: bool) -> None:
    """Replace a loan's ticket; the old one opens nothing more."""
    from aigovtool.custodian.api import views

    client = remote.client()
    made = client.post(f"{V1}/loans/{_one_loan(client, loan)}/ticket", {}, views.TicketView)
    _hand_out(made, made.ticket, out, as_json=as_json, mode=0o600)


@loan.command("manifest")
@_loan_argument
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Instead of stdout.")
@_remote
@json_option
@exits
def loan_manifest(loan: str | None, out: Path | None, remote: Remote, as_json: bool) -> None:
    """Print the manifest.toml for a loan's consumers."""
    from aigovtool.custodian.api import views

    client = remote.client()
    found = client.get(f"{V1}/loans/{_one_loan(client, loan)}/manifest", views.ManifestView)
    _hand_out(found, found.manifest, out, as_json=as_json, mode=0o644)


def _loan_command(name: str, about: str, *, has_reason: bool) -> None:
    """Make a command that moves a loan: under ``loan``, and the same one under ``custodian``."""

    def move(loan: str | None, remote: Remote, as_json: bool, reason: str = "") -> None:
        from aigovtool.custodian.api import views

        client = remote.client()
        path = f"{V1}/loans/{_one_loan(client, loan)}/{name}"
        moved = client.post(path, {"reason": reason}, views.LoanView)
        _show(moved, lambda: _loan_text(moved), as_json=as_json)

    move.__doc__ = about
    made = _loan_argument(_remote(json_option(exits(move))))
    made = _reason(made) if has_reason else made
    command = click.command(name)(made)
    for group in (loan, custodian):
        group.add_command(command)


_loan_command("stop", "Stop a loan: its enclaves wipe the model at once.", has_reason=True)
_loan_command("resume", "Let enclaves enrol again under a stopped loan.", has_reason=False)
_loan_command("close", "End a loan for good.", has_reason=True)


# --- consumers ----------------------------------------------------------------------------------


@custodian.group()
def consumer() -> None:
    """Consumers: who may query."""


@consumer.command("create")
@click.option("--name", required=True, help="For people; one consumer of the loan has it.")
@click.option("--budget", type=click.IntRange(min=0), help="Credits of its own within the loan's.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the key here.")
@_loan_option
@_remote
@json_option
@exits
def consumer_create(
    *,
    name: str,
    budget: int | None,
    out: Path | None,
    loan: str | None,
    remote: Remote,
    as_json: bool,
) -> None:
    """Make a consumer; prints or writes its API key, which is shown this once."""
    from aigovtool.custodian.api import views

    made = remote.client().post(
        f"{V1}/consumers", {"name": name, "budget": budget, "loan": loan}, views.MadeConsumer
    )
    if not as_json:
        talk.print(f"made {made.consumer.consumer}")
    _hand_out(made, made.api_key + "\n", out, as_json=as_json, mode=0o600)


@consumer.command("list")
@_loan_option
@_remote
@json_option
@exits
def consumer_list(loan: str | None, remote: Remote, as_json: bool) -> None:
    """List consumers, blocked ones too."""
    from aigovtool.cli import custodian_tables as tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/consumers", list[views.ConsumerView], loan=loan)
    _show(found, lambda: tables.consumers(found), as_json=as_json)


def _consumer_command(name: str, about: str, *, has_reason: bool) -> None:
    """Make a command on a consumer: under ``consumer``, and the same one under ``custodian``."""

    def change(consumer: str, remote: Remote, as_json: bool, reason: str = "") -> None:
        from aigovtool.custodian.api import views

        client = remote.client()
        path = f"{V1}/consumers/{_one_consumer(client, consumer)}/{name}"
        changed = client.post(path, {"reason": reason}, views.ConsumerView)
        _show(changed, f"{changed.name} ({changed.consumer}) is {name}ed", as_json=as_json)

    change.__doc__ = about
    made = click.argument("consumer")(_remote(json_option(exits(change))))
    made = _reason(made) if has_reason else made
    command = click.command(name)(made)
    for group in (consumer, custodian):
        group.add_command(command)


_consumer_command("block", "Refuse a consumer (id or name) from now on.", has_reason=True)
_consumer_command("unblock", "Serve a blocked consumer again.", has_reason=False)


# --- credits ------------------------------------------------------------------------------------


@custodian.command()
@click.argument("credits", type=click.IntRange(min=1))
@_loan_option
@click.option("--consumer", help="Id or name: add to its own budget instead of the loan's.")
@_reason
@_remote
@json_option
@exits
def grant(
    *,
    credits: int,
    loan: str | None,
    consumer: str | None,
    reason: str,
    remote: Remote,
    as_json: bool,
) -> None:
    """Add CREDITS to a loan, or to a consumer's own budget."""
    from aigovtool.custodian.api import views

    client = remote.client()
    whose = None if consumer is None else _one_consumer(client, consumer)
    granted = client.post(
        f"{V1}/grants",
        {"credits": credits, "loan": loan, "consumer": whose, "reason": reason},
        views.LoanView,
        idempotency_key=secrets.token_urlsafe(16),
    )
    _show(granted, lambda: _loan_text(granted), as_json=as_json)


@custodian.group()
def lease() -> None:
    """Leases: blocks of credits in the hands of enclaves."""


@lease.command("list")
@_loan_option
@_remote
@json_option
@exits
def lease_list(loan: str | None, remote: Remote, as_json: bool) -> None:
    """List leases, the newest first."""
    from aigovtool.cli import custodian_tables as tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/leases", list[views.LeaseView], loan=loan)
    _show(found, lambda: tables.leases(found), as_json=as_json)


@lease.command("refund")
@click.argument("lease")
@click.option("--reason", required=True, help="Recorded with the refund.")
@_remote
@json_option
@exits
def lease_refund(lease: str, reason: str, remote: Remote, as_json: bool) -> None:
    """Grant the credits of a forfeited lease again."""
    from aigovtool.custodian.api import views

    refunded = remote.client().post(
        f"{V1}/leases/{lease}/refund", {"reason": reason}, views.LoanView
    )
    _show(refunded, lambda: _loan_text(refunded), as_json=as_json)


@custodian.group()
def session() -> None:
    """Sessions: attested runs of enclaves."""


@session.command("list")
@_loan_option
@_remote
@json_option
@exits
def session_list(loan: str | None, remote: Remote, as_json: bool) -> None:
    """List sessions, the newest first."""
    from aigovtool.cli import custodian_tables as tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/sessions", list[views.SessionView], loan=loan)
    _show(found, lambda: tables.sessions(found), as_json=as_json)


@session.command("ear")
@click.argument("session")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Instead of stdout.")
@_remote
@json_option
@exits
def session_ear(session: str, out: Path | None, remote: Remote, as_json: bool) -> None:
    """Print what a session's evidence came to, as a signed token (EAR, JWT) to hand on.

    `aigovtool attestation ear verify` checks it, with the custodian's public key.
    """
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/sessions/{session}/ear", views.EarView)
    _hand_out(found, found.ear + "\n", out, as_json=as_json, mode=0o644)


# --- requests for more --------------------------------------------------------------------------


@custodian.group()
def request() -> None:
    """Requests for more, from consumers whose budget is used up."""


@request.command("list")
@_loan_option
@_remote
@json_option
@exits
def request_list(loan: str | None, remote: Remote, as_json: bool) -> None:
    """List requests, the newest first."""
    from aigovtool.cli import custodian_tables as tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/requests", list[views.RequestView], loan=loan)
    _show(found, lambda: tables.requests(found), as_json=as_json)


@request.command("approve")
@click.argument("request")
@click.option("--credits", type=click.IntRange(min=1), help="Instead of what was asked for.")
@_reason
@_remote
@json_option
@exits
def request_approve(
    request: str, credits: int | None, reason: str, remote: Remote, as_json: bool
) -> None:
    """Grant what a request asks for."""
    from aigovtool.custodian.api import views

    decided = remote.client().post(
        f"{V1}/requests/{request}/approve",
        {"credits": credits, "reason": reason},
        views.RequestView,
    )
    _show(decided, f"approved: {decided.granted} credits", as_json=as_json)


@request.command("deny")
@click.argument("request")
@click.option("--reason", default="", help="Told to the consumer.")
@_remote
@json_option
@exits
def request_deny(request: str, reason: str, remote: Remote, as_json: bool) -> None:
    """Refuse a request."""
    from aigovtool.custodian.api import views

    decided = remote.client().post(
        f"{V1}/requests/{request}/deny", {"reason": reason}, views.RequestView
    )
    _show(decided, "denied", as_json=as_json)


# --- looking ------------------------------------------------------------------------------------


@custodian.command()
@_loan_option
@click.option("--after", type=click.IntRange(min=0), help="Those after this number.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=500, show_default=True)
@_remote
@json_option
@exits
def events(loan: str | None, after: int | None, limit: int, remote: Remote, as_json: bool) -> None:
    """List decisions, the newest last."""
    from aigovtool.cli import custodian_tables as tables
    from aigovtool.custodian.api import views

    found = remote.client().get(
        f"{V1}/events", list[views.EventView], loan=loan, after=after, limit=limit
    )
    _show(found, lambda: tables.events(found), as_json=as_json)


@custodian.command()
@_loan_option
@_remote
@json_option
@exits
def consumption(loan: str | None, remote: Remote, as_json: bool) -> None:
    """Show how much was used and by whom."""
    from aigovtool.cli import custodian_tables as tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/consumption", list[views.ConsumptionView], loan=loan)
    _show(found, lambda: tables.consumption(found), as_json=as_json)


@custodian.command()
@_loan_option
@_remote
@json_option
@exits
def exposure(loan: str | None, remote: Remote, as_json: bool) -> None:
    """Show the worst case: what can still be used if a loan is stopped now."""
    from aigovtool.cli import custodian_tables as tables
    from aigovtool.custodian.api import views

    found = remote.client().get(f"{V1}/consumption", list[views.ConsumptionView], loan=loan)
    if as_json:
        print_json([{"loan": one.loan, "exposure": one.exposure} for one in found])
        return
    for one in found:
        result.print(f"{one.name}: {tables.worst_case(one.exposure)}")


@custodian.command()
@_remote
@json_option
@exits
def watch(remote: Remote, as_json: bool) -> None:
    """Follow consumption live until Ctrl-C; with --json one snapshot a line."""
    from aigovtool.custodian.api import views

    snapshots = remote.client().follow(f"{V1}/watch", views.Snapshot)
    if as_json:
        import msgspec

        for now in snapshots:
            click.echo(msgspec.json.encode(now).decode())
        return
    from rich.live import Live

    from aigovtool.cli import custodian_tables as tables

    with Live(console=result, auto_refresh=False, screen=result.is_terminal) as live:
        for now in snapshots:
            live.update(tables.snapshot(now), refresh=True)


# --- helpers ------------------------------------------------------------------------------------


def _show(value: Any, told: str | Callable[[], RenderableType], *, as_json: bool) -> None:
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


def _hand_out(value: Any, text: str, out: Path | None, *, as_json: bool, mode: int) -> None:
    """Write *text* to a file, or print it."""
    from aigovtool.custodian import files

    if out is not None:
        files.write_whole(out, text, mode=mode)
        talk.print(f"wrote {out}")
    if as_json:
        print_json(value)
    elif out is None:
        click.echo(text, nl=False)


def _loan_text(loan: Any) -> str:
    from aigovtool.cli import custodian_tables as tables

    account = loan.account
    return (
        f"{loan.name} ({loan.loan}) is {loan.state}: {account.left} of {account.granted} credits "
        f"left, {account.leased} leased, {account.spent} spent, {account.forfeited} forfeited\n"
        f"{tables.worst_case(loan.exposure)}"
    )


def _one_loan(client: AdminClient, wanted: str | None) -> str:
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


def _one_consumer(client: AdminClient, wanted: str) -> str:
    """Return the id of the consumer of this id or name."""
    from aigovtool.custodian.api import views

    found = client.get(f"{V1}/consumers", list[views.ConsumerView])
    return _only(
        [one.consumer for one in found if wanted in (one.consumer, one.name)],
        f"consumer {wanted!r}",
        "aigovtool custodian consumer list",
    )


def _model_digest(client: AdminClient, wanted: str) -> str:
    from aigovtool.custodian.api import views

    found = client.get(f"{V1}/models", list[views.ModelView])
    return _only(
        [one.model for one in found if wanted in (one.model, one.name)],
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
