"""The life of a daemon process: start, serve, stop in order."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from foundation.daemon import configuration, logs
from foundation.daemon.configuration import ConfigurationError, DaemonConfig
from foundation.daemon.endpoint import Endpoint
from foundation.daemon.health import Health

_log = logging.getLogger(__name__)

C = TypeVar("C", bound=DaemonConfig)
R = TypeVar("R")

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
        self.failed = False
        """Whether a task died, or the stop took too long: the process then ends with 1."""
        self.endpoint = Endpoint(self.health)
        self._shutdown_seconds = shutdown_seconds
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
            _log.info("stopping: %s", reason)
            self.health.set("running", False, f"stopping: {reason}")
            self.stopping.set()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._stack.pop(task, None)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self.stopping.is_set():
            _log.error("task %s failed while stopping: %s", task.get_name(), error, exc_info=error)
            return
        self.failed = True
        _log.critical("task %s failed: %s", task.get_name(), error, exc_info=error)
        self.stop(f"task {task.get_name()} failed")

    async def aclose(self) -> None:
        """Take down all that was started, last first, within `shutdown_seconds` altogether."""
        self.stop("closed")
        loop = asyncio.get_running_loop()
        end = loop.time() + self._shutdown_seconds
        while self._stack:
            _, (name, callback) = self._stack.popitem()
            if loop.time() >= end:
                self.failed = True
                _log.error("no time left to stop %s", name)
                continue
            try:
                async with asyncio.timeout_at(end):
                    await callback()
            except TimeoutError as error:
                self.failed = True
                _log.error("stopping %s timed out after %g s in all", name, self._shutdown_seconds, exc_info=error)
            except Exception as error:
                self.failed = True
                _log.exception("stopping %s failed: %s", name, error)

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
    with asyncio.Runner() as runner:
        code, sentence = runner.run(_live(name, config, start))
    if sentence:
        _die(name, sentence)
    raise SystemExit(code)


async def _live(name: str, config: C, start: Callable[[C, Daemon], Awaitable[None]]) -> tuple[int, str]:
    daemon = Daemon(name, shutdown_seconds=config.shutdown_seconds)
    _catch_signals(daemon)
    sentence = ""
    try:
        sentence = await _start(daemon, config, start)
        if not sentence:
            await daemon.stopping.wait()
    finally:
        _watch_the_stop(config.shutdown_seconds + _GRACE_SECONDS)
        await daemon.aclose()
    _log.info("stopped")
    return int(daemon.failed), sentence


async def _start(daemon: Daemon, config: C, start: Callable[[C, Daemon], Awaitable[None]]) -> str:
    """Start everything; the sentence to die with, or nothing."""
    daemon.health.set("running", False, "starting")
    try:
        if config.http:
            daemon.on_stop(daemon.endpoint.stop)
            await daemon.endpoint.start(config.http)
        starting = asyncio.ensure_future(start(config, daemon))
        stopping = asyncio.create_task(daemon.stopping.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting}, timeout=config.shutdown_seconds)
        if starting.done() and not starting.cancelled():
            starting.result()
    except Exception as error:
        if daemon.stopping.is_set() and not daemon.failed:
            _log.info("start was broken off: %s", error, exc_info=error)
            return ""
        # A slip of ours needs its trace; an operator's mistake needs only the sentence.
        ours = isinstance(error, (TypeError, LookupError, AttributeError, AssertionError, NameError))
        _log.log(logging.ERROR if ours else logging.DEBUG, "start failed", exc_info=error)
        return f"cannot start: {str(error) or type(error).__name__}"
    if not daemon.stopping.is_set():
        daemon.health.set("running", True)
        _log.info("started", extra={"http": daemon.endpoint.address, "version": configuration.version()})
    return ""


def _catch_signals(daemon: Daemon) -> None:
    def caught(number: signal.Signals) -> None:
        if daemon.stopping.is_set():
            _log.warning("%s while stopping: ending at once", number.name)
            _exit_now(128 + number)
        daemon.stop(number.name)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, caught, number)


def _watch_the_stop(seconds: float) -> None:
    """End the process when the stop hangs where no asyncio deadline reaches: in a thread, or in code that blocks the
    loop."""

    def overrun() -> None:
        _log.error("the stop hangs after %g s: ending at once", seconds)
        _exit_now(1)

    timer = threading.Timer(seconds, overrun)
    timer.daemon = True
    timer.start()


def _exit_now(code: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(code)


def _die(name: str, sentence: str) -> NoReturn:
    sys.stderr.write(f"{name}: {logs.redact(' '.join(sentence.split()))}\n")
    raise SystemExit(1)
