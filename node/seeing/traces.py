"""Spans of requests for OpenTelemetry, where `lepton-node[traces]` is installed and a place to send them is named.

A request's id says its trace and its first span, so every node that sees the id adds its spans to the same trace, and
no header has to travel. Without the extra, or without one of the standard OTEL_ variables that name an exporter,
nothing is imported and nothing done.
"""

import hashlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from opentelemetry.sdk.trace.export import SpanExporter

# Any of these says that spans are wanted (OpenTelemetry's environment variable specification).
_ASKED_BY: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
)
_FLUSH_MS: Final = 2000  # at the end, for what was not sent yet

log = logging.getLogger(__name__)


class _Tracing:
    """What makes spans, once `tracing` has begun."""

    tracer: Any = None
    context: Any = None


def wanted() -> bool:
    """Whether the environment names a place for spans."""
    if os.environ.get("OTEL_TRACES_EXPORTER") == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return any(os.environ.get(name) for name in _ASKED_BY)


def trace_of(request: str) -> int:
    """Return the trace of a request: the same on all nodes."""
    return int.from_bytes(hashlib.sha256(f"lepton trace {request}".encode()).digest()[:16]) or 1


def span_of(request: str) -> int:
    """Return a request's first span."""
    return int(request, 16) or 1


@contextmanager
def tracing(node: str, device: str, exporter: "SpanExporter | None" = None) -> Iterator[None]:
    """Send spans until the block ends, where that is wanted; ``exporter`` takes the place of the environment's."""
    if exporter is None and not wanted():
        yield
        return
    if importlib.util.find_spec("opentelemetry") is None or importlib.util.find_spec("opentelemetry.sdk") is None:
        log.warning("traces are asked for, but not installed; install: pip install 'lepton-node[traces]'")
        yield
        return
    provider = _provider(node, device, exporter)
    before = _Tracing.tracer
    _Tracing.tracer = provider.get_tracer("lepton.node")
    try:
        yield
    finally:
        _Tracing.tracer = before
        provider.force_flush(_FLUSH_MS)
        provider.shutdown()


def _provider(node: str, device: str, exporter: "SpanExporter | None") -> Any:  # noqa: ANN401 - of the extra
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator

    random = RandomIdGenerator()

    class Ids(IdGenerator):
        """Random ids, but for the first span of a request."""

        def generate_trace_id(self) -> int:
            return trace_of(_first.request) if _first.request else random.generate_trace_id()

        def generate_span_id(self) -> int:
            return span_of(_first.request) if _first.request else random.generate_span_id()

    about = Resource.create({"service.name": "lepton-node", "service.instance.id": node, "host.name": device})
    provider = TracerProvider(resource=about, id_generator=Ids())
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class _First:
    """The request whose first span is being made just now, if one is: ids are asked for without arguments."""

    request = ""


_first: Final = _First()


def root(what: str, request: str) -> "AbstractContextManager[object]":
    """Return the first span of a request."""
    if _Tracing.tracer is None:
        return nullcontext()
    return _root(what, request)


@contextmanager
def _root(what: str, request: str) -> Iterator[None]:
    from opentelemetry.context import Context

    _first.request = request
    try:
        span = _Tracing.tracer.start_span(what, context=Context(), attributes={"lepton.request": request})
    finally:
        _first.request = ""
    with _ending(span):
        yield


def hop(what: str, request: str, about: Mapping[str, str | int]) -> "AbstractContextManager[object]":
    """Return a span of what a node does for a request that it, or another, began."""
    if _Tracing.tracer is None or not what:
        return nullcontext()
    return _hop(what, request, about)


@contextmanager
def _hop(what: str, request: str, about: Mapping[str, str | int]) -> Iterator[None]:
    from opentelemetry import trace
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

    first = SpanContext(trace_of(request), span_of(request), is_remote=True, trace_flags=TraceFlags(1))
    context = trace.set_span_in_context(NonRecordingSpan(first))
    attributes = {"lepton.request": request, **{f"lepton.{key}": value for key, value in about.items()}}
    span = _Tracing.tracer.start_span(what, context=context, attributes=attributes)
    with _ending(span):
        yield


@contextmanager
def _ending(span: Any) -> Iterator[None]:  # noqa: ANN401 - of the extra
    """End a span with the block, and say in it how that failed."""
    from opentelemetry.trace import Status, StatusCode

    try:
        yield
    except Exception as error:
        span.set_status(Status(StatusCode.ERROR, str(error)[:200]))
        raise
    finally:
        span.end()
