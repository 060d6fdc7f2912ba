"""A daemon in a process of its own: answers Attach by calling the next one; prints its spans when it is told to."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dpu_offload_stubs.attacher.v1 import attacher_pb2, attacher_pb2_grpc
from foundation.daemon import metrics
from foundation.daemon.serving import ErrorTable, dial, listen_unix, make_server
from foundation.tracing import spans
from foundation.tracing.recording import OpenTelemetryRecorder

STEPS = metrics.steps("hop_step_seconds", "Steps of a hop.")


class Hop(attacher_pb2_grpc.VolumeAttacherServicer):
    def __init__(self, onward: str) -> None:
        self._onward = onward

    async def Attach(self, request: attacher_pb2.AttachRequest, context: object) -> attacher_pb2.Attachment:
        with metrics.step_timer(STEPS, step="onward"):
            if not self._onward:
                return attacher_pb2.Attachment(volume_id=request.volume_id)
            channel = dial(self._onward, name="next")
            try:
                return await attacher_pb2_grpc.VolumeAttacherStub(channel).Attach(request)
            finally:
                await channel.close()


def told(exporter: InMemorySpanExporter) -> list[dict[str, str]]:
    return [
        {
            "name": span.name,
            "trace": f"{span.context.trace_id:032x}" if span.context else "",
            "span": f"{span.context.span_id:016x}" if span.context else "",
            "parent": f"{span.parent.span_id:016x}" if span.parent else "",
            "service": str(span.resource.attributes["service.name"]),
        }
        for span in exporter.get_finished_spans()
    ]


async def main(socket: Path, onward: str) -> None:
    exporter = InMemorySpanExporter()
    spans.use(OpenTelemetryRecorder(SimpleSpanProcessor(exporter), service=socket.stem, version="0"))
    server = make_server(errors=ErrorTable({}), service=socket.stem)
    attacher_pb2_grpc.add_VolumeAttacherServicer_to_server(Hop(onward), server)
    listen_unix(server, socket)
    await server.start()
    print("ready", flush=True)  # noqa: T201  # the parent waits for it
    await asyncio.to_thread(sys.stdin.readline)
    await server.stop(1)
    print(json.dumps(told(exporter)), flush=True)  # noqa: T201  # the answer


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
