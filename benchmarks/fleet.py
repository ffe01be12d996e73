"""
One custodian process and a fleet of simulated enclaves: what they cost, and how fast a stop is.

The custodian is `aigovtool custodian serve` as it is. Its sessions are put into the ledger before
it starts (an appraisal is measured by `benchmarks.verification`); from there on everything is real:
TLS, `Hello` and every settlement signed, every report a durable decision. The fleet is one
process of its own, and holds no model. For each size of the fleet:

- idle: CPU and memory of the custodian for each connection that only lives;
- paced: every enclave settles and leases every `--every` seconds, as one in use does at half a
  lease's time; the time from a report to its answer, and the custodian's CPU for each;
- flat out: every enclave sends its next report as soon as one is answered; what is sustained;
- stop: under the paced load, from just before the operator's call to the moment at which each
  enclave has taken in the stop, several times over.

    python -m benchmarks.fleet [--enclaves 10 100 1000] [--seconds 10] [--stops 5]
                               [--postgresql] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import ssl
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from aigovtool.clock import SystemClock
from aigovtool.crypto.signing import SigningKey
from aigovtool.crypto.tls import pinned_client_context
from aigovtool.custodian import statements
from aigovtool.custodian.admin_client import AdminClient
from aigovtool.custodian.ageing import Step
from aigovtool.custodian.api.views import LoanView
from aigovtool.custodian.app import open_custodian
from aigovtool.custodian.data import DataFolder
from aigovtool.custodian.ledger import session_of
from aigovtool.custodian.lend import lend
from aigovtool.custodian.lifecycle import SessionState
from aigovtool.custodian.records import LoanTerms, Session, Standing
from aigovtool.custodian.upload import Upload
from aigovtool.demo.stage import Process, Stage
from aigovtool.demo.story import ASSETS
from aigovtool.ids import ConsumerId, LoanId, SessionId, new_id
from aigovtool.wire.codec import Signed
from aigovtool.wire.enrolment import Keys
from aigovtool.wire.ticket import Ticket, read_ticket
from benchmarks.database import database
from benchmarks.simulated_enclave import SimulatedEnclave, Tally

CREDITS = 10**12
FILES_EACH = 1  # file descriptors of one connection, in each process
FILES_ELSE = 500
CONNECTING_AT_ONCE = 100
STARTS_PER_SECOND = 2000  # or this process would not answer pings while it signs for all of them
CONNECT_LIMIT_S = 600.0  # sessions that are not connected yet must not lapse
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A custodian's folder with a loan and sessions in it."""

    ticket: Ticket
    loan: LoanId
    consumer: ConsumerId
    sessions: dict[SessionId, SigningKey]
    stated: dict[SessionId, Signed]


def prepare(stage: Stage, enclaves: int) -> Prepared:
    """Lend the demo's model and open *enclaves* sessions in one decision."""
    assert stage.init().code == 0
    folder = DataFolder(stage.data)
    keys = {SessionId(new_id("session")): SigningKey.generate() for _ in range(enclaves)}
    with open_custodian(folder, clock=SystemClock(), environ=stage.environment()) as app:
        lent = lend(
            app,
            Upload(path=ASSETS / "digits.onnx"),
            credits=CREDITS,
            terms=LoanTerms(max_enclaves=enclaves, settle_grace_s=CONNECT_LIMIT_S),
            policy=folder.policy.read_text(),
            address=f"127.0.0.1:{stage.custodian_port}",
        )
        loan = lent.loan.loan
        with app.ledger.write() as entry:
            (consumer,) = entry.tx.consumers_of_loan(loan)
            for session, key in keys.items():
                entry.tx.insert_session(
                    Session(
                        session=session,
                        loan=loan,
                        state=SessionState.LIVE,
                        keys=Keys(
                            tls_spki_sha256=bytes(32), signing_key=key.public_key, hpke_key=b""
                        ),
                        tee="simulated",
                        measurement="none: a benchmark's",
                        software="benchmarks.fleet",
                        opened=entry.now,
                        disconnected=entry.now,
                        ended=None,
                        end_reason="",
                        last_report=0,
                        report_sha256=b"",
                        decision=b"",
                    )
                )
                entry.tx.insert_standing(
                    Standing(
                        session=session,
                        appraised=entry.now,
                        tcb_status=None,
                        grace=None,
                        step=Step.FULL,
                    )
                )
        with app.ledger.read() as tx:
            stated = {
                session: statements.state(
                    session_of(tx, session),
                    lent.loan,
                    lease=None,
                    left=CREDITS,
                    head=app.ledger.head,
                    now=app.clock.now(),
                    key=app.key,
                )
                for session in keys
            }
    return Prepared(read_ticket(folder.ticket), loan, consumer.consumer, keys, stated)


def usage(process: Process) -> tuple[float, float]:
    """Return the seconds of CPU that a process has used, and its resident memory in MiB."""
    pid = process.popen.pid
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu_s = (int(fields[11]) + int(fields[12])) / CLOCK_TICKS
    status = Path(f"/proc/{pid}/status").read_text()
    return cpu_s, int(status.partition("VmRSS:")[2].split()[0]) / 1024


def percentile(values: list[float], percent: int) -> float:
    if len(values) < 2:
        return max(values, default=0.0)
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


class Fleet:
    """The enclaves, and what is asked of them."""

    def __init__(self, prepared: Prepared, custodian: Process, admin: AdminClient) -> None:
        self.prepared = prepared
        self.custodian = custodian
        self.admin = admin
        self.tally = Tally()
        self.enclaves: list[SimulatedEnclave] = []

    async def connect(self, port: int) -> dict[str, float]:
        begin_s = time.monotonic()
        before_s, before_mib = usage(self.custodian)
        loop = asyncio.get_running_loop()
        places = asyncio.Semaphore(CONNECTING_AT_ONCE)
        certificate = self.prepared.ticket.custodian_certificate.encode()
        # each a context of its own would cost the client 100 KB each; sessions are not resumed
        tls: ssl.SSLContext = pinned_client_context(certificate)

        async def one(session: SessionId, key: SigningKey) -> None:
            async with places:
                _, enclave = await loop.create_connection(
                    lambda: SimulatedEnclave(
                        loan=self.prepared.loan,
                        session=session,
                        consumer=self.prepared.consumer,
                        key=key,
                        token=self.prepared.ticket.token,
                        statement=self.prepared.stated[session],
                        tally=self.tally,
                    ),
                    "127.0.0.1",
                    port,
                    ssl=tls,
                )
                await enclave.welcomed
                self.enclaves.append(enclave)

        await asyncio.gather(*(one(*each) for each in self.prepared.sessions.items()))
        seconds = time.monotonic() - begin_s
        cpu_s, mib = usage(self.custodian)
        count = len(self.enclaves)
        return {
            "per_second": count / seconds,
            "cpu_ms_each": (cpu_s - before_s) / count * 1000,
            "kib_each": (mib - before_mib) / count * 1024,
        }

    async def idle(self, seconds: float) -> dict[str, float]:
        before_s, _ = usage(self.custodian)
        await asyncio.sleep(seconds)
        cpu_s, mib = usage(self.custodian)
        return {"cpu": (cpu_s - before_s) / seconds, "mib": mib}

    async def load(self, seconds: float, every_s: float) -> dict[str, float]:
        """Let all report, every *every_s* seconds each; 0 for as fast as they are answered."""
        spread_s = len(self.enclaves) / STARTS_PER_SECOND
        for enclave in self.enclaves:
            enclave.every_s = every_s
            enclave.go(random.uniform(0, max(every_s, spread_s)))
        await asyncio.sleep(max(every_s, spread_s))  # until all are in step
        tally = self.tally
        tally.answers_s.clear()
        leases, settlements = tally.leases, tally.settlements
        begin_s, (before_s, _) = time.monotonic(), usage(self.custodian)
        await asyncio.sleep(seconds)
        took_s = time.monotonic() - begin_s
        cpu_s, mib = usage(self.custodian)
        reports = len(tally.answers_s)
        return {
            "leases_per_second": (tally.leases - leases) / took_s,
            "settlements_per_second": (tally.settlements - settlements) / took_s,
            "answer_p50_ms": percentile(tally.answers_s, 50) * 1000,
            "answer_p99_ms": percentile(tally.answers_s, 99) * 1000,
            "cpu": (cpu_s - before_s) / took_s,
            "cpu_ms_per_report": (cpu_s - before_s) / max(1, reports) * 1000,
            "mib": mib,
        }

    def rest(self) -> None:
        for enclave in self.enclaves:
            enclave.every_s = None

    async def answered(self) -> None:
        """Return when no report waits for its answer."""
        while any(enclave.waiting for enclave in self.enclaves):  # noqa: ASYNC110 - 10,000 of them
            await asyncio.sleep(0.05)

    async def stop(self, every_s: float, *, farewell: bool) -> list[float]:
        """Stop the loan under load; return for each enclave when it had taken that in."""
        for enclave in self.enclaves:
            enclave.every_s = every_s
            enclave.say_goodbye = farewell
            enclave.go(random.uniform(0, every_s))
        await asyncio.sleep(every_s * 1.5)
        self.tally.stopped_s.clear()
        begin_s = time.monotonic()
        await asyncio.to_thread(self._tell, "stop")
        # those that were lost are counted and said; they are told when they come back
        while len(self.tally.stopped_s) < sum(one.connected for one in self.enclaves):
            assert time.monotonic() - begin_s < 60, "the stop did not reach every enclave"
            await asyncio.sleep(0.05)
        if not farewell:
            await self.answered()
            await asyncio.to_thread(self._tell, "resume")
        return [at - begin_s for at in self.tally.stopped_s]

    def _tell(self, what: str) -> None:
        body = {"reason": "benchmark"}
        self.admin.post(f"/api/v1/loans/{self.prepared.loan}/{what}", body, LoanView)


async def measure(
    fleet: Fleet, port: int, *, seconds: float, every_s: float, stops: int
) -> dict[str, Any]:
    seen: dict[str, Any] = {"enclaves": len(fleet.prepared.sessions)}
    seen["connect"] = await fleet.connect(port)
    seen["idle"] = await fleet.idle(seconds)
    seen["paced"] = await fleet.load(seconds, every_s)
    fleet.rest()
    await asyncio.sleep(1.0)
    seen["flat_out"] = await fleet.load(seconds, 0.0)
    fleet.rest()
    await fleet.answered()
    times: list[float] = []
    for number in range(stops):
        times += await fleet.stop(every_s, farewell=number == stops - 1)
    seen["stop"] = {
        "rounds": stops,
        "p50_ms": percentile(times, 50) * 1000,
        "p99_ms": percentile(times, 99) * 1000,
        "last_ms": max(times) * 1000,
    }
    seen["lost"] = len(fleet.tally.lost)
    return seen


def run(enclaves: int, options: argparse.Namespace) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="aigovtool-fleet-") as folder,
        database(postgresql=options.postgresql) as (_, url),
        Stage(Path(folder), database=url) as stage,
    ):
        prepared = prepare(stage, enclaves)
        custodian = stage.serve_custodian("--log-level", "warning")
        admin = AdminClient.of(
            f"http://127.0.0.1:{stage.admin_port}", DataFolder(stage.data).admin_token
        )
        fleet = Fleet(prepared, custodian, admin)
        # an enclave in use reports that often; a larger fleet only as often as can be sustained
        every_s = max(options.every, enclaves / options.most_reports)
        seen = uvloop.run(
            measure(
                fleet,
                stage.custodian_port,
                seconds=options.seconds,
                every_s=every_s,
                stops=options.stops,
            )
        )
        seen["every_s"] = every_s
        for line in fleet.tally.lost[:3]:
            print("lost:", line, file=sys.stderr)
        return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--enclaves", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=2.5)
    parser.add_argument("--most-reports", type=float, default=400.0, help="a second, paced")
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--postgresql", action="store_true", help="the ledger, instead of SQLite")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    files = max(options.enclaves) * FILES_EACH + FILES_ELSE
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert files <= hard, f"{files} open files are needed, and this machine allows {hard}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    rows = []
    for enclaves in options.enclaves:
        row = run(enclaves, options)
        rows.append(row)
        if not options.json:
            tell(row)
    if options.json:
        print(json.dumps(rows, indent=2))


def tell(row: dict[str, Any]) -> None:
    connect, idle, paced = row["connect"], row["idle"], row["paced"]
    flat, stop = row["flat_out"], row["stop"]
    print(f"{row['enclaves']} enclaves")
    print(
        f"  connect   {connect['per_second']:.0f}/s, {connect['cpu_ms_each']:.2f} ms of CPU and "
        f"{connect['kib_each']:.0f} KiB each"
    )
    print(f"  idle      {idle['cpu']:.1%} of a core, {idle['mib']:.0f} MiB")
    print(
        f"  paced     every {row['every_s']:.1f} s: {paced['leases_per_second']:.0f} leases/s, "
        f"answer p50 {paced['answer_p50_ms']:.1f} p99 {paced['answer_p99_ms']:.1f} ms, "
        f"{paced['cpu']:.0%} of a core, {paced['cpu_ms_per_report']:.2f} ms a report"
    )
    print(
        f"  flat out  {flat['leases_per_second']:.0f} leases/s and "
        f"{flat['settlements_per_second']:.0f} settlements/s, "
        f"p50 {flat['answer_p50_ms']:.0f} p99 {flat['answer_p99_ms']:.0f} ms, "
        f"{flat['cpu']:.0%} of a core, {flat['cpu_ms_per_report']:.2f} ms a report, "
        f"{flat['mib']:.0f} MiB"
    )
    print(
        f"  stop      p50 {stop['p50_ms']:.0f} ms, p99 {stop['p99_ms']:.0f} ms, last "
        f"{stop['last_ms']:.0f} ms, of {stop['rounds']} stops; {row['lost']} connections lost",
        flush=True,
    )


if __name__ == "__main__":
    main()
