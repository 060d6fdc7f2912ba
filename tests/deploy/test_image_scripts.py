"""The scripts that the images carry: cni-bin put in place at once, and OVN's databases as a raft of three."""

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.ports import free_port
from tests.deploy.shipped import ROOT, Body, containers, workloads

SCRIPTS = ROOT / "deploy/images"
SECONDS = 50.0


def install(*arguments: object, binary: Path) -> subprocess.CompletedProcess[str]:
    command = [str(one) for one in (SCRIPTS / "cni-bin-install", *arguments)]
    return subprocess.run(
        command, env={**os.environ, "CNI_BIN": str(binary)}, capture_output=True, text=True, check=False
    )


def test_the_plugin_is_replaced_while_it_runs(tmp_path: Path) -> None:
    """A copy into place would fail with "text file busy", or be executed half written."""
    target = tmp_path / "bin"
    target.mkdir()
    source, configuration = Path("/bin/sleep"), tmp_path / "network.conflist"
    configuration.write_text("{}")
    assert install(target, tmp_path / "10-dpu-offload.conflist", configuration, binary=source).returncode == 0
    running = subprocess.Popen([target / "dpu-offload", "60"])
    try:
        before = (target / "dpu-offload").stat().st_ino
        assert install(target, binary=Path("/bin/true")).returncode == 0
        assert (target / "dpu-offload").stat().st_ino != before
        assert os.access(target / "dpu-offload", os.X_OK)
        assert running.poll() is None
    finally:
        running.kill()
        running.wait()
    assert sorted(path.name for path in target.iterdir()) == ["dpu-offload"]
    assert (tmp_path / "10-dpu-offload.conflist").read_text() == "{}"


def test_what_cannot_be_put_in_place_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "dpu-offload").write_text("old")
    assert install(tmp_path, binary=tmp_path / "missing").returncode != 0
    assert (tmp_path / "dpu-offload").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@dataclass
class Member:
    address: str
    directory: Path
    environment: dict[str, str]
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        log = (self.directory / "log").open("ab")
        self.process = await asyncio.create_subprocess_exec(
            SCRIPTS / "ovn-central", "nb", env=self.environment, stdout=log, stderr=log
        )
        log.close()

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
        if self.process is not None:
            await self.process.wait()

    async def ready(self) -> None:
        """The manifest's own readiness probe."""
        command = ["ovsdb-client", "--timeout=5", "wait", f"unix:{self.directory}/run/nb.sock", "OVN_Northbound"]
        async with asyncio.timeout(SECONDS):
            while True:
                probe = await asyncio.create_subprocess_exec(
                    *command, "connected", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
                )
                await probe.communicate()
                if probe.returncode == 0:
                    return
                assert self.process is not None
                assert self.process.returncode is None, (self.directory / "log").read_text()
                await asyncio.sleep(0.2)

    async def cluster(self) -> str:
        asked = await asyncio.create_subprocess_exec(
            *("ovs-appctl", "-t", str(self.directory / "run/nb.ctl"), "cluster/status", "OVN_Northbound"),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await asked.communicate()
        return output.decode()


def members(directory: Path) -> Iterator[Member]:
    """Three nodes are three addresses of loopback."""
    base = 1 + os.getpid() % 250
    addresses = [f"127.{base}.7.{number}" for number in (1, 2, 3)]
    ports = {"OVN_NB_PORT": str(free_port()), "OVN_NB_RAFT_PORT": str(free_port())}
    for number, address in enumerate(addresses):
        own = directory / str(number)
        own.mkdir()
        yield Member(
            address,
            own,
            {
                **os.environ,
                **ports,
                "OVN_ADDRESSES": ",".join(addresses),
                "OVN_ADDRESS": address,
                "OVN_DIRECTORY": str(own / "db"),
                "OVN_RUNTIME": str(own / "run"),
                "OVN_TRANSPORT": "tcp",
            },
        )


@pytest.fixture
async def raft(tmp_path: Path) -> AsyncIterator[list[Member]]:
    found = list(members(tmp_path))
    yield found
    for member in found:
        await member.stop()


async def test_three_members_find_each_other_and_one_that_lost_its_disk_joins_again(raft: list[Member]) -> None:
    # All at once, as their pods come up; the last address is started first.
    for member in reversed(raft):
        await member.start()
    for member in raft:
        await member.ready()
    identities = {re.search(r"Cluster ID: (\S+)", await member.cluster())[1] for member in raft}  # type: ignore[index]
    assert len(identities) == 1, "one cluster, not three"
    founder = raft[0]
    await founder.stop()
    for path in (founder.directory / "db").iterdir():
        path.unlink()
    await founder.start()
    await founder.ready()
    assert re.search(r"Cluster ID: (\S+)", await founder.cluster())[1] in identities  # type: ignore[index]
    async with asyncio.timeout(SECONDS):
        # Its former self goes: three members, not four of which one is dead.
        while len(re.findall(r"^    \w+ \(\w+ at tcp:", await raft[1].cluster(), re.MULTILINE)) != 3:
            await asyncio.sleep(0.2)


async def test_a_node_that_is_no_member_is_refused(tmp_path: Path) -> None:
    member = next(members(tmp_path))
    member.environment["OVN_ADDRESS"] = "192.0.2.99"
    await member.start()
    assert member.process is not None
    assert await asyncio.wait_for(member.process.wait(), SECONDS) == 1
    assert "192.0.2.99 is none of" in (member.directory / "log").read_text()


def test_every_script_is_sound_shell() -> None:
    for path in SCRIPTS.iterdir():
        shell = path.read_text().splitlines()[0].removeprefix("#!")
        assert subprocess.run([shell, "-n", path], check=False).returncode == 0, path


def test_what_containers_start_is_in_their_image(everything: list[Body]) -> None:
    """Console scripts of the wheel, or scripts that the Dockerfile copies into that target."""
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    targets = dict(re.findall(r"FROM \w+ AS (\w+)\n(.*?)(?=\nFROM|\Z)", dockerfile, re.DOTALL))
    wheel = set(re.findall(r'^([\w-]+) = "[\w.]+:main"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for one in workloads(everything):
        for container in containers(one):
            if "dpu-offload/" not in container["image"]:
                continue
            target = container["image"].rpartition("/")[2].partition(":")[0]
            assert target in targets
            program = container["args"][0]
            assert program in wheel or f"deploy/images/{program}" in targets[target], f"{target}: {program}"
