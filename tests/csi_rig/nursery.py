"""A process that has everything imported, and bears daemons by fork: a killed one is replaced in a tenth of a second.

Run as a program with the daemons' names as arguments, then with one JSON line on standard input for each daemon; it
answers with the daemon's pid. It never starts gRPC itself, since a process with gRPC must not fork. Daemons that end
are reaped by the kernel.
"""

import ctypes
import importlib
import json
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
MODULES = {
    "csi-controller": "csi.controller.app",
    "csi-node-host": "csi.node_host.app",
    "csi-node-dpu": "csi.node_dpu.app",
    "volume-attacher": "volume_attacher.app",
    "opi-bridge": "opi_bridge.app",
}
MAINS = {name: importlib.import_module(MODULES[name]).main for name in sys.argv[1:]}


def bear(order: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # A test that is broken off leaves nobody behind.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    sys.argv = [order["daemon"], "--config", order["config"]]
    status = 1
    try:
        MAINS[order["daemon"]]()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    finally:
        os._exit(status)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        sys.stdout.write(f"{bear(json.loads(line))}\n")
        sys.stdout.flush()
