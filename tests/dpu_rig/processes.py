"""The DPU's daemons as real processes, for tests that kill them."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from foundation.daemon.configuration import DaemonConfig


class DaemonProcesses:
    """Daemons by their modules, e.g. "opi_bridge.app", each with its settings; their logs lie in `directory`."""

    def __init__(self, configs: Mapping[str, DaemonConfig], directory: Path) -> None:
        self._directory = directory
        self._pids: dict[str, int] = {}
        for module, config in configs.items():
            self._file(module, "yaml").write_bytes(msgspec.yaml.encode(config))
        self._starter = subprocess.Popen(
            [sys.executable, "-m", "tests.dpu_rig.daemons"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _file(self, module: str, suffix: str) -> Path:
        return self._directory / f"{module}.{suffix}"

    def start(self, module: str) -> None:
        files = self._file(module, "yaml"), self._file(module, "log")
        self._pids[module] = int(self._ask("start", module, *map(str, files)))

    def kill(self, module: str) -> None:
        """SIGKILL; returns when it is dead."""
        self._ask("kill", str(self._pids.pop(module)))

    def _ask(self, *words: str) -> str:
        assert self._starter.stdin is not None
        assert self._starter.stdout is not None
        self._starter.stdin.write(" ".join(words) + "\n")
        self._starter.stdin.flush()
        return self._starter.stdout.readline()

    def end(self) -> None:
        """Kill all of them."""
        self._starter.communicate()
