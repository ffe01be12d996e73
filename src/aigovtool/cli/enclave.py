"""``aigovtool enclave``: host a lent model inside a trusted execution environment."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aigovtool.attestation.evidence import Tee
from aigovtool.cli.output import exits, json_option, print_json, talk, warn_simulated
from aigovtool.enclave.attester.base import ATTESTED
from aigovtool.enclave.config import (
    DEFAULT_COMPUTE_THREADS,
    DEFAULT_LISTEN,
    DEFAULT_PACKED_BYTES,
    EnclaveConfig,
    Limits,
)
from aigovtool.enclave.runtime.base import DEFAULT_CONTEXT, DEFAULT_SLOTS
from aigovtool.telemetry.logs import FORMATS, configure
from aigovtool.telemetry.traces import tracing

if TYPE_CHECKING:
    from aigovtool.clock import Clock
    from aigovtool.enclave.attester.base import Attester
    from aigovtool.wire.ticket import Ticket

_PREFIX = "AIGOVTOOL_ENCLAVE_"
_AUTO = "auto"


def _option(name: str, *parameter: str, **settings: Any) -> Callable[[Any], Any]:
    flag = name.partition("/")[0].removeprefix("--")
    variable = _PREFIX + flag.replace("-", "_").upper()
    return click.option(name, *parameter, envvar=variable, show_envvar=True, **settings)


def _limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* a flag for each field of `Limits`, with its meaning and default."""
    text = inspect.cleandoc(Limits.__doc__ or "")
    meanings = dict(re.findall(r"^    (\w+): (.+)$", text, re.MULTILINE))
    defaults = Limits()
    for name in reversed(Limits.__struct_fields__):
        default = getattr(defaults, name)
        command = _option(
            "--" + name.replace("_", "-"),
            type=type(default),
            default=default,
            show_default=True,
            help=f"Limit: {meanings[name]}",
        )(command)
    return command


_tee_option = _option(
    "--tee",
    type=click.Choice([_AUTO, *sorted(tee.value for tee in ATTESTED)]),
    default=_AUTO,
    show_default=True,
    help="The TEE to prove; auto takes what this machine has.",
)


@click.group()
def enclave() -> None:
    """Host a lent model inside a trusted execution environment."""


@enclave.command()
@_option(
    "--ticket",
    "tickets",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    multiple=True,
    help="The loan ticket that the custodian gave you; once for each loan that is served.",
)
@_tee_option
@_option(
    "--listen",
    default=DEFAULT_LISTEN,
    show_default=True,
    metavar="HOST:PORT",
    help="Where consumers connect.",
)
@_option(
    "--grpc-listen",
    metavar="HOST:PORT",
    help="Where gRPC clients connect too, such as 0.0.0.0:9925. Needs the extra `grpc`.",
)
@_option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps the sealed model (ciphertext only) for the next start.",
)
@_option(
    "--compute-threads",
    type=click.IntRange(1, 1024),
    help="Queries computed at once; as many as there are processors by default.",
)
@_option(
    "--intra-op-threads",
    type=click.IntRange(0, 1024),
    default=0,
    show_default=True,
    help="Threads that one computation may use; 0 chooses by the model and the processors.",
)
@_option(
    "--packed-bytes",
    type=click.IntRange(min=0),
    default=DEFAULT_PACKED_BYTES,
    show_default=True,
    help="Up to this size a model's weights are kept twice: faster for many rows, or long inputs.",
)
@_option(
    "--slots",
    type=click.IntRange(1, 256),
    default=DEFAULT_SLOTS,
    show_default=True,
    help="Queries that a language model computes at one time.",
)
@_option(
    "--context",
    type=click.IntRange(64, 1 << 20),
    default=DEFAULT_CONTEXT,
    show_default=True,
    help="Tokens that input and output of one query to a language model may have together.",
)
@_option(
    "--max-model-bytes",
    type=click.IntRange(min=1),
    help="Memory that all models may take together; four fifths of the machine's by default.",
)
@_option(
    "--fetch-endorsements/--no-fetch-endorsements",
    default=True,
    show_default=True,
    help="Ask the TEE's vendor for collateral, certificates and lists, to send with the evidence.",
)
@_option("--pccs", metavar="URL", help="A PCCS to ask instead of Intel.")
@_option(
    "--endorsements-cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps what vendors answer for the next start.",
)
@_option(
    "--metrics-listen",
    metavar="HOST:PORT",
    help="Serve metrics to Prometheus there: plain on loopback, by TLS and token elsewhere.",
)
@_option(
    "--metrics-token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Token that Prometheus bears for metrics.",
)
@_option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="How much is said on stderr; never anything of a query.",
)
@_option(
    "--log-format",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    help="Lines for people, or one JSON object a line.",
)
@_limit_options
@exits
def serve(
    *,
    tickets: tuple[Path, ...],
    tee: str,
    listen: str,
    grpc_listen: str | None,
    cache: Path | None,
    compute_threads: int | None,
    intra_op_threads: int,
    packed_bytes: int,
    slots: int,
    context: int,
    max_model_bytes: int | None,
    fetch_endorsements: bool,
    pccs: str | None,
    endorsements_cache: Path | None,
    metrics_listen: str | None,
    metrics_token_file: Path | None,
    log_level: str,
    log_format: str,
    **limits: int | float,
) -> None:
    """
    Serve lent models: enrol with their custodians, load them, answer their consumers.

    Each loan has a session, budget and consumers of its own, and ends by itself; a consumer's key
    says whose query it is.

    The server listens at once and says on /v2/health/ready when it serves. SIGTERM lets queries in
    flight end, settles the last leases with the custodian, wipes key and model, and exits with 0.
    """
    from aigovtool.clock import SystemClock
    from aigovtool.enclave.attester.detect import choose
    from aigovtool.enclave.hardening import harden, silence_libraries
    from aigovtool.wire.ticket import read_ticket

    loans = [read_ticket(ticket) for ticket in tickets]
    silence_libraries()
    configure(level=log_level, form=log_format)
    for missing in harden():
        talk.print(f"not hardened: {missing}")
    clock = SystemClock()
    choice = choose(None if tee == _AUTO else Tee(tee), clock=clock)
    talk.print(f"TEE: {choice.attester.describe()} ({choice.why})", markup=False)
    talk.print(f"found: {', '.join(choice.found) or 'no TEE'}", markup=False)
    if choice.attester.tee is Tee.SIMULATED:
        warn_simulated()
    config = EnclaveConfig(
        listen=listen,
        grpc_listen=grpc_listen,
        cache=cache,
        compute_threads=compute_threads or DEFAULT_COMPUTE_THREADS,
        intra_op_threads=intra_op_threads,
        packed_bytes=packed_bytes,
        slots=slots,
        context=context,
        max_model_bytes=max_model_bytes,
        fetch_endorsements=fetch_endorsements,
        pccs=pccs,
        endorsements_cache=endorsements_cache,
        metrics_listen=metrics_listen,
        metrics_token=metrics_token_file,
        limits=Limits(**limits),  # type: ignore[arg-type] # click made each of its field's type
    )
    with tracing("aigovtool-enclave", os.environ):
        _run(config, loans, choice.attester, clock)


def _run(
    config: EnclaveConfig, tickets: Sequence[Ticket], attester: Attester, clock: Clock
) -> None:
    import uvloop

    from aigovtool.channel.signals import ended_by_signals
    from aigovtool.enclave.app import Ready
    from aigovtool.enclave.app import serve as serve_enclave
    from aigovtool.enclave.progress import BarProgress, LoggedProgress
    from aigovtool.heap import keep_freed_memory

    def listening(address: str) -> None:
        custodians = ", ".join(dict.fromkeys(ticket.custodian for ticket in tickets))
        talk.print(f"listening on {address}; enrolling with {custodians}")

    def ready(now: Ready) -> None:
        talk.print(
            f"ready after {now.after_s:.1f} s: {now.model} {now.version} on {now.address}, "
            f"{now.left} credits left"
        )
        if attester.tee is Tee.SIMULATED:
            warn_simulated()

    async def main() -> None:
        stop = asyncio.Event()
        with ended_by_signals(stop.set):
            await serve_enclave(
                config,
                tickets,
                attester,
                clock=clock,
                # a terminal has one bar at a time, and several models may come at once
                progress=BarProgress(talk)
                if talk.is_terminal and len(tickets) == 1
                else LoggedProgress(),
                stop=stop,
                on_listening=listening,
                on_ready=ready,
                on_grpc=lambda at: talk.print(f"listening for gRPC on {at}", markup=False),
            )
        talk.print("settled and wiped")

    keep_freed_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@enclave.command()
@_tee_option
@json_option
@exits
def detect(*, tee: str, as_json: bool) -> None:
    """Say which TEEs this machine has, and which one `serve` would prove, and why."""
    from aigovtool.clock import SystemClock
    from aigovtool.enclave.attester.detect import choose

    choice = choose(None if tee == _AUTO else Tee(tee), clock=SystemClock())
    chosen = choice.attester.tee
    if chosen is Tee.SIMULATED:
        warn_simulated()
    if as_json:
        print_json({"tee": chosen, "why": choice.why, "found": choice.found})
        return
    click.echo(f"{chosen}: {choice.attester.describe()}\n  why: {choice.why}")
    for door in choice.found or ("no TEE",):
        click.echo(f"  found: {door}")


@enclave.command()
@_tee_option
@json_option
@exits
def measure(*, tee: str, as_json: bool) -> None:
    """
    Print the reference values of this very code and machine, to be put into a manifest.

    For the simulated platform that is an [[accept]] table, ready to use. For hardware it is what
    its evidence says, from which whoever writes the policy takes what to demand.
    """
    from aigovtool.attestation.binding import REPORT_DATA_BYTES
    from aigovtool.attestation.policy import Policy, write_policy
    from aigovtool.attestation.verify import verify
    from aigovtool.cli.claims_text import claims_as_rows, jsonable
    from aigovtool.clock import SystemClock
    from aigovtool.enclave.attester.detect import choose
    from aigovtool.simulation.measure import measure as measure_code
    from aigovtool.simulation.platform import SimulatedPlatform, platform_directory
    from aigovtool.simulation.policy import simulated_policy

    clock = SystemClock()
    attester = choose(None if tee == _AUTO else Tee(tee), clock=clock).attester
    if attester.tee is Tee.SIMULATED:
        warn_simulated()
        platform = SimulatedPlatform.load(platform_directory())
        accept = simulated_policy(platform.root_sha256, measure_code())
        if as_json:
            print_json({"tee": attester.tee, "accept": accept})
        else:
            click.echo(write_policy(Policy(accept=(accept,), custodian=None)))
        return
    bound = secrets.token_bytes(REPORT_DATA_BYTES)
    claims = verify(attester.evidence(bound), attester.endorsements(), now=clock.now())
    if as_json:
        print_json({"tee": attester.tee, "claims": jsonable(claims)})
        return
    for name, value in claims_as_rows(claims):
        click.echo(f"{name} = {value}")


@enclave.command()
@click.option(
    "--cache",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The cache folder of an enclave, in which it kept what the custodian signed.",
)
@click.option(
    "--ticket",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The loan ticket: whose signature must hold.",
)
@click.option(
    "--said", type=click.IntRange(min=0), help="Credits that the custodian says it has granted."
)
@json_option
@exits
def grants(*, cache: Path, ticket: Path, said: int | None, as_json: bool) -> None:
    """
    Prove what the custodian granted, from its own signatures, without it.

    With --said, that it says less than it signed: grants withheld. Exit code 1 then, and for
    notices that contradict each other; the kept files are the proof.
    """
    import sys

    from aigovtool.cli.output import REFUSED, result
    from aigovtool.crypto.signing import parse_public_key
    from aigovtool.enclave.grants import check_kept
    from aigovtool.wire.ticket import read_ticket

    key = parse_public_key(read_ticket(ticket).custodian_key)
    accounts = check_kept(cache, key, said=said)
    faults = [fault for account in accounts for fault in account.faults]
    if as_json:
        print_json({"proven": not faults, "loans": accounts})
    else:
        for account in accounts:
            result.print(
                f"{account.loan}: {account.granted} credits granted, "
                f"by {account.notices} notices that the custodian signed",
                markup=False,
            )
        for fault in faults:
            result.print(f"fault {fault.code}: {str(fault)!a}", style="bold red")
    if faults:
        sys.exit(REFUSED)
