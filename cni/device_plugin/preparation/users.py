"""Who uses a virtual function, so that nobody takes it from them."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import grpc.aio

from cni.device_plugin.candidates import is_vfio
from cni.device_plugin.pod_resources import PodResources
from foundation.pci import PciFunction


async def holders(socket: Path | None) -> Mapping[str, str]:
    """`pod namespace/name` by device, from kubelet; nothing while kubelet does not answer.

    Kubelet starts after a reboot when no function is in use yet; for a later silence there is `evidence`.
    """
    if socket is None or not socket.exists():
        return {}
    try:
        async with PodResources(socket) as kubelet:
            return {holder.device: f"pod {holder.namespace}/{holder.pod}" for holder in await kubelet.holders()}
    except grpc.aio.AioRpcError:
        return {}


def evidence(function: PciFunction, devfs: Path) -> str:
    """What the machine itself shows of a user, "" when it shows none. Blocking."""
    if is_vfio(function.driver):
        return _vfio_user(devfs / "vfio" / str(function.iommu_group), function.iommu_group)
    is_network_device = function.class_code >> 16 == 0x02
    if is_network_device and function.driver and not function.netdevs:
        return "another network namespace, into which its network device was moved"
    return ""


def _vfio_user(group: Path, number: int) -> str:
    """A VFIO group can be open once only."""
    try:
        os.close(os.open(group, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return f"a VM, which has VFIO group {number} open"
    return ""
