"""What a card emulates towards its host, as plain data."""

from dataclasses import dataclass, field
from typing import Final

VFIOUSER: Final = "VFIOUSER"


@dataclass(frozen=True, order=True)
class Slot:
    """A PCI function as the card numbers it; `vf` is 1-based, 0 is the physical function itself."""

    port: int
    pf: int
    vf: int

    def __str__(self) -> str:
        return f"port {self.port} pf {self.pf} vf {self.vf}"

    @property
    def id(self) -> str:
        """The id which a controller on this function gets when nobody gave it another one."""
        return f"port{self.port}-pf{self.pf}-vf{self.vf}"


@dataclass(frozen=True, order=True)
class Fabric:
    """A listener on a network; `transport` is TCP or RDMA, `family` IPv4 or IPv6."""

    transport: str
    family: str
    address: str
    service: str

    def __str__(self) -> str:
        return f"{self.transport} {self.address} port {self.service}"

    @property
    def id(self) -> str:
        address = "".join(c if c.isalnum() else "-" for c in self.address.lower()).strip("-")
        return f"{self.transport.lower()}-{address}-{self.service}"


Endpoint = Slot | Fabric


@dataclass(frozen=True)
class Function:
    """A PCI function which can carry a controller; `nqn` is the subsystem of the one it carries, "" when free."""

    slot: Slot
    vuid: str = ""
    pci_address: str = ""
    hotplug: bool = False
    nqn: str = ""


@dataclass(frozen=True)
class Namespace:
    """A namespace of a subsystem; `handle` is the card's own word for it, `bdev` the volume under it.

    `uuid` is in RFC 9562 text form, `nguid` 32 and `eui64` 16 hexadecimal digits, all lower case; "" is not given.
    """

    nsid: int
    bdev: str
    uuid: str = ""
    nguid: str = ""
    eui64: str = ""
    handle: str = ""

    @property
    def identity(self) -> dict[str, str]:
        """What is given of uuid, nguid and eui64, by these names."""
        known = {"uuid": self.uuid, "nguid": self.nguid, "eui64": self.eui64}
        return {key: value for key, value in known.items() if value}


@dataclass(frozen=True)
class Limits:
    """What a controller may use; 0 is the card's default."""

    queues: int = 0
    completion_queues: int = 0
    namespaces: int = 0
    controller_id: int | None = None


@dataclass(frozen=True)
class Qos:
    """Upper or lower bounds of a controller; 0 is none."""

    read_iops: int = 0
    write_iops: int = 0
    read_write_iops: int = 0
    read_mb: int = 0
    write_mb: int = 0
    read_write_mb: int = 0


@dataclass(frozen=True)
class Controller:
    """A controller of a subsystem; `handle` is the card's own word for it."""

    nqn: str
    endpoint: Endpoint
    handle: str = ""
    controller_id: int | None = None
    active: bool = True


@dataclass(frozen=True)
class Subsystem:
    nqn: str
    serial: str = ""
    model: str = ""
    max_namespaces: int = 0
    hosts: tuple[str, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    controllers: tuple[Controller, ...] = ()

    def namespace(self, nsid: int) -> Namespace | None:
        return next((n for n in self.namespaces if n.nsid == nsid), None)

    def controller(self, endpoint: Endpoint) -> Controller | None:
        return next((c for c in self.controllers if c.endpoint == endpoint), None)


@dataclass(frozen=True)
class Capabilities:
    card: str
    hotplug: bool = False
    suspend: bool = False
    vuid: bool = False
    fabrics: bool = False
    explicit_attach: bool = False  # namespaces are attached to each controller one by one
    shared_controller: bool = True
    encryption: bool = True
    qos: bool = True
    namespaces_per_controller: int = 0
    transports: tuple[str, ...] = ("tcp",)


@dataclass(frozen=True)
class CardState:
    """A full read-back: what a reconciler compares."""

    subsystems: tuple[Subsystem, ...] = ()
    functions: tuple[Function, ...] = field(default=())
