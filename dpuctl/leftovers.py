"""What belongs to nothing on any machine, and its removal where it is."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dpuctl.doctor.check import View
from dpuctl.doctor.network import stale_ports
from dpuctl.doctor.storage import orphan_disks
from dpuctl.inspection import leftovers as inspection
from dpuctl.inspection.leftovers import Leftover, Removed
from dpuctl.machines import Remote, Unreachable, decoded, here
from dpuctl.snapshot import Snapshot
from dpuctl.suite import SuitePod

_OWNERS = {"port": "cni-node", "disk": "csi-node-dpu"}


def find(view: View) -> list[Leftover]:
    """In the order of kinds and places. Volumes that nobody names are not among them: they may hold data."""
    found = [
        Leftover(
            kind="port", place=switch.node, name=port.attachment, why=f"{port.interface}: no pod has port {port.port}"
        )
        for switch, port in stale_ports(view)
    ]
    found += [
        Leftover(kind="disk", place=dpu.node, name=disk.volume, why=f"at {disk.function}: no VolumeAttachment")
        for dpu, disk in orphan_disks(view)
    ]
    for machine in view.machines:
        for backend in machine.backends:
            for one in backend.leftovers:
                found.append(
                    Leftover(
                        kind=msgspec.convert(one.kind, inspection.Kind),
                        place=backend.name,
                        name=one.name,
                        why=one.reason,
                        volume=one.volume,
                    )
                )
    return sorted(found)


async def remove(found: Sequence[Leftover], seen: Snapshot, remote: Remote, *, server: str) -> list[Removed]:
    """Here where the owner runs here, else in its container. What nobody could be asked about is left out."""
    done = await inspection.remove(await here(server), found)
    left = [one for one in found if one not in {each.leftover for each in done}]
    for pod, container in _owners(seen, left):
        mine = [one for one in left if _OWNERS.get(one.kind, "csi-controller") == container]
        words = [msgspec.json.encode(one).decode() for one in mine]
        try:
            text = await remote.run(pod, container, "dpuctl", "inspect", "remove", *words)
            done += decoded(text, list[Removed], pod=pod)
        except Unreachable as error:
            done += [Removed(one, str(error)) for one in mine]
    return done


def _owners(seen: Snapshot, left: Sequence[Leftover]) -> list[tuple[SuitePod, str]]:
    """The containers that can remove something of it: on the leftover's own node, or any csi-controller."""
    wanted: list[tuple[SuitePod, str]] = []
    for one in left:
        container = _OWNERS.get(one.kind, "csi-controller")
        for pod in seen.suite_pods:
            right = container == "csi-controller" or pod.spec.node_name == one.place
            if right and container in pod.daemons() and pod.status.phase == "Running":
                if (pod, container) not in wanted:
                    wanted.append((pod, container))
                break
    return wanted
