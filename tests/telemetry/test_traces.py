"""Spans when they are configured: whose trace, and that nothing of a query is in them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from aigovtool.errors import ConfigurationError
from aigovtool.telemetry import traces
from tests.enclave.conftest import custodian, key, running_enclave  # noqa: F401
from tests.enclave.custodian import FakeCustodian

ON = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "kanarienvogel"


def kept(exporter: InMemorySpanExporter) -> Sequence[ReadableSpan]:
    return exporter.get_finished_spans()


async def test_a_query_is_a_span_of_its_consumers_trace(custodian: FakeCustodian) -> None:  # noqa: F811
    exporter = InMemorySpanExporter()
    with traces.tracing("enclave", ON, exporter=exporter):
        async with running_enclave(custodian) as enclave:
            assert (await enclave.infer(value=7313.1377, Traceparent=PARENT))[0] == 200
            assert (await enclave.infer(body=b'{"' + SECRET.encode(), Traceparent=SECRET))[0] == 400
            await enclave.get("/v1/budget", custodian.alice)
    first, second = kept(exporter)
    assert (first.name, second.name) == ("infer", "infer")
    assert f"{first.context.trace_id:032x}" == PARENT.split("-")[1]
    assert first.parent is not None
    assert f"{first.parent.span_id:016x}" == PARENT.split("-")[2]
    assert second.parent is None
    assert dict(first.attributes or {}) == {"http.response.status_code": 200}
    for span in (first, second):
        text = span.to_json() + repr(span.attributes)
        for secret in (SECRET, "7313", custodian.alice.key, custodian.alice.id):
            assert secret not in text


def test_a_failure_is_told_by_its_kind_alone() -> None:
    exporter = InMemorySpanExporter()

    @traces.traced("outer")
    def fails() -> None:
        with traces.span("inner"):
            raise ValueError(SECRET)

    with traces.tracing("test", ON, exporter=exporter), pytest.raises(ValueError, match=SECRET):
        fails()
    inner, outer = kept(exporter)
    assert inner.parent is not None
    assert inner.parent.span_id == outer.context.span_id
    for span in (inner, outer):
        assert span.status.status_code is StatusCode.ERROR
        assert dict(span.attributes or {}) == {"error.type": "ValueError"}
        assert SECRET not in span.to_json()


@pytest.mark.parametrize(
    "environ", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, {**ON, "OTEL_SDK_DISABLED": "true"}]
)
def test_unless_it_is_configured_nothing_is_kept(environ: dict[str, str]) -> None:
    with traces.tracing("test", environ), traces.span("x") as set_number:
        set_number("a", 1)
        assert not traces.on()


def test_unless_it_is_configured_nothing_is_imported() -> None:
    program = (
        "import sys\nfrom aigovtool.telemetry.traces import tracing, span\n"
        "with tracing('x', {}), span('y'): pass\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_configured_and_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError, match="not installed"), traces.tracing("test", ON):
        pass
    assert not traces.on()
