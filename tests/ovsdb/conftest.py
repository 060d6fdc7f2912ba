"""OVSDB servers of the tests' own, from Debian's packages."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from foundation.ovsdb import OvsdbSession

NB_SCHEMA = "/usr/share/ovn/ovn-nb.ovsschema"


class Server:
    """An ovsdb-server with an empty northbound database; `stop` and `start` keep the file."""

    def __init__(self, directory: Path, name: str = "nb") -> None:
        self.directory = directory
        self.file = directory / "nb.db"
        self.socket = directory / f"{name}.sock"
        self.remote = f"unix:{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        if not self.file.exists():
            subprocess.run(["ovsdb-tool", "create", self.file, NB_SCHEMA], check=True)

    def beside(self) -> Server:
        """A second server for the same file, on another socket; never both at once."""
        return Server(self.directory, "other")

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                "ovsdb-server",
                f"--remote=punix:{self.socket}",
                f"--unixctl={self.directory}/nb.ctl",
                "-vconsole:off",
                self.file,
            ],
            stdin=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not pytest's tmp_path: a unix socket's path has 108 bytes at most.
    path = Path(tempfile.mkdtemp(prefix="ov", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(directory: Path) -> Iterator[Server]:
    server = Server(directory)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def session(server: Server) -> AsyncIterator[OvsdbSession]:
    session = OvsdbSession(server.remote, "OVN_Northbound")
    session.monitor(
        {
            "Logical_Switch": ["name", "ports", "external_ids", "other_config"],
            "Logical_Switch_Port": ["name", "addresses", "tag", "up", "options", "external_ids"],
        }
    )
    await session.start()
    yield session
    await session.stop()
