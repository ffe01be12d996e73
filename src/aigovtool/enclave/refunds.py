"""
Which charges are taken back: one table, for every way in which a charged query can end.

Rule 1: work is paid for: an answer that was computed is charged, whoever is still there to read it,
        and so is a computation that took all the time that the enclave allows, or nothing would
        bound how often that is asked for.
Rule 2: whoever got nothing, through no doing of its own, pays nothing; nor does whoever left before
        any work was done.
Rule 3: of an answer that comes in parts each part is paid for as it is given, and nothing else of
        it: what was given stays charged however the rest ends.
Rule 4: only while the lease is open (`till`). After it was settled the charge stays, whatever this
        table says.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from aigovtool.enclave.flights import Cut
from aigovtool.wire.receipt import RefundClass


class Fate(Enum):
    """How a charged query ended."""

    ANSWERED = "it was answered"
    MODEL_ERROR = "the model failed on it, or its answer could not be written"
    OUT_OF_TIME = "its computation took longer than the enclave allows"
    NOT_BEGUN = "it was cancelled before its computation began"
    CLIENT_GONE = "its client left during or after the computation"
    CUT = "its answer was cut off, for whatever reason, when a part of it had been given"
    STOPPED = "the custodian stopped the loan or blocked the consumer"


REFUNDS: Mapping[Fate, RefundClass | None] = MappingProxyType(
    {
        Fate.ANSWERED: None,
        Fate.MODEL_ERROR: "model-error",
        Fate.OUT_OF_TIME: None,
        Fate.NOT_BEGUN: "cancelled",
        Fate.CLIENT_GONE: None,
        Fate.CUT: None,
        Fate.STOPPED: "stopped",
    }
)

REPEATED = frozenset({Fate.ANSWERED, Fate.MODEL_ERROR})
"""What a retry under the same Idempotency-Key is told again although it may have cost nothing in
the end: an answer, or a failure that would be the same once more. Whatever stays charged is told
again too."""


def fate_of(cut: Cut, *, begun: bool) -> Fate:
    """Return the fate of a query that was ended from outside and got nothing."""
    if cut in (Cut.STOPPED, Cut.LAPSED):
        return Fate.STOPPED
    if not begun:
        return Fate.NOT_BEGUN
    return Fate.CLIENT_GONE if cut is Cut.CLIENT_GONE else Fate.OUT_OF_TIME
