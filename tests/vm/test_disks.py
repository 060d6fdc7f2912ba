"""NVMe functions that come while the machine runs: found by what they are, given to VMs, taken away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.vm.conftest import DISK_SIZE, DISK_UUID, FREE_SLOT, NQN
from tests.vm.machine import INSIDE, NVME, Machine

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
PLUGGED = f"0000:{FREE_SLOT:02x}:00.0"
POOL = {"name": "disk", "use": "vfio", "selectors": [{"functions": "pf", "classes": ["0108"]}]}


async def test_a_disk_behind_a_plugged_function_is_found_by_its_events(machine: Machine) -> None:
    waiting = "/run/disk-waits"
    finder = asyncio.create_task(
        machine.guest.script(INSIDE / "disk.py", DISK_UUID, NQN, PLUGGED, waiting, seconds=240)
    )
    await machine.guest.run("sh", "-c", f"until [ -e {waiting} ]; do sleep 0.2; done", seconds=240)
    assert not finder.done()
    await machine.guest.qmp.execute(
        "device_add",
        {"driver": "nvme", "id": "plugged", "serial": "built-in", "bus": f"slot{FREE_SLOT}", "subsys": "sub"},
    )
    found = await finder
    assert found["disk"]["size"] == DISK_SIZE
    assert found["disk"]["subsystem_nqn"] == NQN
    assert any(event.startswith("add pci") for event in found["events"])
    # Two controllers lead to the one namespace, which stays one disk: the head of native multipath.
    assert await _controllers(machine, name=found["disk"]["name"]) == {NVME, PLUGGED}
    await machine.guest.qmp.delete_device("plugged", wait=120)
    seen = await machine.look()
    assert PLUGGED not in seen["functions"]
    assert await _controllers(machine, name=found["disk"]["name"]) == {NVME}


async def test_an_nvme_function_goes_to_vfio_and_comes_back(machine: Machine) -> None:
    before = await machine.look(POOL)
    assert "bound to nvme" in before["devices"]["lab/disk"][NVME]["reason"]
    seen: dict[str, Any] = await machine.guest.script(INSIDE / "passthrough.py", NVME, DISK_UUID, seconds=240)
    assert seen["before"] == ["nvme", True]
    assert seen["bound"] == ["vfio-pci", False]
    assert seen["device"] == f"/dev/vfio/{before['functions'][NVME]['iommu_group']}"
    assert seen["shown"] == ["pci-address", "vfio"]
    assert seen["after"] == ["nvme", True]
    after = await machine.look(POOL)
    assert after["functions"] == before["functions"]


async def _controllers(machine: Machine, *, name: str) -> set[str]:
    """PCI addresses of the controllers that lead to the one disk with our uuid."""
    seen = await machine.look()
    (disk,) = (one for one in seen["namespaces"] if one["uuid"] == DISK_UUID)
    assert (disk["wwid"], disk["name"]) == (f"uuid.{DISK_UUID}", name)
    assert all(one["state"] == "live" for one in seen["controllers"])
    return {one["address"] for one in seen["controllers"] if one["name"] in disk["controllers"]}
