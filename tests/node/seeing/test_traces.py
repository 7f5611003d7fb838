"""Spans of one request come together in one trace on all nodes, with nothing on the wire but its id."""

import subprocess
import sys

import pytest
from lepton.node.seeing import request, traces
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def test_hops_of_other_nodes_hang_below_the_first_span() -> None:
    asker, stage = InMemorySpanExporter(), InMemorySpanExporter()
    with traces.tracing("12D3KooWasker", "laptop", asker), request.entering("POST /v1/completions") as id_:
        session = request.session_id()
    with (
        traces.tracing("12D3KooWstage", "phone", stage),
        pytest.raises(ValueError, match="no"),
        request.following(session, "session.stage", model="tales", first=0),
    ):
        raise ValueError("no")
    (first,), (hop,) = asker.get_finished_spans(), stage.get_finished_spans()
    assert first.context is not None
    assert hop.context is not None
    assert hop.parent is not None
    assert hop.context.trace_id == first.context.trace_id == traces.trace_of(id_)
    assert hop.parent.span_id == first.context.span_id == traces.span_of(id_)
    assert first.parent is None
    assert hop.attributes == {"lepton.request": id_, "lepton.model": "tales", "lepton.first": 0}
    assert hop.resource.attributes["service.instance.id"] == "12D3KooWstage"
    assert not hop.status.is_ok


def test_the_environment_says_whether_there_are_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    assert not traces.wanted()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert traces.wanted()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not traces.wanted()
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert not traces.wanted()


def test_without_being_asked_for_nothing_of_it_is_loaded() -> None:
    program = """
import sys
from lepton.node.seeing import request, traces
with traces.tracing("node", "device"), request.entering("x"), request.following("ab" * 16, "hop"):
    pass
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={"PATH": "/usr/bin"})
