"""An attachment as it is wanted, as plain data that can lie on disk; secrets are apart, and never on disk."""

import enum
from typing import Annotated

import msgspec


class Policy(enum.StrEnum):
    """How the host shall see the volume."""

    HOTPLUG = "hotplug"
    STATIC = "static"
    SHARED = "shared"


class Phase(enum.StrEnum):
    """How far an attachment got: an intent, a confirmed attachment, or one being undone."""

    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"


class Portal(msgspec.Struct, frozen=True, order=True):
    """One way to the remote subsystem; `transport` is tcp or rdma."""

    transport: str
    address: str
    port: Annotated[int, msgspec.Meta(gt=0, lt=65536)]

    def __str__(self) -> str:
        return f"{self.transport} {self.address} port {self.port}"


class Remote(msgspec.Struct, frozen=True):
    nqn: str
    portals: tuple[Portal, ...]
    uuid: str
    size: int = 0


class Limits(msgspec.Struct, frozen=True):
    """Upper bounds; 0 is none."""

    read_iops: int = 0
    write_iops: int = 0
    read_write_iops: int = 0
    read_mb: int = 0
    write_mb: int = 0
    read_write_mb: int = 0

    def __bool__(self) -> bool:
        return self != Limits()


class Specification(msgspec.Struct, frozen=True):
    """What must be equal for two Attach calls to mean the same."""

    volume_id: str
    remote: Remote
    policy: Policy
    read_only: bool = False
    encrypted: bool = False
    limits: Limits = Limits()

    def plain(self) -> dict[str, object]:
        """What counts when two are compared, by the contract's field names: portals in order, the size left out."""
        return {
            "volume_id": self.volume_id,
            "subsystem_nqn": self.remote.nqn,
            "paths": sorted(self.remote.portals),
            "namespace_uuid": self.remote.uuid,
            "function_policy": self.policy,
            "read_only": self.read_only,
            "encryption": self.encrypted,
            "qos": self.limits,
        }

    def fingerprint(self) -> str:
        """Equal for Attach calls that may share one piece of work."""
        return repr(sorted(self.plain().items()))

    def same(self, other: "Specification") -> bool:
        return self.plain() == other.plain()

    def differences(self, other: "Specification") -> list[str]:
        mine, theirs = self.plain(), other.plain()
        return [key for key in mine if mine[key] != theirs[key]]


class Secrets(msgspec.Struct, frozen=True):
    """Only ever in memory."""

    dhchap_key: str = ""
    dhchap_ctrlr_key: str = ""
    tls_psk: str = ""
    key: str = ""
    tweak_key: str = ""

    def __repr__(self) -> str:
        return "Secrets(...)"

    def __bool__(self) -> bool:
        return self != Secrets()

    def values(self) -> list[str]:
        """Those that are set, for redaction."""
        return [value for value in msgspec.structs.astuple(self) if value]


class Place(msgspec.Struct, frozen=True, order=True):
    """The function on which the host sees the volume."""

    port: int
    pf: int
    vf: int
    vuid: str = ""
    pci_address: str = ""

    @property
    def key(self) -> tuple[int, int, int]:
        return self.port, self.pf, self.vf

    def __str__(self) -> str:
        return f"port {self.port} pf {self.pf} vf {self.vf}"


class Pinned(msgspec.Struct, frozen=True):
    """Where the host was told to find a volume; nsid 0: not told."""

    place: Place
    nsid: int = 0

    def fits(self, place: Place, nsid: int) -> bool:
        """Whether that is there. A VUID says more than numbers, which may change with the card's settings."""
        same = self.place.vuid == place.vuid if self.place.vuid and place.vuid else self.place.key == place.key
        return same and self.nsid in (0, nsid)

    def __str__(self) -> str:
        return f"{self.place}, NSID {self.nsid}" if self.nsid else str(self.place)


class Record(msgspec.Struct, frozen=True):
    """What is kept of an attachment across restarts: specification, place, and how far it got."""

    specification: Specification
    place: Place
    nsid: int
    phase: Phase
    secured: bool = False
    """Whether it needs secrets to be connected again."""
    adopted: bool = False
    """Whether the specification is only what could be seen of it."""

    @property
    def volume_id(self) -> str:
        return self.specification.volume_id

    @property
    def shared(self) -> bool:
        return self.specification.policy is Policy.SHARED

    def confirmed(self, wanted: Specification) -> "Record | None":
        """The record as an Attach call for `wanted` finds it; None if that wants another attachment.

        Of an adopted one, what could not be seen is now said: names of targets, whether it is read-only.
        """
        mine = self.specification
        if mine.same(wanted):
            return self
        seen = (mine.remote.nqn, mine.remote.uuid, mine.policy, mine.encrypted, mine.limits)
        if not self.adopted or seen != (
            wanted.remote.nqn,
            wanted.remote.uuid,
            wanted.policy,
            wanted.encrypted,
            wanted.limits,
        ):
            return None
        return msgspec.structs.replace(self, specification=wanted, adopted=False)
