"""The storage half as processes: two SPDKs, an API server and the suite's own daemons, below one directory."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import yaml

from csi import identity
from csi.node_host import mounts
from foundation.kube.client import KubeClient
from foundation.kube.resources import NODES
from foundation.spdk.client import SpdkClient
from lab import processes
from lab.certificates import Authority
from lab.hardware import plan
from lab.hardware.sysfs import NVME_CLASS, PciEntry, SysfsTree
from lab.layout import DPU_NODE, HOST_NODE, Layout
from lab.ports import free_port

MIB = 1 << 20
FUNCTIONS = 128


class Stack:
    """All processes, below one short directory."""

    def __init__(self, directory: Path) -> None:
        self.layout = Layout(run=directory)
        self.running: dict[str, processes.ProcessRecord] = {}
        self.port = free_port()
        self.portal = {"transport": "tcp", "address": "127.0.0.1", "port": free_port()}

    def start(self, name: str, *command: str | Path) -> None:
        self.running[name] = processes.start(name, command, logs=self.layout.logs)

    def daemon(self, name: str, **settings: object) -> None:
        path = self.layout.config / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"http": "", **settings}))
        self.start(name, Path(sys.executable).parent / name, "--config", path)

    async def up(self) -> None:
        layout, run = self.layout, self.layout.run
        tree = SysfsTree(layout.sysfs(HOST_NODE))
        addresses = [plan.storage_function(number) for number in range(1, FUNCTIONS + 1)]
        for address in (plan.STORAGE_PF, *addresses):
            tree.add_function(PciEntry(address, vendor="0x15b3", device="0x6001", class_code=NVME_CLASS))
        tree.add_virtual_functions(plan.STORAGE_PF, addresses)
        for path in (layout.functions, layout.devices, layout.target_file.parent):
            path.mkdir(parents=True, exist_ok=True)
        with layout.target_file.open("wb") as file:
            file.truncate(64 << 30)
        self.start("target", sys.executable, "-m", "lab.spdk", "--socket", layout.target_socket, "--mode", "target")
        self.start("dpu", sys.executable, "-m", "lab.spdk", "--socket", layout.dpu_spdk_socket, "--mode", "dpu")
        api = ("-m", "lab.apiserver", "--kubeconfig", layout.kubeconfig)
        self.start("apiserver", sys.executable, *api)
        async with SpdkClient(f"unix:{layout.target_socket}") as client:
            await client.connect(deadline=20)
            disk = {"name": "disk", "filename": str(layout.target_file), "block_size": 4096}
            await client.call("bdev_aio_create", disk)
            store = {"bdev_name": "disk", "lvs_name": "lvs0", "clear_method": "none", "cluster_sz": MIB}
            await client.call("bdev_lvol_create_lvstore", store)
            await client.call("nvmf_create_transport", {"trtype": "TCP"})
        await until(lambda: asyncio.to_thread(layout.kubeconfig.exists))
        async with await KubeClient.connect(str(layout.kubeconfig)) as kube:
            for name, labels in ((HOST_NODE, {}), (DPU_NODE, {"dpu-offload.io/host-node": HOST_NODE})):
                meta = {"name": name, "labels": labels}
                await kube.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": meta})
        authority = Authority(layout.pki)
        self.daemon(
            "opi-bridge",
            socket=str(layout.opi_socket),
            spdk=f"unix:{layout.dpu_spdk_socket}",
            card={
                "kind": "spdk_vfiouser",
                "directory": str(layout.functions),
                "functions": [{"physical_function": 0, "virtual_functions": FUNCTIONS}],
            },
        )
        self.daemon(
            "volume-attacher",
            socket=str(layout.attacher_socket),
            bridge=f"unix:{layout.opi_socket}",
            state_directory=str(run / "attacher"),
            host_nqn=identity.host_nqn(DPU_NODE),
        )
        address = f"127.0.0.1:{self.port}"
        self.daemon(
            "csi-node-dpu",
            node_name=DPU_NODE,
            listen=address,
            advertise=address,
            tls=_tls(authority, DPU_NODE, "csi-node-dpu"),
            kubeconfig=str(layout.kubeconfig),
            attacher=f"unix:{layout.attacher_socket}",
            # No VolumeAttachments here: the calls of the side-cars are made without Kubernetes' objects.
            orphan_grace_seconds=3600,
        )
        pool = {"address": f"unix:{layout.target_socket}", "lvstore": "lvs0", "portals": [self.portal]}
        settings = {"socket": str(layout.csi_controller_socket), "kubeconfig": str(layout.kubeconfig)}
        tls = _tls(authority, "lab", "csi-controller")
        self.daemon("csi-controller", tls=tls, backends={"spdk": {"pools": {"p0": pool}}}, **settings)
        host = {"sysfs_root": str(layout.sysfs(HOST_NODE)), "dev_root": str(layout.devices)}
        host |= {"socket": str(layout.csi_host_socket), "node_name": HOST_NODE, "state_directory": str(run / "host")}
        self.daemon("csi-node-host", kubeconfig=str(layout.kubeconfig), **host)

    async def down(self) -> None:
        for mount in reversed(mounts.table()):
            if mount.point.startswith(f"{self.layout.run}/"):
                mounts.unmount(mount.point, dead=True)
        await processes.stop(list(self.running.values()))

    def resident_mib(self, name: str) -> float:
        status = Path(f"/proc/{self.running[name].pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def until(look: Callable[[], Awaitable[Any]], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not await look():
        if time.monotonic() > end:
            raise TimeoutError("the stack of daemons does not become ready; see its logs")
        await asyncio.sleep(0.01)


def _tls(authority: Authority, node: str, component: str) -> dict[str, str]:
    files = authority.issue(node=node, component=component)
    return {"ca": str(files.ca), "certificate": str(files.certificate), "key": str(files.key)}
