"""Cards are brought to their declared state, once: again nothing is done, after a reboot everything comes back."""

from __future__ import annotations

import asyncio

import pytest

from tests.vm.machine import PREPARE, SMARTNIC, Machine

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
MACS = "02:d9:0a:02"
POOL = {"name": "vm", "use": "vfio", "link": False, "selectors": [{"pfs": [SMARTNIC], "drivers": ["vfio-pci"]}]}
VF = "0000:01:10.2"


async def _macs(machine: Machine) -> list[str]:
    links = await machine.links()
    return [links[f"labvf{number}"]["address"] for number in range(3) if f"labvf{number}" in links]


async def test_a_second_run_changes_nothing(machine: Machine) -> None:
    first = await machine.prepare(pf=SMARTNIC, vfs=3, eswitch="switchdev", mac_prefix=MACS, mtu=2000)
    assert first["error"] == ""
    assert first["steps"][0] > 0
    second = await machine.prepare(pf=SMARTNIC, vfs=3, eswitch="switchdev", mac_prefix=MACS, mtu=2000)
    assert second == {"steps": [0], "error": ""}
    links = await machine.links()
    assert await _macs(machine) == [f"{MACS}:00:0{number}" for number in range(3)]
    assert links["eth0"]["mtu"] == 2000
    assert {"rep0", "rep1", "rep2"} <= set(links)
    assert "rep3" not in links
    assert await machine.sh(f"devlink dev eswitch show pci/{SMARTNIC}") == f"pci/{SMARTNIC}: mode switchdev"


async def test_a_card_with_a_function_in_a_pod_is_left_alone(machine: Machine) -> None:
    await machine.sh("ip netns add somebody; ip link set labvf1 netns somebody")
    try:
        refused = await machine.prepare(pf=SMARTNIC, vfs=2, eswitch="legacy")
        assert f"VF 1 ({VF}) by another network namespace" in refused["error"]
        assert {"rep0", "rep1", "rep2"} <= set(await machine.links())
    finally:
        await machine.sh("ip -n somebody link set labvf1 netns 1; ip netns del somebody")


async def test_functions_go_to_vfio_and_come_back(machine: Machine) -> None:
    declared = {"pf": SMARTNIC, "vfs": 3, "eswitch": "switchdev", "mac_prefix": MACS}
    assert (await machine.prepare(**declared, vf_driver="vfio-pci"))["error"] == ""
    seen = await machine.look(POOL)
    assert {seen["functions"][f"0000:01:10.{index}"]["driver"] for index in (0, 2, 4)} == {"vfio-pci"}
    assert [found["reason"] for found in seen["devices"]["lab/vm"].values()] == ["", "", ""]
    assert "labvf1" not in await machine.links()
    node = seen["vfio"][VF]
    # Somebody opens the group as a VM would.
    holder = asyncio.create_task(
        machine.guest.run(
            "sh", "-c", f"exec 3<>{node}; echo $$ > /run/holder; exec sleep 200", check=False, seconds=250
        )
    )
    await machine.guest.run("sh", "-c", "until [ -s /run/holder ]; do sleep 0.1; done", seconds=100)
    refused = await machine.prepare(**declared, vf_driver="dpu_lab")
    assert f"VF 1 ({VF}) is in use by a VM, which has VFIO group {node.rpartition('/')[2]} open" in refused["error"]
    await machine.sh("kill $(cat /run/holder)")
    await holder
    assert (await machine.prepare(**declared, vf_driver="dpu_lab"))["error"] == ""
    assert await _macs(machine) == [f"{MACS}:00:0{number}" for number in range(3)]


async def test_a_reboot_loses_nothing_that_is_declared(machine: Machine) -> None:
    await machine.guest.reboot()
    await machine.load(PREPARE)
    assert await machine.sh(f"cat /sys/bus/pci/devices/{SMARTNIC}/sriov_numvfs") == "0"
    declared = {"pf": SMARTNIC, "vfs": 3, "eswitch": "switchdev", "mac_prefix": MACS}
    first = await machine.prepare(**declared)
    assert first["error"] == ""
    assert first["steps"][0] > 0
    assert await _macs(machine) == [f"{MACS}:00:0{number}" for number in range(3)]
    assert await machine.prepare(**declared) == {"steps": [0], "error": ""}
