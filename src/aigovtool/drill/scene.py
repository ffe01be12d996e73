"""
A custodian with enclaves, each behind a wire that can fail, and consumers that never stop asking.

The drill's scenarios and the fault campaign stand on this; it adds to `demo.stage` what breaks.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aigovtool.attestation.policy import parse_policy
from aigovtool.clock import SystemClock
from aigovtool.custodian.admin_client import AdminClient
from aigovtool.custodian.api.views import LoanView
from aigovtool.custodian.app import open_custodian
from aigovtool.custodian.budget import Account
from aigovtool.custodian.data import DataFolder
from aigovtool.custodian.databases import database_of, open_ledger
from aigovtool.custodian.lend import lend
from aigovtool.custodian.records import LeaseRow, LoanTerms
from aigovtool.custodian.store.base import Reading
from aigovtool.custodian.upload import Upload
from aigovtool.demo.stage import Process, Stage, answers, free_port
from aigovtool.demo.story import ASSETS
from aigovtool.drill.background import Background
from aigovtool.drill.consumers import Consumers
from aigovtool.drill.proxy import Proxy
from aigovtool.drill.reconcile import Reconciliation, reconcile
from aigovtool.errors import UnavailableError
from aigovtool.ids import ConsumerId, LoanId
from aigovtool.wire.ticket import read_ticket, to_toml

ALL_ROWS = 1 << 30
POLL_S = 0.1


@dataclass
class Enclave:
    """One enclave's place: its port and wire stay, its process comes and goes."""

    name: str
    port: int
    proxy: Proxy
    ticket: Path
    process: Process

    def pause(self) -> None:
        """Suspend it (SIGSTOP)."""
        self.process.popen.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.popen.send_signal(signal.SIGCONT)


@dataclass
class Replica:
    """One custodian process at its two ports; on SQLite there is one of them."""

    name: str
    port: int
    admin_port: int
    process: Process

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self.process.kill()

    def pause(self) -> None:
        """Suspend it (SIGSTOP)."""
        self.process.popen.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.popen.send_signal(signal.SIGCONT)


@dataclass
class Scene:
    """
    Made by `open_scene`.

    Args:
        tee: what enclaves attest with: ``simulated``, or ``auto`` on a machine with a TEE.
        policy: what evidence the loan accepts, when it is not what ``init --simulated`` wrote.
        database: the ledger, when it is not SQLite.
    """

    stage: Stage
    background: Background
    tee: str = "simulated"
    policy: Path | None = None
    database: str | None = None
    consumers: Consumers = field(init=False)
    loan: LoanId = field(init=False)
    replicas: list[Replica] = field(default_factory=list)
    enclaves: list[Enclave] = field(default_factory=list)

    @property
    def folder(self) -> DataFolder:
        return DataFolder(self.stage.data)

    @property
    def custodian(self) -> Replica:
        """The first of them."""
        return self.replicas[0]

    def admin(self) -> AdminClient:
        """Return a client of the first admin API that answers, else of the first."""
        ports = [each.admin_port for each in self.replicas]
        port = next(filter(answers, ports), ports[0])
        return AdminClient.of(f"http://127.0.0.1:{port}", self.folder.admin_token)

    # --- setting it up -------------------------------------------------------------------------

    def lend(self, credits: int, terms: LoanTerms) -> None:
        """Lend the demo's model for *credits*, and start the custodian."""
        with open_custodian(
            self.folder,
            clock=SystemClock(),
            environ=self.stage.environment(),
            database=self.database,
        ) as app:
            policy = self.policy or self.folder.policy
            lent = lend(
                app,
                Upload(path=ASSETS / "digits.onnx", interface=ASSETS / "interface.json"),
                credits=credits,
                terms=terms,
                policy=policy.read_text(),
                address=f"127.0.0.1:{self.stage.custodian_port}",
            )
        self.loan = lent.loan.loan
        self.add_replica()
        self.consumers = self.make_consumers()

    def make_consumers(self) -> Consumers:
        """Return consumers with the loan's key; what they see is theirs alone."""
        return Consumers(
            self.background,
            policy=parse_policy(self.folder.manifest.read_bytes()),
            api_key=self.folder.consumer_key.read_text().strip(),
        )

    def add_replica(self) -> Replica:
        """Start one more custodian on the same ledger; enclaves that are added later know it."""
        first = not self.replicas
        name = f"custodian-{len(self.replicas) + 1}"
        port = self.stage.custodian_port if first else free_port()
        admin_port = self.stage.admin_port if first else free_port()
        replica = Replica(name, port, admin_port, self._serve(name, port, admin_port))
        self.replicas.append(replica)
        return replica

    def restart_custodian(self, replica: Replica | None = None) -> None:
        """Start a custodian that is dead again, as an operator would."""
        one = replica or self.custodian
        one.process = self._serve(one.name, one.port, one.admin_port)

    def _serve(self, name: str, port: int, admin_port: int) -> Process:
        return self.stage.serve_custodian(
            "--log-level", "warning", name=name, port=port, admin_port=admin_port
        )

    def add_enclave(self, *, environment: Mapping[str, str] | None = None) -> Enclave:
        """Start an enclave behind a wire of its own, and wait until it serves."""
        name = f"enclave-{len(self.enclaves) + 1}"
        proxy = Proxy(self.background, [each.port for each in self.replicas])
        ticket = read_ticket(self.folder.ticket)
        diverted = self.stage.folder / f"{name}.toml"
        diverted.write_text(
            to_toml(ticket).replace(f'"{ticket.custodian}"', f'"127.0.0.1:{proxy.port}"')
        )
        port = free_port()
        process = self._start(name, port, diverted, environment)
        self.stage.wait_until_serving(process, port)
        enclave = Enclave(name, port, proxy, diverted, process)
        self.enclaves.append(enclave)
        return enclave

    def restart(self, enclave: Enclave) -> None:
        """Start an enclave that is dead again, at its place; it is not waited for."""
        enclave.process = self._start(enclave.name, enclave.port, enclave.ticket, None)

    def _start(
        self, name: str, port: int, ticket: Path, environment: Mapping[str, str] | None
    ) -> Process:
        process, _ = self.stage.serve_enclave(
            name, "--tee", self.tee, "--log-level", "warning",
            port=port, ticket=ticket, environment=environment, wait=False,
        )  # fmt: skip
        return process

    # --- what the operator does ----------------------------------------------------------------

    def stop(self, reason: str) -> None:
        self.admin().post(f"/api/v1/loans/{self.loan}/stop", {"reason": reason}, LoanView)

    def resume(self) -> None:
        self.admin().post(f"/api/v1/loans/{self.loan}/resume", {"reason": ""}, LoanView)

    # --- the judgement -------------------------------------------------------------------------

    def settle(self, *, limit_s: float) -> None:
        """
        Wait until no lease is open, which asks for a custodian that runs.

        Raises:
            UnavailableError: some are still open.
        """
        end_s = time.monotonic() + limit_s
        while leased := self.account().leased:
            if time.monotonic() > end_s:
                raise UnavailableError(
                    f"leases stay open after {limit_s:g} s", came=f"{leased} credits"
                )
            time.sleep(POLL_S)

    def leases(self) -> Sequence[LeaseRow]:
        """Return every lease that was ever granted."""
        with self._read() as tx:
            return tx.leases_of_loan(self.loan, ALL_ROWS)

    def events(self) -> list[str]:
        """Return the kinds of the ledger's events, in order."""
        with self._read() as tx:
            return [event.kind for event in tx.events_after(0, None, ALL_ROWS)]

    def consumer(self) -> ConsumerId:
        """Return the loan's one consumer."""
        with self._read() as tx:
            (one,) = tx.consumers_of_loan(self.loan)
        return one.consumer

    def account(self) -> Account:
        with self._read() as tx:
            loan = tx.loan(self.loan)
        assert loan is not None
        return loan.account

    def reconcile(self) -> Reconciliation:
        """Hold what consumers were given against what the ledger says now."""
        seen = self.consumers.seen
        receipts = [(one.receipt, one.signed) for one in seen.served]
        return reconcile(self.account(), self.leases(), receipts, failed=seen.failed)

    @contextlib.contextmanager
    def _read(self) -> Iterator[Reading]:
        store = open_ledger(database_of(self.folder, self.database, self.stage.environment()))
        try:
            with store.read() as tx:
                yield tx
        finally:
            store.close()


@contextlib.contextmanager
def open_scene(
    folder: Path,
    *,
    tee: str = "simulated",
    policy: Path | None = None,
    database: str | None = None,
) -> Iterator[Scene]:
    """Make a custodian in *folder*; every process and wire of the scene ends with the block."""
    with Background() as background, Stage(folder, database=database) as stage:
        made = stage.init()
        if made.code:
            raise UnavailableError("the custodian could not be made", came=made.stderr[-500:])
        scene = Scene(stage, background, tee, policy, database)
        try:
            yield scene
        finally:
            for enclave in scene.enclaves:
                enclave.proxy.close()
