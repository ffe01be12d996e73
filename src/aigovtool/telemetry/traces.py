"""
OpenTelemetry traces, when the standard variables configure them (``OTEL_EXPORTER_OTLP_ENDPOINT``).

Rule 1: without them nothing is imported, and a span costs a look at a variable.
Rule 2: a span has a name of ours, times, a status and an error's kind: no input, output, key,
        token, id of a consumer or message of an exception is an attribute (I5).
Rule 3: a consumer's ``traceparent`` (W3C Trace Context) is taken up by the enclave and goes no
        further: the custodian does not learn which query asked for a lease.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

from aigovtool.errors import ConfigurationError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
DISABLED = "OTEL_SDK_DISABLED"
SERVICE_NAME = "OTEL_SERVICE_NAME"
MAX_TRACEPARENT_BYTES = 55  # version 00; W3C Trace Context section 3.2
FLUSH_MS = 3_000

P = ParamSpec("P")
R = TypeVar("R")

_tracer: Any = None  # of the process, as its log is


def on() -> bool:
    """Whether spans are kept."""
    return _tracer is not None


def is_configured(environ: Mapping[str, str]) -> bool:
    """Whether the standard variables ask for traces."""
    disabled = environ.get(DISABLED, "").strip().lower() == "true"
    return not disabled and any(environ.get(name) for name in ENDPOINTS)


@contextlib.contextmanager
def tracing(service: str, environ: Mapping[str, str], *, exporter: Any = None) -> Iterator[None]:
    """
    Keep spans for the length of the block, if *environ* asks for them.

    Args:
        service: its name, unless ``OTEL_SERVICE_NAME`` says another.
        exporter: instead of OTLP over HTTP.

    Raises:
        ConfigurationError: they are asked for, and OpenTelemetry is not installed.
    """
    global _tracer  # noqa: PLW0603
    if not is_configured(environ):
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError(
            "traces are configured, and OpenTelemetry is not installed",
            came=" or ".join(name for name in ENDPOINTS if environ.get(name)),
            mend="pip install 'aigovtool[otel]', or unset the variable",
        ) from None
    resource = Resource.create({"service.name": environ.get(SERVICE_NAME) or service})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    _tracer = provider.get_tracer("aigovtool")
    try:
        yield
    finally:
        _tracer = None
        provider.force_flush(FLUSH_MS)
        provider.shutdown()


@contextlib.contextmanager
def span(name: str, *, traceparent: str | None = None) -> Iterator[Callable[[str, int], None]]:
    """
    Keep the block as a span; lends what sets a number on it.

    Args:
        traceparent: of whoever asked, None to go on from the span around this one.
    """
    if _tracer is None:
        yield _nothing
        return
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

    with _tracer.start_as_current_span(
        name,
        context=_context_of(traceparent),
        record_exception=False,  # its message could quote what was being handled
        set_status_on_exception=False,
    ) as kept:
        try:
            yield kept.set_attribute
        except Exception as error:
            kept.set_attribute("error.type", type(error).__name__)
            kept.set_status(Status(StatusCode.ERROR))
            raise


def traced(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return the decorator that keeps a function's calls as spans."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if _tracer is None:
                return function(*args, **kwargs)
            with span(name):
                return function(*args, **kwargs)

        return call

    return decorate


def _nothing(_: str, __: int) -> None:
    """Set a number on no span."""


def _context_of(traceparent: str | None) -> Any:
    if traceparent is None or len(traceparent) != MAX_TRACEPARENT_BYTES:
        return None
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})
