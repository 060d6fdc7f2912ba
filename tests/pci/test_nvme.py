"""Disks are found with and without the kernel's multipath, hidden paths never shown."""

from pathlib import Path

import pytest

from foundation.pci import Sysfs

NQN = "nqn.2026-11.io.example:volume.1"
UUID = "7b1b7a32-77cd-4e34-a8ad-0d3f2a2f1f10"


def _controller(tree, bdf: str, name: str) -> str:
    real = tree.function(bdf, device_class="0x010802")
    tree.put(
        f"{real}/nvme/{name}",
        address=bdf,
        transport="pcie",
        state="live",
        subsysnqn=NQN,
        serial="DPU-v1        ",
        cntlid="1",
    )
    tree.link(f"class/nvme/{name}", f"{real}/nvme/{name}")
    return f"{real}/nvme/{name}"


def _disk(tree, parent: str, name: str, device: str, nsid: int = 1, **files: str) -> None:
    where = f"{parent}/{name}"
    tree.put(
        where, nsid=str(nsid), uuid=UUID, wwid=f"uuid.{UUID}", size="2048", ro="0", dev="259:3", hidden="0", **files
    )
    tree.link(f"{where}/device", device)
    tree.link(f"block/{name}", where)


@pytest.fixture
def multipath(tree, tmp_path: Path) -> Sysfs:
    subsystem = "devices/virtual/nvme-subsystem/nvme-subsys2"
    tree.put(subsystem, subsysnqn=NQN)
    tree.link("class/nvme-subsystem/nvme-subsys2", subsystem)
    for number, bdf in ((1, "0000:01:00.0"), (2, "0000:02:00.0")):
        controller = _controller(tree, bdf, f"nvme{number}")
        tree.put(f"{controller}/nvme2c{number}n1", nsid="1", hidden="1", uuid=UUID, size="2048")
        tree.link(f"block/nvme2c{number}n1", f"{controller}/nvme2c{number}n1")
        tree.link(f"{subsystem}/nvme{number}", controller)
    _disk(tree, subsystem, "nvme2n1", subsystem)
    return Sysfs(tmp_path)


def test_a_multipath_head_is_found_through_each_function(multipath: Sysfs) -> None:
    for bdf in ("0000:01:00.0", "0000:02:00.0"):
        (disk,) = multipath.nvme_namespaces(bdf)
        assert (disk.name, disk.controllers, disk.subsystem_nqn) == ("nvme2n1", ("nvme1", "nvme2"), NQN)
        assert (disk.size, disk.nsid, disk.dev) == (1048576, 1, "259:3")


def test_hidden_paths_are_never_disks(multipath: Sysfs) -> None:
    assert [disk.name for disk in multipath.nvme_namespaces()] == ["nvme2n1"]
    assert multipath.nvme_namespace("nvme2c1n1") is None


def test_a_plain_disk_belongs_to_its_controller(tree, tmp_path: Path) -> None:
    controller = _controller(tree, "0000:01:00.0", "nvme0")
    # The number in a disk's name is not its nsid.
    _disk(tree, controller, "nvme0n2", controller, nsid=5)
    tree.put(f"{controller}/nvme0n2/nvme0n2p1", partition="1")
    sysfs = Sysfs(tmp_path)
    (disk,) = sysfs.nvme_namespaces("0000:01:00.0")
    assert (disk.name, disk.nsid, disk.controllers) == ("nvme0n2", 5, ("nvme0",))
    assert sysfs.namespace_by_uuid(UUID.upper()) == disk
    assert sysfs.namespace_by_uuid("00000000-0000-0000-0000-000000000000") is None
    (found,) = sysfs.nvme_controllers("0000:01:00.0")
    assert (found.name, found.state, found.serial, found.controller_id) == ("nvme0", "live", "DPU-v1", 1)
    assert sysfs.nvme_controllers() == (found,)
    assert sysfs.nvme_controllers("0000:09:00.0") == ()
