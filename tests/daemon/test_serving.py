"""gRPC over unix sockets: deadlines, statuses, log lines, metrics, request ids."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from grpc._cython import cygrpc

from foundation.daemon import dialling, logs, metrics
from foundation.daemon.errors import ErrorTable
from foundation.daemon.serving import SocketTaken, dial, listen_unix, make_server
from foundation.daemon.tls import TlsFiles
from foundation.daemon.work import Joining

if TYPE_CHECKING:
    from .conftest import Service

ASK = "/test.Service/Ask"


class NoSuchDisk(Exception):
    pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.sock"


@contextlib.asynccontextmanager
async def serving(service: Service, path: Path, **options: Any) -> AsyncIterator[grpc.aio.Server]:
    server = make_server(errors=ErrorTable({NoSuchDisk: grpc.StatusCode.NOT_FOUND}), service="sample", **options)
    service.add_to(server)
    listen_unix(server, path)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


@pytest.fixture
async def channel(service: Service, path: Path) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(service, path), dial(f"unix:{path}", name="sample") as channel:
        yield channel


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def eventually(holds: Callable[[], bool]) -> None:
    """The server ends its book-keeping a moment after the caller has its answer."""
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


def counted(side: str, method: str, code: str) -> float:
    labels = {"service": "sample", "method": method, "code": code}
    return metrics.REGISTRY.get_sample_value(f"dpu_offload_grpc_{side}_seconds_count", labels) or 0.0


async def test_answer_arrives_and_is_counted_and_logged(
    service: Service, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(request: bytes, context: Any) -> bytes:
        return request.upper()

    service.ask = ask
    before = counted("server", "Ask", "OK"), counted("client", "Ask", "OK")
    with caplog.at_level(logging.INFO):
        assert await channel.unary_unary(ASK)(b"hello") == b"HELLO"
    await eventually(lambda: counted("server", "Ask", "OK") == before[0] + 1)
    assert counted("client", "Ask", "OK") == before[1] + 1
    (record,) = [record for record in caplog.records if record.name == "foundation.daemon.interceptors"]
    assert record.getMessage() == "Ask OK"
    assert vars(record)["method"] == ASK
    assert vars(record)["code"] == "OK"


async def test_calls_that_only_ask_are_logged_when_they_fail(
    service: Service, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(request: bytes, context: Any) -> bytes:
        if request == b"bad":
            raise NoSuchDisk("disk 7 is not there")
        return b""

    service.ask = ask
    get = channel.unary_unary("/test.Service/GetThing")
    with caplog.at_level(logging.INFO, "foundation.daemon.interceptors"):
        await get(b"good")
        assert caplog.records == []
        await failure(get(b"bad"))
        assert [record.getMessage() for record in caplog.records][:1] == ["GetThing NOT_FOUND: disk 7 is not there"]


async def test_known_exception_becomes_its_code_and_sentence(service: Service, channel: grpc.aio.Channel) -> None:
    async def ask(request: bytes, context: Any) -> bytes:
        raise NoSuchDisk("disk 7 is not there; see `lsblk`")

    service.ask = ask
    before = counted("server", "Ask", "NOT_FOUND")
    error = await failure(channel.unary_unary(ASK)(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "disk 7 is not there; see `lsblk`")
    await eventually(lambda: counted("server", "Ask", "NOT_FOUND") == before + 1)


async def test_unknown_exception_tells_the_caller_nothing_and_the_log_everything(
    service: Service, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(request: bytes, context: Any) -> bytes:
        raise KeyError("inner workings")

    service.ask = ask
    error = await failure(channel.unary_unary(ASK)(b""))
    assert error.code() is grpc.StatusCode.INTERNAL
    details = error.details() or ""
    assert "inner workings" not in details
    match = re.fullmatch(r"internal error of sample in Ask; its log tells more under request ([0-9a-f]{16})", details)
    assert match is not None
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert vars(record)["request"] == match[1]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


async def test_secret_in_an_exception_reaches_neither_caller_nor_log(
    service: Service, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    logs.secret("canary-0815")

    async def ask(request: bytes, context: Any) -> bytes:
        if request == b"known":
            raise NoSuchDisk("no disk for canary-0815")
        if request == b"abort":
            await context.abort(grpc.StatusCode.ABORTED, "canary-0815")
        raise ValueError("canary-0815")

    service.ask = ask
    formatter = logs.JsonFormatter("sample")
    for request in (b"known", b"unknown"):
        error = await failure(channel.unary_unary(ASK)(request, metadata=(("x-request-id", "canary-0815"),)))
        assert "canary" not in (error.details() or "")
    await failure(channel.unary_unary(ASK)(b"abort"))
    await eventually(lambda: len(caplog.records) >= 6)
    for record in caplog.records:
        assert "canary" not in formatter.format(record)


async def test_status_set_by_abort_passes_unchanged(
    service: Service, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "beyond the end")
        return b""

    service.ask = ask
    before = counted("server", "Ask", "OUT_OF_RANGE")
    error = await failure(channel.unary_unary(ASK)(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.OUT_OF_RANGE, "beyond the end")
    await eventually(lambda: counted("server", "Ask", "OUT_OF_RANGE") == before + 1)
    assert "Ask OUT_OF_RANGE: beyond the end" in caplog.text


async def test_status_set_without_an_exception_is_counted_as_what_it_is(
    service: Service, channel: grpc.aio.Channel
) -> None:
    async def ask(request: bytes, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.DATA_LOSS)
        context.set_details("half of it")
        return b""

    service.ask = ask
    before = counted("server", "Ask", "DATA_LOSS")
    error = await failure(channel.unary_unary(ASK)(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "half of it")
    await eventually(lambda: counted("server", "Ask", "DATA_LOSS") == before + 1)


async def test_method_nobody_wrote_and_method_nobody_knows(channel: grpc.aio.Channel) -> None:
    error = await failure(channel.unary_unary("/test.Service/Unwritten")(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNIMPLEMENTED, "sample does not implement Unwritten")
    error = await failure(channel.unary_unary("/test.Service/Never")(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_caller_s_deadline_ends_the_handler(service: Service, channel: grpc.aio.Channel) -> None:
    ended = asyncio.Event()

    async def ask(request: bytes, context: Any) -> bytes:
        try:
            await asyncio.sleep(50)
        finally:
            ended.set()
        return b""

    service.ask = ask
    error = await failure(channel.unary_unary(ASK)(b"", timeout=0.1))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(ended.wait(), 25)


async def test_a_call_without_time_out_gets_the_channel_s(service: Service, path: Path) -> None:
    remaining: list[float] = []

    async def ask(request: bytes, context: Any) -> bytes:
        remaining.append(context.time_remaining())
        return b""

    service.ask = ask
    async with serving(service, path), dial(f"unix:{path}", name="sample", deadline=100.0) as channel:
        await channel.unary_unary(ASK)(b"")
        await channel.unary_unary(ASK)(b"", timeout=300.0)
    assert remaining == [pytest.approx(100.0, abs=30), pytest.approx(300.0, abs=30)]


async def test_server_bounds_a_call_whose_caller_set_no_deadline(service: Service, path: Path) -> None:
    async def ask(request: bytes, context: Any) -> bytes:
        assert context.time_remaining() is None
        await asyncio.sleep(50)
        return b""

    service.ask = ask
    async with serving(service, path, deadline=0.1), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        error = await failure(channel.unary_unary(ASK)(b""))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details() == "Ask was not done in its time; retry"


async def test_time_out_inside_keeps_its_own_sentence(service: Service, channel: grpc.aio.Channel) -> None:
    async def ask(request: bytes, context: Any) -> bytes:
        raise TimeoutError("port n1_p: OVN did not install it in 10 s")

    service.ask = ask
    error = await failure(channel.unary_unary(ASK)(b""))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details() == "port n1_p: OVN did not install it in 10 s"


async def test_retry_joins_running_work_and_is_told_to_come_again_meanwhile(
    service: Service, channel: grpc.aio.Channel
) -> None:
    joining: Joining[str, bytes] = Joining(name="volume")
    started: list[int] = []
    patience = 0.05
    arrived = asyncio.Event()
    finish = asyncio.Event()

    async def attach() -> bytes:
        started.append(1)
        await finish.wait()
        return b"attached"

    async def ask(request: bytes, context: Any) -> bytes:
        asyncio.get_running_loop().call_soon(arrived.set)
        return await joining.run("v", request, attach, deadline=patience)

    service.ask = ask
    call = channel.unary_unary(ASK)
    error = await failure(call(b"same", timeout=30))
    assert error.code() is grpc.StatusCode.ABORTED
    assert error.details() == "volume v: still running after 0.05 s; retry to join it"
    error = await failure(call(b"other", timeout=30))
    assert error.code() is grpc.StatusCode.ABORTED
    assert "with other parameters is still running" in (error.details() or "")
    arrived.clear()
    patience = 30
    retry = asyncio.ensure_future(call(b"same", timeout=30))
    await asyncio.wait_for(arrived.wait(), 30)
    finish.set()
    assert await retry == b"attached"
    assert started == [1]


async def test_caller_that_goes_away_cancels_the_handler(
    service: Service, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def ask(request: bytes, context: Any) -> bytes:
        began.set()
        try:
            await asyncio.sleep(50)
        finally:
            ended.set()
        return b""

    service.ask = ask
    before = counted("server", "Ask", "CANCELLED")
    call = channel.unary_unary(ASK)(b"")
    await asyncio.wait_for(began.wait(), 25)
    call.cancel()
    await asyncio.wait_for(ended.wait(), 25)
    await eventually(lambda: counted("server", "Ask", "CANCELLED") == before + 1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_request_id_follows_from_caller_to_callee(
    service: Service, channel: grpc.aio.Channel, path: Path
) -> None:
    seen: list[object] = []

    async def ask(request: bytes, context: Any) -> bytes:
        seen.append(logs.context()["request"])
        if request == b"outer":
            await channel.unary_unary(ASK)(b"inner")
        return b""

    service.ask = ask
    await channel.unary_unary(ASK)(b"outer")
    assert len(seen) == 2
    assert seen[0] == seen[1]
    await channel.unary_unary(ASK)(b"x", metadata=(("x-request-id", "given.by-caller_1"),))
    await channel.unary_unary(ASK)(b"x", metadata=(("x-request-id", 'bad id "\\'),))
    assert seen[2] == "given.by-caller_1"
    assert re.fullmatch(r"[0-9a-f]{16}", str(seen[3]))


async def test_streams_of_answers_by_generator_and_by_write(service: Service, channel: grpc.aio.Channel) -> None:
    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(3):
            yield request + b"%d" % number

    service.stream = stream
    call: Any = channel.unary_stream("/test.Service/Stream")(b"n")
    assert [answer async for answer in call] == [b"n0", b"n1", b"n2"]
    call = channel.unary_stream("/test.Service/Writes")(b"")
    assert [answer async for answer in call] == [b"0", b"1", b"2"]


async def test_exception_after_some_answers_ends_the_stream_with_its_code(
    service: Service, channel: grpc.aio.Channel
) -> None:
    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        raise NoSuchDisk("gone in the middle")

    service.stream = stream
    before = counted("client", "Stream", "NOT_FOUND")
    call: Any = channel.unary_stream("/test.Service/Stream")(b"")
    assert await call.read() == b"first"
    error = await failure(call.read())
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "gone in the middle")
    await eventually(lambda: counted("client", "Stream", "NOT_FOUND") == before + 1)


async def test_stream_has_no_deadline_but_its_caller_s(service: Service, path: Path) -> None:
    remaining: list[float | None] = []

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        remaining.append(context.time_remaining())
        await asyncio.sleep(0.3)
        yield b"late"

    service.stream = stream
    async with serving(service, path, deadline=0.1), dial(f"unix:{path}", name="sample", deadline=0.1) as channel:
        call: Any = channel.unary_stream("/test.Service/Stream")(b"")
        assert [answer async for answer in call] == [b"late"]
        call = channel.unary_stream("/test.Service/Stream")(b"", timeout=0.1)
        error = await failure(call.read())
    assert remaining[0] is None
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_generator_cleans_up_when_its_reader_goes_away(service: Service, channel: grpc.aio.Channel) -> None:
    cleaned = asyncio.Event()

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0.01)
        finally:
            cleaned.set()

    service.stream = stream
    call: Any = channel.unary_stream("/test.Service/Stream")(b"")
    await call.read()
    call.cancel()
    await asyncio.wait_for(cleaned.wait(), 25)


async def test_generator_held_up_in_a_write_cleans_up_as_part_of_its_call(
    service: Service, channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    count = counted("server", "Stream", "CANCELLED")
    tasks: list[asyncio.Task[Any] | None] = []
    yielded = 0
    cleaned = asyncio.Event()

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        nonlocal yielded
        tasks.append(asyncio.current_task())
        try:
            while True:
                yielded += 1
                yield b"x" * 1_000_000
        finally:
            tasks.append(asyncio.current_task())
            cleaned.set()

    service.stream = stream
    call: Any = channel.unary_stream("/test.Service/Stream")(b"")
    await call.read()
    # The reader reads no more, so that the flow control holds the writer.
    before = -1
    while before != yielded:
        before = yielded
        await asyncio.sleep(0.1)
    call.cancel()
    await asyncio.wait_for(cleaned.wait(), 25)
    assert tasks[0] is tasks[1]
    await eventually(lambda: counted("server", "Stream", "CANCELLED") == count + 1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_internal_error_of_grpc_without_a_caller_gone_is_an_error(
    service: Service, channel: grpc.aio.Channel
) -> None:
    async def ask(request: bytes, context: Any) -> bytes:
        raise grpc.aio.InternalError("of another call")

    service.ask = ask
    error = await failure(channel.unary_unary(ASK)(b""))
    assert error.code() is grpc.StatusCode.INTERNAL


async def test_streams_of_requests(channel: grpc.aio.Channel) -> None:
    async def requests() -> AsyncIterator[bytes]:
        for word in (b"a", b"b"):
            yield word

    assert await channel.stream_unary("/test.Service/Gather")(requests()) == b"ab"
    talk: Any = channel.stream_stream("/test.Service/Talk")(requests())
    assert [answer async for answer in talk] == [b"A", b"B"]


@pytest.mark.parametrize("mode", [0o600, 0o660])
async def test_unix_socket_has_the_mode_asked_for(service: Service, path: Path, mode: int) -> None:
    server = make_server(errors=ErrorTable({}), service="sample")
    listen_unix(server, path, mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    await server.start()
    await server.stop(0)


async def test_second_instance_is_refused_and_the_first_still_answers(service: Service, path: Path) -> None:
    async def ask(request: bytes, context: Any) -> bytes:
        return b"first"

    service.ask = ask
    async with serving(service, path), dial(f"unix:{path}", name="sample") as channel:
        second = make_server(errors=ErrorTable({}), service="second")
        with pytest.raises(SocketTaken):
            listen_unix(second, path)
        await second.stop(0)
        assert await channel.unary_unary(ASK)(b"") == b"first"


async def test_channel_outlives_a_restart_of_its_server(service: Service, path: Path) -> None:
    async def ask(request: bytes, context: Any) -> bytes:
        return b"here"

    service.ask = ask
    async with dial(f"unix:{path}", name="sample") as channel:
        call = channel.unary_unary(ASK)
        async with serving(service, path):
            assert await call(b"") == b"here"
        assert (await failure(call(b""))).code() is grpc.StatusCode.UNAVAILABLE
        async with serving(service, path):
            began = asyncio.get_running_loop().time()
            assert await call(b"", timeout=40, wait_for_ready=True) == b"here"
            assert asyncio.get_running_loop().time() - began < 10


async def test_path_that_cannot_be_used_is_told_plainly(service: Service, tmp_path: Path) -> None:
    server = make_server(errors=ErrorTable({}), service="sample")
    with pytest.raises(OSError, match="No such file or directory"):
        listen_unix(server, Path("/proc/nowhere/s.sock"))
    with pytest.raises(ValueError, match="the kernel takes at most 107"):
        listen_unix(server, tmp_path / ("x" * 120))
    await server.stop(0)


def test_unix_socket_takes_no_tls_and_the_network_nothing_else() -> None:
    with pytest.raises(ValueError, match="takes no TLS"):
        dial("unix:/x", name="x", tls=TlsFiles("a", "b", "c"))
    with pytest.raises(ValueError, match="takes TLS files"):
        dial("10.0.0.1:1", name="x")


def test_grpc_knows_every_option_that_it_is_given(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """One that it does not know it passes over in silence."""
    given: list[tuple[str, object]] = []
    for function in ("server", "insecure_channel"):
        monkeypatch.setattr(grpc.aio, function, lambda *_, options, **__: given.extend(options))
    make_server(errors=ErrorTable({}), service="sample")
    dial(f"unix:{path}", name="sample")
    monkeypatch.setattr(dialling, "RenewingChannel", lambda _, make: make(None))
    monkeypatch.setattr(dialling, "channel_credentials", lambda _: None)
    monkeypatch.setattr(dialling, "WatchedFiles", lambda files: files)
    monkeypatch.setattr(grpc.aio, "secure_channel", lambda *_, options, **__: given.extend(options))
    dial("10.0.0.1:1", name="sample", tls=TlsFiles("a", "b", "c"), server_name="s")
    library = Path(cygrpc.__file__).read_bytes()
    names = {name for name, _ in given}
    assert "grpc.keepalive_time_ms" in names
    assert {name for name in names if name.encode() not in library} == set()
