"""
What Prometheus sees of an enclave: what the host of it may see anyway, as totals.

Rule 1: no consumer, key, input or output is in any number; nor is a number of one query (I5).
Rule 2: the hot path adds up plain numbers; all else is read when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from aigovtool.clock import Clock
from aigovtool.enclave.enclave import Enclave
from aigovtool.enclave.lifecycle import State
from aigovtool.enclave.model_room import ModelRoom
from aigovtool.enclave.session import Session
from aigovtool.telemetry.metrics import Times, counter, counters, gauge, gauges, info, times


class Tally:
    """What came of queries, added up by the API on the event loop."""

    __slots__ = ("_statuses", "_times", "gone")

    def __init__(self) -> None:
        self._statuses: dict[int, int] = {}
        self._times = Times()
        self.gone = 0  # whose client left before there was an answer

    def answered(self, status: int, seconds: float) -> None:
        """A query was answered, *seconds* after its head had come."""
        self._statuses[status] = self._statuses.get(status, 0) + 1
        self._times.add(seconds)

    def show(self) -> Iterator[Metric]:
        """Yield it for Prometheus."""
        yield counters(
            "aigovtool_enclave_queries_total",
            "Queries answered, by HTTP status",
            ("code",),
            {(str(status),): count for status, count in self._statuses.items()},
        )
        yield counter(
            "aigovtool_enclave_queries_abandoned_total",
            "Queries whose client left before there was an answer",
            self.gone,
        )
        yield times(
            "aigovtool_enclave_query_seconds",
            "From a query's head to its answer, its body and any wait for credits included",
            self._times,
        )


class Metrics(Collector):
    """
    The numbers of one enclave server; `collect` runs on the event loop and waits for nothing.

    Args:
        enclaves: of each loan that it serves.
        models: the memory that they take.
        computing: how long computations took.
    """

    def __init__(
        self,
        *,
        enclaves: Sequence[Enclave],
        models: ModelRoom,
        computing: Times,
        tally: Tally,
        clock: Clock,
    ) -> None:
        self._enclaves = enclaves
        self._models = models
        self._computing = computing
        self._tally = tally
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        enclaves, now_s = self._enclaves, self._clock.monotonic_s()
        yield info("aigovtool_enclave_info")
        yield gauges(
            "aigovtool_enclave_state",
            "How many of the loans that it serves are in this state",
            ("state",),
            {(state,): float(sum(one.life.state is state for one in enclaves)) for state in State},
        )
        yield from self._tally.show()
        yield times(
            "aigovtool_enclave_compute_seconds",
            "From a query's charge to its outputs, the wait for a thread included",
            self._computing,
        )
        yield gauge(
            "aigovtool_enclave_in_flight",
            "Queries charged and being computed",
            sum(one.in_flight for one in enclaves),
        )
        yield gauge(
            "aigovtool_enclave_model_bytes",
            "Memory that models take, of --max-model-bytes",
            self._models.taken_bytes,
        )
        yield counter(
            "aigovtool_enclave_sessions_total",
            "Sessions that were enrolled",
            sum(one.sessions for one in enclaves),
        )
        yield counter(
            "aigovtool_enclave_receipts_total",
            "Receipts issued",
            sum(one.receipts for one in enclaves),
        )
        sessions = [one.session for one in enclaves if one.session is not None]
        yield from _of_sessions(sessions, len(enclaves), now_s)


def _of_sessions(sessions: Sequence[Session], loans: int, now_s: float) -> Iterator[Metric]:
    """Yield what the sessions stand at together; all 0 without one."""
    renewals = [session.renewal for session in sessions]
    waiting = [waiter.patient for renewal in renewals for waiter in renewal.queue]
    yield gauges(
        "aigovtool_enclave_waiting",
        "Queries that wait: for credits that exist (lease), or for a decision on more (more)",
        ("for",),
        {("lease",): waiting.count(False), ("more",): waiting.count(True)},
    )
    meters = [session.till.meter for session in sessions]
    yield gauge(
        "aigovtool_enclave_lease_credits",
        "Credits in live leases",
        sum(meter.credits(now_s) for meter in meters),
    )
    yield gauge(
        "aigovtool_enclave_lease_seconds",
        "Until the last live lease expires",
        max((meter.valid_until_s() - now_s for meter in meters if meter.live(now_s)), default=0),
    )
    yield gauge(
        "aigovtool_enclave_loan_credits_left",
        "Credits that custodians last said are leased to nobody",
        sum(renewal.standing.left for renewal in renewals),
    )
    yield gauge(
        "aigovtool_enclave_unsettled_leases",
        "Closed leases whose settlement the custodian has not acknowledged",
        sum(renewal.unsettled_leases for renewal in renewals),
    )
    connected = sum(renewal.connected for renewal in renewals)
    yield gauge(
        "aigovtool_enclave_connected",
        "1 while every loan's control connection to its custodian is open",
        float(connected == loans),
    )
