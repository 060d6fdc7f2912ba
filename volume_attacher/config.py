"""Settings of volume-attacher."""

from typing import Annotated, Literal

import msgspec

from foundation.daemon.configuration import DaemonConfig


class TlsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files for a bridge that is reached over the network."""

    ca: str
    certificate: str
    key: str
    server_name: str = ""


class FunctionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One PCI function; `virtual_function` is 1-based, 0 is the physical function itself."""

    physical_function: Annotated[int, msgspec.Meta(ge=0)] = 0
    virtual_function: Annotated[int, msgspec.Meta(ge=0)] = 0
    port: Annotated[int, msgspec.Meta(ge=0)] = 0
    vuid: str = ""
    pci_address: str = ""


class VolumeAttacherConfig(DaemonConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    socket: str = "/run/dpu-offload/volume-attacher.sock"
    """Where the service is served."""
    bridge: str = "unix:/run/dpu-offload/opi-bridge.sock"
    """The OPI bridge: unix:/path or host:port."""
    bridge_tls: TlsConfig | None = None
    state_directory: str = "/var/lib/dpu-offload/volume-attacher"
    """Of the attachments and the host's identity; must outlive a restart of the DPU."""
    host_nqn: str = ""
    """Empty: made once from a random UUID and kept in state_directory."""
    default_policy: Literal["hotplug", "static", "shared"] = "static"
    """For attachments that do not say how the host shall see them."""
    shared_nqn: str = "nqn.2026-11.io.dpu-offload:shared.port{port}.pf{pf}.vf{vf}"
    """NQN of the subsystem behind a shared controller."""
    functions: tuple[FunctionConfig, ...] = ()
    """PCI functions, for a bridge that cannot be asked for them."""
    poll_seconds: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    """How often a bridge without events is looked at."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 32
    """Volumes repaired at once."""
