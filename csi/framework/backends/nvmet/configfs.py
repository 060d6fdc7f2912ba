"""The kernel's NVMe-oF target, as its configfs tree shows it (Linux drivers/nvme/target/configfs.c).

Blocking: small reads and writes. Directories are made and removed as objects, attributes are files in them.
"""

import contextlib
import os
import threading
from collections.abc import Collection
from pathlib import Path

from csi import identity
from csi.framework.backend import HostKeys, Portal


class Configfs:
    """Below `root`, the directory `nvmet` of a mounted configfs."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # A port is several writes; a subsystem linked to it in between would open it with half an address.
        self._ports = threading.Lock()

    # --- subsystems -------------------------------------------------------------------------------------------------

    def subsystems(self) -> list[str]:
        return [nqn for nqn in self._names("subsystems") if identity.volume_of_nqn(nqn) is not None]

    def offered(self, nqn: str, ports: dict[int, Portal]) -> bool:
        """Whether the namespace is enabled, every port shows the subsystem, and nobody gets in unnamed."""
        subsystem = self._root / "subsystems" / nqn
        return (
            self._read(subsystem / "namespaces/1/enable") == "1"
            and self._read(subsystem / "attr_allow_any_host") == "0"
            and all((self._root / "ports" / str(number) / "subsystems" / nqn).is_symlink() for number in ports)
        )

    def offer(self, volume: identity.VolumeId, file: Path, ports: dict[int, Portal]) -> None:
        """Every step may have been done before."""
        nqn = identity.subsystem_nqn(volume)
        subsystem = self._root / "subsystems" / nqn
        self._make(subsystem)
        self._write(subsystem / "attr_allow_any_host", "0")
        self._write(subsystem / "attr_serial", identity.serial_number(volume))
        with contextlib.suppress(OSError):
            # Older kernels have no such attribute, newer ones take it only before the first connection.
            self._write(subsystem / "attr_model", identity.MODEL_NUMBER)
        namespace = subsystem / f"namespaces/{identity.REMOTE_NSID}"
        self._make(namespace)
        if self._read(namespace / "enable") != "1":
            self._write(namespace / "device_path", str(file))
            self._write(namespace / "device_uuid", identity.namespace_uuid(volume))
            self._write(namespace / "device_nguid", identity.namespace_uuid(volume))
            self._write(namespace / "enable", "1")
        for number, portal in ports.items():
            with self._ports:
                self._port(number, portal)
            self._link(self._root / "ports" / str(number) / "subsystems" / nqn, subsystem)

    def withdraw(self, nqn: str) -> None:
        """From the outside inwards; connected hosts are cut off by the first step."""
        for port in self._names("ports"):
            self._unlink(self._root / "ports" / port / "subsystems" / nqn)
        subsystem = self._root / "subsystems" / nqn
        for host in self.hosts(nqn):
            self._unlink(subsystem / "allowed_hosts" / host)
        for namespace in self._names(f"subsystems/{nqn}/namespaces"):
            path = subsystem / "namespaces" / namespace
            self._write(path / "enable", "0")
            self._remove(path)
        self._remove(subsystem)

    def resized(self, nqn: str) -> None:
        """Has the kernel look at the file's size again and tell the hosts."""
        self._write(self._root / "subsystems" / nqn / "namespaces/1/revalidate_size", "1")

    # --- hosts ------------------------------------------------------------------------------------------------------

    def hosts(self, nqn: str) -> tuple[str, ...]:
        return tuple(sorted(self._names(f"subsystems/{nqn}/allowed_hosts")))

    def admit(self, nqn: str, host: str, keys: HostKeys) -> None:
        """Keys of the kernel's target belong to the host, whichever volume it connects to."""
        path = self._root / "hosts" / host
        self._make(path)
        if keys.dhchap_key:
            self._write(path / "dhchap_key", keys.dhchap_key)
        if keys.dhchap_ctrlr_key:
            self._write(path / "dhchap_ctrl_key", keys.dhchap_ctrlr_key)
        self._link(self._root / "subsystems" / nqn / "allowed_hosts" / host, path)

    def expel(self, nqn: str, host: str, ports: Collection[int]) -> None:
        """Ends the host's connections and keeps it out.

        Taking a host off the list only keeps it from connecting anew (`nvmet_allowed_hosts_drop_link`); what ends
        connections is to take the subsystem off its ports (`nvmet_port_del_ctrls`), and all hosts' at that: the others
        connect again by themselves. Killed in between, nobody is connected, and a repetition goes on.
        """
        subsystem = self._root / "subsystems" / nqn
        link = subsystem / "allowed_hosts" / host
        shown = [self._root / "ports" / str(number) / "subsystems" / nqn for number in ports]
        if link.is_symlink():
            for path in shown:
                self._unlink(path)
            self._unlink(link)
        if subsystem.is_dir():
            for path in shown:
                self._link(path, subsystem)
        if not any(host in self.hosts(other) for other in self._names("subsystems")):
            self._remove(self._root / "hosts" / host)

    # --- inner ------------------------------------------------------------------------------------------------------

    def _port(self, number: int, portal: Portal) -> None:
        path = self._root / "ports" / str(number)
        self._make(path)
        wanted = {
            "addr_trtype": portal.transport,
            "addr_adrfam": "ipv6" if ":" in portal.address else "ipv4",
            "addr_traddr": portal.address,
            "addr_trsvcid": str(portal.port),
        }
        for name, value in wanted.items():
            # A port that shows a subsystem already takes no new address.
            if self._read(path / name) != value:
                self._write(path / name, value)

    def _names(self, below: str) -> list[str]:
        try:
            return sorted(os.listdir(self._root / below))
        except FileNotFoundError:
            return []

    def _read(self, path: Path) -> str:
        try:
            return path.read_text().strip()
        except OSError:
            return ""

    def _write(self, path: Path, value: str) -> None:
        path.write_text(f"{value}\n")

    def _make(self, path: Path) -> None:
        with contextlib.suppress(FileExistsError):
            path.mkdir()

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()

    def _link(self, path: Path, target: Path) -> None:
        with contextlib.suppress(FileExistsError):
            path.symlink_to(target)

    def _unlink(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
