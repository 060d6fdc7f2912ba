"""A daemon that does what a test tells it to; run as a program by test_running.py."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Literal

import grpc

from foundation.daemon import logs
from foundation.daemon.configuration import DaemonConfig
from foundation.daemon.errors import ErrorTable
from foundation.daemon.running import Daemon, StartError, run
from foundation.daemon.schema import Secret
from foundation.daemon.serving import listen_unix, make_server

_log = logging.getLogger("sample")

Act = Literal[
    "serve", "start-error", "start-slip", "start-os-error", "start-cancelled", "start-slow", "start-stubborn",
    "task-fails", "task-fails-in-start", "stop-slow", "stop-fails", "stop-in-thread", "stop-blocks", "loop-blocked",
    "log-secret", "bare",
]  # fmt: skip


class SampleConfig(DaemonConfig, frozen=True, kw_only=True):
    act: Act = "serve"
    socket: Path = Path("/nowhere")
    pairing: Secret = "canary-sample"


async def start(config: SampleConfig, daemon: Daemon) -> None:
    async def tell(text: str) -> None:
        _log.warning(text)

    daemon.on_stop(lambda: tell("first in, last out"))
    match config.act:
        case "serve":
            server = make_server(errors=ErrorTable({}), service="sample")
            ask = grpc.unary_unary_rpc_method_handler(_slowly)
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Ask": ask}),))
            listen_unix(server, config.socket)
            await server.start()
            daemon.on_stop(lambda: tell("between"))
            daemon.on_stop(lambda: server.stop(5))
            daemon.spawn(_for_ever(), name="for ever")
        case "start-error":
            raise StartError("no pool named 'p';\n  see dpuctl pools")
        case "start-slip":
            raise KeyError("a slip of ours")
        case "start-os-error":
            Path("/nowhere/at/all").read_text()
        case "start-cancelled":
            lost = asyncio.get_running_loop().create_future()
            lost.cancel()
            await lost
        case "start-slow":
            _log.warning("starting slowly")
            await asyncio.sleep(60)
        case "start-stubborn":
            _log.warning("starting stubbornly")
            while True:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    _log.warning("not heeding it")
        case "task-fails":
            daemon.spawn(_fails_once_ready(daemon), name="doomed")
        case "task-fails-in-start":
            daemon.spawn(_fails(), name="doomed")
            await asyncio.sleep(60)
        case "stop-slow":
            daemon.on_stop(lambda: tell("never reached, no time left"))
            daemon.on_stop(lambda: asyncio.sleep(60))
        case "stop-fails":
            daemon.on_stop(_fails)
        case "stop-in-thread":
            daemon.on_stop(lambda: asyncio.to_thread(threading.Event().wait))
        case "stop-blocks":
            daemon.on_stop(_block)
        case "loop-blocked":
            asyncio.get_running_loop().call_later(0.05, _hold_the_loop)
        case "log-secret":
            logs.secret("canary-late")
            daemon.spawn(_fails("canary-late and canary-sample"), name="doomed")
        case "bare":
            pass


async def _slowly(request: bytes, context: object) -> bytes:
    _log.warning("answering")
    await asyncio.sleep(0.3)
    return b"answered"


async def _for_ever() -> None:
    try:
        await asyncio.Event().wait()
    finally:
        _log.warning("task cancelled")


async def _fails(text: str = "as told") -> None:
    await asyncio.sleep(0.05)
    raise ValueError(text)


def _hold_the_loop() -> None:
    _log.warning("holding the loop")
    threading.Event().wait(60)


async def _fails_once_ready(daemon: Daemon) -> None:
    while not daemon.health.ready:
        await asyncio.sleep(0.01)
    await _fails()


async def _block() -> None:
    _hold_the_loop()


if __name__ == "__main__":
    run("sample-daemon", SampleConfig, start)
