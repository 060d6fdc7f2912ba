"""The life of a daemon process: start, serve, stop in order."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from foundation.daemon import configuration, logs, metrics
from foundation.daemon.configuration import ConfigurationError, DaemonConfig
from foundation.daemon.endpoint import Endpoint
from foundation.daemon.health import Health

_log = logging.getLogger(__name__)

C = TypeVar("C", bound=DaemonConfig)
R = TypeVar("R")

_BUILD = metrics.gauge("build_info", "1, for the version that runs.", ("daemon", "version"))

# After the orderly stop's own deadline: time to close the event loop and let threads end.
_GRACE_SECONDS = 1.0


class StartError(Exception):
    """The daemon cannot start; the message is the sentence that its operator reads."""


class Daemon:
    """What the code of a daemon holds: its health, its tasks, its way to stop.

    As an async context manager it can be used without a process of its own (in tests): leaving the block stops it.
    """

    def __init__(self, name: str, *, shutdown_seconds: float = 10.0) -> None:
        self.name = name
        self.health = Health()
        self.stopping = asyncio.Event()
        self.failure = ""
        """Why the process will end with 1: a task died, or the stop failed."""
        self.endpoint = Endpoint(self.health)
        self._shutdown_seconds = shutdown_seconds
        self._started = False
        self._end = float("inf")
        self._stack: dict[object, tuple[str, Callable[[], Awaitable[object]]]] = {}

    def on_stop(self, callback: Callable[[], Awaitable[object]]) -> None:
        """Await `callback()` when the daemon stops; the last registered comes first."""
        self._stack[object()] = (getattr(callback, "__qualname__", repr(callback)), callback)

    def spawn(self, coroutine: Coroutine[Any, Any, R], *, name: str) -> asyncio.Task[R]:
        """Run a task that the daemon watches: if it fails, the daemon stops and ends with 1.

        It is cancelled on stop, in its place among the `on_stop` callbacks.
        """
        task = asyncio.get_running_loop().create_task(coroutine, name=name)

        async def cancel() -> None:
            task.cancel()
            await asyncio.wait({task})

        self._stack[task] = (f"task {name}", cancel)
        task.add_done_callback(self._ended)
        return task

    def stop(self, reason: str) -> None:
        """Begin the orderly stop; returns at once."""
        if not self.stopping.is_set():
            _log.log(logging.INFO if self._started else logging.DEBUG, "stopping: %s", reason)
            self.health.set("running", False, f"stopping: {reason}")
            self._end = asyncio.get_running_loop().time() + self._shutdown_seconds
            self.stopping.set()

    def started(self) -> None:
        """Say that everything serves: from now on the checks alone decide on readiness."""
        self._started = True
        self.health.set("running", True)

    @property
    def seconds_left(self) -> float:
        """What is left of the stop's deadline; infinite before the stop."""
        return self._end - asyncio.get_running_loop().time()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._stack.pop(task, None)
        if task.cancelled():
            if task.cancelling() or self.stopping.is_set():
                return
            # Nobody cancelled it: something that it waited for was. Without it the daemon would only seem to run.
            error: BaseException = asyncio.CancelledError("something it waited for was cancelled")
        elif (raised := task.exception()) is None:
            return
        else:
            error = raised
        if self.stopping.is_set():
            _log.error("task %s failed while stopping: %s", task.get_name(), error, exc_info=error)
            return
        self.failure = f"task {task.get_name()} failed: {_plain(error)}"
        _log.critical("task %s failed: %s", task.get_name(), error, exc_info=error)
        self.stop(f"task {task.get_name()} failed")

    async def aclose(self) -> None:
        """Take down all that was started, last first, within `shutdown_seconds` altogether."""
        self.stop("closed")
        while self._stack:
            _, (name, callback) = self._stack.popitem()
            if self.seconds_left <= 0:
                self.failure = self.failure or f"no time left to stop {name}"
                _log.error("no time left to stop %s", name)
                continue
            try:
                async with asyncio.timeout_at(self._end):
                    await callback()
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                    raise
                self.failure = self.failure or f"stopping {name} failed: {_plain(error)}"
                late = " (the deadline of the stop)" if self.seconds_left <= 0 else ""
                _log.exception("stopping %s failed%s: %s", name, late, _plain(error))

    async def __aenter__(self) -> Daemon:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def run(name: str, config_type: type[C], start: Callable[[C, Daemon], Awaitable[None]]) -> None:
    """Be the daemon `name`: load the settings, start, serve until SIGTERM or SIGINT, stop in order, end the process.

    `start` returns when everything is serving. Its exception ends the process with one sentence on standard error and
    1. A first signal stops in order, also in the middle of `start`; a second one ends the process at once.
    """
    try:
        config = configuration.load(config_type, name=name, argv=sys.argv[1:], environ=os.environ)
    except ConfigurationError as error:
        _die(name, str(error))
    # gRPC's core would write lines of its own format to standard error; what it has to say arrives as call errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    faulthandler.enable()
    logs.configure(daemon=name, level=config.log.level, loggers=config.log.loggers)
    # Modules stay: a seventh of a burst's processor time went into looking through them.
    gc.freeze()
    with asyncio.Runner() as runner:
        code, sentence = runner.run(_live(name, config, start))
    if sentence:
        _die(name, sentence)
    raise SystemExit(code)


async def _live(name: str, config: C, start: Callable[[C, Daemon], Awaitable[None]]) -> tuple[int, str]:
    daemon = Daemon(name, shutdown_seconds=config.shutdown_seconds)
    _catch_signals(daemon, config.shutdown_seconds + _GRACE_SECONDS)
    sentence = ""
    try:
        sentence = await _start(daemon, config, start)
        if not sentence:
            await daemon.stopping.wait()
    finally:
        _watch_the_stop(config.shutdown_seconds + _GRACE_SECONDS)
        await daemon.aclose()
    _log.log(logging.DEBUG if sentence else logging.INFO, "stopped")
    return int(bool(daemon.failure)), sentence


async def _start(daemon: Daemon, config: C, start: Callable[[C, Daemon], Awaitable[None]]) -> str:
    """Start everything; the sentence to die with, or nothing."""
    daemon.health.set("running", False, "starting")
    try:
        if config.tracing.endpoint:
            _trace(daemon, config)
        if config.http:
            daemon.on_stop(daemon.endpoint.stop)
            await daemon.endpoint.start(config.http)
        await _unless_stopped(daemon, start(config, daemon))
    except Exception as error:
        if daemon.stopping.is_set():
            _log.info("start was broken off: %s", _plain(error), exc_info=error)
        else:
            # A slip of ours needs its trace; an operator's mistake needs only the sentence.
            ours = isinstance(error, (TypeError, LookupError, AttributeError, AssertionError, NameError))
            _log.log(logging.ERROR if ours else logging.DEBUG, "start failed", exc_info=error)
            return f"cannot start: {_plain(error)}"
    if daemon.failure:
        return f"cannot start: {daemon.failure}"
    if not daemon.stopping.is_set():
        daemon.started()
        version = configuration.version()
        _BUILD.labels(daemon=daemon.name, version=version).set(1)
        _log.info("started", extra={"http": daemon.endpoint.address, "version": version})
    return ""


def _trace(daemon: Daemon, config: DaemonConfig) -> None:
    """Imported only here: who does without traces does without the package. Raises StartError."""
    tracing = config.tracing
    try:
        from foundation.tracing import recording
    except ImportError as error:
        raise StartError(f"tracing.endpoint needs the extra otel (pip install dpu-offload[otel]): {error}") from error
    version = configuration.version()
    recorder = recording.start(tracing.endpoint, service=daemon.name, version=version, share=tracing.share)

    async def close() -> None:
        await asyncio.to_thread(recorder.close)

    daemon.on_stop(close)


async def _unless_stopped(daemon: Daemon, start: Awaitable[None]) -> None:
    """Wait for `start`; when a stop comes first, cancel it and leave half of the time to the stop itself."""
    starting = asyncio.ensure_future(start)
    stopping = asyncio.create_task(daemon.stopping.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting}, timeout=max(daemon.seconds_left / 2, 0))
    if starting.cancelled():
        if not daemon.stopping.is_set():
            raise StartError("something it waited for was cancelled")
    elif starting.done():
        starting.result()
    else:
        _log.error("start does not heed its cancellation")


def _plain(error: BaseException) -> str:
    """An error as a reader wants it: system errors without their number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _catch_signals(daemon: Daemon, seconds: float) -> None:
    """First signal: stop in order, within `seconds` whatever happens. Second: end at once.

    Plain handlers rather than the event loop's: they run even where some code keeps the loop busy.
    """
    loop = asyncio.get_running_loop()
    seen: list[int] = []

    def caught(number: int, _: object) -> None:
        seen.append(number)
        name = signal.Signals(number).name
        if len(seen) > 1:
            _exit_now(128 + number, f"{name} for the second time: ending at once")
        _watch_the_stop(seconds)
        loop.call_soon_threadsafe(daemon.stop, name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, caught)


def _watch_the_stop(seconds: float) -> None:
    """End the process when the stop hangs out of asyncio's reach: in a thread, in code that keeps the loop."""
    timer = threading.Timer(seconds, _exit_now, (1, f"the stop hangs after {seconds:g} s: ending at once"))
    timer.daemon = True
    timer.start()


def _exit_now(code: int, reason: str) -> NoReturn:
    # Not through logging: the code that was interrupted may hold its lock.
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, reason, (), None)
    handlers = logging.getLogger().handlers
    line = handlers[0].format(record) if handlers else reason
    os.write(2, f"{line}\n".encode())
    os._exit(code)


def _die(name: str, sentence: str) -> NoReturn:
    sys.stderr.write(f"{name}: {logs.redact(' '.join(sentence.split()))}\n")
    raise SystemExit(1)
