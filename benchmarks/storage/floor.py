"""The floor of the storage half: the least calls on the same two SPDKs that do the same, one after another."""

from benchmarks.storage.stack import Stack
from csi import identity
from foundation.spdk.client import SpdkClient


class Floor:
    """The bare calls, each waiting for the one before."""

    def __init__(self, stack: Stack, target: SpdkClient, dpu: SpdkClient) -> None:
        self.stack, self.target, self.dpu = stack, target, dpu

    def nqn(self, index: int) -> str:
        return f"nqn.2016-06.io.floor:v{index}"

    def address(self) -> dict[str, str]:
        portal = self.stack.portal
        return {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(portal["port"])}

    async def create(self, index: int) -> None:
        volume = {"lvs_name": "lvs0", "lvol_name": f"f{index}", "size_in_mib": 64, "thin_provision": True}
        await self.target.call("bdev_lvol_create", volume)
        await self.target.call("nvmf_create_subsystem", {"nqn": self.nqn(index), "max_namespaces": 1})
        space = {"bdev_name": f"lvs0/f{index}", "nsid": 1}
        await self.target.call("nvmf_subsystem_add_ns", {"nqn": self.nqn(index), "namespace": space})
        listener = {"nqn": self.nqn(index), "listen_address": self.address()}
        await self.target.call("nvmf_subsystem_add_listener", listener)

    async def publish(self, index: int) -> None:
        host = {"nqn": self.nqn(index), "host": identity.host_nqn("floor")}
        await self.target.call("nvmf_subsystem_add_host", host)
        path = {"name": f"f{index}", "subnqn": self.nqn(index), "hostnqn": host["host"], **self.address()}
        await self.dpu.call("bdev_nvme_attach_controller", path)
        await self.dpu.call("nvmf_create_subsystem", {"nqn": self.nqn(index), "allow_any_host": True})
        space = {"bdev_name": f"f{index}n1", "nsid": 1}
        await self.dpu.call("nvmf_subsystem_add_ns", {"nqn": self.nqn(index), "namespace": space})
        directory = self.stack.layout.run / "floor" / str(index)
        directory.mkdir(parents=True, exist_ok=True)
        listener = {"trtype": "VFIOUSER", "traddr": str(directory), "trsvcid": "0"}
        await self.dpu.call("nvmf_subsystem_add_listener", {"nqn": self.nqn(index), "listen_address": listener})

    async def unpublish(self, index: int) -> None:
        host = {"nqn": self.nqn(index), "host": identity.host_nqn("floor")}
        await self.target.call("nvmf_subsystem_remove_host", host)
        await self.dpu.call("nvmf_subsystem_remove_ns", {"nqn": self.nqn(index), "nsid": 1})
        await self.dpu.call("nvmf_delete_subsystem", {"nqn": self.nqn(index)})
        await self.dpu.call("bdev_nvme_detach_controller", {"name": f"f{index}"})

    async def delete(self, index: int) -> None:
        await self.target.call("nvmf_delete_subsystem", {"nqn": self.nqn(index)})
        await self.target.call("bdev_lvol_delete", {"name": f"lvs0/f{index}"})
