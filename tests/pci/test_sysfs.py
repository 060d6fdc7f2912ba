"""Functions, representors and netdevs are read from a tree as the kernel lays it out."""

from pathlib import Path

import pytest

from foundation.pci import FunctionPort, Sysfs
from foundation.pci.errors import NoSuchDevice, NotVirtualFunction

PF = "0000:03:00.1"
VFS = ["0000:03:02.0", "0000:03:02.1", "0000:03:02.2"]


@pytest.fixture
def card(tree, tmp_path: Path) -> Sysfs:
    real = tree.function(PF, numa_node="1", sriov_numvfs="3", sriov_totalvfs="8", sriov_offset="15", sriov_stride="1")
    tree.virtual_functions(PF, VFS)
    tree.netdev(real, "ens1f1", phys_port_name="p1", address="02:00:00:00:00:01", ifindex="7", mtu="9000")
    vf = f"devices/pci0000:00/{VFS[2]}"
    tree.netdev(vf, "ens1f1v2", address="02:00:00:00:00:12", mtu="1500")
    tree.link(f"{vf}/driver", "bus/pci/drivers/mlx5_core")
    tree.link(f"{vf}/iommu_group", "kernel/iommu_groups/41")
    tree.link(f"kernel/iommu_groups/41/devices/{VFS[2]}", vf)
    return Sysfs(tmp_path)


def test_a_virtual_function_is_described_whole(card: Sysfs) -> None:
    vf = card.function("03:02.2")
    assert (vf.address, vf.is_vf, vf.pf, vf.pf_number, vf.vf_index) == (VFS[2], True, PF, 1, 2)
    assert (vf.driver, vf.iommu_group, vf.netdevs, vf.vendor) == ("mlx5_core", 41, ("ens1f1v2",), 0x15B3)
    assert card.iommu_group(41) == (VFS[2],)
    assert card.vfio_device(VFS[2]) == ""


def test_a_physical_function_lists_its_virtual_ones(card: Sysfs) -> None:
    pf = card.function(PF)
    assert (pf.is_vf, pf.vf_count, pf.vf_total, pf.numa_node, pf.vf_index) == (False, 3, 8, 1, -1)
    assert card.virtual_functions(PF) == tuple(VFS)
    assert card.virtual_function(PF, 1) == VFS[1]
    assert [function.address for function in card.functions(class_prefix=0x02)] == [PF, *VFS]
    assert not list(card.functions(class_prefix=0x0108))


def test_the_index_is_right_where_the_arithmetic_is_not(card: Sysfs, tree) -> None:
    tree.put(f"devices/pci0000:00/{PF}", sriov_offset="0", sriov_stride="2")
    assert [card.function(vf).vf_index for vf in VFS] == [0, 1, 2]


def test_a_function_bound_to_vfio_has_a_device_and_no_netdev(card: Sysfs, tree) -> None:
    vf = tree.root / f"devices/pci0000:00/{VFS[1]}"
    tree.link(f"devices/pci0000:00/{VFS[1]}/driver", "bus/pci/drivers/vfio-pci")
    tree.link(f"devices/pci0000:00/{VFS[1]}/iommu_group", "kernel/iommu_groups/7")
    assert card.vfio_device(VFS[1]) == "/dev/vfio/7"
    assert card.netdevs(VFS[1]) == ()
    assert vf.is_dir()


def test_what_is_not_there_is_named(card: Sysfs) -> None:
    with pytest.raises(NoSuchDevice, match="no PCI function"):
        card.function("0000:03:0f.0")
    with pytest.raises(NoSuchDevice, match="no VF 9"):
        card.virtual_function(PF, 9)
    with pytest.raises(NotVirtualFunction, match="no SR-IOV"):
        card.virtual_functions(VFS[0])
    with pytest.raises(NoSuchDevice, match="no network device"):
        card.netdev("../../etc")
    assert not card.exists("0000:03:0f.0")


def test_representors_of_both_naming_styles(tree, tmp_path: Path) -> None:
    real = tree.function("0000:03:00.0")
    switch = "9c0591ff"
    tree.netdev(real, "p0", phys_port_name="p0", phys_switch_id=switch)
    tree.netdev(real, "pf0hpf", phys_port_name="c1pf0", phys_switch_id=switch)
    tree.netdev(real, "rep3", phys_port_name="c1pf0vf3", phys_switch_id=switch)
    tree.netdev(real, "own1", phys_port_name="pf0vf1", phys_switch_id=switch)
    tree.netdev(real, "sf1", phys_port_name="pf0sf1", phys_switch_id=switch)
    tree.netdev(real, "plain", phys_port_name="", phys_switch_id="")
    (tmp_path / "class/net/bonding_masters").write_text("")
    sysfs = Sysfs(tmp_path)
    assert sysfs.representors() == {
        FunctionPort(switch, 1, 0, 3): "rep3",
        FunctionPort(switch, 0, 0, 1): "own1",
    }
    assert {name for _, _, name in sysfs.switch_ports()} == {"p0", "pf0hpf", "rep3", "own1", "sf1"}
    netdev = sysfs.netdev("rep3")
    assert (netdev.pci, netdev.port_name, netdev.switch_id) == ("0000:03:00.0", "c1pf0vf3", switch)


def test_a_scalable_function_knows_its_card(tree, tmp_path: Path) -> None:
    real = tree.function("0000:03:00.0")
    tree.put(f"{real}/mlx5_core.sf.4", sfnum="88")
    tree.put(f"{real}/mlx5_core.sf.4/net/enp3s0f0s88")
    tree.link("bus/auxiliary/devices/mlx5_core.sf.4", f"{real}/mlx5_core.sf.4")
    found = Sysfs(tmp_path).scalable_function("mlx5_core.sf.4")
    assert (found.number, found.pf, found.netdevs) == (88, "0000:03:00.0", ("enp3s0f0s88",))
    with pytest.raises(NoSuchDevice):
        Sysfs(tmp_path).scalable_function("mlx5_core.sf.5")


def test_a_vuid_leads_to_its_function(tree, tmp_path: Path) -> None:
    for number in range(2):
        real = tree.function(f"0000:05:00.{number}", device_class="0x010802")
        text = f"MT1S0D0F{number}".encode()
        body = b"VU" + bytes([len(text)]) + text
        (tree.root / real / "vpd").write_bytes(b"\x90" + len(body).to_bytes(2, "little") + body + b"\x78")
    sysfs = Sysfs(tmp_path)
    assert sysfs.by_vuid("MT1S0D0F1") == "0000:05:00.1"
    assert sysfs.function("0000:05:00.0").vuid == "MT1S0D0F0"
    assert sysfs.by_vuid("MT1S0D0F2") is None
