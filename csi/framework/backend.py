"""What a storage backend is: the data it exchanges with csi-controller, in one protocol of a dozen verbs.

A backend knows volumes by their key (the part of the volume id after the colon), makes each reachable as one
NVMe-oF subsystem with NSID 1 under the names that `csi.identity` derives, and lets only named hosts in. Every verb
is idempotent: repeating a finished one returns the same answer, repeating an interrupted one finishes it.
Errors come from `csi.errors`; a verb that raises InvalidArgument, OutOfRange or FailedPrecondition has changed nothing.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import msgspec

P = TypeVar("P", bound=msgspec.Struct)

TransportName = Literal["tcp", "rdma"]


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend can do beyond create, delete, list, grant and revoke."""

    expand: bool = False
    snapshots: bool = False
    clones: bool = False
    group_snapshots: bool = False  # all at one instant
    qos: bool = False
    capacity: bool = False
    authentication: bool = False
    encryption_in_transit: bool = False


class SizeRange(msgspec.Struct, frozen=True):
    """Bytes. `limit` 0 means none. `required` 0 leaves the size to the backend."""

    required: int = 0
    limit: int = 0


class Portal(msgspec.Struct, frozen=True, order=True):
    """One address at which the target listens."""

    transport: TransportName
    address: str
    port: int


class Qos(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """Upper bounds, 0 for none: the keys of a VolumeAttributesClass."""

    read_iops: int = 0
    write_iops: int = 0
    read_write_iops: int = 0
    read_mb_per_second: int = 0
    write_mb_per_second: int = 0
    read_write_mb_per_second: int = 0


class Source(msgspec.Struct, frozen=True):
    """Where a new volume's data comes from: the key of a snapshot or of a volume of the same backend."""

    kind: Literal["snapshot", "volume"]
    key: str


NO_LIMITS = Qos()
Segments = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class VolumeSpec(Generic[P]):
    """One volume as asked for. `token` is `identity.hashed(CSI name)`; topologies are ordered, most wanted first."""

    token: str
    size: SizeRange
    parameters: P
    qos: Qos = NO_LIMITS
    source: Source | None = None
    requisite: tuple[Segments, ...] = ()
    preferred: tuple[Segments, ...] = ()


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as it stands. `size` in bytes; hosts with a TLS key connect at `secure_portals`; `topology` is empty
    when it is reachable from everywhere; `exported` is false while the storage does not offer it to anybody, e.g. just
    after a restart."""

    key: str
    size: int
    portals: tuple[Portal, ...]
    secure_portals: tuple[Portal, ...] = ()
    topology: tuple[dict[str, str], ...] = ()
    hosts: tuple[str, ...] = ()
    exported: bool = True


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot as it stands; `created` in Unix seconds; `group` is the key of its group or empty."""

    key: str
    source_key: str
    size: int
    created: int
    group: str = ""
    ready: bool = True


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes. `largest` is the biggest single volume that fits; `smallest` the least size a volume can have."""

    available: int
    largest: int
    smallest: int


class Condition(msgspec.Struct, frozen=True):
    """Health in one sentence."""

    abnormal: bool
    message: str


class HostKeys(msgspec.Struct, frozen=True, kw_only=True):
    """DH-HMAC-CHAP and TLS secrets in NVMe's interchange format; empty means not used."""

    dhchap_key: str = ""
    dhchap_ctrlr_key: str = ""
    tls_psk: str = ""

    def __repr__(self) -> str:
        return "HostKeys(…)"

    def __bool__(self) -> bool:
        return bool(self.dhchap_key or self.dhchap_ctrlr_key or self.tls_psk)


class Finding(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Something that carries a name of ours on the storage and belongs to nothing. `token` names it for `remove`."""

    kind: Literal["subsystem", "volume", "snapshot", "host", "unfinished"]
    name: str
    reason: str
    volume_key: str = ""


class Backend(Protocol[P]):
    """One configured storage. `name` is the first half of every volume id it serves."""

    name: str

    @property
    def capabilities(self) -> Capabilities: ...

    async def start(self) -> None:
        """Connects and brings exports back; returns at once when the storage is away, and goes on trying."""

    async def close(self) -> None: ...

    async def create(self, spec: VolumeSpec[P]) -> Volume:
        """Creates and exports, with no host let in. AlreadyExists for a difference, NotFound for a missing source,
        OutOfRange for a size that cannot be had, ResourceExhausted for a full store."""

    async def delete(self, key: str) -> None:
        """Succeeds for an unknown key. FailedPrecondition while a host is let in or something depends on it."""

    async def get(self, key: str) -> Volume:
        """Raises NotFound."""

    async def volumes(self) -> Sequence[Volume]: ...

    async def grant(self, key: str, host_nqn: str, *, keys: HostKeys, shared: bool) -> Volume:
        """Lets a host in. Unless `shared`, FailedPrecondition while another host is in. New keys replace old ones.

        The answer's `hosts` are those who were in before.
        """

    async def revoke(self, key: str, host_nqn: str) -> None:
        """Cuts a host off at the target, at once and for certain; succeeds for an unknown volume or host."""

    async def expand(self, key: str, size: SizeRange) -> Volume:
        """Never makes a volume smaller; a size already reached is a success."""

    async def set_qos(self, key: str, qos: Qos) -> None: ...

    async def snapshot(self, token: str, source_key: str) -> Snapshot:
        """AlreadyExists when the token names a snapshot of another volume; NotFound for a missing source."""

    async def delete_snapshot(self, key: str) -> None:
        """Succeeds for an unknown key, and for one that volumes were made from: they keep their data.
        InvalidArgument for a member of a group."""

    async def snapshot_group(self, token: str, source_keys: Sequence[str]) -> Sequence[Snapshot]:
        """All at one instant, or none: no member has a write that was made after another member's snapshot.

        AlreadyExists when the token names a group of other volumes. A backend that cannot does not declare it.
        """

    async def delete_group(self, key: str) -> None:
        """All members. Succeeds for an unknown key."""

    async def snapshots(self) -> Sequence[Snapshot]: ...

    async def capacity(self, parameters: P | None, topology: Segments | None) -> Capacity: ...

    async def health(self, key: str) -> Condition:
        """Raises NotFound."""

    async def converge(self, wanted: Mapping[str, Mapping[str, HostKeys]], qos: Mapping[str, Qos]) -> None:
        """Brings exports, hosts (volume key -> host NQN -> keys) and limits back after the storage was restarted.

        `wanted` is live: hosts that are cut off meanwhile leave it. So a volume is looked up in it, and its hosts are
        let in, under the lock that `revoke` takes too.
        """

    async def garbage(self) -> Sequence[Finding]: ...

    async def remove(self, finding: Finding) -> None:
        """Removes what `garbage` found, if it still belongs to nothing."""

    def on_return(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Calls back when the storage answers again after having been away."""


@dataclass(frozen=True, kw_only=True)
class BackendKind:
    """What an entry point of group `dpu_offload.storage_backends` names: a sort of storage, not yet configured."""

    name: str
    configuration: type[msgspec.Struct]
    parameters: type[msgspec.Struct]
    open: Callable[[str, Any], Backend[Any]]
    # DPU half, for storage that is not NVMe-oF: publish context -> name of a bdev on the DPU's SPDK.
    attach: Callable[[Mapping[str, str]], Awaitable[str]] | None = None
