"""``aigovtool client``: verify an enclave, query it, see what is left, let programs query it."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aigovtool.cli.client_chat import chat
from aigovtool.cli.client_receipts import receipts, receipts_option
from aigovtool.cli.client_shared import (
    address_option,
    api_key_option,
    key_file_type,
    left,
    manifest_option,
    read_key,
    waiting_said,
)
from aigovtool.cli.output import exits, json_option, print_json, result, talk, warn_simulated

if TYPE_CHECKING:
    from aigovtool.channel.address import Address
    from aigovtool.channel.connect import AttestedChannel
    from aigovtool.channel.judge import VerifiedEnclave
    from aigovtool.client.session import AsyncClient, Result
    from aigovtool.wire.budget import BudgetView
    from aigovtool.wire.control import MoreDecided
    from aigovtool.wire.tensors import Array

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_optional_api_key_file = click.option(
    "--api-key-file",
    envvar="AIGOVTOOL_API_KEY_FILE",
    show_envvar=True,
    type=key_file_type,
    help="File with your consumer key. Without it, less is shown.",
)


@click.group()
def client() -> None:
    """Verify an enclave, query it, see what is left.

    Nothing of yours is sent before the enclave has been verified.

    Exit codes: 0 done, 1 refused, 2 malformed or misused, 3 unavailable, 4 conflict.
    """


client.add_command(receipts)
client.add_command(chat)


@client.command()
@address_option
@manifest_option
@api_key_option
@click.option(
    "--input",
    "inputs",
    required=True,
    multiple=True,
    metavar="[NAME=]FILE",
    envvar="AIGOVTOOL_INPUT",
    show_envvar=True,
    help="A picture or a text, as the model takes it, or tensors: .npy, .npz, .json. "
    "With NAME= the file is for that input only, and the option is given for each.",
)
@click.option(
    "--reason",
    envvar="AIGOVTOOL_REASON",
    show_envvar=True,
    help="Why you need more, for the custodian's operator, when none is left.",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    envvar="AIGOVTOOL_WAIT",
    show_envvar=True,
    help="With no queries left: wait for more (the default), or be refused.",
)
@receipts_option
@json_option
@exits
def query(
    *,
    address: str,
    manifest: Path,
    api_key_file: Path,
    folder: Path | None,
    inputs: tuple[str, ...],
    reason: str | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Ask the model once, and print its answer and how many queries are left."""
    from aigovtool.client.answer import read_answer
    from aigovtool.wire.receipt import to_header

    decisions: list[MoreDecided] = []

    def decided(decision: MoreDecided) -> None:
        decisions.append(decision)
        why = f": {decision.reason}" if decision.reason else ""
        talk.print(f"the custodian granted {decision.credits} credits{why}", markup=False)

    async def ask() -> tuple[VerifiedEnclave, Result]:
        async with await _connect(address, manifest, api_key_file, folder) as session:
            arrays = _read(inputs, session)
            with waiting_said("no queries left") as on_wait:
                answered = await session.infer(
                    arrays,
                    wait_s=math.inf if wait else 0.0,
                    reason=reason,
                    on_wait=on_wait,
                    on_decided=decided,
                )
            return session.attestation, answered

    enclave, answered = _run(ask())
    model = enclave.model.manifest
    answer = read_answer(answered.outputs, model.interface)
    if as_json:
        print_json(
            {
                "answer": answer.to_dict(),
                "remaining": answered.remaining,
                "cost": answered.receipt.receipt.cost,
                "simulated": enclave.simulated,
                "granted_while_waiting": [
                    {"credits": decision.credits, "reason": decision.reason}
                    for decision in decisions
                ],
                "model": {"name": model.name, "version": model.version},
                "receipt": to_header(answered.receipt.signed),
            }
        )
        return
    result.print(answer.to_text(), markup=False)
    result.print(left(answered.remaining), style="dim")


@client.command()
@address_option
@manifest_option
@_optional_api_key_file
@json_option
@exits
def verify(*, address: str, manifest: Path, api_key_file: Path | None, as_json: bool) -> None:
    """Look once: what is known of the enclave, before anything is sent to it."""
    from aigovtool.attestation.simulated import WARNING as SIMULATED_WARNING
    from aigovtool.cli.verified import as_json_value, as_lines

    async def look() -> tuple[VerifiedEnclave, BudgetView | None]:
        if api_key_file is not None:
            async with await _connect(address, manifest, api_key_file) as session:
                return session.attestation, await session.budget()
        channel = await _open(address, manifest)
        await channel.aclose()
        return channel.enclave, None

    enclave, budget = _run(look())
    if as_json:
        print_json(as_json_value(enclave, budget))
        return
    for line in as_lines(enclave, budget):
        result.print(line)
    for warning in enclave.attestation.warnings:
        if warning != SIMULATED_WARNING:  # said already, louder
            talk.print(f"warning: {warning}", style="yellow", markup=False)


@client.command()
@address_option
@manifest_option
@api_key_option
@json_option
@exits
def budget(*, address: str, manifest: Path, api_key_file: Path, as_json: bool) -> None:
    """See what is left. It costs nothing."""

    async def ask() -> BudgetView:
        async with await _connect(address, manifest, api_key_file) as session:
            return await session.budget()

    view = _run(ask())
    if as_json:
        print_json(view)
        return
    result.print(
        left(view.remaining, view.token_price) + (", of your own budget" if view.own_budget else "")
    )
    result.print(f"loan {view.loan}: {view.state}", markup=False)
    result.print(f"model {view.model} {view.model_version}", markup=False)
    result.print(f"live lease: {view.lease_remaining} credits for {view.lease_valid_s:.1f} s")
    if view.waiting:
        result.print(f"{view.waiting} queries wait for credits")


@client.command()
@address_option
@manifest_option
@click.option(
    "--api-key-file",
    envvar="AIGOVTOOL_API_KEY_FILE",
    show_envvar=True,
    type=key_file_type,
    help="File with the consumer key that is added to requests without an Authorization.",
)
@click.option(
    "--listen",
    default="127.0.0.1:8080",
    show_default=True,
    envvar="AIGOVTOOL_PROXY_LISTEN",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Where programs on this machine find the proxy; port 0 takes any.",
)
@click.option(
    "--grpc-listen",
    envvar="AIGOVTOOL_PROXY_GRPC_LISTEN",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Where gRPC clients find it too, such as 127.0.0.1:8001. Needs the extra `grpc`.",
)
@click.option(
    "--dangerously-listen-beyond-loopback",
    is_flag=True,
    envvar="AIGOVTOOL_PROXY_DANGEROUSLY_LISTEN_BEYOND_LOOPBACK",
    show_envvar=True,
    help="Whoever reaches it can use your key, and sends inputs to it in the clear.",
)
@receipts_option
@exits
def proxy(
    *,
    address: str,
    manifest: Path,
    api_key_file: Path | None,
    listen: str,
    grpc_listen: str | None,
    dangerously_listen_beyond_loopback: bool,
    folder: Path | None,
) -> None:
    """Let curl, tritonclient, openai and others use the enclave, which the proxy verifies."""
    from aigovtool.channel.address import parse_address
    from aigovtool.channel.extras import prepare_grpc
    from aigovtool.client.proxy import DEFAULT_PORT, GRPC_PORT, serve_proxy
    from aigovtool.client.receipt_store import ReceiptStore, default_folder
    from aigovtool.client.session import read_manifest
    from aigovtool.heap import keep_freed_memory

    where = parse_address(listen, default_port=DEFAULT_PORT)
    grpc_where = None if grpc_listen is None else parse_address(grpc_listen, default_port=GRPC_PORT)
    if grpc_where is not None:
        prepare_grpc()
    api_key = None if api_key_file is None else read_key(api_key_file)

    store = ReceiptStore(folder or default_folder(), manifest=read_manifest(manifest))

    def ready(at: Address, grpc_at: Address | None) -> None:
        more = "" if grpc_at is None else f" and for gRPC on {grpc_at}"
        talk.print(f"verified; listening on http://{at}{more}, Ctrl-C ends it", markup=False)

    async def serve() -> None:
        channel = await _open(address, manifest)
        try:
            await serve_proxy(
                channel,
                api_key=api_key,
                store=store,
                listen=where,
                grpc_listen=grpc_where,
                dangerously_beyond_loopback=dangerously_listen_beyond_loopback,
                on_ready=ready,
            )
        finally:
            await channel.aclose()
            store.close()

    keep_freed_memory()
    _run(serve())


def _run(work: Coroutine[Any, Any, T]) -> T:
    """
    Run *work* on an event loop; Ctrl-C cancels it, whenever it comes.

    asyncio's own loop sleeps through a Ctrl-C that comes between its last step in Python and the
    system call in which it waits, until something else wakes it; uvloop's is woken by the signal.
    """
    import uvloop

    return uvloop.run(work)


async def _connect(
    address: str, manifest: Path, api_key_file: Path, receipts: Path | None = None
) -> AsyncClient:
    """Verify and return a client, saying it when the TEE is simulated."""
    from aigovtool.client.session import connect_async

    session = await connect_async(
        address, manifest=manifest, api_key=read_key(api_key_file), receipts=receipts
    )
    if session.attestation.simulated:
        warn_simulated()
    return session


async def _open(address: str, manifest: Path) -> AttestedChannel:
    """Verify and return a channel, likewise, without a key."""
    from aigovtool.channel.address import parse_address
    from aigovtool.channel.connect import open_channel
    from aigovtool.client.session import read_manifest
    from aigovtool.clock import SystemClock

    channel = await open_channel(
        parse_address(address), read_manifest(manifest), clock=SystemClock()
    )
    if channel.enclave.simulated:
        warn_simulated()
    return channel


def _read(inputs: tuple[str, ...], session: AsyncClient) -> dict[str, Array]:
    """Turn the files into the model's inputs, as the custodian's signed description says."""
    import msgspec

    from aigovtool.client.inputs import read_inputs
    from aigovtool.errors import ConfigurationError

    model, interface = session.model, session.attestation.model.manifest.interface
    if not model.inputs:
        raise ConfigurationError(
            "this is a language model, which takes messages and not tensors",
            mend="ask it with `aigovtool client chat`, or with any OpenAI client by way of "
            "`aigovtool client proxy`",
        )
    if len(inputs) == 1 and (Path(inputs[0]).exists() or "=" not in inputs[0]):
        return read_inputs(Path(inputs[0]), model=model, interface=interface)
    arrays: dict[str, Array] = {}
    for given in inputs:
        name, equals, file = given.partition("=")
        tensors = tuple(one for one in model.inputs if one.name == name)
        if not equals or not tensors or name in arrays:
            raise ConfigurationError(
                "an --input does not say which input it is for, or one that there is not",
                expected="each once: " + ", ".join(f"{one.name}=FILE" for one in model.inputs),
                came=given,
            )
        arrays |= read_inputs(
            Path(file),
            model=msgspec.structs.replace(model, inputs=tensors),
            interface=None
            if interface is None
            else msgspec.structs.replace(
                interface, inputs=tuple(one for one in interface.inputs if one.name == name)
            ),
        )
    return arrays
