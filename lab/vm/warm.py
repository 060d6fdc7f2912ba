"""A Python in the guest which has loaded what scripts import, and becomes each of them by a fork.

Importing a daemon's packages takes an emulated machine ten seconds and more, a fork a tenth of one. Started as
`python -m lab.vm.warm MODULE..`, it returns when it serves. A request is a line of JSON as for lab/vm/agent.py,
its "argv" a module with arguments; the answer is {"code", "output", "errors"}.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import IO, Any, NoReturn

from lab.vm.agent import SECONDS, TIMED_OUT, WARM


def main(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(WARM)
        listener.listen()
        if os.fork():
            return
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            connection, _ = listener.accept()
            with connection:
                if not os.fork():
                    listener.close()
                    _answer(connection)


def _answer(connection: socket.socket) -> NoReturn:
    """One script's supervisor, a process of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection.makefile("rwb") as stream:
        stream.write(json.dumps(_run(json.loads(stream.readline()))).encode() + b"\n")
    os._exit(0)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        given.write(request.get("stdin", "").encode())
        given.seek(0)
        child = os.fork()
        if not child:
            _become(request, given, output, errors)
        code = _end(child, request.get("seconds", SECONDS))
        return {"code": code, "output": _text(output), "errors": _text(errors)}


def _become(request: dict[str, Any], *streams: IO[bytes]) -> NoReturn:
    os.setsid()
    for descriptor, stream in enumerate(streams):
        os.dup2(stream.fileno(), descriptor)
    os.chdir(request.get("cwd") or "/")
    os.environ.update(request.get("environment", {}))
    module, *arguments = request["argv"]
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end(child: int, seconds: float) -> int:
    """The exit code; a script that takes too long is killed with all it started in its session."""
    waiting = select.poll()
    waiting.register(os.pidfd_open(child), select.POLLIN)
    in_time = bool(waiting.poll(seconds * 1000))
    if not in_time:
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if in_time else TIMED_OUT


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


if __name__ == "__main__":
    main(sys.argv[1:])
