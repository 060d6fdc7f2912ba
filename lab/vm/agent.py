"""What runs as the guest's only process at first: it does what the machine outside asks for, one line of JSON each.

Started by the guest's init with nothing but the standard library. A request is {"id", "argv", "cwd", "environment",
"stdin", "seconds"}, its answer {"id", "code", "output", "errors"}; requests run side by side. One with "warm": true
goes to the Python of lab/vm/warm.py.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

PORT = "dpu-lab"
WARM = "/run/lab-warm.sock"
SECONDS = 60.0
TIMED_OUT = 124


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
            answer = ask_warm(request) if request.get("warm") else run(request)
        except OSError as error:
            answer = {"code": 127, "output": "", "errors": str(error)}
        self.say({"id": request["id"], **answer})


def ask_warm(request: dict[str, Any]) -> dict[str, Any]:
    """Raises OSError when nothing warm is there, or it ended without an answer."""
    with socket.socket(socket.AF_UNIX) as warm:
        warm.connect(WARM)
        warm.sendall(json.dumps(request).encode() + b"\n")
        with warm.makefile("rb") as stream:
            line = stream.readline()
    if not line:
        raise OSError(f"the warm Python ended in the middle of {request['argv'][0]}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def run(request: dict[str, Any]) -> dict[str, Any]:
    """A program that takes too long is killed with all it started."""
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
        output, errors = process.communicate(request.get("stdin", "").encode(), request.get("seconds", SECONDS))
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        code, errors = TIMED_OUT, errors + b"\nkilled: it took too long"
    return {"code": code, "output": output.decode(errors="replace"), "errors": errors.decode(errors="replace")}


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
