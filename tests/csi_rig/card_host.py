"""A host with a DPU, but for the daemons: the DPU's SPDK as a process, with the card that shows the host its disks."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from csi.node_dpu.config import CsiNodeDpuConfig, TlsConfig
from foundation.daemon.configuration import DaemonConfig
from lab.certificates import Authority
from lab.hardware.card import Card
from lab.hardware.plan import STORAGE_FUNCTIONS, STORAGE_PF, storage_function
from lab.hardware.sysfs import NVME_CLASS, PciEntry, SysfsTree
from lab.ports import free_port
from opi_bridge.config import CardConfig, OpiBridgeConfig, PhysicalFunction
from tests.csi_rig.plant import files
from tests.dpu_rig.rig import DpuRig, Pair


class SlowCard(Card):
    """While `open` is not set, the host is told nothing new of its functions."""

    def __init__(self, directory: Path, tree: SysfsTree, devices: Path) -> None:
        super().__init__(directory, tree, devices)
        self.open = asyncio.Event()
        self.open.set()

    async def _take(self, slot: str, event: Mapping[str, Any]) -> None:
        await self.open.wait()
        await super()._take(slot, event)


class CardHost:
    """`dpu`: the DPU's SPDK with what is on it. Only `pair.dpu` is used."""

    def __init__(self, host: str, directory: Path, pair: Pair, authority: Authority, kubeconfig: Path) -> None:
        self.host, self.node = host, f"{host}-dpu"
        # As volume-attacher makes it where none is configured: it does not tell the node.
        self.nqn = f"nqn.2014-08.org.nvmexpress:uuid:{uuid.uuid4()}"
        (directory / "dpu").mkdir()
        self.dpu = DpuRig(directory / "dpu", pair, functions=STORAGE_FUNCTIONS)
        self._authority, self._kubeconfig = authority, kubeconfig
        self._port = free_port()
        self.sysfs, self._devices = directory / "sys", directory / "dev"
        tree = SysfsTree(self.sysfs)
        tree.add_function(PciEntry(STORAGE_PF, vendor="0x15b3", device="0x6001", class_code=NVME_CLASS))
        addresses = [storage_function(number) for number in range(1, STORAGE_FUNCTIONS + 1)]
        for address in addresses:
            tree.add_function(PciEntry(address, vendor="0x15b3", device="0x6001", class_code=NVME_CLASS))
        tree.add_virtual_functions(STORAGE_PF, addresses)
        self.card = SlowCard(self.dpu.sockets, tree, self._devices)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.dpu.dpu.start()
        card = asyncio.create_task(self.card.run())
        try:
            yield
        finally:
            card.cancel()
            await asyncio.wait([card])
            if not card.cancelled() and (error := card.exception()) is not None:
                raise error
            await self.dpu.dpu.start()
            await self.dpu.stop()

    async def restart_spdk(self) -> None:
        """As after its crash: everything on it is lost."""
        await self.dpu.dpu.kill()
        await self.dpu.dpu.start()

    def configs(self) -> dict[str, DaemonConfig]:
        """Of the daemons on the DPU, by their names."""
        functions = [PhysicalFunction(physical_function=0, virtual_functions=STORAGE_FUNCTIONS)]
        card = CardConfig(directory=str(self.dpu.sockets), functions=functions, settle_seconds=0.05)
        bridge: OpiBridgeConfig = msgspec.structs.replace(self.dpu.bridge_config(), card=card)
        tls = files(self._authority.issue(node=self.node, component="csi-node-dpu"))
        node_dpu = CsiNodeDpuConfig(
            node_name=self.node,
            listen=f"127.0.0.1:{self._port}",
            advertise=f"127.0.0.1:{self._port}",
            tls=TlsConfig(ca=tls.ca, certificate=tls.certificate, key=tls.key),
            kubeconfig=str(self._kubeconfig),
            attacher=f"unix:{self.dpu.attacher_socket}",
            orphan_grace_seconds=0.5,
            announce_seconds=0.05,
            beat_seconds=1.0,
            http="",
        )
        attacher = msgspec.structs.replace(self.dpu.attacher_config(), host_nqn=self.nqn)
        return {"opi-bridge": bridge, "volume-attacher": attacher, "csi-node-dpu": node_dpu}

    def disks(self) -> list[str]:
        """The disks that the host's kernel has."""
        block = self.sysfs / "block"
        return sorted(each.name for each in block.iterdir()) if block.is_dir() else []
