"""
The enclave server as a whole: the only place where its parts are built and put together.

Rule 1: it listens from the start, so that its state can be asked while it enrols.
Rule 2: told to end, it admits nothing more, lets what is in flight end, settles, proves, wipes.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

from aigovtool.channel.extras import prepare_grpc
from aigovtool.clock import Clock
from aigovtool.crypto.tls import server_context
from aigovtool.enclave.api.app import Api
from aigovtool.enclave.api.attest import Witness
from aigovtool.enclave.api.direct import direct_protocol
from aigovtool.enclave.api.http import BodyRoom
from aigovtool.enclave.api.reception import Desk, Reception
from aigovtool.enclave.api.scrape import Scrape
from aigovtool.enclave.api.server import EnclaveServer, listen_on
from aigovtool.enclave.api.turn import Turns
from aigovtool.enclave.attester.base import Attester
from aigovtool.enclave.attester.endorsed import EndorsedAttester
from aigovtool.enclave.cache import BodyCache
from aigovtool.enclave.config import (
    EnclaveConfig,
    Limits,
    default_model_bytes,
    is_loopback,
    read_address,
    read_token,
)
from aigovtool.enclave.custodian_client import CustodianClient
from aigovtool.enclave.enclave import Enclave
from aigovtool.enclave.eviction import Evictions
from aigovtool.enclave.flights import CONSUMER_SHARE, Flights
from aigovtool.enclave.keepsake import Keepsake
from aigovtool.enclave.keys import ProcessKeys, make_keys
from aigovtool.enclave.loader import Loader, Progress
from aigovtool.enclave.metrics import Metrics, Tally
from aigovtool.enclave.model_room import ModelRoom
from aigovtool.enclave.session import Session
from aigovtool.enclave.supervisor import Supervisor
from aigovtool.endorsements.collector import Services
from aigovtool.endorsements.courier import SELF_SUFFICIENT, open_courier
from aigovtool.errors import ConfigurationError
from aigovtool.telemetry.metrics import Times
from aigovtool.wire.ticket import Ticket

SCRAPERS = Limits(max_connections=16)


@dataclass(frozen=True, slots=True)
class Ready:
    """
    The enclave serves a loan.

    Args:
        address: ``host:port`` on which it listens.
        left: credits of the loan that are not leased to anyone.
        after_s: since `serve` was called, the enclave last ceased to serve, or its model was
            replaced.
    """

    address: str
    model: str
    version: str
    left: int
    after_s: float


async def serve(
    config: EnclaveConfig,
    tickets: Sequence[Ticket],
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
        tickets: of the loans that it serves, at least one.
        on_listening: told the address, once, before enrolment.
        on_ready: told each time the enclave begins to serve a loan.
        on_grpc: told the address for gRPC, once, if there is one.

    Raises:
        ConfigurationError: the address cannot be listened on, a ticket is damaged, or two are for
            one loan.
    """
    check_tickets(tickets)
    limits = config.limits
    listening = listen_on(*config.address())
    host, port = listening.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def ready(session: Session, after_s: float) -> None:
        manifest = session.verified.manifest
        on_ready(
            Ready(
                address=address,
                model=manifest.name,
                version=manifest.version,
                left=session.renewal.standing.left,
                after_s=after_s,
            )
        )

    threads = ThreadPoolExecutor(config.compute_threads, thread_name_prefix="compute")
    with listening, endorsed(attester, config, clock=clock) as complete:
        keys = await make_keys(complete, now=clock.now(), wait_s=limits.attestation_wait_s)
        house = House(config, complete, keys, threads, clock=clock, progress=progress)
        async with AsyncExitStack() as stack:
            supervisors = [
                house.take_in(
                    ticket, await stack.enter_async_context(CustodianClient(ticket)), ready
                )
                for ticket in tickets
            ]
            reception = Reception(house.desks)
            server = EnclaveServer(
                reception,
                tls=server_context(keys.tls),
                limits=limits,
                protocol=direct_protocol(
                    reception, max_connections=limits.max_connections, clock=clock
                ),
            )
            await stack.enter_async_context(scraped(house.metrics(), config, keys))
            await stack.enter_async_context(grpc_served(reception, config, keys, on_grpc))
            on_listening(address)
            await _run(supervisors, server, stop, limits, listening)
    threads.shutdown(wait=False, cancel_futures=True)


def check_tickets(tickets: Sequence[Ticket]) -> None:
    """Raise ConfigurationError when two are for one loan."""
    loans = [ticket.loan for ticket in tickets]
    for loan in loans:
        if loans.count(loan) > 1:
            raise ConfigurationError(
                "two tickets are for the same loan",
                came=loan,
                mend="give each ticket once; a newer one takes the place of the older",
            )


class House:
    """What the loans of one enclave server share, and a desk for each of them."""

    def __init__(
        self,
        config: EnclaveConfig,
        attester: Attester,
        keys: ProcessKeys,
        threads: ThreadPoolExecutor,
        *,
        clock: Clock,
        progress: Progress,
    ) -> None:
        limits = config.limits
        self.desks: list[Desk] = []
        self._config = config
        self._attester = attester
        self._keys = keys
        self._threads = threads
        self._clock = clock
        self._progress = progress
        self._computing = Times()
        self._tally = Tally()
        self._cache = BodyCache(config.cache)
        self._witness = Witness(attester, limits, clock)
        share = math.ceil(limits.max_bodies_bytes * CONSUMER_SHARE)
        # a body that comes compressed takes its room twice
        self._room = BodyRoom(limits.max_bodies_bytes, max(share, 2 * limits.max_body_bytes))
        self._models = ModelRoom(
            config.max_model_bytes or default_model_bytes(), packed_bytes=config.packed_bytes
        )
        self._evictions = Evictions(self._models, clock.monotonic_s)
        self._keepsakes: dict[bytes, Keepsake] = {}  # by custodian

    def take_in(
        self,
        ticket: Ticket,
        client: CustodianClient,
        on_ready: Callable[[Session, float], None],
    ) -> Supervisor:
        """Make a desk for a loan, and return who leads it."""
        config, limits, clock = self._config, self._config.limits, self._clock
        enclave = Enclave(loan=ticket.loan, clock=clock, on_ready=on_ready)
        api = Api(
            enclave=enclave,
            witness=self._witness,
            room=self._room,
            limits=limits,
            clock=clock,
            tally=self._tally,
        )
        turns = Turns(enclave=enclave, limits=limits, clock=clock, tally=self._tally)
        self.desks.append(Desk(enclave, api, turns))
        key = client.custodian.key
        if key not in self._keepsakes:
            self._keepsakes[key] = Keepsake(config.cache, custodian_key=key)
        return Supervisor(
            enclave=enclave,
            client=client,
            loader=Loader(
                source=client,
                cache=self._cache,
                options=config.runtime_options(),
                progress=self._progress,
            ),
            room=self._models,
            evictions=self._evictions,
            attester=self._attester,
            keys=self._keys,
            make_flights=self._make_flights,
            max_waiting=(limits.max_waiting, limits.max_waiting_each),
            keepsake=self._keepsakes[key],
            clock=clock,
            cache=config.cache,
        )

    def _make_flights(self) -> Flights:
        limits = self._config.limits
        return Flights(
            self._threads,
            limit=limits.max_queue,
            time_s=limits.query_time_s,
            times=self._computing,
        )

    def metrics(self) -> Metrics:
        """Return the numbers of all loans together."""
        return Metrics(
            enclaves=[desk.enclave for desk in self.desks],
            models=self._models,
            computing=self._computing,
            tally=self._tally,
            clock=self._clock,
        )


@asynccontextmanager
async def grpc_served(
    reception: Reception,
    config: EnclaveConfig,
    keys: ProcessKeys,
    on_listening: Callable[[str], None],
) -> AsyncIterator[None]:
    """
    Serve over gRPC too for the length of the block, where that is wanted, by the same key.

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
    ask = InProcess(reception)
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
    supervisors: Sequence[Supervisor],
    server: EnclaveServer,
    stop: asyncio.Event,
    limits: Limits,
    listening: socket.socket,
) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    leading = [asyncio.create_task(supervisor.run()) for supervisor in supervisors]
    stopping = asyncio.create_task(stop.wait())
    try:
        pending = {serving, stopping, *leading}
        while pending >= {serving, stopping}:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            # one whose loan is closed for good has done what it had to: the server stays to say so
            if any(task in done and task.exception() is not None for task in leading):
                break
    finally:
        stopping.cancel()
        await asyncio.gather(
            *(
                supervisor.drain(drain_s=limits.drain_s, goodbye_s=limits.goodbye_s)
                for supervisor in supervisors
            )
        )
        server.should_exit = True
        await asyncio.wait({serving})
        for task in leading:
            if task.done() and not task.cancelled():
                task.result()
        serving.result()
