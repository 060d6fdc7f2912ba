"""The guest in the place of the rig's host: the wire of its card leads to the DPU, virtual machines run in it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml

from foundation.kube.models.core import Pod as KubePod
from lab.kubevirt.taps import BRIDGE, TAP, opened, wire
from lab.network.commands import ip
from lab.vm import devices
from lab.vm.guest import Guest, Parts
from lab.vm.unpacked import REPOSITORY
from tests.kubevirt.rig import Rig
from tests.node.stage import BINARY, DPU, HOST, Pod, vf_netdev
from tests.vm.inside import virtual_machine
from tests.vm.machine import INSIDE, PREPARE

CARD, DISK_SLOT = "0000:01:00.0", 2
# Addresses of QEMU's own network.
OWN, OUTSIDE = "10.0.2.15/24", "10.0.2.2"
DIRECTORY = "/run/cni-node"
SOCKET = f"{DIRECTORY}/cni.sock"
CNI_NODE = REPOSITORY / "cni/node/app.py"
VIRTUAL_MACHINE = INSIDE / "virtual_machine.py"
_DRIVERS = """
modprobe -a igb virtio_net nvme vfio-pci vfio_iommu_type1 kvm_amd
# The emulated IOMMU does not remap interrupts.
echo Y > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6
ip link set eth0 up
"""


class Hypervisor:
    """`function` is the one whose representor the DPU has."""

    def __init__(self, rig: Rig, guest: Guest) -> None:
        self._rig = rig
        self._guest = guest
        self._index = rig.stage.vfs - 1
        self.function = ""

    async def sh(self, command: str, *, stdin: str = "", seconds: float = 60.0) -> str:
        return (await self._guest.run("sh", "-ec", command, stdin=stdin, seconds=seconds)).output.strip()

    # The host's part of the suite

    async def prepare(self) -> None:
        """Drivers, the way to the cluster, as many functions as the DPU knows, all for virtual machines."""
        await asyncio.gather(
            self._load(),
            self._guest.warm_up(CNI_NODE, PREPARE, VIRTUAL_MACHINE, seconds=240),
        )
        wanted = {"pf": CARD, "vfs": self._rig.stage.vfs, "vf_driver": "vfio-pci", "mac_prefix": "02:d9:0a:05"}
        done = await self._guest.script(PREPARE, json.dumps([wanted]), seconds=200)
        assert not done["error"], done["error"]
        self.function = await self.sh(f"basename $(readlink /sys/bus/pci/devices/{CARD}/virtfn{self._index})")

    async def _load(self) -> None:
        await self.sh(_DRIVERS)
        await self.sh(f"ip address add {OWN} dev eth1; ip link set eth1 up; mkdir {DIRECTORY}")

    async def write(self, name: str, text: str) -> str:
        """A file that only root reads; its path."""
        path = f"{DIRECTORY}/{name}"
        await self.sh(f"umask 077; cat > {path}", stdin=text)
        return path

    async def configured(self) -> str:
        """The path of what cni-node is told, as on the rig's host but for the places."""
        stage = self._rig.stage
        config = stage.config(HOST)
        kubeconfig = yaml.safe_load((stage.directory / "kubeconfig").read_text())
        cluster = kubeconfig["clusters"][0]["cluster"]
        authority = Path(cluster.pop("certificate-authority")).read_bytes()
        cluster["certificate-authority-data"] = base64.b64encode(authority).decode()
        cluster["server"] = cluster["server"].replace("127.0.0.1", OUTSIDE)
        cluster["tls-server-name"] = "127.0.0.1"
        tls = {name: await self.write(name, Path(path).read_text()) for name, path in config["link"]["tls"].items()}
        config |= {
            "kubeconfig": await self.write("kubeconfig", yaml.safe_dump(kubeconfig)),
            "cni_socket": SOCKET,
            "state_dir": f"{DIRECTORY}/state",
            "node_netns": "",
            "sysfs_root": "/sys",
            "http": f"unix:{DIRECTORY}/http",
            "link": config["link"] | {"tls": tls, "peers": {DPU: f"{OUTSIDE}:{stage.link_port}"}},
            "assignment_seconds": 60.0,
            "flows_seconds": 60.0,
            "unplug_seconds": 60.0,
        }
        return await self.write("config.yaml", yaml.safe_dump(config))

    @contextlib.asynccontextmanager
    async def cni_node(self) -> AsyncIterator[None]:
        """cni-node of the host, ready for pods."""
        path = await self.configured()
        running = asyncio.create_task(
            self._guest.run("cni.node.app", "--config", path, warm=True, check=False, seconds=3600), name="cni-node"
        )
        try:
            ready = asyncio.create_task(self._ready())
            await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
            assert not running.done(), running.result().errors[-3000:]
            await ready
            yield
        finally:
            running.cancel()
            await asyncio.wait({running})

    async def _ready(self) -> None:
        answer = ""
        for _ in range(60):
            done = await self._cni("STATUS", None)
            if not done:
                return
            answer = json.dumps(done)
            await asyncio.sleep(1)
        raise AssertionError(f"cni-node does not become ready: {answer}")

    async def _cni(self, verb: str, pod: Pod | None, **more: Any) -> dict[str, Any]:
        variables = self._rig.stage.variables(verb, pod, node=HOST) | {"DPU_OFFLOAD_CNI_SOCKET": SOCKET}
        done = await self._guest.run(
            BINARY,
            stdin=json.dumps(self._rig.stage.conf(pod, **more)),
            environment={name: value for name, value in variables.items() if value is not None},
            check=False,
            seconds=100,
        )
        return json.loads(done.output) if done.output.strip() else {}

    # What kubelet does

    async def add(self, pod: KubePod) -> Pod:
        """A pod with the function."""
        sandbox = Pod(
            node=HOST,
            name=pod.metadata.name,
            uid=pod.metadata.uid,
            ip="",
            ip6="",
            mac="",
            container=secrets.token_hex(32),
            device=self.function,
            namespace=pod.metadata.namespace,
        )
        await self.sh(f"ip netns add {sandbox.netns}")
        sandbox.result = await self._cni("ADD", sandbox)
        assert "interfaces" in sandbox.result, sandbox.result
        return sandbox

    async def delete(self, sandbox: Pod) -> None:
        answer = await self._cni("DEL", sandbox, prevResult=sandbox.result)
        assert not answer, answer
        await self.sh(f"ip netns delete {sandbox.netns}")

    async def function_mac(self) -> str:
        """What the card has for the function."""
        (card,) = json.loads(await self.sh("ip -j link show eth0"))
        (mac,) = (one["address"] for one in card["vfinfo_list"] if one["vf"] == self._index)
        return str(mac)

    # What KubeVirt does

    @contextlib.asynccontextmanager
    async def disk(self, path: str) -> AsyncIterator[str]:
        """A block device of the machine as a function of its card; its name in here."""
        qmp = self._guest.qmp
        file = {"driver": "host_device", "filename": path, "cache": {"direct": True}}
        await qmp.execute(
            "blockdev-add", {"driver": "raw", "node-name": "volume", "file": file, "cache": {"direct": True}}
        )
        card = {"driver": "nvme", "id": "card", "serial": "card", "drive": "volume", "bus": f"slot{DISK_SLOT}"}
        await qmp.execute("device_add", card)
        await self.sh("until [ -b /dev/nvme0n1 ]; do sleep 0.2; done")
        try:
            yield "/dev/nvme0n1"
        finally:
            await qmp.delete_device("card", wait=120)
            await qmp.execute("blockdev-del", {"node-name": "volume"})

    async def run(self, disk: str) -> dict[str, str]:
        """One life of a virtual machine with the function and the disk."""
        frozen = str(self._guest.directory / "frozen")
        told: dict[str, str] = await self._guest.script(VIRTUAL_MACHINE, self.function, disk, frozen, seconds=280)
        return told


async def frozen(file: Path, *, size: int) -> None:
    """A virtual machine that waits for its card. It starts out here, where that takes seconds."""
    with tempfile.NamedTemporaryFile() as disk:
        disk.truncate(size)
        async with virtual_machine.machine(disk.name) as guest:
            await guest.says("waits", seconds=100)
            await guest.freeze(file, seconds=100)


@contextlib.asynccontextmanager
async def hypervisor(rig: Rig, parts: Parts, *, disk: int) -> AsyncIterator[Hypervisor]:
    """Instead of the rig's host, whose last function is the wire; virtual machines have disks of `disk` bytes."""
    stage = rig.stage
    stage.stop(HOST)
    namespace, netdev = stage.network.namespace(HOST), vf_netdev(stage.vfs - 1)
    await wire(namespace, netdev, mtu=1500)
    tap = await opened(namespace, TAP)
    cards = (devices.iommu(), devices.root_ports(count=2), devices.igb(1, wire=tap), devices.loopback())
    try:
        async with Guest(parts, name="hypervisor", devices=cards) as guest:
            host = Hypervisor(rig, guest)
            await asyncio.gather(host.prepare(), frozen(guest.directory / "frozen", size=disk))
            async with host.cni_node():
                yield host
    finally:
        os.close(tap)
        await ip(f"link delete {TAP}", f"link delete {BRIDGE}", namespace=namespace)
        await stage.start(HOST)
