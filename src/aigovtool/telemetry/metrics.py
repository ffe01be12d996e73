"""
Numbers for Prometheus: how they are kept, and how they are shown.

Rule 1: what happens often costs an addition; the rest is read when Prometheus asks.
Rule 2: no registry is global: a server shows its own collectors and its process, nothing else.
Rule 3: a label has few values, known beforehand; no consumer, key or text of a person is one.

Names follow https://prometheus.io/docs/practices/naming/; the formats are the text format 0.0.4 and
OpenMetrics, as the scraper's Accept header asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from aigovtool import __version__

Labels = Mapping[tuple[str, ...], float]

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Times:
    """How long something took, in the buckets of `BOUNDS_S`. Not for two threads at a time."""

    __slots__ = ("_counts", "_sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self._sum_s += seconds

    def show(self, family: HistogramMetricFamily, labels: Iterable[str] = ()) -> None:
        """Add this as one series of *family*."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric(list(labels), buckets=buckets, sum_value=self._sum_s)


def times(name: str, help_: str, kept: Times) -> HistogramMetricFamily:
    """Return a histogram without labels."""
    family = HistogramMetricFamily(name, help_)
    kept.show(family)
    return family


def gauge(name: str, help_: str, value: float) -> GaugeMetricFamily:
    """Return a gauge without labels."""
    return GaugeMetricFamily(name, help_, value=value)


def counter(name: str, help_: str, value: float) -> CounterMetricFamily:
    """Return a counter without labels; *name* ends in ``_total``."""
    return CounterMetricFamily(name, help_, value=value)


def gauges(name: str, help_: str, labels: tuple[str, ...], values: Labels) -> GaugeMetricFamily:
    """Return a gauge with a series for each of *values*, by the values of its *labels*."""
    family = GaugeMetricFamily(name, help_, labels=labels)
    for of, value in values.items():
        family.add_metric(of, value)
    return family


def counters(name: str, help_: str, labels: tuple[str, ...], values: Labels) -> CounterMetricFamily:
    """Return a counter with a series for each of *values*, by the values of its *labels*."""
    family = CounterMetricFamily(name, help_, labels=labels)
    for of, value in values.items():
        family.add_metric(of, value)
    return family


def info(name: str) -> Metric:
    """Return which version this is, as a gauge that is always 1."""
    return gauges(name, "The program that runs, always 1", ("version",), {(__version__,): 1})


def render(collector: Collector, accept: str) -> tuple[bytes, str]:
    """
    Return what *collector* and the process show now, and its content type.

    Args:
        accept: the scraper's Accept header; empty for the text format.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
