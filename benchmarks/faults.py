"""
A campaign of faults: random kills, partitions and pauses of real processes under load.

A custodian (one process on SQLite, or two replicas on PostgreSQL), several enclaves, each behind a
wire that can fail, and several consumers at each, who keep every receipt. Faults come one after
the other and overlap: what is broken is mended a random while later, by itself. Credits are granted
now and then, fewer than would be used, so that the budget is at its end again and again. At the end
all is mended, leases are settled or forfeited, and the consumers' receipts are held against the
ledger (`aigovtool.drill.reconcile`): I1 and I3, by those who were served.

    python -m benchmarks.faults [--kills 200] [--seed 1] [--enclaves 3] [--consumers 4]
                                [--postgresql --replicas 2] [--output counts.json]

Ends with 0 when nothing is wrong, 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from aigovtool.custodian.api.views import LoanView
from aigovtool.custodian.records import LoanTerms
from aigovtool.drill.proxy import Wire
from aigovtool.drill.scene import Enclave, Replica, Scene, open_scene
from aigovtool.errors import AIGovToolError, UnavailableError
from benchmarks.database import Database, database

LEASE_S = 1.0
FIRST_CREDITS = 2000
GRANTS = (200, 2500)  # credits of one grant, at least and at most
GRANT_EVERY = 3  # faults, on average
PAUSES_S = (0.2, 3 * LEASE_S)  # shorter and longer than a lease
OUTAGES_S = (0.2, 2 * LEASE_S)
BETWEEN_S = (1.0, 4.0)
MEND_LIMIT_S = 60.0
SETTLE_LIMIT_S = 90.0  # the grace of a silent session is 30 s
PARTITIONS = (Wire.FROZEN, Wire.HALF_OPEN, Wire.SLOW, Wire.CUT)


@dataclass
class Campaign:
    """Makes faults in a scene, and mends what it broke."""

    scene: Scene
    dice: random.Random
    database: Database | None = None
    done: Counter[str] = field(default_factory=Counter)
    _mend: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _broken: set[str] = field(default_factory=set)

    def run(self, kills: int, limit_s: float) -> None:
        end_s = time.monotonic() + limit_s
        while self.done["kills"] < kills and time.monotonic() < end_s:
            self.fault()
            if self.dice.random() < 1 / GRANT_EVERY:
                self.grant()
            self.let_pass(self.dice.uniform(*BETWEEN_S))

    def fault(self) -> None:
        """Break something that is whole."""
        whole = [each for each in self.scene.enclaves if each.name not in self._broken]
        choices: list[tuple[int, Callable[[], None]]] = []
        if whole:
            enclave = self.dice.choice(whole)
            choices += [
                (5, lambda: self.kill_enclave(enclave)),
                (2, lambda: self.partition(enclave)),
                (2, lambda: self.pause_enclave(enclave)),
            ]
        standing = [each for each in self.scene.replicas if each.name not in self._broken]
        if standing:
            replica = self.dice.choice(standing)
            choices += [
                (4, lambda: self.kill_custodian(replica)),
                (1, lambda: self.pause_custodian(replica)),
            ]
        if self.database is not None and "database" not in self._broken:
            choices.append((2, self.kill_database))
        if choices:
            weights, actions = zip(*choices, strict=True)
            self.dice.choices(actions, weights)[0]()

    def kill_enclave(self, enclave: Enclave) -> None:
        enclave.process.kill()
        self._count("kills", "enclave killed")
        self._later(enclave.name, OUTAGES_S, lambda: self.scene.restart(enclave))

    def kill_custodian(self, replica: Replica) -> None:
        replica.kill()
        self._count("kills", "custodian killed")
        self._later(replica.name, OUTAGES_S, lambda: self._start_custodian(replica))

    def _start_custodian(self, replica: Replica) -> None:
        """Start it; one that finds no database ends, and is started again a little later."""
        try:
            self.scene.restart_custodian(replica)
        except UnavailableError:
            self._later(replica.name, OUTAGES_S, lambda: self._start_custodian(replica))

    def pause_custodian(self, replica: Replica) -> None:
        replica.pause()
        self._count("pauses", "custodian paused")
        self._later(replica.name, PAUSES_S, replica.go_on)

    def kill_database(self) -> None:
        assert self.database is not None
        self.database.kill()
        self._count("kills", "database killed")
        self._later("database", OUTAGES_S, self.database.start)

    def pause_enclave(self, enclave: Enclave) -> None:
        enclave.pause()
        self._count("pauses", "enclave paused")
        self._later(enclave.name, PAUSES_S, enclave.go_on)

    def partition(self, enclave: Enclave) -> None:
        wire = self.dice.choice(PARTITIONS)
        enclave.proxy.set(wire)
        self._count("partitions", f"wire {wire.value}")
        self._later(enclave.name, OUTAGES_S, lambda: enclave.proxy.set(Wire.PASSING))

    def grant(self) -> None:
        """Grant more, as an operator whose call may fail and is not repeated."""
        body = {"loan": self.scene.loan, "credits": self.dice.randint(*GRANTS), "reason": "more"}
        key = secrets.token_hex(8)
        with contextlib.suppress(AIGovToolError):
            if not self._broken & {"database", *(each.name for each in self.scene.replicas)}:
                self.scene.admin().post("/api/v1/grants", body, LoanView, idempotency_key=key)
                self.done["grants"] += 1

    def let_pass(self, seconds: float) -> None:
        """Wait, and mend what is due meanwhile."""
        end_s = time.monotonic() + seconds
        while (now_s := time.monotonic()) < end_s:
            due = [one for one in self._mend if one[0] <= now_s]
            self._mend = [one for one in self._mend if one[0] > now_s]
            for _, mend in due:
                mend()
            time.sleep(0.02)

    def mend_all(self) -> None:
        """Mend everything at once, and see that every enclave serves or waits for credits."""
        end_s = time.monotonic() + MEND_LIMIT_S
        while self._mend and time.monotonic() < end_s:
            self.let_pass(0.1)
        for enclave in self.scene.enclaves:
            self.scene.stage.wait_until_serving(enclave.process, enclave.port)

    def _count(self, kind: str, what: str) -> None:
        self.done[kind] += 1
        self.done[what] += 1

    def _later(self, broken: str, between_s: tuple[float, float], mend: Callable[[], None]) -> None:
        self._broken.add(broken)

        def whole_again() -> None:
            self._broken.discard(broken)
            mend()

        self._mend.append((time.monotonic() + self.dice.uniform(*between_s), whole_again))


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    dice = random.Random(options.seed)
    begin_s = time.monotonic()
    with (
        database(postgresql=options.postgresql) as (server, url),
        open_scene(folder, database=url) as scene,
    ):
        scene.lend(FIRST_CREDITS, LoanTerms(lease_duration_s=LEASE_S))
        for _ in range(options.replicas - 1):
            scene.add_replica()
        for _ in range(options.enclaves):
            scene.consumers.ask(scene.add_enclave().port, count=options.consumers)
        campaign = Campaign(scene, dice, server)
        campaign.run(options.kills, options.limit)
        campaign.mend_all()
        scene.consumers.wait_for_answer(limit_s=5.0)  # unless the budget is used up
        scene.consumers.rest()
        faults_s = time.monotonic() - begin_s
        scene.settle(limit_s=SETTLE_LIMIT_S)
        found = scene.reconcile()
        seen = scene.consumers.seen
        wrong = [*found.wrong, *seen.untrue]
        kills = campaign.done["kills"]
        if kills < options.kills:
            wrong.append(f"only {kills} of {options.kills} kills in {options.limit:g} s")
        return {
            "seed": options.seed,
            "database": "PostgreSQL" if options.postgresql else "SQLite",
            "replicas": options.replicas,
            "seconds": round(faults_s, 1),
            "enclaves": options.enclaves,
            "consumers": options.enclaves * options.consumers,
            "faults": dict(sorted(campaign.done.items())),
            **{k: v for k, v in msgspec.to_builtins(found).items() if k != "wrong"},
            "queries_without_receipt": seen.failed,
            "refused": dict(seen.refused.most_common()),
            "wrong": wrong,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--enclaves", type=int, default=3)
    parser.add_argument("--consumers", type=int, default=4, help="at each enclave")
    parser.add_argument("--postgresql", action="store_true", help="the ledger on PostgreSQL")
    parser.add_argument("--replicas", type=int, default=1, help="custodians, on PostgreSQL")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for the faults")
    parser.add_argument("--keep", type=Path, help="run in this folder and leave it there")
    parser.add_argument("--output", type=Path, help="write the counts there, too")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    if options.keep is not None:
        counts = run(options, options.keep)
    else:
        with tempfile.TemporaryDirectory(prefix="aigovtool-faults-") as folder:
            counts = run(options, Path(folder))
    text = json.dumps(counts, indent=2)
    if options.output is not None:
        options.output.write_text(text + "\n")
    print(text)
    sys.exit(1 if counts["wrong"] else 0)


if __name__ == "__main__":
    main()
