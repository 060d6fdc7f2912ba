"""The session with a raft cluster over TLS: it follows the leader and loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundation.ovsdb import Change, OvsdbError, OvsdbSession, OvsdbTls, Unavailable
from foundation.ovsdb import operations as op
from lab.certificates import Authority
from lab.ports import free_port

SCHEMA = "/usr/share/ovn/ovn-nb.ovsschema"


class Cluster:
    """Three members; raft among them by unix sockets, clients by TLS on ports of the loopback."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        files = Authority(directory / "pki").issue_names("nb", file="nb")
        self.tls = OvsdbTls(ca=str(files.ca), certificate=str(files.certificate), key=str(files.key))
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.ports: dict[int, int] = {}
        local = [f"unix:{directory}/raft{index}" for index in range(3)]
        subprocess.run(["ovsdb-tool", "create-cluster", directory / "0.db", SCHEMA, local[0]], check=True)
        for index in (1, 2):
            command = [
                "ovsdb-tool",
                "join-cluster",
                directory / f"{index}.db",
                "OVN_Northbound",
                local[index],
                local[0],
            ]
            subprocess.run(command, check=True)

    def start(self, index: int) -> None:
        self.processes[index] = subprocess.Popen(
            [
                "ovsdb-server",
                f"--remote=punix:{self.directory}/{index}.sock",
                f"--remote=pssl:{self.ports[index]}:127.0.0.1",
                f"--ca-cert={self.tls.ca}",
                f"--certificate={self.tls.certificate}",
                f"--private-key={self.tls.key}",
                f"--unixctl={self.directory}/{index}.ctl",
                "-vconsole:off",
                self.directory / f"{index}.db",
            ]
        )

    def kill(self, index: int) -> None:
        process = self.processes.pop(index, None)
        if process is not None:
            process.kill()
            process.wait()

    @property
    def remotes(self) -> str:
        return ",".join(f"ssl:127.0.0.1:{port}" for port in self.ports.values())

    async def whole(self) -> None:
        """Returns when every member has joined: before that the loss of one may be the loss of the majority."""
        for index in self.processes:
            async with OvsdbSession(f"unix:{self.directory}/{index}.sock", "_Server") as session:
                rows: list[dict[str, object]] = []
                while not any(row["name"] == "OVN_Northbound" and row["connected"] for row in rows):
                    (result,) = await session.transact(op.select("Database", (), ["name", "connected"]))
                    rows = result.rows
                    await asyncio.sleep(0.05)

    async def leader(self) -> int:
        """The member that says it leads."""
        for _ in range(100):
            for index in self.processes:
                session = OvsdbSession(f"unix:{self.directory}/{index}.sock", "OVN_Northbound", leader_only=True)
                with contextlib.suppress(Unavailable):
                    await session.start(deadline=0.5)
                    await session.stop()
                    return index
        raise AssertionError("nobody leads")


@pytest.fixture
def cluster(directory: Path) -> Iterator[Cluster]:
    cluster = Cluster(directory)
    cluster.ports = {index: free_port() for index in range(3)}
    for index in range(3):
        cluster.start(index)
    yield cluster
    for index in list(cluster.processes):
        cluster.kill(index)


# Elections take seconds, and many of them on a machine that is busy with other things.
@pytest.mark.timeout(240)
async def test_a_killed_leader_costs_no_row(cluster: Cluster) -> None:
    await cluster.whole()
    session = OvsdbSession(cluster.remotes, "OVN_Northbound", tls=cluster.tls, leader_only=True)
    session.monitor({"Logical_Switch": ["name"]})
    await session.start(deadline=60)
    changes: list[Change] = []
    session.subscribe("Logical_Switch", changes.append)

    async def write(name: str) -> None:
        while True:
            # The transaction is safe to repeat, as everything that may end with an unknown outcome must be.
            guard = op.wait("Logical_Switch", [("name", "==", name)], [], until="==")
            try:
                await session.transact(guard, op.insert("Logical_Switch", {"name": name}), deadline=5)
                return
            except OvsdbError:
                if any(row["name"] == name for row in session.rows("Logical_Switch").values()):
                    return
                await asyncio.sleep(0.02)

    await asyncio.gather(*(write(f"before-{index}") for index in range(8)))
    writing = [asyncio.create_task(write(f"during-{index}")) for index in range(8)]
    await asyncio.sleep(0)
    leader = await cluster.leader()
    cluster.kill(leader)
    await asyncio.wait_for(asyncio.gather(*writing), 120)
    await write("after")
    names = sorted(row["name"] for row in session.rows("Logical_Switch").values())
    assert names == sorted([*(f"before-{i}" for i in range(8)), *(f"during-{i}" for i in range(8)), "after"])
    # Whoever subscribed has seen each row once, over all connections.
    assert len([change for change in changes if change.kind == "insert"]) == 17
    assert not [change for change in changes if change.kind != "insert"]
    await session.stop()


async def test_a_stranger_without_certificate_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other").issue_names("nb", file="nb")
    tls = OvsdbTls(ca=str(other.ca), certificate=str(other.certificate), key=str(other.key))
    with pytest.raises(Unavailable, match="certificate verify failed"):
        await OvsdbSession(cluster.remotes, "OVN_Northbound", tls=tls).start(deadline=4)
    with pytest.raises(Unavailable, match="needs TLS files"):
        await OvsdbSession(cluster.remotes, "OVN_Northbound").start(deadline=1)
