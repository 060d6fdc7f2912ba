"""Backend kind `nvmet` under the conformance suite: real files with reflinks, and a laid-out configfs."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from csi import identity
from csi.framework.backend import HostKeys, Portal, SizeRange, VolumeSpec
from csi.framework.backends.nvmet import NvmetBackend
from csi.framework.backends.nvmet.config import NvmetConfig, NvmetParameters
from csi.framework.conformance.storage import Storage
from csi.framework.conformance.suite import BackendConformance
from csi.node_host import mounts
from lab.hardware import loops
from tests.csi_rig.nvmet import LaidOut, empty

pytestmark = pytest.mark.root

PORTALS = (Portal("tcp", "192.0.2.1", 4420), Portal("rdma", "2001:db8::1", 4420))


@pytest.fixture(scope="module")
def reflinks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A btrfs of its own."""
    directory = tmp_path_factory.mktemp("btrfs")
    file, point = directory / "disk", directory / "point"
    point.mkdir()
    with file.open("wb") as opened:
        opened.truncate(1 << 30)
    loop = asyncio.run(loops.attach(file, size=1 << 30))
    subprocess.run(["mkfs.btrfs", "-q", str(loop)], check=True)
    mounts.mount(str(loop), str(point), "btrfs", [])
    yield point
    mounts.unmount(str(point))
    asyncio.run(loops.detach(loop))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return empty(tmp_path / "nvmet")


@pytest.fixture
async def backend(reflinks: Path, tree: Path) -> AsyncIterator[NvmetBackend]:
    for path in reflinks.iterdir():
        path.unlink()
    config = NvmetConfig(directory=str(reflinks), portals=PORTALS, configfs=str(tree))
    backend = NvmetBackend("nvmet", config, configfs=LaidOut(tree))
    await backend.start()
    yield backend
    await backend.close()


class TestNvmet(BackendConformance):
    @pytest.fixture
    async def storage(self, backend: NvmetBackend, tree: Path) -> Storage:
        async def restart() -> None:
            """The machine boots: configfs is empty, the files are there."""
            empty(tree)

        return Storage(backend=backend, parameters=NvmetParameters(), restart=restart)


async def test_the_tree_is_as_the_kernel_wants_it(backend: NvmetBackend, tree: Path, reflinks: Path) -> None:
    spec = VolumeSpec(token=identity.hashed("a"), size=SizeRange(1 << 20), parameters=NvmetParameters())
    volume = await backend.create(spec)
    host = identity.host_nqn("one")
    await backend.grant(volume.key, host, keys=HostKeys(dhchap_key="DHHC-1:00:x:"), shared=False)
    volume_id = identity.VolumeId("nvmet", volume.key)
    subsystem = tree / "subsystems" / identity.subsystem_nqn(volume_id)
    space = subsystem / "namespaces/1"
    read = {path.name: path.read_text().strip() for path in space.iterdir()}
    uuid = identity.namespace_uuid(volume_id)
    assert read == {
        "device_path": str(reflinks / f"{volume.key}.img"),
        "device_uuid": uuid,
        "device_nguid": uuid,
        "enable": "1",
    }
    assert (subsystem / "attr_allow_any_host").read_text() == "0\n"
    assert (subsystem / "allowed_hosts" / host).resolve() == tree / "hosts" / host
    addresses = {
        port.name: [(port / f"addr_{name}").read_text().strip() for name in ("trtype", "adrfam", "traddr", "trsvcid")]
        for port in (tree / "ports").iterdir()
    }
    assert addresses == {
        "1": ["tcp", "ipv4", "192.0.2.1", "4420"],
        "2": ["rdma", "ipv6", "2001:db8::1", "4420"],
    }
    await backend.revoke(volume.key, host)
    assert not list((tree / "hosts").iterdir()), "with the last volume the host's key goes as well"
    await backend.delete(volume.key)
    assert not list((tree / "subsystems").iterdir())
    assert not list(reflinks.iterdir())


async def test_who_is_cut_off_loses_its_connections_and_the_others_keep_their_way(
    backend: NvmetBackend, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel ends connections only when a subsystem leaves a port."""
    spec = VolumeSpec(token=identity.hashed("a"), size=SizeRange(1 << 20), parameters=NvmetParameters())
    volume = await backend.create(spec)
    hosts = [identity.host_nqn(name) for name in ("one", "two")]
    for host in hosts:
        await backend.grant(volume.key, host, keys=HostKeys(), shared=True)
    unlinked: list[str] = []
    unlink = Path.unlink

    def noted(path: Path, missing_ok: bool = False) -> None:
        unlinked.append(str(path.relative_to(tree)))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", noted)
    await backend.revoke(volume.key, hosts[0])
    nqn = identity.subsystem_nqn(identity.VolumeId("nvmet", volume.key))
    allowed = f"subsystems/{nqn}/allowed_hosts/{hosts[0]}"
    assert unlinked == [f"ports/1/subsystems/{nqn}", f"ports/2/subsystems/{nqn}", allowed]
    again = await backend.get(volume.key)
    assert (again.exported, again.hosts) == (True, (hosts[1],))
    await backend.revoke(volume.key, hosts[0])
    assert len(unlinked) == 3, "the other host is not disturbed for one who is out already"


async def test_without_reflinks_there_are_no_snapshots(tmp_path: Path, tree: Path) -> None:
    directory = Path("/dev/shm", tmp_path.name)
    directory.mkdir()
    try:
        config = NvmetConfig(directory=str(directory), portals=PORTALS, configfs=str(tree))
        backend = NvmetBackend("nvmet", config, configfs=LaidOut(tree))
        await backend.start()
        assert not backend.capabilities.snapshots
        assert not backend.capabilities.clones
    finally:
        shutil.rmtree(directory)


async def test_notes_and_half_made_files_are_found(backend: NvmetBackend, reflinks: Path) -> None:
    token = identity.hashed("a")
    for name in (f"o{token}.img", f"v{token}.img.new"):
        (reflinks / name).write_text("x")
    found = await backend.garbage()
    assert {finding.name for finding in found} == {f"o{token}.img", f"v{token}.img.new"}
    spec = VolumeSpec(token=token, size=SizeRange(1 << 20), parameters=NvmetParameters())
    assert (await backend.create(spec)).key == (await backend.create(spec)).key == f"v{token}"
    for finding in found:
        await backend.remove(finding)
    assert await backend.garbage() == []
    assert [path.name for path in reflinks.iterdir()] == [f"v{token}.img"]
