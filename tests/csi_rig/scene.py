"""A machine's disk on an estate: who may write, who shows it, what is left of it where it should not be."""

import contextlib
from typing import Any

from csi import identity
from dpu_offload_stubs.csi import csi_pb2
from foundation.spdk.client import SpdkClient
from foundation.spdk.errors import SpdkClientError
from foundation.spdk.methods import nvmf
from tests.csi_rig.estate import Estate
from tests.csi_rig.machine import Machine
from tests.dpu_rig.rig import eventually


class Scene:
    """One volume, and the machine that has it for its disk."""

    def __init__(self, estate: Estate, volume: csi_pb2.Volume) -> None:
        self.estate = estate
        self.volume = volume
        self.nqn = identity.subsystem_nqn(volume.volume_id)
        self.machines: list[Machine] = []
        self.written = b""
        self._number = 0

    def machine(self, host: str, path: str) -> Machine:
        built = Machine(self.estate.hosts[host], self.estate.plant.target.address, self.volume, path)
        self.machines.append(built)
        return built

    async def write(self, machine: Machine) -> None:
        self._number += 1
        text = b"%d" % self._number
        await machine.write(text)
        self.written = text

    def close(self) -> None:
        for machine in self.machines:
            machine.close()

    async def let_in(self) -> set[str]:
        """The hosts whose DPU the storage lets in."""
        async with SpdkClient(self.estate.plant.target.address) as client:
            subsystem = await nvmf.only(client, self.nqn)
        allowed = {host.nqn for host in subsystem.hosts} if subsystem is not None else set()
        return {name for name, host in self.estate.hosts.items() if host.nqn in allowed}

    async def shown(self) -> set[str]:
        """The hosts to which a DPU shows the disk."""
        uuid, found = identity.namespace_uuid(self.volume.volume_id), set()
        for name, host in self.estate.hosts.items():
            for subsystem in await host.dpu.at_dpu.call("nvmf_get_subsystems"):
                if any(each["uuid"] == uuid for each in subsystem.get("namespaces", ())):
                    found.add(name)
        return found

    async def only(self, *hosts: str) -> None:
        """These hosts have the disk, and the others nothing of it."""
        seen: dict[str, Any] = {}

        async def so() -> bool:
            with contextlib.suppress(SpdkClientError):
                seen.update(let_in=await self.let_in(), shown=await self.shown())
                for name, host in self.estate.hosts.items():
                    if name not in hosts:
                        seen[f"left on {name}"] = [await host.dpu.leftovers(), host.disks(), self._of_host(name)]
                empty = all(value == [{}, [], []] for key, value in seen.items() if key.startswith("left"))
                return seen["let_in"] == seen["shown"] == set(hosts) and empty
            return False

        try:
            await eventually(so, f"only {' and '.join(hosts) or 'nobody'} has the disk", seconds=60)
        except AssertionError as error:
            raise AssertionError(f"{error}: {seen}") from error

    def _of_host(self, host: str) -> list[str]:
        """What csi-node-host has noted and made."""
        directory = self.estate.plant.directory / host
        pods = [path for path in (directory / "pods").rglob("*") if not path.is_dir()]
        return [str(path) for path in (*(directory / "state").glob("*.json"), *pods)]
