"""What runs as the guest's only process at first: it does what the machine outside asks for, one line of JSON each.

Started by the guest's init with nothing but the standard library. A request is {"id", "argv", "cwd", "environment",
"stdin", "seconds"}, its answer {"id", "code", "output", "errors"}; requests run side by side.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

PORT = "dpu-lab"
_SECONDS = 60.0
_TIMED_OUT = 124


def port(name: str = PORT) -> Path:
    """The character device of a virtio port, found without udev. Raises LookupError."""
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").read_text().strip() == name:
            return Path("/dev") / entry.name
    raise LookupError(f"the guest has no virtio port {name}")


class Agent:
    def __init__(self, channel: IO[bytes]) -> None:
        self._channel = channel
        self._turn = threading.Lock()

    def serve(self) -> None:
        """Until the machine outside goes away."""
        self.say({"ready": Path("/proc/uptime").read_text().split()[0]})
        while line := self._channel.readline():
            threading.Thread(target=self._do, args=(json.loads(line),), daemon=True).start()

    def say(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._turn:
            while data:
                data = data[os.write(self._channel.fileno(), data[:32768]) :]

    def _do(self, request: dict[str, Any]) -> None:
        try:
            code, output, errors = run(request)
        except OSError as error:
            code, output, errors = 127, b"", str(error).encode()
        texts = {"output": output.decode(errors="replace"), "errors": errors.decode(errors="replace")}
        self.say({"id": request["id"], "code": code, **texts})


def run(request: dict[str, Any]) -> tuple[int, bytes, bytes]:
    """Exit code, output, errors; a program that takes too long is killed with all it started."""
    process = subprocess.Popen(
        request["argv"],
        cwd=request.get("cwd") or "/",
        env={**os.environ, **request.get("environment", {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(request.get("stdin", "").encode(), request.get("seconds", _SECONDS))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        return _TIMED_OUT, output, errors + b"\nkilled: it took too long"
    return process.returncode, output, errors


def power_off() -> None:
    os.sync()
    Path("/proc/sysrq-trigger").write_text("o")
    signal.pause()


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.sethostname(b"guest", 5)
    # The agent must not be the first process: that one only waits for whatever ends.
    if os.getpid() == 1:
        child = os.fork()
        if child:
            while os.waitpid(-1, 0)[0] != child:
                pass
            power_off()
    with open(port(), "r+b", buffering=0) as raw, os.fdopen(os.dup(raw.fileno()), "rb") as channel:
        Agent(channel).serve()
    sys.exit(0)


if __name__ == "__main__":
    main()
