"""
What stories share: steps that are told as they go, the first that fails is the last that runs.

Each step does what its title says through the surfaces that users have, checks the outcome, and
fails the demo when it is not what it should be.
"""

from __future__ import annotations

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aigovtool.demo.stage import Outcome, Process, Stage
from aigovtool.errors import AIGovToolError


class StepFailed(Exception):
    """What a step saw is not what it promises."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """One line of a story as it went."""

    name: str
    ok: bool
    detail: str


def check(condition: object, detail: str) -> None:
    """Fail the step with *detail* unless *condition* holds."""
    if not condition:
        raise StepFailed(detail)


def succeeded(outcome: Outcome) -> Outcome:
    check(outcome.code == 0, f"exit code {outcome.code}: {outcome.stderr.strip()[-600:]}")
    return outcome


@dataclass
class Story(ABC):
    """The steps in order, on one stage; each returns what to tell about it."""

    stage: Stage
    enclave: Process | None = None
    enclave_port: int = 0
    custodian: Process | None = None

    @abstractmethod
    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        """Return each step with its title."""

    def make_custodian(self) -> str:
        succeeded(self.stage.init())
        return "the simulated root protects nothing from this machine's owner"

    def host(self) -> str:
        begin = time.monotonic()
        self.enclave, self.enclave_port = self.stage.serve_enclave()
        return f"ready {time.monotonic() - begin:.1f} s after its start"


def tell(
    story_on: Callable[[Stage], Story], folder: Path, on_step: Callable[[StepResult], None]
) -> list[StepResult]:
    """Run all steps of a story in *folder*, reporting each, until one fails."""
    results: list[StepResult] = []
    with Stage(folder) as stage:
        for name, step in story_on(stage).steps():
            try:
                result = StepResult(name, ok=True, detail=step())
            except (StepFailed, AIGovToolError, subprocess.SubprocessError) as error:
                result = StepResult(name, ok=False, detail=str(error))
            results.append(result)
            on_step(result)
            if not result.ok:
                break
    return results
