"""
Scenario of I4 over time: evidence whose collateral has expired releases nothing, and holds nothing.

The enclave's host is made to hand out collateral that expires soon and is never fetched anew: by a
`sitecustomize` in the enclave's process, since the simulated platform itself renews in time. The
measured code is the genuine one.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from aigovtool.drill.rehearsal import PAST_BOUND_S, PUSH_LIMIT_S, Rehearsal, cut_off, settled
from aigovtool.drill.scene import Scene
from aigovtool.drill.sheet import Measured

CREDITS = 1_000_000
LIFE_S = 8.0
REATTEST_S = 2.0
SWEEP_S = 1.0  # the custodian looks that often whom it has to ask again
JUDGE_S = 1.0  # for the evidence to be made, sent and judged

STALE_HOST = """
from datetime import timedelta
from aigovtool.simulation.platform import SimulatedPlatform
_kept = []
def endorsements(self, now):
    if not _kept:
        _kept.append(self.make_endorsements(now, life=timedelta(seconds={life_s})))
    return _kept[0]
SimulatedPlatform.endorsements = endorsements
"""


def expire(rehearsal: Rehearsal) -> Measured:
    """Collateral expires under a session that lives, and then before one is opened."""
    with rehearsal.scene(
        "collateral", credits=CREDITS, enclaves=0, reattest_interval_s=REATTEST_S
    ) as scene:
        stale = scene.add_enclave(environment=changed(scene, "stale", STALE_HOST, life_s=LIFE_S))
        expires_s = time.monotonic() + LIFE_S  # at the latest: it was signed before
        rehearsal.ask(scene)
        served_until_s = time.monotonic()
        bound_s = REATTEST_S + SWEEP_S + JUDGE_S + PUSH_LIMIT_S
        time.sleep(max(0.0, expires_s - time.monotonic()) + bound_s + PAST_BOUND_S)
        cut = cut_off(scene, "the expiry of an enclave's collateral", expires_s, bound_s)
        events = scene.events()
        ended = "session.ended" in events or "reattestation.refused" in events
        refused = "appraisal.refused" in events
        stale.process.kill()
        measured = settled(scene)
    return msgspec.structs.replace(
        measured,
        cut_offs=(cut,),
        checks=(
            *measured.checks,
            ("it was served while the collateral was good", served_until_s < expires_s),
            ("the session with expired collateral was ended", ended),
            ("its enrolment with expired collateral was refused", refused),
        ),
    )


def changed(scene: Scene, name: str, code: str, **values: float) -> dict[str, str]:
    """Return the environment of a process that runs *code* before anything else."""
    folder: Path = scene.stage.folder / f"{name}-python"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code.format(**values))
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *([inherited] if inherited else [])])}
