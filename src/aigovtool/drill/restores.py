"""
Scenario of rollbacks: disks that are restored from an old copy, the enclave's and the custodian's.

A ledger that was put back knows nothing of what was leased since; served from, it would lend the
same credits twice. It must be noticed, and nothing may be served until an operator has reconciled
it.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import msgspec

from aigovtool.drill.rehearsal import (
    PAST_BOUND_S,
    SERVE_LIMIT_S,
    SLACK_S,
    Rehearsal,
    cut_off,
    settled,
)
from aigovtool.drill.scene import Scene
from aigovtool.drill.sheet import Measured

CREDITS = 100_000
SINCE_COPY = 60  # answers between the copy and the disaster
HAND_IN_S = 4.0  # for the enclave to hand in what it settled since the copy
LEDGER = "ledger.db"


def restore(rehearsal: Rehearsal) -> Measured:
    """Bring yesterday's disks back: first the enclave's, then the custodian's ledger."""
    bound_s = rehearsal.lease_s + SLACK_S
    with rehearsal.scene("restore", credits=CREDITS) as scene:
        (enclave,) = scene.enclaves
        old_cache = _copy(scene, f"{enclave.name}-cache")
        rehearsal.ask(scene)
        enclave.process.kill()
        _put_back(scene, f"{enclave.name}-cache", old_cache)
        scene.restart(enclave)
        again = scene.consumers.wait_for_answer(limit_s=SERVE_LIMIT_S, more=SINCE_COPY)

        old_ledger = _copy_ledger(scene)
        scene.consumers.wait_for_answer(limit_s=SERVE_LIMIT_S, more=SINCE_COPY)
        fault_s = time.monotonic()
        scene.custodian.kill()
        _put_back_ledger(scene, old_ledger)
        scene.restart_custodian()
        time.sleep(bound_s + PAST_BOUND_S)
        cut = cut_off(scene, "a restore of the custodian's ledger", fault_s, bound_s)
        held = "ledger.held" in scene.events()
        reconciled = scene.stage.custodian(
            "reconcile", "--apply", "--reason", "drill", "--wait", f"{HAND_IN_S:g}"
        )
        scene.resume()
        back = scene.consumers.wait_for_answer(limit_s=SERVE_LIMIT_S, more=SINCE_COPY)
        measured = settled(scene)
    return msgspec.structs.replace(
        measured,
        cut_offs=(cut,),
        checks=(
            *measured.checks,
            ("an enclave with its old disk served again, by a new session", again),
            ("the restored ledger was noticed and held", held),
            (f"it was reconciled: {reconciled.stderr.strip()[-200:]}", reconciled.code == 0),
            ("it served again when it was reconciled", back),
        ),
    )


def _copy(scene: Scene, name: str) -> Path:
    return Path(shutil.copytree(scene.stage.folder / name, scene.stage.folder / f"{name}-old"))


def _put_back(scene: Scene, name: str, copy: Path) -> None:
    shutil.rmtree(scene.stage.folder / name)
    copy.rename(scene.stage.folder / name)


def _copy_ledger(scene: Scene) -> Path:
    """Copy the ledger's files as a snapshot of the disk has them, the process suspended."""
    copies = scene.stage.folder / "ledger-old"
    copies.mkdir()
    scene.custodian.pause()
    for path in scene.folder.path.glob(f"{LEDGER}*"):
        shutil.copy2(path, copies)
    scene.custodian.go_on()
    return copies


def _put_back_ledger(scene: Scene, copies: Path) -> None:
    for path in scene.folder.path.glob(f"{LEDGER}*"):
        path.unlink()
    for path in copies.iterdir():
        shutil.copy2(path, scene.folder.path)
