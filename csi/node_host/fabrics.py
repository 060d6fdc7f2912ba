"""The host's own NVMe-oF initiator, for hosts without a DPU: connect and disconnect through /dev/nvme-fabrics.

Blocking writes. A connect to a target that is away lasts until the kernel gives up (tens of seconds).
Options: Linux drivers/nvme/host/fabrics.c `opt_tokens`; loss -1 waits for ever, as a volume's target comes back.
"""

import errno
import os
from pathlib import Path

import msgspec

from csi import identity
from csi.errors import Internal, InvalidArgument, Unavailable
from csi.framework.backend import Portal
from csi.publication import PublishContext
from foundation.pci.sysfs import Sysfs


class Fabrics:
    def __init__(self, *, sysfs: Sysfs, dev_root: Path, node: str) -> None:
        self._sysfs = sysfs
        self._device = dev_root / "nvme-fabrics"
        self._node = node

    def connect(self, wanted: PublishContext) -> None:
        """One controller a portal; those that are there already are left alone. One that works is enough."""
        try:
            portals = msgspec.json.decode(wanted.portals, type=list[Portal])
        except msgspec.DecodeError as error:
            raise InvalidArgument(f"publish_context.portals: {error}") from error
        present = {
            controller.address
            for controller in self._sysfs.nvme_controllers()
            if controller.subsystem_nqn == wanted.subsystem_nqn
        }
        failures = []
        for portal in portals:
            where = f"traddr={portal.address},trsvcid={portal.port}"
            # The kernel appends src_addr= and more to what it shows.
            if any(address == where or address.startswith(f"{where},") for address in present):
                continue
            try:
                self._write(self._options(portal, wanted))
            except OSError as error:
                if error.errno not in (errno.EALREADY, errno.EEXIST):
                    failures.append(f"{where}: {error.strerror}")
        if len(failures) == len(portals):
            raise Unavailable(f"no portal of {wanted.subsystem_nqn} can be connected: {'; '.join(failures)}")

    def disconnect(self, subsystem_nqn: str) -> None:
        """Succeeds when nothing is connected."""
        for controller in self._sysfs.nvme_controllers():
            if controller.subsystem_nqn == subsystem_nqn and controller.transport in ("tcp", "rdma"):
                path = self._sysfs.root / "class/nvme" / controller.name / "delete_controller"
                try:
                    path.write_text("1")
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise Internal(f"disconnect {controller.name}: {error}") from error

    def _options(self, portal: Portal, wanted: PublishContext) -> str:
        options = {
            "nqn": wanted.subsystem_nqn,
            "transport": portal.transport,
            "traddr": portal.address,
            "trsvcid": str(portal.port),
            "hostnqn": wanted.host_nqn or identity.host_nqn(self._node),
            "hostid": identity.host_id(self._node),
            "ctrl_loss_tmo": "-1",
            "reconnect_delay": "2",
        }
        return ",".join(f"{name}={value}" for name, value in options.items())

    def _write(self, options: str) -> None:
        try:
            descriptor = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(
                f"{self._device}: {error.strerror}; load the kernel's nvme-tcp or nvme-rdma module on this host"
            ) from error
        try:
            os.write(descriptor, options.encode())
        finally:
            os.close(descriptor)
