"""The settings of sriov-device-plugin."""

from typing import Annotated, Literal

import msgspec

from foundation.daemon.configuration import DaemonConfig

Use = Literal["netdev", "vfio", "nvme", "any"]
Functions = Literal["vf", "pf", "any"]
Packing = Literal["packed", "spread"]

Hex4 = Annotated[str, msgspec.Meta(pattern=r"^(0x)?[0-9a-fA-F]{4}$")]
ClassPrefix = Annotated[str, msgspec.Meta(pattern=r"^(0x)?([0-9a-fA-F]{2}){1,3}$")]
# Kubelet puts "requests." before the domain when it asks whether it is a DNS subdomain, of 253 characters at most.
_DOMAIN = r"(?=[a-z0-9.-]{1,244}(/|$))[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
Domain = Annotated[str, msgspec.Meta(pattern=rf"^{_DOMAIN}$")]
PoolName = Annotated[str, msgspec.Meta(pattern=rf"^({_DOMAIN}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{{0,61}}[A-Za-z0-9])?$")]
DeviceNode = Annotated[
    str, msgspec.Meta(pattern=r"^(/dev/)?[A-Za-z0-9_][A-Za-z0-9_:.-]*(/[A-Za-z0-9_][A-Za-z0-9_:.-]*)*$")
]
AbsolutePath = Annotated[str, msgspec.Meta(pattern=r"^/")]
OptionalPath = Annotated[str, msgspec.Meta(pattern=r"^(/|$)")]


class Selector(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which PCI functions: every field that is set must match, one value of its list suffices."""

    functions: Functions = "vf"
    """Virtual functions, physical functions (those without VFs only), or both."""
    classes: tuple[ClassPrefix, ...] = ("02",)
    """Leading digits of the PCI class: 02 network, 0108 NVMe, 03 display. Empty: any."""
    vendors: tuple[Hex4, ...] = ()
    devices: tuple[Hex4, ...] = ()
    drivers: tuple[str, ...] = ()
    """Names of bound drivers. A function that loses its driver stays in its pool, unhealthy."""
    pfs: tuple[str, ...] = ()
    """Physical functions by netdev name or PCI address, with VF ranges if wanted: `ens1f0`, `0000:03:00.0#0-7,12`."""
    addresses: tuple[str, ...] = ()
    """PCI addresses of the functions themselves."""
    numa_nodes: tuple[int, ...] = ()
    link_types: tuple[Literal["ether", "infiniband"], ...] = ()


class ContainerMount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file or directory of the node inside a container."""

    host: AbsolutePath
    container: AbsolutePath
    read_only: bool = True


class Pool(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One extended resource of the node. A function belongs to the first pool that selects it."""

    name: PoolName
    """`vf`, or `domain/vf` where it is not below `resource_domain`."""
    selectors: Annotated[tuple[Selector, ...], msgspec.Meta(min_length=1)]
    """A function needs to match one of them."""
    use: Use = "netdev"
    """What a pod gets: a network device, a VFIO group for a VM, an NVMe controller, or the bare function."""
    packing: Packing = "packed"
    """Which physical function serves first: the fullest that suffices, or the emptiest."""
    topology: bool = True
    """Tell kubelet the NUMA node."""
    link: bool = True
    """A physical function without link makes its VFs unhealthy."""
    representor: bool = True
    """In switchdev mode a VF without its representor is unhealthy."""
    rdma: bool = False
    """Mount the RDMA character devices of the function too."""
    nodes: tuple[DeviceNode, ...] = ()
    """Further device nodes which every container gets, such as /dev/vhost-net."""
    mounts: tuple[ContainerMount, ...] = ()
    """Further mounts which every container gets."""
    cdi: bool = False
    """Name devices by CDI, instead of listing their nodes."""


class PhysicalFunction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The state in which a PF has to be. A field left out is left alone."""

    pf: str
    """PCI address (which stays when names change) or netdev name."""
    vfs: Annotated[int, msgspec.Meta(ge=0)] | None = None
    eswitch: Literal["legacy", "switchdev"] | None = None
    vfs_first: bool | None = None
    """Make VFs before changing the eswitch mode. Left out: as the card's driver needs it."""
    autoprobe: bool | None = None
    """Whether the kernel binds VFs to drivers by itself. Left out: it does on a PF with declared VFs or mode."""
    mtu: Annotated[int, msgspec.Meta(ge=68, le=65535)] | None = None
    vf_driver: str = ""
    """Driver to bind VFs to, such as vfio-pci. Left out: VFs without a driver get the kernel's choice, others stay."""
    mac_prefix: Annotated[str, msgspec.Meta(pattern=r"^$|^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){3}$")] = ""
    """First four bytes of the VFs' MACs, the last two are the VF's index: MACs which stay across reboots."""


class DevicePluginConfig(DaemonConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of sriov-device-plugin."""

    pools: tuple[Pool, ...] = ()
    physical_functions: tuple[PhysicalFunction, ...] = ()
    """What is set up before anything is advertised."""
    resource_domain: Domain = "dpu-offload.io"
    """Domain of the pools whose names have none."""
    plugins_directory: AbsolutePath = "/var/lib/kubelet/device-plugins"
    """Kubelet's device plugin directory; it is there whatever kubelet's root directory is."""
    pod_resources: OptionalPath = "/var/lib/kubelet/pod-resources/kubelet.sock"
    """Kubelet's pod resources socket; empty: do without."""
    device_info_directory: OptionalPath = "/var/run/k8s.cni.cncf.io/devinfo/dp"
    """Where Multus looks for the device information of what was allocated; empty: do not write it."""
    cdi_directory: AbsolutePath = "/var/run/cdi"
    """Where the container runtime reads CDI files, for pools with `cdi`."""
    sysfs: AbsolutePath = "/sys"
    devfs: AbsolutePath = "/dev"
    procfs: AbsolutePath = "/proc"
    resync_seconds: Annotated[float, msgspec.Meta(ge=1)] = 300.0
    """Longest time between two full looks at the machine; changes are seen by events."""
