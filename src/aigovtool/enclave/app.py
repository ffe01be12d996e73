"""
The enclave server as a whole: the only place where its parts are built and put together.

Rule 1: it listens from the start, so that its state can be asked while it enrols.
Rule 2: told to end, it admits nothing more, lets what is in flight end, settles, proves, wipes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from aigovtool.channel.extras import prepare_grpc
from aigovtool.clock import Clock
from aigovtool.crypto.tls import server_context
from aigovtool.enclave.api.app import Api
from aigovtool.enclave.api.direct import direct_protocol
from aigovtool.enclave.api.scrape import Scrape
from aigovtool.enclave.api.server import EnclaveServer, listen_on
from aigovtool.enclave.api.turn import Turns
from aigovtool.enclave.attester.base import Attester
from aigovtool.enclave.attester.endorsed import EndorsedAttester
from aigovtool.enclave.cache import BodyCache
from aigovtool.enclave.config import EnclaveConfig, Limits, is_loopback, read_address, read_token
from aigovtool.enclave.custodian_client import CustodianClient
from aigovtool.enclave.enclave import Enclave
from aigovtool.enclave.flights import Flights
from aigovtool.enclave.keepsake import Keepsake
from aigovtool.enclave.keys import ProcessKeys, make_keys
from aigovtool.enclave.loader import Loader, Progress
from aigovtool.enclave.metrics import Metrics, Tally
from aigovtool.enclave.session import Session
from aigovtool.enclave.supervisor import Supervisor
from aigovtool.endorsements.collector import Services
from aigovtool.endorsements.courier import SELF_SUFFICIENT, open_courier
from aigovtool.errors import ConfigurationError
from aigovtool.wire.ticket import Ticket

SCRAPERS = Limits(max_connections=16)


@dataclass(frozen=True, slots=True)
class Ready:
    """
    The enclave serves.

    Args:
        address: ``host:port`` on which it listens.
        left: credits of the loan that are not leased to anyone.
        after_s: since `serve` was called, or since the enclave last ceased to serve.
    """

    address: str
    model: str
    version: str
    left: int
    after_s: float


async def serve(
    config: EnclaveConfig,
    ticket: Ticket,
    attester: Attester,
    *,
    clock: Clock,
    progress: Progress,
    stop: asyncio.Event,
    on_listening: Callable[[str], None],
    on_ready: Callable[[Ready], None],
    on_grpc: Callable[[str], None] = lambda _: None,
) -> None:
    """
    Run an enclave server until *stop* is set; everything is settled and wiped when it returns.

    Args:
        on_listening: told the address, once, before enrolment.
        on_ready: told each time the enclave begins to serve.
        on_grpc: told the address for gRPC, once, if there is one.

    Raises:
        ConfigurationError: the address cannot be listened on, or the ticket is damaged.
    """
    limits = config.limits
    listening = listen_on(*config.address())
    host, port = listening.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def ready(session: Session) -> None:
        manifest = session.verified.manifest
        on_ready(
            Ready(
                address=address,
                model=manifest.name,
                version=manifest.version,
                left=session.renewal.standing.left,
                after_s=clock.monotonic_s() - enclave.idle_since_s,
            )
        )

    flights = Flights(
        threads=config.compute_threads, limit=limits.max_queue, time_s=limits.query_time_s
    )
    enclave = Enclave(flights=flights, clock=clock, on_ready=ready)
    with listening, endorsed(attester, config, clock=clock) as complete:
        keys = await make_keys(complete, now=clock.now(), wait_s=limits.attestation_wait_s)
        tally = Tally()
        api = Api(enclave=enclave, attester=complete, limits=limits, clock=clock, tally=tally)
        turns = Turns(enclave=enclave, limits=limits, clock=clock, tally=tally)
        server = EnclaveServer(
            api,
            tls=server_context(keys.tls),
            limits=limits,
            protocol=direct_protocol(turns, max_connections=limits.max_connections, clock=clock),
        )
        metrics = Metrics(enclave=enclave, tally=tally, clock=clock)
        async with CustodianClient(ticket) as client:
            supervisor = Supervisor(
                enclave=enclave,
                client=client,
                loader=Loader(
                    source=client,
                    cache=BodyCache(config.cache),
                    intra_op_threads=config.intra_op_threads,
                    packed_bytes=config.packed_bytes,
                    progress=progress,
                ),
                attester=complete,
                keys=keys,
                loan=ticket.loan,
                max_waiting=(limits.max_waiting, limits.max_waiting_each),
                keepsake=Keepsake(config.cache, custodian_key=client.custodian.key),
                clock=clock,
                cache=config.cache,
            )
            async with (
                scraped(metrics, config, keys),
                grpc_served(api, enclave, config, keys, on_grpc),
            ):
                on_listening(address)
                await _run(supervisor, server, stop, limits, listening)
    flights.close()


@asynccontextmanager
async def grpc_served(
    api: Api,
    enclave: Enclave,
    config: EnclaveConfig,
    keys: ProcessKeys,
    on_listening: Callable[[str], None],
) -> AsyncIterator[None]:
    """
    Serve *api* over gRPC too for the length of the block, where that is wanted, by the same key.

    Raises:
        ConfigurationError: the extra is not installed, or the address cannot be listened on.
    """
    if config.grpc_listen is None:
        yield
        return
    prepare_grpc()
    from aigovtool.channel.grpc_door import Door, opened  # noqa: PLC0415 - needs an extra
    from aigovtool.enclave.api.rpc import InProcess  # noqa: PLC0415

    host, port = read_address(config.grpc_listen)
    ask = InProcess(api, enclave)
    door = Door(ask, admit=ask.admit, message_time_s=config.limits.body_time_s)
    async with opened(
        door,
        host=host,
        port=port,
        identity=keys.tls,
        max_message_bytes=config.limits.max_body_bytes,
    ) as bound:
        on_listening(f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}")
        yield


@asynccontextmanager
async def scraped(
    metrics: Metrics, config: EnclaveConfig, keys: ProcessKeys
) -> AsyncIterator[None]:
    """
    Serve *metrics* for the length of the block, where that is wanted.

    Raises:
        ConfigurationError: off loopback without a token, or an address or file that cannot be used.
    """
    if config.metrics_listen is None:
        yield
        return
    host, port = read_address(config.metrics_listen)
    token = None if config.metrics_token is None else read_token(config.metrics_token)
    local = is_loopback(host)
    if not local and token is None:
        raise ConfigurationError(
            "metrics for a whole network need a token",
            came=f"--metrics-listen {config.metrics_listen}",
            mend="name a file with one by --metrics-token-file, or listen on 127.0.0.1",
        )
    tls = None if local else server_context(keys.tls)
    with listen_on(host, port) as listening:
        server = EnclaveServer(Scrape(metrics, token=token), tls=tls, limits=SCRAPERS)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield
        finally:
            server.should_exit = True
            await serving


@contextmanager
def endorsed(attester: Attester, config: EnclaveConfig, *, clock: Clock) -> Iterator[Attester]:
    """Lend *attester*, with what its vendor publishes where that is wanted and there is any."""
    if not config.fetch_endorsements or attester.tee in SELF_SUFFICIENT:
        yield attester
        return
    services = Services.by(pccs=config.pccs)
    with open_courier(services, cache=config.endorsements_cache, clock=clock) as courier:
        yield EndorsedAttester(attester, courier=courier, clock=clock)


async def _run(
    supervisor: Supervisor,
    server: EnclaveServer,
    stop: asyncio.Event,
    limits: Limits,
    listening: socket.socket,
) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    leading = asyncio.create_task(supervisor.run())
    stopping = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait(
            {serving, leading, stopping}, return_when=asyncio.FIRST_COMPLETED
        )
        if done == {leading} and leading.exception() is None:
            # the loan is closed for good: stay, to say so
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        await supervisor.drain(drain_s=limits.drain_s, goodbye_s=limits.goodbye_s)
        server.should_exit = True
        await asyncio.wait({serving})
        if leading.done() and not leading.cancelled():
            leading.result()
        serving.result()
