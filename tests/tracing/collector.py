"""A collector of traces: OTLP over HTTP, everything kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Seen:
    """A span as it arrived; ids in hexadecimal digits, `parent` "" for the first of a trace."""

    trace: str
    id: str
    parent: str
    service: str
    name: str


@dataclass
class Collector:
    """As an async context manager it serves at `url`."""

    url: str = ""
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)

    async def __aenter__(self) -> Collector:
        application = web.Application()
        application.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v1/traces"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        self.requests.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response()

    def spans(self) -> list[Seen]:
        return [
            Seen(
                trace=span.trace_id.hex(),
                id=span.span_id.hex(),
                parent=span.parent_span_id.hex(),
                service=next(one.value.string_value for one in group.resource.attributes if one.key == "service.name"),
                name=span.name,
            )
            for request in self.requests
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]

    def ancestry(self, name: str) -> list[list[str]]:
        """For each span of this name, the names from the beginning of its trace down to it."""
        spans = {span.id: span for span in self.spans()}
        found = []
        for span in spans.values():
            if span.name == name:
                way = [span.name]
                while (above := spans.get(span.parent)) is not None:
                    way.insert(0, above.name)
                    span = above
                found.append(way)
        return found
