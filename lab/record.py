"""What the lab has started, on disk from the first moment, so that a later command can find it or clear it away."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from lab.processes import ProcessRecord, start_time


class LabRecord(msgspec.Struct, kw_only=True):
    """``keep`` is true for `dpu-lab up`; otherwise the lab belongs to the process ``owner``."""

    prefix: str
    owner: ProcessRecord
    keep: bool = False
    kubeconfig: str = ""
    own_api_server: bool = True
    own_spdk: bool = True
    processes: dict[str, ProcessRecord] = {}


def this_process() -> ProcessRecord:
    started = start_time(os.getpid())
    if started is None:
        raise RuntimeError("/proc does not show this process; is it mounted?")
    return ProcessRecord(name="dpu-lab", pid=os.getpid(), started=started)


def load(path: Path) -> LabRecord | None:
    """None when there is none, or when a crash left it unreadable (only the disk itself can do that)."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=LabRecord)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def save(record: LabRecord, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(record))
    temporary.replace(path)
