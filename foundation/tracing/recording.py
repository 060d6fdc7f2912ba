"""The recorder behind spans: OpenTelemetry's SDK, sending by OTLP over HTTP. Imported only when it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, MutableMapping

from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from foundation.tracing import spans
from foundation.tracing.spans import Value


class OpenTelemetryRecorder:
    """Spans of one process. `share` of the traces that begin here are kept; those of others as their beginning says."""

    def __init__(self, processor: SpanProcessor, *, service: str, version: str, share: float = 1.0) -> None:
        resource = Resource.create({"service.name": service, "service.version": version})
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(share)))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("dpu-offload")
        self._propagator: TextMapPropagator = TraceContextTextMapPropagator()

    def span(
        self, name: str, attributes: Mapping[str, Value], *, parent: Mapping[str, str] | None
    ) -> contextlib.AbstractContextManager[Span]:
        """See `spans.Recorder`."""
        context = self._propagator.extract(parent) if parent is not None else None
        return self._tracer.start_as_current_span(name, context=context, attributes=attributes)

    def carry(self, carrier: MutableMapping[str, str]) -> None:
        """See `spans.Recorder`."""
        self._propagator.inject(carrier)

    def close(self) -> None:
        """Sends what waits; blocks for some seconds at most."""
        self._provider.shutdown()


def start(endpoint: str, *, service: str, version: str, share: float) -> OpenTelemetryRecorder:
    """Spans go to `endpoint` (such as http://collector:4318/v1/traces) from a thread of the SDK's."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=5))
    recorder = OpenTelemetryRecorder(processor, service=service, version=version, share=share)
    spans.use(recorder)
    return recorder
