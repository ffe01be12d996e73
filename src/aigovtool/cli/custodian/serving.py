"""``init`` and ``serve``: make a custodian, and run it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aigovtool.cli.custodian.group import custodian
from aigovtool.cli.custodian.options import ModelTerms, with_model_terms
from aigovtool.cli.custodian.remote import (
    POLICY_MEND,
    data_option,
    database_option,
    mark_option,
    master_key_option,
    sealing_bar,
)
from aigovtool.cli.output import exits, json_option, print_json, talk, warn_simulated
from aigovtool.telemetry.logs import FORMATS, configure
from aigovtool.telemetry.traces import tracing

if TYPE_CHECKING:
    from aigovtool.clock import Clock
    from aigovtool.custodian.app import App
    from aigovtool.custodian.data import DataFolder, ServerConfig
    from aigovtool.custodian.lend import Lent
    from aigovtool.custodian.server import Doors
    from aigovtool.endorsements.courier import Courier


@custodian.command()
@data_option
@click.option(
    "--simulated",
    is_flag=True,
    help="Let new loans accept this machine's simulated TEE and the code installed here.",
)
@database_option
@json_option
@exits
def init(data: Path, simulated: bool, database: str | None, as_json: bool) -> None:
    """Make the custodian's keys, database and admin token, once."""
    from aigovtool.clock import SystemClock
    from aigovtool.crypto.signing import fingerprint, format_public_key
    from aigovtool.custodian.app import initialise
    from aigovtool.custodian.data import DataFolder

    folder, clock = DataFolder(data), SystemClock()
    accept = (_simulated_alternative(clock.now()),) if simulated else ()
    key = initialise(folder, clock=clock, environ=os.environ, accept=accept, database=database)
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
    talk.print(f"next: aigovtool custodian serve --data {data} --upload MODEL")


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
@data_option
@master_key_option
@click.option("--listen", default="127.0.0.1:7000", show_default=True, help="For enclaves (TLS).")
@click.option(
    "--advertise",
    metavar="HOST:PORT",
    help="What tickets say, instead of --listen; several replicas with commas.",
)
@click.option(
    "--admin-listen", default="127.0.0.1:6000", show_default=True, help="For the admin API."
)
@click.option(
    "--admin-tls-certificate",
    type=click.Path(path_type=Path, dir_okay=False),
    help="PEM; needed when the admin API does not listen on loopback.",
)
@click.option("--admin-tls-key", type=click.Path(path_type=Path, dir_okay=False), help="Its key.")
@mark_option
@database_option
@click.option(
    "--upload",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Seal this ONNX or GGUF model and lend it, with one consumer.",
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
@with_model_terms(change=False)
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
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning"]),
    help="How much is said on stderr; never a payload, key, token or reason.",
)
@click.option(
    "--log-format",
    default=FORMATS[0],
    show_default=True,
    type=click.Choice(FORMATS),
    help="Lines for people, or one JSON object a line.",
)
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
    mark: Path | None,
    upload: Path | None,
    interface: Path | None,
    model_name: str | None,
    model_version: str,
    num_requests: int,
    lease_duration: float,
    max_enclaves: int,
    model_terms: ModelTerms,
    policy: Path | None,
    fetch_endorsements: bool,
    pccs: str | None,
    log_level: str,
    log_format: str,
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
    from aigovtool.wire.enrolment import TokenPrice
    from aigovtool.wire.extraction import ExtractionLimits

    config = ServerConfig(
        listen=Address.parse(listen, option="--listen"),
        advertise=None
        if advertise is None
        else ",".join(
            str(Address.parse(each, option="--advertise")) for each in advertise.split(",")
        ),
        admin_listen=Address.parse(admin_listen, option="--admin-listen"),
        admin_certificate=admin_tls_certificate,
        admin_key=admin_tls_key,
    )
    configure(level=log_level, form=log_format)
    folder, clock = DataFolder(data), SystemClock()
    with (
        tracing("aigovtool-custodian", os.environ),
        _courier(folder, clock, fetch=fetch_endorsements, pccs=pccs) as courier,
        open_custodian(
            folder,
            clock=clock,
            environ=os.environ,
            master_key_file=master_key_file,
            database=database,
            mark=mark,
            courier=courier,
        ) as app,
        closing(Doors.bind(config)) as doors,
    ):
        lent = None
        if upload is not None:
            with sealing_bar(upload) as progress:
                lent = lend(
                    app,
                    Upload(
                        path=upload, name=model_name, version=model_version, interface=interface
                    ),
                    credits=num_requests,
                    terms=LoanTerms(
                        lease_duration_s=lease_duration,
                        max_enclaves=max_enclaves,
                        token_price=TokenPrice(**model_terms.price),
                        shared_prefixes=bool(model_terms.shared_prefixes),
                        extraction=ExtractionLimits(**model_terms.extraction),
                    ),
                    policy=files.read_text(policy or folder.policy, mend=POLICY_MEND),
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
        ask = "query" if lent.model.context is None else "chat"
        talk.print(
            f"to the consumer:  aigovtool client {ask} --address HOST --manifest {folder.manifest} "
            f"--api-key-file {folder.consumer_key}" + (" --input FILE" if ask == "query" else "")
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
