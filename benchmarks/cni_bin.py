"""CPU of one cni-bin call, beside a static C program that does nothing, in the same run.

A server in this process takes the call and answers at once; the children's CPU is what the kernel charges them.
`.venv/bin/python -m benchmarks.cni_bin`
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks import report

BINARY = Path(__file__).parents[1] / "cni/bin/dpu-offload"
TWIN = BINARY.with_name("__main__.py")
CONFIG = b'{"cniVersion":"1.1.0","name":"lan","type":"dpu-offload","prevResult":{"ips":[{"address":"10.1.2.3/24"}]}}'
ANSWER = b'{"cniVersion":"1.1.0","interfaces":[],"ips":[],"routes":[],"dns":{}}\n'
ROUNDS, BATCH = 12, 25
NOTHING = "int main(void) { return 0; }\n"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="cni-bin-") as scratch:
        path = str(Path(scratch) / "s")
        nothing = _compiled(Path(scratch))
        listener = _server(path)
        environment = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "0" * 64,
            "CNI_NETNS": "/run/netns/x",
            "CNI_IFNAME": "eth0",
            "DPU_OFFLOAD_CNI_SOCKET": path,
        }
        figures: dict[str, list[tuple[float, float]]] = {"nothing": [], "c": [], "python": []}
        commands = {
            "nothing": [str(nothing)],
            "c": [str(BINARY)],
            "python": [sys.executable, "-I", "-S", "-E", str(TWIN)],
        }
        # Interleaved, so that a busy moment of the machine meets all of them.
        for _ in range(ROUNDS):
            for name, command in commands.items():
                figures[name].append(_batch(command, environment))
        listener.close()
    cpu = {name: statistics.median(one[0] for one in found) for name, found in figures.items()}
    wall = {name: min(one[1] for one in found) for name, found in figures.items()}
    report.add("cni_bin_cpu", value=cpu["c"], unit="ms", floor=cpu["nothing"], goal={"of": "value", "max": 1.5})
    report.add("cni_bin_wall_min", value=wall["c"], unit="ms", floor=wall["nothing"])
    report.add("cni_bin_python_cpu", value=cpu["python"], unit="ms", floor=cpu["nothing"])


def _compiled(scratch: Path) -> Path:
    source, binary = scratch / "nothing.c", scratch / "nothing"
    source.write_text(NOTHING)
    subprocess.run(["cc", "-O2", "-static", "-o", str(binary), str(source)], check=True)
    return binary


def _server(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(64)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                prefix = connection.recv(8, socket.MSG_WAITALL)
                size = int.from_bytes(prefix[:4], "big") + int.from_bytes(prefix[4:], "big")
                connection.recv(size, socket.MSG_WAITALL)
                connection.sendall((0).to_bytes(4, "big") + len(ANSWER).to_bytes(4, "big") + ANSWER)

    threading.Thread(target=serve, daemon=True).start()
    return listener


def _batch(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """(CPU ms, wall ms) a call."""
    cpu = wall = 0.0
    for _ in range(BATCH):
        read, write = os.pipe()
        os.write(write, CONFIG)
        os.close(write)
        started = time.perf_counter()
        actions = [(os.POSIX_SPAWN_DUP2, read, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        pid = os.posix_spawn(command[0], command, environment, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
        wall += time.perf_counter() - started
        cpu += usage.ru_utime + usage.ru_stime
        os.close(read)
        if status != 0:
            raise SystemExit(f"{command[0]} failed with status {status}")
    return cpu / BATCH * 1000, wall / BATCH * 1000


if __name__ == "__main__":
    main()
