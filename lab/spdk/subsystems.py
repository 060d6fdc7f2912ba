"""The NVMe-oF target's state: subsystems with their namespaces, hosts and listeners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from lab.spdk import nqn as nqns
from lab.spdk.bdevs import Bdev, claim, release
from lab.spdk.keyring import Key

if TYPE_CHECKING:
    from lab.spdk.instance import Instance

FIRMWARE = "26.05"


class Portal(Protocol):
    """Something that listens for a subsystem's hosts."""

    def forget(self, subsystem: Subsystem) -> None:
        """The subsystem does not listen here any more."""


class Session(Protocol):
    """A connected host."""

    hostnqn: str
    hostid: str
    cntlid: int
    listener: Listener

    def push(self, event: dict[str, Any]) -> None: ...

    def disconnect(self) -> None: ...

    def qpair(self) -> dict[str, Any]: ...


@dataclass(eq=False)
class Namespace:
    nsid: int
    bdev: Bdev
    uuid: str
    nguid: str
    eui64: str
    anagrpid: int
    gone: Callable[[], None] = lambda: None
    resized: Callable[[], None] = lambda: None

    def event(self, kind: str) -> dict[str, Any]:
        """What a host learns. The backing file is the stand-in's own way to the bytes."""
        backing = self.bdev.backing()
        event: dict[str, Any] = {
            "event": kind,
            "nsid": self.nsid,
            "uuid": self.uuid,
            "nguid": self.nguid.lower(),
            "size": self.bdev.size,
            "block_size": self.bdev.block_size,
            "file": backing.file if backing else "",
            "offset": backing.offset if backing else 0,
            "encrypted": bool(backing and backing.encrypted),
            "read_only": "write" not in self.bdev.io_types,
            "anagrpid": self.anagrpid,
        }
        if self.eui64:
            event["eui64"] = self.eui64.lower()
        return event


@dataclass(eq=False)
class Host:
    nqn: str
    dhchap_key: Key | None = None
    dhchap_ctrlr_key: Key | None = None
    psk: Key | None = None

    @property
    def keys(self) -> tuple[Key | None, ...]:
        return (self.dhchap_key, self.dhchap_ctrlr_key, self.psk)

    def describe(self) -> dict[str, Any]:
        result = {"nqn": self.nqn}
        for name in ("dhchap_key", "dhchap_ctrlr_key", "psk"):
            key: Key | None = getattr(self, name)
            if key is not None:
                result[name] = key.name
        return result


@dataclass(eq=False)
class Listener:
    """``ana``: the state of each group, by its number."""

    trtype: str
    adrfam: str
    traddr: str
    trsvcid: str
    secure: bool
    portal: Portal
    ana: dict[int, str] = field(default_factory=dict)

    @property
    def address(self) -> dict[str, str]:
        return {
            "trtype": self.trtype,
            "adrfam": "unknown" if self.trtype == "VFIOUSER" else "IPv6" if ":" in self.traddr else "IPv4",
            "traddr": self.traddr,
            "trsvcid": self.trsvcid,
        }

    def matches(self, trtype: str, traddr: str, trsvcid: str) -> bool:
        return (self.trtype, self.traddr) == (trtype, traddr) and (trtype == "VFIOUSER" or self.trsvcid == trsvcid)


@dataclass(eq=False)
class Subsystem:
    nqn: str
    subtype: str = "NVMe"
    serial: str = "0" * 20
    model: str = "SPDK bdev Controller"
    allow_any_host: bool = False
    max_namespaces: int = 32
    ana_reporting: bool = False
    min_cntlid: int = 1
    max_cntlid: int = 65519
    dmrsl: int = 2097152
    wzsl: int = 12
    passthrough: bool = False
    namespaces: dict[int, Namespace] = field(default_factory=dict)
    hosts: list[Host] = field(default_factory=list)
    listeners: list[Listener] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    next_cntlid: int = 0

    def host(self, nqn: str) -> Host | None:
        return next((host for host in self.hosts if host.nqn == nqn), None)

    def admits(self, hostnqn: str) -> bool:
        return self.allow_any_host or self.host(hostnqn) is not None

    def new_cntlid(self) -> int:
        """Counts up and is not used again."""
        self.next_cntlid = self.next_cntlid + 1 if self.next_cntlid else self.min_cntlid
        return self.next_cntlid

    def push(self, event: dict[str, Any]) -> None:
        for session in list(self.sessions):
            session.push(event)

    def greeting(self, cntlid: int) -> dict[str, Any]:
        return {
            "event": "controller",
            "nqn": self.nqn,
            "serial": self.serial,
            "model": self.model,
            "cntlid": cntlid,
            "firmware": FIRMWARE,
            "ana_reporting": self.ana_reporting,
        }

    def describe(self) -> dict[str, Any]:
        result: dict[str, Any] = {
            "nqn": self.nqn,
            "subtype": self.subtype,
            "listen_addresses": [listener.address for listener in self.listeners],
            "allow_any_host": self.allow_any_host,
            "hosts": [host.describe() for host in self.hosts],
        }
        if self.subtype == "Discovery":
            return result
        return {
            **result,
            "serial_number": self.serial,
            "model_number": self.model,
            "max_namespaces": self.max_namespaces,
            "passthrough": self.passthrough,
            "min_cntlid": self.min_cntlid,
            "max_cntlid": self.max_cntlid,
            "dmrsl": self.dmrsl,
            "wzsl": self.wzsl,
            "namespaces": [self._describe(self.namespaces[nsid]) for nsid in sorted(self.namespaces)],
        }

    def _describe(self, namespace: Namespace) -> dict[str, Any]:
        result: dict[str, Any] = {
            "nsid": namespace.nsid,
            "bdev_name": namespace.bdev.name,
            "name": namespace.bdev.name,
            "nguid": namespace.nguid,
        }
        if namespace.eui64:
            result["eui64"] = namespace.eui64
        result["uuid"] = namespace.uuid
        if self.ana_reporting:
            result["anagrpid"] = namespace.anagrpid
        return result


class Subsystems:
    """By NQN. ``transports``: the types that were created, in order, with their parameters."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self.transports: dict[str, dict[str, Any]] = {}
        self.all: dict[str, Subsystem] = {
            nqns.DISCOVERY: Subsystem(nqns.DISCOVERY, subtype="Discovery", allow_any_host=True)
        }

    def find(self, nqn: str) -> Subsystem | None:
        return self.all.get(nqn)

    def sorted(self) -> list[Subsystem]:
        return [self.all[nqn] for nqn in sorted(self.all)]

    def add_namespace(self, subsystem: Subsystem, namespace: Namespace) -> None:
        """Raises -1 when the bdev is claimed."""
        bdev = namespace.bdev
        claim(bdev, namespace, "exclusive_write")
        bdev.openers += 1
        subsystem.namespaces[namespace.nsid] = namespace

        def gone() -> None:
            self.remove_namespace(subsystem, namespace.nsid)

        def resized() -> None:
            subsystem.push({"event": "namespace_resize", "nsid": namespace.nsid, "size": bdev.size})

        namespace.gone, namespace.resized = gone, resized
        bdev.on_removed.append(gone)
        bdev.on_resized.append(resized)
        subsystem.push(namespace.event("namespace_add"))

    def remove_namespace(self, subsystem: Subsystem, nsid: int) -> None:
        namespace = subsystem.namespaces.pop(nsid)
        bdev = namespace.bdev
        release(bdev, namespace)
        bdev.openers -= 1
        bdev.on_removed = [hook for hook in bdev.on_removed if hook is not namespace.gone]
        bdev.on_resized = [hook for hook in bdev.on_resized if hook is not namespace.resized]
        subsystem.push({"event": "namespace_remove", "nsid": nsid})

    def remove_listener(self, subsystem: Subsystem, listener: Listener) -> None:
        subsystem.listeners.remove(listener)
        for session in [session for session in subsystem.sessions if session.listener is listener]:
            session.disconnect()
        listener.portal.forget(subsystem)

    def delete(self, subsystem: Subsystem) -> None:
        del self.all[subsystem.nqn]
        for listener in list(subsystem.listeners):
            self.remove_listener(subsystem, listener)
        for session in list(subsystem.sessions):
            session.disconnect()
        for nsid in list(subsystem.namespaces):
            self.remove_namespace(subsystem, nsid)
        for host in subsystem.hosts:
            for key in host.keys:
                self._instance.keyring.let_go(key)
