"""The accept table that names one simulated platform and one measurement."""

from __future__ import annotations

from aigovtool.attestation.dcap.tcb import TcbStatus
from aigovtool.attestation.simulated import SimulatedPolicy
from aigovtool.simulation.documents import TCB_EVALUATION_NUMBER
from aigovtool.simulation.measure import Measurement
from aigovtool.simulation.platform import MR_SEAM, XFAM

_ZEROS = "00" * 48


def simulated_policy(root_sha256: bytes, measurement: Measurement) -> SimulatedPolicy:
    """
    Return the strictest alternative that accepts *measurement* under *root_sha256*.

    The PPID is free: whoever holds the root can make platforms at will.
    """
    return SimulatedPolicy(
        root_sha256=root_sha256.hex(),
        mr_td=(measurement.mr_td.hex(),),
        rt_mr0=(_ZEROS,),
        rt_mr1=(_ZEROS,),
        rt_mr2=(_ZEROS,),
        rt_mr3=(_ZEROS,),
        mr_config_id=(_ZEROS,),
        mr_owner=(_ZEROS,),
        mr_owner_config=(_ZEROS,),
        mr_service_td=(_ZEROS,),
        mr_seam=(MR_SEAM.hex(),),
        debug=False,
        sept_ve_disable="set",
        migratable="clear",
        pks="clear",
        key_locker="clear",
        perfmon="clear",
        xfam=XFAM.hex(),
        xfam_mask="ff" * 8,
        tcb_statuses=(TcbStatus.UP_TO_DATE,),
        tcb_grace_days=0,
        min_tcb_evaluation_number=TCB_EVALUATION_NUMBER,
        advisories_refused=(),
        pinned_platforms="any",
        smt="any",
        dynamic_platform="any",
        cached_keys="any",
    )
