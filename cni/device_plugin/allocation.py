"""Handing devices to a container: what it gets, checked against the machine as it is now."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from cni.device_plugin import cdi, environment
from cni.device_plugin.candidates import Device, is_vfio
from cni.device_plugin.config import Pool
from cni.device_plugin.device_info import DeviceInfoFiles
from cni.device_plugin.errors import BadRequest, CannotWrite, ResetFailed, UnhealthyDevice, UnknownDevice
from cni.device_plugin.health import suits
from cni.device_plugin.nodes import DeviceNodes, Node
from dpu_offload_stubs.kubelet.deviceplugin.v1beta1 import api_pb2
from foundation.pci import PciFunction, Sysfs


class Allocator:
    """What one container asks for, answered from the machine as it is now.

    `allocate` follows two links and replaces a small file of a memory file system for each device: less than handing
    it to a thread would cost. `reset`, `tidy`, and `allocate` for a pool with CDI block for longer.
    """

    def __init__(self, sysfs: Sysfs, *, devfs: Path, device_info: DeviceInfoFiles | None, cdi_directory: Path) -> None:
        self._sysfs = sysfs
        self._nodes = DeviceNodes(sysfs, devfs)
        self._device_info = device_info
        self._cdi_directory = cdi_directory

    def allocate(
        self, resource: str, pool: Pool, devices: Mapping[str, Device], wanted: Sequence[str]
    ) -> api_pb2.ContainerAllocateResponse:
        """Nothing is written before all devices are found well.

        Raises BadRequest, UnknownDevice, UnhealthyDevice, CannotWrite.
        """
        if not wanted:
            raise BadRequest(f"{resource}: a container asks for no device at all")
        chosen = [_known(resource, devices, device) for device in wanted]
        for device in chosen:
            if not device.healthy:
                raise UnhealthyDevice(f"{resource}: {device.id} cannot be given away: {device.reason}")
        nodes = {device.id: self._nodes.of(self._current(device, pool), pool) for device in chosen}
        answer = api_pb2.ContainerAllocateResponse(
            envs=environment.variables(
                resource,
                wanted,
                nodes={device: [node.container for node in found] for device, found in nodes.items()},
                vfio=pool.use == "vfio",
            ),
            mounts=[
                api_pb2.Mount(container_path=mount.container, host_path=mount.host, read_only=mount.read_only)
                for mount in pool.mounts
            ],
        )
        if pool.cdi and any(nodes.values()):
            self._name_by_cdi(resource, pool, devices, nodes, answer)
        else:
            # Two functions of one container share /dev/vfio/vfio: listed once.
            for node in dict.fromkeys(node for found in nodes.values() for node in found):
                answer.devices.add(container_path=node.container, host_path=node.host, permissions="rw")
        if self._device_info is not None:
            for device in chosen:
                try:
                    self._device_info.write(resource, device.candidate)
                except OSError as error:
                    raise CannotWrite(
                        f"{resource}: no device information of {device.id} for Multus: {error.filename}: "
                        f"{error.strerror}; mend that, or set device_info_directory to nothing"
                    ) from error
        return answer

    def reset(self, resource: str, pool: Pool, devices: Mapping[str, Device], wanted: Sequence[str]) -> None:
        """Reset functions before a VM starts on them. Raises UnknownDevice, UnhealthyDevice, ResetFailed.

        Only functions on a VFIO driver: kubelet calls this after the CNI plugin's ADD, when a network device already
        has its addresses, and before every restart of a container in a living pod.
        """
        for device_id in wanted:
            function = self._current(_known(resource, devices, device_id), pool)
            attribute = self._sysfs.path(device_id) / "reset"
            if not is_vfio(function.driver) or not attribute.exists():
                continue
            try:
                descriptor = os.open(attribute, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(descriptor, b"1")
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise ResetFailed(f"function {device_id} cannot be reset: {error.strerror}") from error

    def describe(self, resource: str, pool: Pool, devices: Mapping[str, Device]) -> None:
        """Write the CDI file of a pool with CDI: kubelet starts containers again, also after a reboot, by the names
        that it was once given, without asking for another allocation. Raises CannotWrite."""
        nodes = {}
        for device in devices.values():
            if device.healthy:
                try:
                    nodes[device.id] = self._nodes.of(self._current(device, pool), pool)
                except (UnhealthyDevice, UnknownDevice):
                    continue
        if any(nodes.values()):
            self._write_cdi(resource, nodes)

    def tidy(self, devices: Mapping[str, Sequence[Device]]) -> None:
        """Remove the device information of functions that are no longer among these."""
        if self._device_info is not None:
            for resource, present in devices.items():
                self._device_info.keep_only(resource, {device.id for device in present})

    def _current(self, device: Device, pool: Pool) -> PciFunction:
        """The function with driver and IOMMU group as they are now: events may be on their way."""
        path = self._sysfs.path(device.id)
        if not path.exists():
            raise UnknownDevice(f"{device.resource}: {device.id} has vanished from this node; {path} is not there")
        driver, group = _target(path / "driver"), _target(path / "iommu_group")
        if not suits(driver, pool.use):
            raise UnhealthyDevice(
                f"{device.resource}: {device.id} is bound to {driver or 'no driver'} since a moment ago, "
                f"which pool {pool.name} cannot use"
            )
        return msgspec.structs.replace(device.candidate.function, driver=driver, iommu_group=int(group or -1))

    def _name_by_cdi(
        self,
        resource: str,
        pool: Pool,
        devices: Mapping[str, Device],
        nodes: Mapping[str, tuple[Node, ...]],
        answer: api_pb2.ContainerAllocateResponse,
    ) -> None:
        """The file names every device of the resource, so that containers of earlier pods can start again by it."""
        known = dict(nodes)
        for device in devices.values():
            if device.id not in known and device.healthy:
                try:
                    known[device.id] = self._nodes.of(self._current(device, pool), pool)
                except (UnhealthyDevice, UnknownDevice):
                    continue
        self._write_cdi(resource, known)
        for device_id in nodes:
            answer.cdi_devices.add(name=cdi.qualified(resource, device_id))

    def _write_cdi(self, resource: str, nodes: Mapping[str, Sequence[Node]]) -> None:
        try:
            cdi.write(self._cdi_directory, resource, nodes)
        except OSError as error:
            raise CannotWrite(f"{resource}: no CDI file in {self._cdi_directory}: {error.strerror}") from error


def _target(link: Path) -> str:
    try:
        return os.path.basename(os.readlink(link))
    except OSError:
        return ""


def _known(resource: str, devices: Mapping[str, Device], device: str) -> Device:
    if device not in devices:
        raise UnknownDevice(f"{device} is no device of {resource} on this node, or is one no longer")
    return devices[device]
