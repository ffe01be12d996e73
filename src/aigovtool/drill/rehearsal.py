"""What every scenario is given, and how scenarios are run one after the other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aigovtool.custodian.records import LoanTerms
from aigovtool.drill.scene import Scene, open_scene
from aigovtool.drill.sheet import CutOff, Measured, Result, judge
from aigovtool.errors import AIGovToolError

PUSH_LIMIT_S = 1.0  # a stop reaches a connected enclave within it (I2)
SLACK_S = 0.25  # from an admission just in time to its answer in the consumer's hands
SETTLE_GRACE_S = 3.0
SETTLE_LIMIT_S = 30.0
SERVE_LIMIT_S = 30.0  # until an enclave that was lost serves again
WARM_UP = 60  # answers before anything is broken
PAST_BOUND_S = 1.0  # asking goes on so long after a bound, to see that nothing is served


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """
    The terms of a run.

    Args:
        folder: scenarios run in folders of their own in it.
        tee: what enclaves attest with.
        policy: what evidence loans accept, when it is not the simulated platform's.
    """

    folder: Path
    tee: str
    policy: Path | None
    quick: bool

    @property
    def lease_s(self) -> float:
        return 1.0 if self.quick else 2.0

    @property
    def consumers(self) -> int:
        """How many ask each enclave."""
        return 3 if self.quick else 6

    @contextlib.contextmanager
    def scene(
        self, name: str, *, credits: int, enclaves: int = 1, reattest_interval_s: float = 3600.0
    ) -> Iterator[Scene]:
        """A custodian, *enclaves* that serve, and consumers that have begun to ask them."""
        with open_scene(self.folder / name, tee=self.tee, policy=self.policy) as scene:
            scene.lend(
                credits,
                LoanTerms(
                    lease_duration_s=self.lease_s,
                    settle_grace_s=SETTLE_GRACE_S,
                    reattest_interval_s=reattest_interval_s,
                ),
            )
            for _ in range(enclaves):
                scene.add_enclave()
            yield scene

    def ask(self, scene: Scene) -> None:
        """Let consumers ask every enclave, and wait until they are served."""
        for enclave in scene.enclaves:
            scene.consumers.ask(enclave.port, count=self.consumers)
        scene.consumers.wait_for_answer(limit_s=SERVE_LIMIT_S, more=WARM_UP)


@dataclass(frozen=True, slots=True)
class Scenario:
    """
    Args:
        name: for ``--only``.
        title: what is rehearsed, in a few words.
        needs_simulation: why it cannot be had on a real TEE; None when it can.
    """

    name: str
    title: str
    run: Callable[[Rehearsal], Measured]
    needs_simulation: str | None = None


def cut_off(scene: Scene, after: str, fault_s: float, bound_s: float) -> CutOff:
    """Say what consumers saw after a fault at *fault_s* (monotonic)."""
    seen = scene.consumers.seen
    past = [at for at in list(seen.refused_s) if at >= fault_s + bound_s]
    return CutOff(
        after=after,
        measured_s=seen.last_answer_after(fault_s),
        bound_s=bound_s,
        tried=len(past) + seen.asking + len(seen.served_after(fault_s + bound_s)),
    )


def settled(scene: Scene) -> Measured:
    """Let consumers rest and leases be settled or forfeited, and count."""
    scene.consumers.rest()
    scene.settle(limit_s=SETTLE_LIMIT_S)
    untrue = scene.consumers.seen.untrue
    return Measured(
        count=scene.reconcile(),
        checks=((f"every receipt is genuine: {untrue[:1]}", not untrue),),
    )


def play(
    rehearsal: Rehearsal, scenarios: Sequence[Scenario], on_result: Callable[[Result], None]
) -> list[Result]:
    """Run *scenarios* and judge each; one that breaks down has failed, and the others go on."""
    results = []
    for scenario in scenarios:
        begin_s = time.monotonic()
        measured, broke, skipped = Measured(), "", None
        if scenario.needs_simulation is not None and rehearsal.tee != "simulated":
            skipped = scenario.needs_simulation
        else:
            try:
                measured = scenario.run(rehearsal)
            except AIGovToolError as error:
                broke = f"it could not be played to its end: {error}"
            except Exception as error:  # noqa: BLE001 - a drill that breaks has not passed
                broke = f"it broke down by a fault of this program: {type(error).__name__}: {error}"
        result = Result(
            name=scenario.name,
            title=scenario.title,
            seconds=round(time.monotonic() - begin_s, 1),
            measured=measured,
            wrong=() if skipped else ((broke,) if broke else ()) + judge(measured),
            skipped=skipped,
        )
        results.append(result)
        on_result(result)
    return results
