"""Backend kind `nvmet` on the kernel's own target, seen by the kernel's own initiator."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.vm.machine import INSIDE, Machine

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
SECTION = """
kind: nvmet
directory: /run/files
portals: [{transport: tcp, address: 127.0.0.1, port: 4420}]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def directory(machine: Machine) -> AsyncIterator[str]:
    """A file system with reflinks."""
    await machine.sh(
        "modprobe -a loop xfs nvmet nvmet-tcp nvme-tcp; mountpoint -q /sys/kernel/config "
        "|| mount -t configfs configfs /sys/kernel/config; "
        "truncate -s 320M /run/files.disk; mkfs.xfs -q -m reflink=1 /run/files.disk; "
        "mkdir /run/files; mount -o loop /run/files.disk /run/files"
    )
    yield "/run/files"
    await machine.sh("umount -l /run/files; rm /run/files.disk; rmdir /run/files")


async def test_a_host_connects_writes_and_is_cut_off(machine: Machine, directory: str) -> None:
    seen: dict[str, Any] = await machine.guest.script(INSIDE / "nvmet.py", directory, seconds=280)
    assert "no portal of" in seen["refused"]
    assert seen["connected"] == ""
    assert (seen["size"], seen["read"], seen["expanded"]) == (16 << 20, "hello", 24 << 20)
    assert seen["before"] == ["live", "live"]
    assert seen["after"] == ["", "live"]
    assert seen["left"] == []


@pytest.mark.parametrize(
    ("cases", "least"), [("snapshot or clone or source", 5), ("not (snapshot or clone or source)", 20)]
)
async def test_the_conformance_suite(machine: Machine, directory: str, cases: str, least: int) -> None:
    await machine.guest.run("sh", "-c", "cat > /run/section.yaml", stdin=SECTION)
    words = "-q -p no:cacheprovider --tb=native --pyargs csi.framework.conformance --backend-section /run/section.yaml"
    done = await machine.guest.run("pytest", *words.split(), "-k", cases, warm=True, check=False, seconds=280)
    assert done.code == 0, done.output[-4000:]
    passed = re.search(r"(\d+) passed", done.output)
    assert passed, done.output
    assert int(passed[1]) >= least
