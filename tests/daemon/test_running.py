"""A daemon as a process: its start, its signals, its stop, what it writes and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from foundation.daemon.running import Daemon, _unless_stopped

ROOT = Path(__file__).parents[2]


@dataclass
class Process:
    """A running sample daemon and what it has written so far."""

    process: asyncio.subprocess.Process
    text: str = ""
    out: bytes = b""
    lines: list[dict[str, Any]] = field(default_factory=list)

    async def until(self, message: str) -> dict[str, Any]:
        """Read standard error until a log line has this message."""
        assert self.process.stderr is not None
        while True:
            line = (await asyncio.wait_for(self.process.stderr.readline(), 40)).decode()
            assert line, f"it ended before it said {message!r}:\n{self.text}"
            self.text += line
            if line.startswith("{"):
                self.lines.append(json.loads(line))
                if self.lines[-1]["message"] == message:
                    return self.lines[-1]

    async def ended(self) -> int:
        """Wait for its end; the exit code."""
        out, err = await asyncio.wait_for(self.process.communicate(), 40)
        self.out += out
        self.text += err.decode()
        for line in err.decode().splitlines():
            if line.startswith("{"):
                self.lines.append(json.loads(line))
        assert self.process.returncode is not None
        return self.process.returncode

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @property
    def messages(self) -> list[str]:
        return [line["message"] for line in self.lines]

    @property
    def sentences(self) -> list[str]:
        """What is on standard error beside log lines."""
        return [line for line in self.text.splitlines() if not line.startswith("{")]


Launch = Callable[..., Any]
Jumping = Callable[[Callable[[], Awaitable[Any]]], Any]


@pytest.fixture
async def launch() -> AsyncIterator[Launch]:
    running: list[Process] = []

    async def launch(act: str, *argv: str, **environ: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("sample_daemon.py")),
            f"--set=act={act}",
            *argv,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ},
        )
        running.append(Process(process))
        return running[-1]

    yield launch
    for each in running:
        if each.process.returncode is None:
            each.process.kill()
            await each.process.communicate()


def fetched(address: str, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_first_signal_stops_in_order_and_answers_what_was_asked(
    launch: Launch, tmp_path: Path, number: signal.Signals
) -> None:
    daemon = await launch("serve", f"--set=socket={tmp_path}/s.sock")
    started = await daemon.until("started")
    status, body = await asyncio.to_thread(fetched, started["http"], "/readyz")
    assert (status, json.loads(body)["ready"]) == (200, True)
    assert (await asyncio.to_thread(fetched, started["http"], "/healthz"))[0] == 200
    _, text = await asyncio.to_thread(fetched, started["http"], "/metrics")
    assert b'dpu_offload_build_info{daemon="sample-daemon"' in text
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s.sock") as channel:
        call = channel.unary_unary("/test.Service/Ask")(b"")
        answer = asyncio.ensure_future(call)
        await daemon.until("answering")
        daemon.signal(number)
        assert await answer == b"answered"
    assert await daemon.ended() == 0
    told = [message for message in daemon.messages if message in {
        f"stopping: {number.name}", "task cancelled", "between", "first in, last out", "stopped",
    }]  # fmt: skip
    assert told == [f"stopping: {number.name}", "task cancelled", "between", "first in, last out", "stopped"]
    assert daemon.out == b""
    assert daemon.sentences == []
    assert not (tmp_path / "s.sock").exists()


async def test_not_ready_while_it_stops(launch: Launch) -> None:
    daemon = await launch("stop-slow", "--set=shutdown_seconds=50")
    address = (await daemon.until("started"))["http"]
    daemon.signal(signal.SIGTERM)
    await daemon.until("stopping: SIGTERM")
    status, body = await asyncio.to_thread(fetched, address, "/readyz")
    assert status == 503
    assert json.loads(body)["checks"]["running"] == {"ok": False, "reason": "stopping: SIGTERM"}


async def test_stop_over_its_deadline_ends_with_1(launch: Launch) -> None:
    daemon = await launch("stop-slow", "--set=shutdown_seconds=0.3")
    await daemon.until("started")
    daemon.signal(signal.SIGTERM)
    assert await daemon.ended() == 1
    assert "never reached, no time left" not in daemon.messages


def test_stop_gives_all_callbacks_one_deadline_and_says_what_was_left(
    jumping: Jumping, caplog: pytest.LogCaptureFixture
) -> None:
    reached: list[str] = []

    async def reach(name: str) -> None:
        reached.append(name)

    async def main() -> float:
        async with Daemon("inner", shutdown_seconds=8) as daemon:
            daemon.on_stop(lambda: reach("too late"))
            daemon.on_stop(lambda: asyncio.sleep(60))
            daemon.on_stop(lambda: asyncio.sleep(6))
            daemon.on_stop(lambda: reach("in time"))
        assert "failed: TimeoutError" in daemon.failure
        return asyncio.get_running_loop().time()

    assert jumping(main) == 8
    assert reached == ["in time"]
    assert "failed (the deadline of the stop): TimeoutError" in caplog.text
    assert "no time left to stop" in caplog.text


@pytest.mark.parametrize("act", ["stop-in-thread", "stop-blocks", "loop-blocked"])
async def test_stop_that_hangs_out_of_asyncio_s_reach_still_ends(launch: Launch, act: str) -> None:
    daemon = await launch(act, "--set=shutdown_seconds=0.2")
    await daemon.until("holding the loop" if act == "loop-blocked" else "started")
    daemon.signal(signal.SIGTERM)
    assert await daemon.ended() == 1
    assert daemon.messages[-1] == "the stop hangs after 1.2 s: ending at once"


@pytest.mark.parametrize("act", ["stop-slow", "stop-blocks", "loop-blocked"])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_ends_at_once(launch: Launch, act: str, second: signal.Signals) -> None:
    daemon = await launch(act, "--set=shutdown_seconds=30")
    await daemon.until("holding the loop" if act == "loop-blocked" else "started")
    daemon.signal(signal.SIGTERM)
    if act == "loop-blocked":
        # Nothing can be said while the loop is held, and signals that wait together have no order.
        await asyncio.sleep(1)
    else:
        await daemon.until("stopping: SIGTERM")
    began = time.monotonic()
    daemon.signal(second)
    assert await daemon.ended() == 128 + second
    assert time.monotonic() - began < 20
    assert daemon.messages[-1] == f"{second.name} for the second time: ending at once"


async def test_signal_in_the_middle_of_start_stops_in_order(launch: Launch) -> None:
    daemon = await launch("start-slow")
    await daemon.until("starting slowly")
    daemon.signal(signal.SIGTERM)
    assert await daemon.ended() == 0
    assert "started" not in daemon.messages
    assert daemon.messages[-2:] == ["first in, last out", "stopped"]
    assert daemon.sentences == []


async def test_start_that_does_not_heed_the_signal_is_ended(launch: Launch) -> None:
    daemon = await launch("start-stubborn", "--set=shutdown_seconds=0.6")
    await daemon.until("starting stubbornly")
    daemon.signal(signal.SIGTERM)
    # It does not heed the event loop's closing either, so the watch ends it.
    assert await daemon.ended() == 1
    assert daemon.messages[-1] == "the stop hangs after 1.6 s: ending at once"


def test_start_that_does_not_heed_its_cancellation_leaves_half_of_the_time_to_the_stop(
    jumping: Jumping, caplog: pytest.LogCaptureFixture
) -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(100)

    async def main() -> None:
        daemon = Daemon("inner", shutdown_seconds=10)
        asyncio.get_running_loop().call_later(3, daemon.stop, "SIGTERM")
        await _unless_stopped(daemon, stubborn())
        assert asyncio.get_running_loop().time() == 8
        assert daemon.seconds_left == 5

    jumping(main)
    assert "start does not heed its cancellation" in caplog.text


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        ("start-error", "sample-daemon: cannot start: no pool named 'p'; see dpuctl pools"),
        ("start-os-error", "sample-daemon: cannot start: /nowhere/at/all: No such file or directory"),
        ("start-cancelled", "sample-daemon: cannot start: something it waited for was cancelled"),
        ("task-fails-in-start", "sample-daemon: cannot start: task doomed failed: as told"),
        ("start-slip", "sample-daemon: cannot start: 'a slip of ours'"),
        ("nonsense", "sample-daemon: --set: act is 'nonsense', expected one of serve, start-error, "),
    ],
)
async def test_failed_start_is_one_sentence_and_1(launch: Launch, act: str, sentence: str) -> None:
    daemon = await launch(act)
    assert await daemon.ended() == 1
    assert len(daemon.sentences) == 1
    assert daemon.sentences[0].startswith(sentence)
    assert daemon.text.splitlines()[-1] == daemon.sentences[0]
    assert daemon.out == b""
    traced = [line for line in daemon.lines if "exception" in line]
    # A slip of ours needs its trace, an operator's mistake must not be buried under one.
    assert len(traced) == {"start-slip": 1, "task-fails-in-start": 1}.get(act, 0)
    if act != "nonsense":
        assert "first in, last out" in daemon.messages


async def test_http_address_in_use_is_one_sentence(launch: Launch) -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    daemon = await launch("bare", DPU_OFFLOAD_SAMPLE_DAEMON__HTTP=f"127.0.0.1:{port}")
    assert await daemon.ended() == 1
    server.close()
    assert daemon.text == (
        f"sample-daemon: cannot start: http: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    )


async def test_daemon_without_http_serves_none(launch: Launch) -> None:
    daemon = await launch("bare", "--set=http=")
    assert (await daemon.until("started"))["http"] == ""
    daemon.signal(signal.SIGTERM)
    assert await daemon.ended() == 0


async def test_task_that_fails_stops_the_daemon_in_order_with_1(launch: Launch) -> None:
    daemon = await launch("task-fails")
    assert await daemon.ended() == 1
    (failure,) = [line for line in daemon.lines if line["message"] == "task doomed failed: as told"]
    assert failure["level"] == "critical"
    assert "ValueError: as told" in failure["exception"]
    assert daemon.messages[-2:] == ["first in, last out", "stopped"]


async def test_callback_that_fails_does_not_keep_the_others_from_running(launch: Launch) -> None:
    daemon = await launch("stop-fails")
    await daemon.until("started")
    daemon.signal(signal.SIGTERM)
    assert await daemon.ended() == 1
    assert any("stopping _fails failed: as told" in message for message in daemon.messages)
    assert daemon.messages[-2:] == ["first in, last out", "stopped"]


async def test_secrets_of_settings_and_of_later_are_in_nothing_it_writes(launch: Launch) -> None:
    daemon = await launch("log-secret", "--set=log.level=debug")
    assert await daemon.ended() == 1
    assert "[redacted] and [redacted]" in daemon.text
    assert "canary" not in daemon.text
    assert "canary" not in daemon.out.decode()


async def test_printing_flags_write_to_standard_output_and_end_with_0(launch: Launch) -> None:
    for flag in ("--help", "--version", "--print-config"):
        daemon = await launch("start-error", flag)
        assert await daemon.ended() == 0
        assert daemon.out
        assert b"canary" not in daemon.out
        assert daemon.text == ""


async def test_daemon_in_a_test_stops_what_it_started_last_first() -> None:
    order: list[str] = []

    async def tell(text: str) -> None:
        order.append(text)

    async def task() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            order.append("task")

    async with Daemon("inner") as daemon:
        daemon.on_stop(lambda: tell("one"))
        daemon.spawn(task(), name="task")
        daemon.on_stop(lambda: tell("two"))
        short = daemon.spawn(tell("short"), name="short")
        await short
        await asyncio.sleep(0)
        assert daemon.seconds_left == float("inf")
    assert order == ["short", "two", "task", "one"]
    assert daemon.stopping.is_set()
    assert daemon.failure == ""


async def test_a_task_that_ends_by_anothers_cancellation_stops_the_daemon() -> None:
    async with Daemon("test") as daemon:
        future = asyncio.get_running_loop().create_future()

        async def wait() -> None:
            await future

        daemon.spawn(wait(), name="watch")
        await asyncio.sleep(0)
        future.cancel()
        async with asyncio.timeout(30):
            await daemon.stopping.wait()
        assert daemon.failure == "task watch failed: something it waited for was cancelled"


async def test_a_task_that_its_owner_cancels_is_no_failure() -> None:
    async with Daemon("test") as daemon:
        task = daemon.spawn(asyncio.sleep(60), name="watch")
        task.cancel()
        await asyncio.wait({task})
        await asyncio.sleep(0)
        assert not daemon.stopping.is_set()


async def test_a_callback_that_ends_cancelled_does_not_keep_the_others_from_running() -> None:
    stopped = []

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def other() -> None:
        stopped.append("other")

    async with Daemon("test") as daemon:
        daemon.on_stop(other)
        daemon.on_stop(cancelled)
    assert stopped == ["other"]
    assert daemon.failure
