"""
The running custodian: two doors, the sweep, and an orderly end.

On SIGTERM or SIGINT: lease nothing more, tell the enclaves, take their settlements for a short
time, close the connections, then the doors.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from aigovtool.channel.accepting import Choose, Entrance, always
from aigovtool.channel.guarded import guarded_protocol
from aigovtool.channel.signals import ended_by_signals
from aigovtool.crypto.tls import TLS_CIPHERS, make_custodian_identity, server_context
from aigovtool.custodian import heartbeat
from aigovtool.custodian.api.admin import admin_app
from aigovtool.custodian.api.either import either
from aigovtool.custodian.api.enclaves import enclave_app
from aigovtool.custodian.api.http import off_loop
from aigovtool.custodian.app import App
from aigovtool.custodian.data import Address, ServerConfig
from aigovtool.custodian.heartbeat import SparingWebSocket
from aigovtool.errors import AIGovToolError, ConfigurationError
from aigovtool.telemetry.logs import event
from aigovtool.wire.control import MAX_CONTROL_BYTES, ShuttingDown

SWEEP_EVERY_S = 1.0
LOG_EVERY_S = 0.5  # an event is published within that and the time of writing it
SETTLE_WITHIN_S = 3.0  # at the end; what comes later is settled after the next start
IDLE_TIMEOUT_S = 30
CLOSE_TIMEOUT_S = 2
MAX_CONNECTIONS = 20_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Doors:
    """
    Both sockets, bound before anything is made, listening only when all is made: who finds a door
    that answers finds the files, too.
    """

    enclaves: socket.socket
    admin: socket.socket

    @classmethod
    def bind(cls, config: ServerConfig) -> Doors:
        """Bind both; raises ConfigurationError when an address is taken or not ours."""
        enclaves = _bind(config.listen, "--listen")
        try:
            return cls(enclaves, _bind(config.admin_listen, "--admin-listen"))
        except BaseException:
            enclaves.close()
            raise

    @property
    def enclave_address(self) -> Address:
        return _address(self.enclaves)

    @property
    def admin_address(self) -> Address:
        return _address(self.admin)

    def close(self) -> None:
        self.enclaves.close()
        self.admin.close()


def advertised(config: ServerConfig, doors: Doors) -> str:
    """Return what goes into tickets: as configured, else where the enclaves' door is."""
    if config.advertise is not None:
        return config.advertise
    address = doors.enclave_address
    if address.is_unspecified:
        return str(Address(socket.gethostname(), address.port))
    return str(address)


def admin_names(config: ServerConfig) -> frozenset[str] | None:
    """
    Return the names by which the admin API may be called (its Host header); None for any.

    On a network it is called by whatever name its certificate has, and no browser gets there by
    rebinding a name to loopback.
    """
    if config.admin_listen.is_loopback:
        return frozenset({"localhost", "127.0.0.1", "::1", config.admin_listen.host})
    return None


class Server:
    """Serves an `App` on bound sockets until it is told to end."""

    def __init__(self, *, app: App, config: ServerConfig, doors: Doors) -> None:
        self._app = app
        self._config = config
        self._doors = doors
        self._end = asyncio.Event()
        self._log_trouble = ""

    async def run(self, *, on_ready: Callable[[], None] = lambda: None) -> None:
        """
        Serve until `end` is called, or SIGTERM or SIGINT comes.

        Raises:
            ConfigurationError: the admin certificate cannot be used.
        """
        app = self._app
        identity = make_custodian_identity(
            app.key, app.identity.certificate_pem, now=app.clock.now()
        )
        admin_tls = _admin_tls(self._config)
        for_enclaves = _Uvicorn(app.metrics.watch("enclaves", enclave_app(app)))
        for_admin = _Uvicorn(
            app.metrics.watch(
                "admin",
                admin_app(
                    app,
                    names=admin_names(self._config),
                    enclave_address=advertised(self._config, self._doors),
                ),
            )
        )
        tls = server_context(identity)
        # without a certificate of its own, the admin's door takes plain HTTP and TLS
        for_anyone = either(tls) if admin_tls is None else always(admin_tls)
        app.hub.start()
        await off_loop(app.reports, lambda: app.ledger.join(app.hub))
        await off_loop(app.reports, app.replicas.start)
        try:
            # a second signal while it settles ends it at once: what is not settled is settled later
            with ended_by_signals(self._end.set):
                async with asyncio.TaskGroup() as tasks:
                    serving = [
                        tasks.create_task(door.serve(sockets=[]))
                        for door in (for_enclaves, for_admin)
                    ]
                    await for_enclaves.is_up.wait()
                    await for_admin.is_up.wait()
                    # both listen from here on: whoever is told "ready" may call at once
                    entrances = (
                        for_enclaves.entrance(self._doors.enclaves, always(tls)),
                        for_admin.entrance(self._doors.admin, for_anyone),
                    )
                    others = [
                        tasks.create_task(self._sweep()),
                        tasks.create_task(self._log_on()),
                        tasks.create_task(app.delivering.run()),
                        *(tasks.create_task(entrance.run()) for entrance in entrances),
                    ]
                    on_ready()
                    await self._end.wait()
                    await self._settle_up()
                    for other in others:
                        other.cancel()
                    await self._log()
                    app.hub.close_all()
                    for_enclaves.should_exit = for_admin.should_exit = True
                    await asyncio.gather(*serving)
        finally:
            self._doors.close()

    def end(self) -> None:
        """Begin the orderly end; on the event loop only."""
        self._end.set()

    async def _sweep(self) -> None:
        while True:
            try:
                await off_loop(self._app.pool, self._app.ledger.mark.sync)
                await off_loop(self._app.pool, self._app.ledger.refresh)
                await off_loop(self._app.reports, self._app.replicas.sweep)
                if self._app.ledger.shared:
                    self._app.hub.changed()  # by others, perhaps
                if self._app.ledger.held is None:
                    await off_loop(self._app.reports, self._app.sessions.sweep)
                    await off_loop(self._app.reports, self._app.consumers.sweep)
                    await off_loop(self._app.reports, self._app.reattestation.sweep)
                await off_loop(self._app.pool, self._app.notices.sweep)
            except AIGovToolError as error:  # a full disk must not end the server
                _log.error("the sweep failed: %s", error, extra=event("sweep.failed"))
            except Exception:  # noqa: BLE001 - nor must our own fault: stop and block must work on
                _log.exception(
                    "the sweep failed by a fault of this program", extra=event("sweep.failed")
                )
            await asyncio.sleep(SWEEP_EVERY_S)

    async def _log_on(self) -> None:
        while True:
            await self._log()
            await asyncio.sleep(LOG_EVERY_S)

    async def _log(self) -> None:
        """Bring the transparency log up to date; what it cannot do now is done the next time."""
        if self._app.ledger.held is not None:
            return  # what an older copy would publish could be another history
        try:
            await off_loop(self._app.pool, self._app.logbook.run)
        except AIGovToolError as error:
            self._log_said(str(error))
        except Exception:  # noqa: BLE001 - as in `_sweep`: leases do not wait for the log
            _log.exception("the transparency log failed by a fault of this program")
        else:
            self._log_said("")

    def _log_said(self, trouble: str) -> None:
        """Say once what is wrong, and once that it no longer is."""
        if trouble and trouble != self._log_trouble:
            _log.error("the transparency log is not published: %s", trouble)
        elif self._log_trouble and not trouble:
            _log.info("the transparency log is published again")
        self._log_trouble = trouble

    async def _settle_up(self) -> None:
        """Tell the enclaves to give everything back, and wait a short while for it."""
        app = self._app
        app.leasing.suspend()
        app.hub.send_all(ShuttingDown(settle_within_s=SETTLE_WITHIN_S))
        with contextlib.suppress(TimeoutError), app.hub.watch() as changed:
            async with asyncio.timeout(SETTLE_WITHIN_S):
                while app.hub.connected and await off_loop(app.reports, self._leased):
                    await changed.wait()
                    changed.clear()

    def _leased(self) -> int:
        ledger = self._app.ledger
        with ledger.read() as tx:
            return tx.leased_to_connected(ledger.replica)


class _Uvicorn(uvicorn.Server):
    """One door. Signals are ours: the two doors end together, after the enclaves were told."""

    def __init__(self, app: ASGIApp) -> None:
        self._protocol = guarded_protocol(max_connections=MAX_CONNECTIONS)
        super().__init__(
            uvicorn.Config(
                app,
                http=self._protocol,
                ws=SparingWebSocket,
                ws_max_size=MAX_CONTROL_BYTES,
                ws_ping_interval=heartbeat.LOOK_EVERY_S,
                ws_ping_timeout=heartbeat.ANSWER_WITHIN_S,
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=IDLE_TIMEOUT_S,
                timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
            )
        )

        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    def entrance(self, listener: socket.socket, choose: Choose) -> Entrance:
        """Return what lets connections in; they are served once `is_up`."""
        return Entrance(
            listener,
            make=lambda: self._protocol(
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            ),
            choose=choose,
            room=lambda: MAX_CONNECTIONS - len(self.server_state.connections),
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(address: Address, option: str) -> socket.socket:
    try:
        family, kind, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise _not_ours(address, option, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # inherited by accepted sockets, where asyncio would not set it; see the enclave's server
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(where)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _not_ours(address, option, error) from None
    return listener


def _not_ours(address: Address, option: str, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"cannot listen on {address}",
        code="listen",
        came=error.strerror,
        mend=f"choose another address with {option}, or end what listens there",
    )


def _address(listener: socket.socket) -> Address:
    host, port, *_ = listener.getsockname()
    return Address(host, port)


def _admin_tls(config: ServerConfig) -> ssl.SSLContext | None:
    if config.admin_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(TLS_CIPHERS)
    try:
        context.load_cert_chain(config.admin_certificate, config.admin_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            "the admin certificate or its key cannot be used",
            code="admin.tls",
            came=type(error).__name__,
            mend="give PEM files that belong together",
        ) from None
    return context
