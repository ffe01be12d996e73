"""
Scenarios of I2: whatever takes the custodian's word away ends service within the promised time.

Consumers ask all the time; what counts is the last answer to a query that was asked after the
fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from aigovtool.drill.proxy import Wire
from aigovtool.drill.rehearsal import (
    PAST_BOUND_S,
    PUSH_LIMIT_S,
    SERVE_LIMIT_S,
    SETTLE_LIMIT_S,
    SLACK_S,
    Rehearsal,
    cut_off,
    settled,
)
from aigovtool.drill.scene import Scene
from aigovtool.drill.sheet import CutOff, Measured

CREDITS = 1_000_000


def stop_under_load(rehearsal: Rehearsal) -> Measured:
    """The operator stops the loan while two enclaves serve."""
    with rehearsal.scene("stop", credits=CREDITS, enclaves=2) as scene:
        rehearsal.ask(scene)
        fault_s = time.monotonic()
        scene.stop("drill: stop during load")
        time.sleep(PUSH_LIMIT_S + PAST_BOUND_S)
        cut = cut_off(scene, "a stop under load", fault_s, PUSH_LIMIT_S)
        proven = _wait(lambda: scene.events().count("session.stop_proof") >= 2, SETTLE_LIMIT_S)
        measured = settled(scene)
    return msgspec.structs.replace(
        measured,
        cut_offs=(cut,),
        checks=(*measured.checks, ("both enclaves proved that key and model are wiped", proven)),
    )


def kill_custodian(rehearsal: Rehearsal) -> Measured:
    """The custodian's process is killed, and comes back."""
    bound_s = rehearsal.lease_s + SLACK_S
    with rehearsal.scene("kill-custodian", credits=CREDITS) as scene:
        rehearsal.ask(scene)
        fault_s = time.monotonic()
        scene.custodian.kill()
        time.sleep(bound_s + PAST_BOUND_S)
        cut = cut_off(scene, "SIGKILL of the custodian", fault_s, bound_s)
        scene.restart_custodian()
        return _healed(scene, cut)


def partition(rehearsal: Rehearsal) -> Measured:
    """The wire between enclave and custodian fails in each of its ways."""
    bound_s = rehearsal.lease_s + SLACK_S
    wires = [Wire.FROZEN] if rehearsal.quick else [Wire.FROZEN, Wire.HALF_OPEN, Wire.CUT]
    cuts: list[CutOff] = []
    with rehearsal.scene("partition", credits=CREDITS) as scene:
        rehearsal.ask(scene)
        (enclave,) = scene.enclaves
        for wire in wires:
            fault_s = time.monotonic()
            enclave.proxy.set(wire)
            time.sleep(bound_s + PAST_BOUND_S)
            cuts.append(cut_off(scene, f"a wire that is {wire.value}", fault_s, bound_s))
            enclave.proxy.set(Wire.PASSING)
            back = scene.consumers.wait_for_answer(limit_s=SERVE_LIMIT_S, more=WARM_AGAIN)
            if not back:
                break
        return _healed(scene, *cuts)


def pause(rehearsal: Rehearsal) -> Measured:
    """
    Suspended processes (SIGSTOP), for longer than a lease.

    First the custodian. Then the enclave, and while it is suspended the loan is stopped: when it
    goes on, neither what it held nor what waits at its door may be served.
    """
    bound_s = rehearsal.lease_s + SLACK_S
    with rehearsal.scene("pause", credits=CREDITS) as scene:
        rehearsal.ask(scene)
        (enclave,) = scene.enclaves
        fault_s = time.monotonic()
        scene.custodian.pause()
        time.sleep(bound_s + PAST_BOUND_S)
        cuts = [cut_off(scene, "SIGSTOP of the custodian", fault_s, bound_s)]
        scene.custodian.go_on()
        back = scene.consumers.wait_for_answer(limit_s=SERVE_LIMIT_S, more=WARM_AGAIN)
        enclave.pause()
        fault_s = time.monotonic()
        scene.stop("drill: stop while the enclave is suspended")
        time.sleep(rehearsal.lease_s + SLACK_S)
        enclave.go_on()
        time.sleep(PUSH_LIMIT_S + PAST_BOUND_S)
        cuts.append(cut_off(scene, "SIGCONT of a suspended enclave", fault_s, 0.0))
        measured = settled(scene)
    return msgspec.structs.replace(
        measured,
        cut_offs=tuple(cuts),
        checks=(*measured.checks, ("it served again after the custodian went on", back)),
    )


WARM_AGAIN = 10  # answers that show that it serves again


def _healed(scene: Scene, *cuts: CutOff) -> Measured:
    """All is whole again: service must come back, nothing may be lost."""
    back = scene.consumers.wait_for_answer(limit_s=SERVE_LIMIT_S, more=WARM_AGAIN)
    measured = settled(scene)
    return msgspec.structs.replace(
        measured,
        cut_offs=cuts,
        checks=(*measured.checks, ("it served again when all was whole", back)),
    )


def _wait(until: Callable[[], bool], limit_s: float) -> bool:
    end_s = time.monotonic() + limit_s
    while not until():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.1)
    return True
