"""Scenarios of I1 and I3: enclaves that die with leases in their hands, and many that race."""

from __future__ import annotations

import time

import msgspec

from aigovtool.custodian.records import LeaseState
from aigovtool.drill.rehearsal import SERVE_LIMIT_S, Rehearsal, settled
from aigovtool.drill.sheet import Measured

CREDITS = 1_000_000
RACE_LIMIT_S = 60.0


def kill_enclave(rehearsal: Rehearsal) -> Measured:
    """One of two enclaves is killed under load; what it held is forfeited by name, and no more."""
    kills = 1 if rehearsal.quick else 3
    with rehearsal.scene("kill-enclave", credits=CREDITS, enclaves=2) as scene:
        rehearsal.ask(scene)
        back = True
        for _ in range(kills):
            enclave = scene.enclaves[0]
            enclave.process.kill()
            scene.restart(enclave)
            scene.stage.wait_until_serving(enclave.process, enclave.port)
            back = back and scene.consumers.wait_for_answer(limit_s=SERVE_LIMIT_S, more=20)
        measured = settled(scene)
        lost = [lease for lease in scene.leases() if lease.state is LeaseState.FORFEITED]
        named = scene.events().count("lease.forfeited")
    return msgspec.structs.replace(
        measured,
        checks=(
            *measured.checks,
            ("the enclave served again each time", back),
            ("what the dead sessions held was forfeited", bool(lost)),
            ("each forfeited lease has an event that names it", named == len(lost)),
        ),
        notes=(
            f"{kills} killed; {len(lost)} leases with {sum(lease.credits for lease in lost)} "
            "credits were forfeited",
        ),
    )


def race(rehearsal: Rehearsal) -> Measured:
    """Four enclaves race for a small budget: it is used to its last credit, and not one more."""
    credits = 60 if rehearsal.quick else 400
    enclaves = 2 if rehearsal.quick else 4
    with rehearsal.scene("race", credits=credits, enclaves=enclaves) as scene:
        for enclave in scene.enclaves:
            scene.consumers.ask(enclave.port, count=rehearsal.consumers)
        end_s = time.monotonic() + RACE_LIMIT_S
        while scene.account().spent < credits and time.monotonic() < end_s:
            time.sleep(0.2)
        measured = settled(scene)
    count = measured.count
    exact = count is not None and count.served == count.granted == credits
    return msgspec.structs.replace(
        measured,
        checks=(*measured.checks, (f"exactly {credits} of {credits} credits were served", exact)),
        notes=(f"{enclaves} enclaves, {enclaves * rehearsal.consumers} consumers",),
    )
