"""One trace goes through several processes by gRPC metadata; off, it costs no import and no metadata."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dpu_offload_stubs.attacher.v1 import attacher_pb2, attacher_pb2_grpc
from foundation.daemon.serving import dial
from foundation.tracing import recording, spans
from tests.tracing.collector import Collector
from tests.tracing.hop import told

ATTACH = "dpu_offload.attacher.v1.VolumeAttacher/Attach"
WAIT_SECONDS = 40.0


class Process:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            return (await self._process.stdout.readline()).decode()

    async def spans(self) -> list[dict[str, str]]:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        return list(json.loads(await self.line()))


@asynccontextmanager
async def hop(socket: Path, onward: str = "") -> AsyncIterator[Process]:
    command = (sys.executable, "-m", "tests.tracing.hop", str(socket), onward)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        running = Process(process)
        assert await running.line() == "ready\n"
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    spans.use(recording.OpenTelemetryRecorder(SimpleSpanProcessor(exporter), service="csi-controller", version="0"))
    yield exporter
    spans.use(None)


async def attach(socket: Path) -> attacher_pb2.Attachment:
    channel = dial(f"unix:{socket}", name="csi-node-dpu")
    try:
        stub = attacher_pb2_grpc.VolumeAttacherStub(channel)
        return await stub.Attach(attacher_pb2.AttachRequest(volume_id="main:v1"), timeout=WAIT_SECONDS)
    finally:
        await channel.close()


async def test_one_trace_covers_the_way_through_three_processes(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    near, far = tmp_path / "csi-node-dpu.sock", tmp_path / "volume-attacher.sock"
    async with AsyncExitStack() as stack:
        last = await stack.enter_async_context(hop(far))
        middle = await stack.enter_async_context(hop(near, f"unix:{far}"))
        with spans.span("publish", volume="main:v1"):
            await attach(near)
        here, there, beyond = told(exporter), await middle.spans(), await last.spans()
    (root,) = here
    chain = [root]
    for name, service in ((ATTACH, near.stem), ("onward", near.stem), (ATTACH, far.stem), ("onward", far.stem)):
        (child,) = (one for one in there + beyond if (one["name"], one["service"]) == (name, service))
        chain.append(child)
    assert {one["trace"] for one in chain} == {root["trace"]}
    assert [one["parent"] for one in chain] == ["", *(one["span"] for one in chain[:-1])]


async def test_calls_of_different_roots_are_different_traces(exporter: InMemorySpanExporter, tmp_path: Path) -> None:
    socket = tmp_path / "one.sock"
    async with hop(socket) as process:

        async def rooted(name: str) -> None:
            with spans.span(name):
                await attach(socket)

        await asyncio.gather(*(rooted(f"root-{number}") for number in range(8)))
        there = await process.spans()
    roots = {one["span"]: one["trace"] for one in told(exporter)}
    served = {one["parent"]: one["trace"] for one in there if one["name"] == ATTACH}
    assert served == roots
    assert len(set(roots.values())) == 8


async def test_an_error_is_noted_in_the_span_and_goes_on(exporter: InMemorySpanExporter) -> None:
    with pytest.raises(LookupError), spans.span("failing"):
        raise LookupError("no such thing")
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code.name == "ERROR"
    assert span.events[0].name == "exception"


async def test_off_it_adds_nothing_to_calls() -> None:
    with spans.span("anything"), spans.served("/x/Y", (("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"),)):
        assert spans.carried() == {}


async def test_off_nothing_of_opentelemetry_is_imported() -> None:
    code = (
        "import sys, cni.node.app, csi.controller.app, csi.node_dpu.app, volume_attacher.app\n"
        "found = [name for name in sys.modules if name.startswith('opentelemetry')]\n"
        "sys.exit(str(found) if found else 0)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE)
    _, errors = await process.communicate()
    assert process.returncode == 0, errors


async def test_spans_reach_a_collector() -> None:
    async with Collector() as collector:
        recorder = recording.start(collector.url, service="cni-node", version="1.2.3", share=1.0)
        try:
            with spans.span("CNI ADD", pod="shop/web"):
                pass
        finally:
            spans.use(None)
            await asyncio.to_thread(recorder.close)
        (request,) = collector.requests
    (group,) = request.resource_spans
    attributes = {one.key: one.value.string_value for one in group.resource.attributes}
    assert (attributes["service.name"], attributes["service.version"]) == ("cni-node", "1.2.3")
    assert [span.name for span in group.scope_spans[0].spans] == ["CNI ADD"]


async def test_a_share_of_none_sends_none() -> None:
    async with Collector() as collector:
        recorder = recording.start(collector.url, service="cni-node", version="1", share=0.0)
        try:
            with spans.span("CNI ADD"):
                pass
        finally:
            spans.use(None)
            await asyncio.to_thread(recorder.close)
        assert collector.requests == []
