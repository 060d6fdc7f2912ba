"""What is discovered on the cards of the field, each laid out as its driver shows it.

BlueField host and DPU side, ConnectX in switchdev mode, Intel E810, igb, netdevsim; after the kernel drivers' names.
"""

from collections.abc import Callable
from typing import Any

import pytest

from cni.device_plugin.config import Pool, Selector
from cni.device_plugin.inventory import Inventory
from cni.device_plugin.pools import Pools

HEALTHY = ""
SWITCH0, SWITCH1 = "b8cef6ffff0a1b2c", "b8cef6ffff0a1b2d"


def bluefield_host(machine: Any) -> None:
    """Two ports; the switch is the DPU's, so the host sees neither switch ids nor representors."""
    for port in (0, 1):
        pf = f"0000:03:00.{port}"
        machine.pf(pf, vfs=[f"0000:03:{port:02x}.{index + 2}" for index in range(2)], device="101e")
        (machine.device(pf) / "device").write_text("0xa2dc\n")
        machine.netdev(f"ens1f{port}np{port}", pf, port=f"p{port}")
    machine.pf("0000:03:00.6", vfs=["0000:03:03.0"], device="6001", class_code="010802", driver="nvme")
    machine.nvme("nvme3", "0000:03:03.0")


def bluefield_dpu(machine: Any) -> None:
    """Uplinks, host PF and host VF representors hang below the DPU's own PFs, which have no VFs."""
    for port, switch in ((0, SWITCH0), (1, SWITCH1)):
        pf = f"0000:03:00.{port}"
        machine.pf(pf, vfs=[], device="a2dc")
        machine.netdev(f"p{port}", pf, port=f"p{port}", switch=switch)
        machine.netdev(f"pf{port}hpf", pf, port=f"c1pf{port}", switch=switch)
        for index in range(2):
            machine.netdev(f"pf{port}vf{index}", pf, port=f"c1pf{port}vf{index}", switch=switch)


def connectx_switchdev(machine: Any) -> None:
    """VFs and their representors on one machine; here the representor of VF 1 has gone."""
    machine.pf("0000:41:00.0", vfs=["0000:41:00.1", "0000:41:00.2"], device="101e", numa=1)
    machine.netdev("ens2np0", "0000:41:00.0", port="p0", switch=SWITCH0)
    machine.netdev("ens2npf0vf0", "0000:41:00.0", port="pf0vf0", switch=SWITCH0)
    # Another card's representor of the same numbers must not count.
    machine.pf("0000:42:00.0", vfs=[])
    machine.netdev("ens3npf0vf1", "0000:42:00.0", port="pf0vf1", switch=SWITCH1)


def uplink_beside(machine: Any) -> None:
    """The function's own network device is no port of its switch; the uplink is another one beside it."""
    machine.pf("0000:01:00.0", vfs=["0000:01:10.0", "0000:01:10.2"], vendor="8086", device="10ca", driver="igb")
    machine.netdev("eth0", "0000:01:00.0")
    machine.netdev("up0", "0000:01:00.0", port="p0", switch=SWITCH0)
    machine.netdev("rep1", "0000:01:00.0", port="pf0vf1", switch=SWITCH0)


def intel_e810(machine: Any) -> None:
    """Legacy SR-IOV without port names; the second port has no link."""
    for port, state in ((0, "up"), (1, "down")):
        pf = f"0000:31:00.{port}"
        machine.pf(pf, vfs=[f"0000:31:{1 + 16 * port:02x}.0"], vendor="8086", device="1889", driver="iavf")
        machine.bind(pf, "ice")
        machine.netdev(f"ens4f{port}", pf, operstate=state)


def igb(machine: Any) -> None:
    """As QEMU shows it: VFs of stride two, one of them bound to vfio-pci."""
    vfs = [f"0000:01:10.{index}" for index in (0, 2, 4, 6)]
    machine.pf("0000:01:00.0", vfs=vfs, vendor="8086", device="10ca", driver="igbvf", group=8)
    machine.bind("0000:01:00.0", "igb")
    machine.bind(vfs[3], "vfio-pci")
    machine.netdev("eth0", "0000:01:00.0")


def netdevsim(machine: Any) -> None:
    """Representors, but no PCI function at all."""
    bus = machine.sysfs_root / "devices/netdevsim1"
    for name, port in (("eth1", "p1"), ("eth2", "pf0vf0"), ("eth3", "pf0vf1")):
        directory = bus / "net" / name
        directory.mkdir(parents=True)
        (directory / "phys_port_name").write_text(f"{port}\n")
        (directory / "phys_switch_id").write_text("ab" * 32 + "\n")
        machine.link(directory / "device", bus)
        machine.link(machine.sysfs_root / "class/net" / name, directory)


def gpu(machine: Any) -> None:
    """A GPU on vfio-pci whose audio function is still with its driver; another one with both on vfio-pci."""
    for bus, audio in ((0x65, "snd_hda_intel"), (0x66, "vfio-pci")):
        for function, class_code, driver in ((0, "030200", "vfio-pci"), (1, "040300", audio)):
            machine.function(
                f"0000:{bus:02x}:00.{function}",
                vendor="10de",
                device="2684",
                class_code=class_code,
                driver=driver,
                group=bus,
            )


NET = Pool(name="net", selectors=(Selector(),))
VM = Pool(name="vm", selectors=(Selector(drivers=("vfio-pci",)),), use="vfio")
NVME = Pool(name="nvme", selectors=(Selector(classes=("0108",), vendors=("15b3",)),), use="nvme")
GPU = Pool(name="gpu", selectors=(Selector(functions="pf", classes=("03",), vendors=("10de",)),), use="vfio")
WHOLE = Pool(name="whole", selectors=(Selector(functions="pf"),))


@pytest.mark.parametrize(
    ("card", "pools", "expected"),
    [
        (
            bluefield_host,
            (NET, NVME),
            {
                "d/net": dict.fromkeys(("0000:03:00.2", "0000:03:00.3", "0000:03:01.2", "0000:03:01.3"), HEALTHY),
                "d/nvme": {"0000:03:03.0": HEALTHY},
            },
        ),
        (bluefield_dpu, (NET, WHOLE), {"d/net": {}, "d/whole": {}}),
        (
            connectx_switchdev,
            (NET,),
            {
                "d/net": {
                    "0000:41:00.1": HEALTHY,
                    "0000:41:00.2": "representor pf0vf1 is missing, though ens2np0 is in switchdev mode",
                }
            },
        ),
        (
            uplink_beside,
            (NET,),
            {
                "d/net": {
                    "0000:01:10.0": "representor pf0vf0 is missing, though eth0 is in switchdev mode",
                    "0000:01:10.2": HEALTHY,
                }
            },
        ),
        (
            intel_e810,
            (NET,),
            {
                "d/net": {
                    "0000:31:01.0": HEALTHY,
                    "0000:31:11.0": "physical function ens4f1 (0000:31:00.1) is down",
                }
            },
        ),
        (
            igb,
            (VM, NET),
            {
                "d/vm": {"0000:01:10.6": HEALTHY},
                "d/net": dict.fromkeys(("0000:01:10.0", "0000:01:10.2", "0000:01:10.4"), HEALTHY),
            },
        ),
        (netdevsim, (NET, WHOLE), {"d/net": {}, "d/whole": {}}),
        (
            gpu,
            (GPU,),
            {
                "d/gpu": {
                    "0000:65:00.0": "shares IOMMU group 101 with 0000:65:00.1, which snd_hda_intel uses",
                    "0000:66:00.0": HEALTHY,
                }
            },
        ),
    ],
)
def test_the_documented_answer(
    machine: Any, card: Callable[[Any], None], pools: tuple[Pool, ...], expected: dict[str, dict[str, str]]
) -> None:
    card(machine)
    inventory = Inventory(machine.sysfs, procfs=machine.procfs)
    inventory.scan()
    divided = Pools(pools, domain="d").divide(inventory.candidates)
    assert {
        resource: {device.id: device.reason for device in devices} for resource, devices in divided.items()
    } == expected


def test_numa_and_pf_numbers(machine: Any) -> None:
    bluefield_host(machine)
    connectx_switchdev(machine)
    inventory = Inventory(machine.sysfs, procfs=machine.procfs)
    inventory.scan()
    facts = {
        address: (found.physical.netdev, found.physical.number, found.function.vf_index, found.function.numa_node)
        for address, found in inventory.candidates.items()
        if found.function.is_vf
    }
    assert facts["0000:03:01.3"] == ("ens1f1np1", 1, 1, 0)
    assert facts["0000:41:00.2"] == ("ens2np0", 0, 1, 1)


def test_the_pf_with_the_default_route_is_never_given_away(machine: Any) -> None:
    for port in (0, 1):
        machine.pf(f"0000:31:00.{port}", vfs=[], vendor="8086", device="1593", driver="ice")
        machine.netdev(f"ens4f{port}", f"0000:31:00.{port}")
    (machine.procfs / "net/route").write_text("Iface D\nens4f0 00000000 0101A8C0 0003 0 0 100 00000000 0 0 0\n")
    inventory = Inventory(machine.sysfs, procfs=machine.procfs)
    inventory.scan()
    divided = Pools((WHOLE,), domain="d").divide(inventory.candidates)
    assert [device.id for device in divided["d/whole"]] == ["0000:31:00.1"]


@pytest.mark.parametrize(
    ("change", "touched", "victim", "reason"),
    [
        (lambda m: m.bind("0000:66:00.1", "snd_hda_intel"), "0000:66:00.1", "0000:66:00.0", "which snd_hda_intel uses"),
        (lambda m: m.remove("0000:65:00.1"), "0000:65:00.1", "0000:65:00.0", HEALTHY),
        (lambda m: m.bind("0000:66:00.0", ""), "0000:66:00.0", "0000:66:00.0", "no driver is bound"),
    ],
)
def test_a_refresh_reaches_the_neighbours(
    machine: Any, change: Callable[[Any], None], touched: str, victim: str, reason: str
) -> None:
    gpu(machine)
    pools = Pools((GPU,), domain="d")
    inventory = Inventory(machine.sysfs, procfs=machine.procfs)
    inventory.scan()
    pools.divide(inventory.candidates)
    change(machine)
    inventory.refresh({touched})
    refreshed = pools.divide(inventory.candidates)["d/gpu"]
    inventory.scan()
    assert pools.divide(inventory.candidates)["d/gpu"] == refreshed, "a refresh must see what a full scan sees"
    found = next(device.reason for device in refreshed if device.id == victim)
    assert (reason in found) if reason else not found
