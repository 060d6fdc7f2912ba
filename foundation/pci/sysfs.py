"""Reading sysfs below a given root: each question goes straight to the files that answer it."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from foundation.pci import nvme
from foundation.pci.address import PciAddress, normalised
from foundation.pci.errors import NoSuchDevice, NotVirtualFunction
from foundation.pci.functions import Netdev, PciFunction, ScalableFunction
from foundation.pci.nvme import NvmeController, NvmeNamespace
from foundation.pci.ports import FunctionPort, PortName, parse_port_name
from foundation.pci.vpd import Vpd, parse

_SECTOR = 512
_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


class Sysfs:
    """Blocking reads of small files (tens of microseconds each); nothing is cached, nothing is written.

    `root` is the mount point of sysfs, `/sys` on a node. Device attributes that a driver refuses to show (EOPNOTSUPP,
    EINVAL) count as absent.
    """

    def __init__(self, root: Path = Path("/sys")) -> None:
        self.root = root
        self._devices = root / "bus/pci/devices"
        self._net = root / "class/net"

    # --- functions -------------------------------------------------------------------------------------------------

    def path(self, bdf: str) -> Path:
        """Directory of a PCI function, existing or not. Raises BadAddress."""
        return self._devices / normalised(bdf)

    def exists(self, bdf: str) -> bool:
        return self.path(bdf).is_dir()

    def function(self, bdf: str, *, vpd: bool = True) -> PciFunction:
        """Raises BadAddress, NoSuchDevice. `vpd=False` skips the slow read of the VPD (milliseconds on real cards)."""
        path = self.path(bdf)
        if not path.is_dir():
            raise NoSuchDevice(f"no PCI function {path.name} in {self._devices}: wrong address, or the VF was removed")
        pf = _link(path / "physfn")
        pf_path = self._devices / pf if pf else path
        return PciFunction(
            address=path.name,
            vendor=_number(path / "vendor", 16),
            device=_number(path / "device", 16),
            subsystem_vendor=_number(path / "subsystem_vendor", 16),
            subsystem_device=_number(path / "subsystem_device", 16),
            class_code=_number(path / "class", 16),
            revision=_number(path / "revision", 16),
            driver=_link(path / "driver"),
            numa_node=_number(path / "numa_node", default=-1),
            iommu_group=int(_link(path / "iommu_group") or -1),
            is_vf=bool(pf),
            pf=pf,
            pf_number=self._pf_number(pf_path),
            vf_index=self._vf_index(path.name, pf_path) if pf else -1,
            vf_count=_number(path / "sriov_numvfs"),
            vf_total=_number(path / "sriov_totalvfs"),
            netdevs=self.netdevs(path.name),
            vuid=self.vpd(path.name).vuid if vpd else "",
        )

    def functions(self, *, class_prefix: int | None = None, vpd: bool = False) -> Iterator[PciFunction]:
        """All functions in address order; `class_prefix` 0x02 keeps network cards, 0x0108 NVMe. A function that
        vanishes during the walk is left out."""
        for name in sorted(_names(self._devices)):
            if not _BDF.fullmatch(name):
                continue
            if class_prefix is not None and not self._in_class(name, class_prefix):
                continue
            try:
                yield self.function(name, vpd=vpd)
            except (NoSuchDevice, NotVirtualFunction):
                continue

    def virtual_functions(self, pf_bdf: str) -> tuple[str, ...]:
        """Addresses of a physical function's VFs by index. Raises NoSuchDevice, NotVirtualFunction."""
        path = self.path(pf_bdf)
        if not path.is_dir():
            raise NoSuchDevice(f"no PCI function {path.name} in {self._devices}")
        if not (path / "sriov_totalvfs").exists():
            raise NotVirtualFunction(f"PCI function {path.name} has no SR-IOV capability, so it has no VFs")
        links = {int(name[6:]): _link(path / name) for name in _names(path) if re.fullmatch(r"virtfn\d+", name)}
        return tuple(links[index] for index in sorted(links))

    def virtual_function(self, pf_bdf: str, index: int) -> str:
        """Address of one VF, without a listing. Raises NoSuchDevice."""
        address = _link(self.path(pf_bdf) / f"virtfn{index}")
        if not address:
            raise NoSuchDevice(f"PCI function {normalised(pf_bdf)} has no VF {index}")
        return address

    def netdevs(self, bdf: str) -> tuple[str, ...]:
        """Names of a function's netdevs in this network namespace; empty when bound to vfio-pci or moved away."""
        return tuple(sorted(_names(self.path(bdf) / "net")))

    def vpd(self, bdf: str) -> Vpd:
        """Vital product data; empty for a function without any."""
        try:
            return parse((self.path(bdf) / "vpd").read_bytes())
        except OSError:
            return Vpd()

    def by_vuid(self, vuid: str, *, class_prefix: int = 0x0108) -> str | None:
        """Address of the function whose VPD carries this VUID, or None; reads the VPD of each of the class."""
        for name in sorted(_names(self._devices)):
            if self._in_class(name, class_prefix) and self.vpd(name).vuid == vuid:
                return name
        return None

    def iommu_group(self, number: int) -> tuple[str, ...]:
        """Addresses of the functions that share an IOMMU group."""
        return tuple(sorted(_names(self.root / "kernel/iommu_groups" / str(number) / "devices")))

    def vfio_device(self, bdf: str) -> str:
        """Path of the character device a VM opens for a function bound to vfio-pci, "" when it is not bound so.

        Computed anew each time: the group's number changes with every boot.
        """
        path = self.path(bdf)
        group = _link(path / "iommu_group")
        return f"/dev/vfio/{group}" if group and _link(path / "driver") == "vfio-pci" else ""

    def rdma_devices(self, bdf: str) -> tuple[str, ...]:
        return tuple(sorted(_names(self.path(bdf) / "infiniband")))

    def scalable_function(self, name: str) -> ScalableFunction:
        """An auxiliary device by name (`mlx5_core.sf.4`). Raises NoSuchDevice."""
        path = self.root / "bus/auxiliary/devices" / name
        number = _text(path / "sfnum")
        if not name or "/" in name or not number.isdigit():
            raise NoSuchDevice(f"no scalable function {name!r} in {path.parent}")
        pf = next((part for part in reversed(path.resolve().parts) if _BDF.fullmatch(part)), "")
        return ScalableFunction(
            name=name,
            number=int(number),
            pf=pf,
            pf_number=self._pf_number(self._devices / pf) if pf else 0,
            netdevs=tuple(sorted(_names(path / "net"))),
        )

    # --- netdevs ---------------------------------------------------------------------------------------------------

    def netdev(self, name: str) -> Netdev:
        """Raises NoSuchDevice."""
        path = self._net / name
        if not name or "/" in name or not path.is_dir():
            raise NoSuchDevice(f"no network device {name!r} in {self._net}")
        port_name = _text(path / "phys_port_name")
        parent = _link(path / "device")
        return Netdev(
            name=name,
            index=_number(path / "ifindex"),
            mac=_text(path / "address"),
            mtu=_number(path / "mtu"),
            switch_id=_text(path / "phys_switch_id"),
            port_name=port_name,
            port=parse_port_name(port_name),
            pci=parent if _BDF.fullmatch(parent) else "",
        )

    def switch_port(self, name: str) -> tuple[str, str]:
        """(switch id, port name) of a netdev, ("", "") for one that is no port of a switch; one read as a rule."""
        switch_id = _text(self._net / name / "phys_switch_id")
        return (switch_id, _text(self._net / name / "phys_port_name")) if switch_id else ("", "")

    def switch_ports(self) -> Iterator[tuple[str, PortName, str]]:
        """(switch id, port, netdev) of every port of an embedded switch; two small reads a netdev, once."""
        for name in _names(self._net):
            if switch_id := _text(self._net / name / "phys_switch_id"):
                port = parse_port_name(_text(self._net / name / "phys_port_name"))
                if port is not None:
                    yield switch_id, port, name

    def representors(self) -> dict[FunctionPort, str]:
        """Netdev of each VF's representor. A start-up snapshot; follow netlink afterwards."""
        return {
            FunctionPort(switch_id, port.controller, port.pf, port.index): netdev
            for switch_id, port, netdev in self.switch_ports()
            if port.kind == "vf"
        }

    # --- NVMe ------------------------------------------------------------------------------------------------------

    def nvme_controllers(self, bdf: str = "") -> tuple[NvmeController, ...]:
        """All controllers, or those of one PCI function (a direct look, no walk)."""
        parent = self.path(bdf) / "nvme" if bdf else self.root / "class/nvme"
        found = (self._controller(parent / name) for name in sorted(_names(parent)) if nvme.is_controller(name))
        return tuple(controller for controller in found if controller is not None)

    def nvme_namespaces(self, bdf: str = "") -> tuple[NvmeNamespace, ...]:
        """Visible disks, or those reached through one PCI function. A hidden path counts as its multipath head."""
        if not bdf:
            names = [name for name in _names(self.root / "block") if nvme.is_disk(name)]
        else:
            parent = self.path(bdf) / "nvme"
            below = {nvme.disk_of(name) for controller in _names(parent) for name in _names(parent / controller)}
            names = [name for name in below if name]
        found = (self.nvme_namespace(name) for name in sorted(names))
        return tuple(namespace for namespace in found if namespace is not None)

    def nvme_namespace(self, name: str) -> NvmeNamespace | None:
        """One disk; None when it is gone or hidden."""
        path = self.root / "block" / name
        # A partition has no nsid and a hidden path no device number; both must never be handed to anyone.
        nsid = _text(path / "nsid")
        if not nsid or _text(path / "hidden") == "1":
            return None
        controllers, nqn = self._reached_by(path)
        return NvmeNamespace(
            name=name,
            nsid=int(nsid),
            uuid=_text(path / "uuid").lower(),
            nguid=_text(path / "nguid").lower(),
            eui=_text(path / "eui"),
            wwid=_text(path / "wwid"),
            size=_number(path / "size") * _SECTOR,
            logical_block=_number(path / "queue/logical_block_size", default=_SECTOR),
            read_only=_text(path / "ro") == "1",
            dev=_text(path / "dev"),
            subsystem_nqn=nqn,
            controllers=controllers,
        )

    def namespace_by_uuid(self, uuid: str) -> NvmeNamespace | None:
        """The disk with this namespace uuid. Reads one file a disk until it is found."""
        wanted = uuid.lower()
        for name in sorted(_names(self.root / "block")):
            if not nvme.is_disk(name):
                continue
            path = self.root / "block" / name
            if wanted in (_text(path / "uuid").lower(), _text(path / "wwid").lower().removeprefix("uuid.")):
                return self.nvme_namespace(name)
        return None

    def rescan_path(self, controller: str) -> Path:
        """File to which a `1` makes the kernel list a controller's namespaces again."""
        return self.root / "class/nvme" / controller / "rescan_controller"

    # --- inner -----------------------------------------------------------------------------------------------------

    def _controller(self, path: Path) -> NvmeController | None:
        transport, state = _text(path / "transport"), _text(path / "state")
        if not transport and not state:
            return None
        return NvmeController(
            name=path.name,
            address=_text(path / "address"),
            transport=transport,
            state=state,
            subsystem_nqn=_text(path / "subsysnqn"),
            serial=_text(path / "serial"),
            model=_text(path / "model"),
            firmware=_text(path / "firmware_rev"),
            controller_id=_number(path / "cntlid", default=-1),
        )

    def _reached_by(self, disk: Path) -> tuple[tuple[str, ...], str]:
        """Controllers of a disk with the subsystem NQN: its parent, or all of the subsystem under native multipath."""
        parent = Path(os.path.realpath(disk / "device")) if (disk / "device").exists() else disk.resolve().parent
        if nvme.is_controller(parent.name):
            return (parent.name,), _text(parent / "subsysnqn")
        subsystem = self.root / "class/nvme-subsystem" / parent.name
        names = tuple(sorted(name for name in _names(subsystem) if nvme.is_controller(name)))
        return names, _text(subsystem / "subsysnqn") or _text(parent / "subsysnqn")

    def _in_class(self, name: str, prefix: int) -> bool:
        code = f"{_number(self._devices / name / 'class', 16):06x}"
        digits = f"{prefix:x}"
        return code.startswith(digits.zfill(len(digits) + len(digits) % 2))

    def _pf_number(self, pf_path: Path) -> int:
        for netdev in sorted(_names(pf_path / "net")):
            port = parse_port_name(_text(pf_path / "net" / netdev / "phys_port_name"))
            if port is not None and port.kind in ("uplink", "pf"):
                return port.pf
        return PciAddress.parse(pf_path.name).function

    def _vf_index(self, name: str, pf_path: Path) -> int:
        """By the SR-IOV arithmetic, confirmed by one link; by a listing where the arithmetic does not hold."""
        stride = _number(pf_path / "sriov_stride")
        if stride:
            first = PciAddress.parse(pf_path.name).routing_id + _number(pf_path / "sriov_offset")
            index = (PciAddress.parse(name).routing_id - first) // stride
            if _link(pf_path / f"virtfn{index}") == name:
                return index
        for entry in _names(pf_path):
            if entry.startswith("virtfn") and _link(pf_path / entry) == name:
                return int(entry[6:])
        raise NotVirtualFunction(f"PCI function {name} names {pf_path.name} as its PF, which does not list it")


def _text(path: Path) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(4096).decode("utf-8", "replace").strip(" \n\0")
    except OSError:
        return ""


def _number(path: Path, base: int = 10, default: int = 0) -> int:
    text = _text(path)
    try:
        return int(text, base) if text else default
    except ValueError:
        return default


def _link(path: Path) -> str:
    try:
        name = os.path.basename(os.readlink(path))
    except OSError:
        return ""
    return os.path.basename(os.path.realpath(path)) if name in ("", ".", "..") else name


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
