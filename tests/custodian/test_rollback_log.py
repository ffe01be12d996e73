"""Ledger, mark and published log of three moments, put back in every mixture."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from aigovtool.clock import SystemClock
from aigovtool.custodian.app import App, initialise, open_custodian
from aigovtool.custodian.data import DataFolder
from aigovtool.custodian.evidence import Shown
from aigovtool.custodian.lend import lend
from aigovtool.custodian.records import LoanTerms
from aigovtool.custodian.upload import Upload
from aigovtool.errors import UnavailableError
from aigovtool.simulation.platform import SimulatedPlatform
from aigovtool.simulation.policy import simulated_policy
from tests.custodian.house import DIGITS, GENUINE

GRANT = 10  # credits between one moment and the next
MOMENTS = range(3)


@dataclass
class History:
    """A custodian whose ledger, mark and log were kept at each of `MOMENTS`."""

    folder: DataFolder
    mark: Path
    kept: Path

    def opened(self, act: Callable[[App], object]) -> None:
        with open_custodian(self.folder, clock=SystemClock(), environ={}, mark=self.mark) as app:
            act(app)

    def keep(self, moment: int) -> None:
        to = self.kept / str(moment)
        to.mkdir(parents=True)
        shutil.copy(self.folder.ledger, to / "ledger")
        shutil.copy(self.mark, to / "mark")
        shutil.copytree(self.folder.log, to / "log")

    def put_back(self, *, ledger: int, mark: int, log: int) -> None:
        for beside in self.folder.path.glob(f"{self.folder.ledger.name}-*"):
            beside.unlink()
        shutil.copy(self.kept / str(ledger) / "ledger", self.folder.ledger)
        shutil.copy(self.kept / str(mark) / "mark", self.mark)
        shutil.rmtree(self.folder.log)
        shutil.copytree(self.kept / str(log) / "log", self.folder.log)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    path = tmp_path_factory.mktemp("history")
    found = History(DataFolder(path / "custodian"), path / "mark", path / "kept")
    platform = SimulatedPlatform.in_memory(now=SystemClock().now())
    accept = (simulated_policy(platform.root_sha256, GENUINE),)
    initialise(found.folder, clock=SystemClock(), environ={}, accept=accept)

    def begin(app: App) -> None:
        policy = found.folder.policy.read_text()
        wanted = Upload(path=DIGITS)
        lend(app, wanted, credits=GRANT, terms=LoanTerms(), policy=policy, address="127.0.0.1:1")

    def grow(app: App) -> None:
        for _ in range(3):
            app.grants.grant(_loan(app), GRANT, actor="test")
        app.logbook.run()

    found.opened(begin)
    for moment in MOMENTS:
        found.opened(grow)
        found.keep(moment)
    return found


@pytest.mark.parametrize(("ledger", "mark", "log"), list(itertools.product(MOMENTS, repeat=3)))
def test_no_mixture_of_old_and_new_lends_what_may_be_lent_already(
    history: History, ledger: int, mark: int, log: int
) -> None:
    history.put_back(ledger=ledger, mark=mark, log=log)
    newest = max(ledger, mark, log)

    def look(app: App) -> None:
        held = app.ledger.held
        if ledger == newest:
            assert held is None  # nothing here remembers more
            return
        assert held is not None
        assert held.code.startswith("rollback.")
        loan = _loan(app)
        with pytest.raises(UnavailableError):
            app.grants.grant(loan, GRANT, actor="test")
        would = app.reconciling.run(Shown(), apply=False, actor="test")
        # the mark is believed when it is the newest of the three, and only then
        believed = mark == newest
        assert would.vouched is believed
        (account,) = [one for one in would.accounts if one.account == loan]
        granted = [GRANT + 3 * GRANT * (moment + 1) for moment in MOMENTS]
        assert account.left == (granted[mark] if believed else 0)

    history.opened(look)
    history.opened(look)  # a restart forgets nothing of it


def _loan(app: App) -> str:
    with app.ledger.read() as tx:
        (loan,) = tx.loans()
    return loan.loan
