"""What is there of each volume, read out of the bridge's state; pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from dpu_offload_stubs.attacher.v1 import attacher_pb2
from dpu_offload_stubs.card.v1 import card_pb2
from volume_attacher import naming
from volume_attacher.addresses import Addresses, named
from volume_attacher.model import Phase, Place, Policy, Portal, Record, Remote, Specification


@dataclass(frozen=True)
class Way:
    """A path as it stands; `ana` is optimized, non_optimized, inaccessible or empty."""

    portal: Portal
    nqn: str
    state: str
    connected: bool
    ana: str = ""

    @property
    def usable(self) -> bool:
        return self.connected and self.ana != "inaccessible"


@dataclass(frozen=True)
class Disk:
    """The remote namespace on this DPU."""

    volume: str
    uuid: str
    size: int


@dataclass(frozen=True)
class Shown:
    """A namespace before the host."""

    nsid: int
    uuid: str
    volume: str


@dataclass(frozen=True)
class Parts:
    """The objects under one id: what an attachment is made of, as far as it is there."""

    remote: bool = False
    ways: tuple[Way, ...] = ()
    disks: tuple[Disk, ...] = ()
    encrypted: bool = False
    limited: bool = False
    subsystem: str = ""
    namespaces: tuple[Shown, ...] = ()
    places: tuple[Place, ...] = ()

    def disk(self, uuid: str) -> Disk | None:
        return next((disk for disk in self.disks if disk.uuid == uuid), None)

    @property
    def empty(self) -> bool:
        return self == Parts()


@dataclass(frozen=True)
class Actual:
    """The whole DPU; `functions` says of each place which subsystem is on it, "" for none."""

    instance: str = ""
    parts: Mapping[str, Parts] = field(default_factory=dict)
    functions: Mapping[Place, str] = field(default_factory=dict)
    hotplug: frozenset[tuple[int, int, int]] = frozenset()

    def of(self, identifier: str) -> Parts:
        return self.parts.get(identifier, Parts())


def read(state: card_pb2.State) -> Actual:
    """Objects of others are left out."""
    found: dict[str, dict[str, object]] = {}

    def of(name: str) -> dict[str, object] | None:
        identifier = name.rpartition("/")[2]
        return found.setdefault(identifier, {}) if naming.is_ours(identifier) else None

    for remote in state.remote_controllers:
        parts = of(remote.name)
        if parts is not None:
            parts["remote"] = True
            parts["ways"] = tuple(_way(path) for path in remote.paths)
            parts["disks"] = tuple(Disk(ns.volume, ns.uuid, ns.size_bytes) for ns in remote.namespaces)
    for subsystem in state.subsystems:
        parts = of(subsystem.name)
        if parts is not None:
            parts["subsystem"] = subsystem.nqn
            parts["namespaces"] = tuple(Shown(ns.nsid, ns.uuid, ns.volume) for ns in subsystem.namespaces)
            parts["places"] = tuple(place_of(function) for function in subsystem.functions)
    for kind, names in (("encrypted", state.encrypted_volumes), ("limited", state.qos_volumes)):
        for name in names:
            parts = of(name)
            if parts is not None:
                parts[kind] = True
    return Actual(
        instance=state.instance,
        parts={identifier: Parts(**parts) for identifier, parts in found.items()},  # type: ignore[arg-type]  # built above, field by field
        functions={place_of(function): function.subsystem_nqn for function in state.functions},
        hotplug=frozenset(place_of(function).key for function in state.functions if function.hotplug),
    )


def place_of(function: card_pb2.Function | attacher_pb2.Function) -> Place:
    return Place(
        port=function.port,
        pf=function.physical_function,
        vf=function.virtual_function,
        vuid=function.vuid,
        pci_address=function.pci_address,
    )


def _way(path: card_pb2.RemotePath) -> Way:
    return Way(
        portal=Portal(path.transport, path.address, path.port or 1),
        nqn=path.subsystem_nqn,
        state=path.state,
        connected=path.connected,
        ana=path.ana_state,
    )


def subsystem_id(record: Record) -> str:
    """The id of the subsystem that shows the record's volume."""
    if record.shared:
        return naming.shared_id(*record.place.key)
    return naming.object_id(record.volume_id)


def complete(record: Record, actual: Actual) -> bool:
    """Whether the host sees the volume on its function; paths apart."""
    mine = actual.of(naming.object_id(record.volume_id))
    shown = actual.of(subsystem_id(record))
    wanted = record.specification
    return (
        mine.disk(wanted.remote.uuid) is not None
        and mine.encrypted == wanted.encrypted
        and mine.limited == bool(wanted.limits)
        and any(ns.nsid == record.nsid and ns.uuid == wanted.remote.uuid for ns in shown.namespaces)
        and any(place.key == record.place.key for place in shown.places)
    )


def sizes(actual: Actual, records: Iterable[Record]) -> Iterator[tuple[Record, int]]:
    """Records whose volume is connected, with its size in bytes."""
    for record in records:
        disk = actual.of(naming.object_id(record.volume_id)).disk(record.specification.remote.uuid)
        if disk is not None and disk.size:
            yield record, disk.size


def lacking_portals(record: Record, actual: Actual, addresses: Addresses) -> list[Portal]:
    """Portals of the record to which there is no path at all."""
    there = {way.portal for way in actual.of(naming.object_id(record.volume_id)).ways}
    return [portal for portal in record.specification.remote.portals if addresses.of(portal) not in there]


def stray_ways(record: Record, actual: Actual, addresses: Addresses) -> list[Way]:
    """Lost paths to addresses that no portal of the record has, or no name of one has any more."""
    wanted = portals(record, addresses)
    ways = actual.of(naming.object_id(record.volume_id)).ways
    return [way for way in ways if not way.connected and way.portal not in wanted]


def portals(record: Record, addresses: Addresses) -> set[Portal]:
    """By their IP addresses: two names may mean one path."""
    return {addresses.of(portal) for portal in record.specification.remote.portals}


def settled(record: Record, actual: Actual, addresses: Addresses) -> bool:
    """Whether there is nothing to repair. A lost path is SPDK's to mend, unless the target may have moved."""
    ways = actual.of(naming.object_id(record.volume_id)).ways
    return (
        record.phase is Phase.ATTACHED
        and complete(record, actual)
        and len(ways) >= len(portals(record, addresses))
        and not maybe_moved(record, actual)
    )


def maybe_moved(record: Record, actual: Actual) -> bool:
    """Whether a path is lost while a target is called by name, which may mean another address by now."""
    ways = actual.of(naming.object_id(record.volume_id)).ways
    return not all(way.connected for way in ways) and any(map(named, record.specification.remote.portals))


def adoptable(identifier: str, actual: Actual) -> Record | None:
    """A record for a volume that is attached though no record says so; None if it is not whole or not known whose.

    Nothing tells how much a volume is limited to.
    """
    volume_id = naming.volume_of(identifier)
    mine = actual.of(identifier)
    if volume_id is None or mine.limited:
        return None
    for holder, parts in actual.parts.items():
        for shown in parts.namespaces:
            disk = mine.disk(shown.uuid)
            if disk is None or shown.volume not in (disk.volume, identifier) or len(parts.places) != 1 or not mine.ways:
                continue
            place = parts.places[0]
            policy = Policy.HOTPLUG if place.key in actual.hotplug else Policy.STATIC
            return Record(
                specification=Specification(
                    volume_id=volume_id,
                    remote=Remote(
                        nqn=mine.ways[0].nqn,
                        portals=tuple(sorted({way.portal for way in mine.ways})),
                        uuid=shown.uuid,
                    ),
                    policy=policy if holder == identifier else Policy.SHARED,
                    encrypted=mine.encrypted,
                ),
                place=place,
                nsid=shown.nsid,
                phase=Phase.ATTACHED,
                adopted=True,
            )
    return None


def strangers(actual: Actual, records: Iterable[Record]) -> list[str]:
    """Ids of our objects which no record accounts for."""
    known = set()
    for record in records:
        known.add(naming.object_id(record.volume_id))
        known.add(subsystem_id(record))
    return sorted(set(actual.parts) - known)
