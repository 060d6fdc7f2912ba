"""Settings of opi-bridge."""

from typing import Annotated, Literal

import msgspec

from foundation.daemon.configuration import DaemonConfig


class TlsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files of the bridge's certificate, its key and the authority of its callers."""

    ca: str
    certificate: str
    key: str


class PhysicalFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A range of PCI functions: the virtual ones of a physical function, and that itself if `usable`.

    `vuid` and `pci_addresses` say how the host sees them, when that is known beforehand: a template with {port}, {pf}
    and {vf}, and addresses by virtual function number.
    """

    physical_function: Annotated[int, msgspec.Meta(ge=0)] = 0
    virtual_functions: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    usable: bool = False
    port: Annotated[int, msgspec.Meta(ge=0)] = 0
    hotplug: bool = False
    vuid: str = ""
    pci_addresses: dict[int, str] = {}


class TimeoutsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a lost target is waited for, in seconds."""

    ctrlr_loss: Annotated[int, msgspec.Meta(ge=-1)] = -1
    reconnect_delay: Annotated[int, msgspec.Meta(ge=0)] = 2
    fast_io_fail: Annotated[int, msgspec.Meta(ge=0)] = 0


class QmpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A QEMU monitor, and the root port of each function by "pf<P>vf<V>"."""

    socket: str
    buses: dict[str, str] = {}
    wait_seconds: float = 10.0


class CardConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which card, and what it cannot be asked for."""

    kind: Literal["spdk_vfiouser", "snap4", "snap3", "intel_npi", "marvell", "qemu"] = "spdk_vfiouser"
    directory: str = "/run/dpu-offload/vfiouser"
    """Of the vfio-user sockets (spdk_vfiouser)."""
    settle_seconds: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.3
    """What a connected host gets to drop removed disks before its controller goes (spdk_vfiouser without qmp)."""
    functions: list[PhysicalFunction] = []
    """PCI functions of a card that cannot be asked for them (spdk_vfiouser, intel_npi, marvell, qemu)."""
    transports: list[Literal["tcp", "rdma"]] = []
    """By which this DPU reaches storage; empty: what cards of this kind are known to have."""
    hotplug_functions: Annotated[int, msgspec.Meta(ge=0, le=31)] = 0
    """Hot-plug functions to be made (snap4)."""
    qmp: QmpConfig | None = None
    """Hot-plugs controllers into a guest (spdk_vfiouser, qemu)."""
    emulation_manager: str = "mlx5_0"
    """Of snap3."""


class OpiBridgeConfig(DaemonConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    socket: str = "/run/dpu-offload/opi-bridge.sock"
    """Where the API is served; empty for none."""
    listen: str = ""
    """host:port for the API over mutual TLS; empty for none."""
    tls: TlsConfig | None = None
    spdk: str = "unix:/var/tmp/spdk.sock"
    """The card's JSON-RPC process: unix:/path, tcp:host:port or http://user@host:port/."""
    spdk_password_file: str = ""
    spdk_seconds: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    """Deadline of one JSON-RPC."""
    card: CardConfig = CardConfig()
    keys: str = ""
    """Directory for DH-HMAC-CHAP and TLS keys, on a tmpfs; empty: such keys are refused."""
    timeouts: TimeoutsConfig = TimeoutsConfig()
    path_beat_seconds: Annotated[float, msgspec.Meta(gt=0)] = 2.0
    state_beat_seconds: Annotated[float, msgspec.Meta(gt=0)] = 10.0
