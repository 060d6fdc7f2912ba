"""The device nodes, mounts and variables that a container gets for each kind of function."""

from typing import Any

import pytest

from cni.device_plugin.allocation import Allocator
from cni.device_plugin.config import ContainerMount, Pool, Selector
from cni.device_plugin.environment import variables
from cni.device_plugin.errors import UnhealthyDevice
from cni.device_plugin.inventory import Inventory
from cni.device_plugin.pools import Pools

PF, VF0 = "0000:03:00.0", "0000:03:00.2"


def allocate(machine: Any, pool: Pool, address: str) -> Any:
    allocator = Allocator(machine.sysfs, devfs=machine.devfs, device_info=None, cdi_directory=machine.root / "cdi")
    inventory = Inventory(machine.sysfs, procfs=machine.procfs)
    inventory.scan()
    (devices,) = Pools((pool,), domain="d").divide(inventory.candidates).values()
    return allocator.allocate("d/p", pool, {device.id: device for device in devices}, [address])


def paths(answer: Any) -> list[str]:
    return [node.container_path for node in answer.devices]


def test_an_nvme_controller_with_its_disks(machine: Any) -> None:
    machine.pf(PF, vfs=[VF0], class_code="010802", device="6001", driver="nvme")
    machine.nvme("nvme3", VF0)
    disk = machine.device(VF0) / "nvme/nvme3/nvme3n1"
    disk.mkdir()
    (disk / "nsid").write_text("1\n")
    machine.link(machine.sysfs_root / "block/nvme3n1", disk)
    pool = Pool(name="p", selectors=(Selector(classes=("0108",)),), use="nvme")
    assert paths(allocate(machine, pool, VF0)) == ["/dev/nvme3", "/dev/nvme3n1"]


def test_a_dead_controller_is_not_given_away(machine: Any) -> None:
    machine.pf(PF, vfs=[VF0], class_code="010802", driver="nvme")
    machine.nvme("nvme3", VF0, state="dead")
    pool = Pool(name="p", selectors=(Selector(classes=("0108",)),), use="nvme")
    with pytest.raises(UnhealthyDevice, match="its NVMe controller is dead"):
        allocate(machine, pool, VF0)


def test_a_gpu_for_a_vm(machine: Any) -> None:
    """A physical function of any class; its audio function shares the group and is on vfio-pci too."""
    for function, class_code in ((0, "030200"), (1, "040300")):
        machine.function(f"0000:65:00.{function}", vendor="10de", class_code=class_code, driver="vfio-pci", group=101)
    pool = Pool(name="p", selectors=(Selector(functions="pf", classes=("03",), vendors=("10de",)),), use="vfio")
    answer = allocate(machine, pool, "0000:65:00.0")
    assert paths(answer) == ["/dev/vfio/vfio", "/dev/vfio/101"]
    assert answer.envs["PCI_RESOURCE_D_P"] == "0000:65:00.0"
    machine.bind("0000:65:00.1", "snd_hda_intel")
    with pytest.raises(UnhealthyDevice, match=r"shares IOMMU group 101 with 0000:65:00\.1, which snd_hda_intel uses"):
        allocate(machine, pool, "0000:65:00.0")


def test_rdma_devices(machine: Any) -> None:
    machine.pf(PF, vfs=[VF0])
    pool = Pool(name="p", selectors=(Selector(),), rdma=True)
    with pytest.raises(UnhealthyDevice, match="has no RDMA device"):
        allocate(machine, pool, VF0)
    for name in ("infiniband_verbs/uverbs4", "infiniband_mad/umad4", "infiniband_mad/issm4"):
        (machine.device(VF0) / name).mkdir(parents=True)
    assert paths(allocate(machine, pool, VF0)) == [
        "/dev/infiniband/uverbs4",
        "/dev/infiniband/issm4",
        "/dev/infiniband/umad4",
        "/dev/infiniband/rdma_cm",
    ]


def test_declared_nodes_and_mounts(machine: Any) -> None:
    machine.pf(PF, vfs=[VF0])
    pool = Pool(
        name="p",
        selectors=(Selector(),),
        nodes=("/dev/vhost-net", "/dev/net/tun"),
        mounts=(ContainerMount(host="/opt/firmware", container="/lib/firmware"),),
    )
    answer = allocate(machine, pool, VF0)
    assert paths(answer) == ["/dev/vhost-net", "/dev/net/tun"]
    assert [(mount.host_path, mount.container_path, mount.read_only) for mount in answer.mounts] == [
        ("/opt/firmware", "/lib/firmware", True)
    ]


@pytest.mark.parametrize(
    ("resource", "vfio", "names"),
    [
        ("example.com/vf", False, {"PCIDEVICE_EXAMPLE_COM_VF", "PCIDEVICE_EXAMPLE_COM_VF_INFO"}),
        (
            "a-b.io/vf",
            True,
            {
                *("PCIDEVICE_A-B_IO_VF", "PCIDEVICE_A_B_IO_VF", "PCIDEVICE_A-B_IO_VF_INFO"),
                *("PCIDEVICE_A_B_IO_VF_INFO", "PCI_RESOURCE_A-B_IO_VF", "PCI_RESOURCE_A_B_IO_VF"),
            },
        ),
    ],
)
def test_variables(resource: str, vfio: bool, names: set[str]) -> None:
    found = variables(resource, ["0000:03:00.2", "0000:03:00.3"], nodes={}, vfio=vfio)
    assert set(found) == names
    assert {value for name, value in found.items() if not name.endswith("_INFO")} == {"0000:03:00.2,0000:03:00.3"}
