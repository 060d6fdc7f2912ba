"""The card `qemu` on a real QEMU: what it is told is valid, and a guest that is not there lets go of nothing."""

import asyncio
from pathlib import Path

import pytest

from lab.vm.unpacked import Unpacked
from tests.opi_bridge.fake_qemu import Qemu
from tests.opi_bridge.test_cards import SUBSYSTEM, bridge, make

pytestmark = pytest.mark.vm


class Machine:
    """Stands in for the fake's monitor: a QEMU whose processor never starts."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, path: Path) -> None:
        unpacked = Unpacked.find()
        ports = [
            word for slot in (1, 2) for word in ("-device", f"pcie-root-port,id=slot{slot},chassis={slot},slot={slot}")
        ]
        machine = ("-machine", "q35", "-accel", "tcg", "-m", "64", "-S", "-display", "none", "-nodefaults")
        self._process = await asyncio.create_subprocess_exec(
            *(*unpacked.emulator, *machine, *ports, "-qmp", f"unix:{path},server=on,wait=off"),
            env=unpacked.environment(),
        )
        async with asyncio.timeout(60):
            while not path.exists():
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()


class RealQemu(Qemu):
    def __init__(self) -> None:
        super().__init__()
        self.monitor = Machine()  # type: ignore[assignment]  # starts and stops as the fake does


async def test_a_controller_is_plugged_with_its_disk(tmp_path: Path) -> None:
    async with bridge(tmp_path, "qemu", RealQemu()) as (api, _):
        await make(api, 1)
        shown = await api("GetNvmeController", name=f"{SUBSYSTEM}/nvmeControllers/c1")
        assert shown["status"]["active"]
        name = f"{SUBSYSTEM}/nvmeNamespaces/ns1"
        assert await api.code("DeleteNvmeNamespace", name=name) == "UNAVAILABLE"
