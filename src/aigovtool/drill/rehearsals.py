"""The scenarios, in the order in which they are played."""

from __future__ import annotations

from aigovtool.drill import collateral, cutoffs, losses, replays, restores
from aigovtool.drill.rehearsal import Scenario

SCENARIOS = (
    Scenario("kill-custodian", "the custodian is killed", cutoffs.kill_custodian),
    Scenario("kill-enclave", "an enclave is killed under load", losses.kill_enclave),
    Scenario("partition", "the network between them fails", cutoffs.partition),
    Scenario("pause", "processes are suspended past their leases", cutoffs.pause),
    Scenario("stop", "the loan is stopped during load", cutoffs.stop_under_load),
    Scenario("race", "enclaves race for the last credits", losses.race),
    Scenario("replay", "old messages are sent again", replays.replay),
    Scenario("restore", "old disks are put back", restores.restore),
    Scenario(
        "collateral",
        "the vendor's collateral expires",
        collateral.expire,
        needs_simulation="a real vendor's collateral cannot be made to expire at will",
    ),
)
