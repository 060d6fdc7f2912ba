"""What is seen of cards that a kernel really has: an emulated igb with its own drivers, and a SmartNIC made of one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.vm.machine import PLAIN_NIC, SMARTNIC, Machine

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]


def _pool(name: str, pf: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "selectors": [{"pfs": [pf]}], **more}


async def test_igb_and_switchdev_side_by_side(machine: Machine) -> None:
    assert (await machine.prepare(pf=SMARTNIC, vfs=4, eswitch="switchdev"))["error"] == ""
    assert (await machine.prepare(pf=PLAIN_NIC, vfs=2))["error"] == ""
    await machine.sh("ip link set eth0 down; ip link set eth1 up")
    seen = await machine.look(_pool("smart", SMARTNIC), _pool("plain", PLAIN_NIC, link=False))
    functions = seen["functions"]
    card, vf = functions[SMARTNIC], functions["0000:01:10.6"]
    assert (card["driver"], card["vf_count"], card["is_vf"]) == ("igb", 4, False)
    assert (vf["driver"], vf["pf"], vf["vf_index"], vf["netdevs"]) == ("dpu_lab", SMARTNIC, 3, ["labvf3"])
    assert (vf["vendor"], vf["device"], vf["class_code"]) == (0x8086, 0x10CA, 0x020000)
    groups = {one["iommu_group"] for one in functions.values() if one["is_vf"]}
    assert len(groups) == 6
    assert min(groups) >= 0
    assert seen["representors"] == {f"c0pf0vf{number}": f"rep{number}" for number in range(4)}
    smart = seen["devices"]["lab/smart"]
    assert {device: found["representor"] for device, found in smart.items()} == {
        f"0000:01:10.{number * 2}": f"rep{number}" for number in range(4)
    }
    assert all("eth0" in found["reason"] and "is down" in found["reason"] for found in smart.values())
    plain = seen["devices"]["lab/plain"]
    assert [functions[device]["driver"] for device in plain] == ["igbvf", "igbvf"]
    assert [(found["reason"], found["representor"]) for found in plain.values()] == [("", "")] * 2


async def test_a_card_without_an_eswitch_says_so_before_anything_changes(machine: Machine) -> None:
    before = await machine.sh(f"cat /sys/bus/pci/devices/{PLAIN_NIC}/sriov_numvfs")
    refused = await machine.prepare(pf=PLAIN_NIC, vfs=3, eswitch="switchdev")
    assert PLAIN_NIC in refused["error"]
    assert "eswitch" in refused["error"]
    assert await machine.sh(f"cat /sys/bus/pci/devices/{PLAIN_NIC}/sriov_numvfs") == before
