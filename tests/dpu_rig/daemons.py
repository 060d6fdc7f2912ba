"""Starts daemons as processes of their own, without their imports each time: python -m tests.dpu_rig.daemons.

One command a line: "start MODULE CONFIG LOG", answered by the process's id, and "kill PID", answered when it is dead.
All end with standard input. Here gRPC is only imported, never used, so that forking does no harm.
"""

import importlib
import os
import signal
import sys

# Loaded once for all.
APPS = {name: importlib.import_module(name) for name in ("opi_bridge.app", "volume_attacher.app", "csi.node_dpu.app")}


def start(module: str, config: str, log: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    with open(log, "ab") as output, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv = [module, "--config", config]
    APPS[module].main()
    os._exit(0)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def main() -> None:
    alive: set[int] = set()
    for line in sys.stdin:
        match line.split():
            case ["start", module, config, log]:
                pid = start(module, config, log)
                alive.add(pid)
                answer = str(pid)
            case ["kill", pid_]:
                alive.remove(int(pid_))
                kill(int(pid_))
                answer = "dead"
            case _:
                raise ValueError(line)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
    for pid in alive:
        kill(pid)


if __name__ == "__main__":
    main()
