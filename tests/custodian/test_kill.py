"""kill -9 in the middle of the work: what was answered is in the ledger, and accounts are exact."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aigovtool.custodian.records import LeaseState
from aigovtool.custodian.store.sqlite import SqliteStore

ROOT = Path(__file__).parents[2]

# A process that leases and settles as fast as it can, and says each answer once it has it.
WORKER = """
import sys
from pathlib import Path
from tests.custodian.ledgers import Bench

bench = Bench(Path(sys.argv[1]))
loan = bench.lend(10**6).loan
consumer, enclave = bench.consumer(loan), bench.enclave(loan)
settlements, used = (), 0
while True:
    report = enclave.report(settlements, want=3)
    answer = bench.leasing.report(enclave.session, report)
    settlements = (enclave.settlement(answer.lease.lease, {consumer: 2}),)
    print(answer.number, answer.lease.lease, answer.left, flush=True)
"""


@pytest.mark.parametrize("answers", [1, 7, 40, 150])
def test_a_custodian_killed_at_any_moment_has_exact_accounts(tmp_path: Path, answers: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as worker:
        assert worker.stdout is not None
        told = [worker.stdout.readline().split() for _ in range(answers)]
        worker.send_signal(signal.SIGKILL)
        told += [line.split() for line in worker.stdout.read().splitlines()]
    told = [line for line in told if len(line) == 3]
    store = SqliteStore.open(tmp_path / "ledger.db")
    try:
        with store.read() as tx:
            (loan,) = tx.loans()
            leases = tx.leases_of_loan(loan.loan, 100_000)
            (session,) = tx.sessions_of_loan(loan.loan, 10)
            consumers = tx.consumers_of_loan(loan.loan)
    finally:
        store.close()
    known = {lease.lease for lease in leases}
    assert known.issuperset(line[1] for line in told)  # type: ignore[arg-type]
    assert len(leases) - len(told) in (0, 1)  # one more may have been kept and not said
    assert session.last_report == len(leases)
    settled = [lease for lease in leases if lease.state is LeaseState.SETTLED]
    assert len(settled) == len(leases) - 1
    assert loan.account.spent == 2 * len(settled) == consumers[0].used
    assert loan.account.leased == 3
    assert loan.account.left == 10**6 - 3 - 2 * len(settled)
