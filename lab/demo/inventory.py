"""Everything that a walk may leave behind, listed, so that before and after can be compared."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

from foundation.daemon.work import Backoff
from foundation.spdk.client import SpdkClient
from lab import clearing
from lab.hardware import loops
from lab.layout import DEFAULT_NODE, DPU_NODE, HOST_NODE, Layout
from lab.network import Network
from lab.network.commands import run

COMPARE_SECONDS = 15.0


class LeftBehind(RuntimeError):
    """Something is there that was not there before, or the other way round."""


@dataclasses.dataclass(frozen=True)
class Inventory:
    """Sets of names by kind; equal inventories mean that nothing was left."""

    entries: frozenset[tuple[str, str]]

    def difference(self, later: Inventory) -> str:
        left = [f"{kind} {name}" for kind, name in sorted(later.entries - self.entries)]
        lost = [f"{kind} {name} is missing" for kind, name in sorted(self.entries - later.entries)]
        return "; ".join(left + lost)


async def take(layout: Layout, network: Network) -> Inventory:
    """Links, namespaces, OVS ports, OVN rows, files, mounts, loop devices, SPDK objects, sysfs disks."""
    entries: set[tuple[str, str]] = set()
    for netns in Path("/run/netns").glob(f"{layout.sandbox_prefix}*"):
        entries.add(("network namespace", netns.name))
    for node in (DEFAULT_NODE, HOST_NODE, DPU_NODE):
        listing = await run("ip", "-n", network.namespace(node), "-br", "link")
        for line in listing.splitlines():
            name, _, mac = line.split()[:3]
            if not name.startswith("ovs-"):
                entries.add((f"link in {node}", f"{name.partition('@')[0]} {mac}"))
    for node, chassis in network.chassis.items():
        for port in (await run("ovs-vsctl", f"--db={chassis.ovs}", "list-ports", "br-int")).split():
            # ovn-controller's own: tunnels to the other chassis and patch ports.
            if not port.startswith(("ovn-", "patch-")):
                entries.add((f"OVS port on {node}", port))
    bare = ("--bare", "--no-headings", "--columns=name,logical_port")
    ports = await run(
        "ovn-nbctl", f"--db={network.central.nb}", *bare[:2], "--columns=name", "list", "Logical_Switch_Port"
    )
    entries |= {("logical switch port", name) for name in ports.split()}
    bindings = await run(
        "ovn-sbctl",
        f"--db={network.central.sb}",
        *bare[:2],
        "--columns=logical_port",
        "find",
        "Port_Binding",
        'type=""',
    )
    entries |= {("port binding", name) for name in bindings.split()}
    for directory in ("lib", "kubelet"):
        for file in (layout.run / directory).rglob("*"):
            if file.is_file() and "device-plugins" not in file.parts:
                entries.add(("file", str(file.relative_to(layout.run))))
    entries |= {("mount", str(point)) for point in clearing.mounts_below(layout.run)}
    entries |= {("loop device over", device.name) for device in await loops.below(layout.run)}
    entries |= {("block node", node.name) for node in layout.devices.iterdir()}
    entries |= {("NVMe device", entry.name) for entry in (layout.sysfs(HOST_NODE) / "class/nvme").glob("*")}
    for where, socket in (("target", layout.target_socket), ("DPU", layout.dpu_spdk_socket)):
        entries |= await _spdk_objects(where, socket)
    return Inventory(frozenset(entries))


async def _spdk_objects(where: str, socket: Path) -> set[tuple[str, str]]:
    client = SpdkClient(f"unix:{socket}")
    try:
        subsystems = await client.call("nvmf_get_subsystems")
        bdevs = await client.call("bdev_get_bdevs")
        controllers = await client.call("bdev_nvme_get_controllers")
    finally:
        await client.close()
    return (
        {(f"{where} subsystem", str(entry["nqn"])) for entry in subsystems}
        | {(f"{where} bdev", str(entry["name"])) for entry in bdevs}
        | {(f"{where} remote controller", str(entry["name"])) for entry in controllers}
    )


async def same_again(before: Inventory, layout: Layout, network: Network) -> str:
    """Wait until all is as it was; what lags (OVN's southbound rows, sysfs) gets COMPARE_SECONDS. Raises LeftBehind."""
    backoff, failures, difference = Backoff(initial=0.05, maximum=0.5), 0, ""
    try:
        async with asyncio.timeout(COMPARE_SECONDS):
            while difference := before.difference(await take(layout, network)):
                failures += 1
                await asyncio.sleep(backoff.delay(failures))
    except TimeoutError:
        raise LeftBehind(difference) from None
    return f"{len(before.entries)} objects of 15 kinds compared"
