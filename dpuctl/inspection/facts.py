"""The answer of `dpuctl inspect`: what one machine (or one container) shows. Plain data that travels as JSON."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec


class DaemonFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon that runs here, or that should. `problem`: why its configuration cannot be used."""

    name: str
    node: str = ""
    mode: str = ""
    pid: int = 0
    problem: str = ""
    elects: bool = True
    """cni-controller: whether replicas choose a leader."""
    pod_mtu: int = 0
    """cni-controller: what it gives to pods."""


class CertificateFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A daemon's certificate, judged as a peer would judge it. `expires` in Unix seconds, 0 when not known."""

    daemon: str
    node: str
    file: str
    expires: int = 0
    names: tuple[str, ...] = ()
    problem: str = ""


class PortFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A port of ours on the integration bridge. `function` as `pf0vf3`, "" for a veth."""

    interface: str
    port: str
    attachment: str
    pod: str = ""
    pod_uid: str = ""
    network: str = "default"
    function: str = ""
    mtu: int = 0
    installed: bool = False
    problem: str = ""


class SwitchFacts(msgspec.Struct, frozen=True, kw_only=True):
    """OVS with ovn-controller of one node. `chassis_known`: None while the southbound database does not answer."""

    node: str
    problem: str = ""
    chassis: str = ""
    bridge: bool = False
    userspace: bool = False
    hw_offload: bool = False
    encap_ip: str = ""
    encap_mtu: int = 0
    southbound: str = ""
    southbound_problem: str = ""
    chassis_known: bool | None = None
    controller_problem: str = ""
    ports: tuple[PortFacts, ...] = ()


class MissingRepresentor(msgspec.Struct, frozen=True, kw_only=True):
    """An attachment on disk whose function has no representor now."""

    attachment: str
    pod: str
    function: str


class CardFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The card as the node's sysfs shows it.

    `serves_host`: its node is the DPU of a host. `legacy`: physical functions that have VFs but no embedded switch.
    """

    node: str
    serves_host: bool = False
    functions: int = 0
    representors: int = 0
    legacy: tuple[str, ...] = ()
    without_vfs: tuple[str, ...] = ()
    missing: tuple[MissingRepresentor, ...] = ()


class DiskFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A volume on a DPU. `paths`: `address:port` with ` (down)` where it does not work."""

    volume: str
    state: str
    reason: str = ""
    function: str = ""
    paths: tuple[str, ...] = ()


class DpuFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The storage half of a DPU: what volume-attacher holds, whether the card's process answers."""

    node: str = ""
    attacher: str = ""
    attacher_problem: str = ""
    card: str = ""
    card_problem: str = ""
    disks: tuple[DiskFacts, ...] = ()
    functions_total: int = 0
    functions_free: int = 0


class ExportFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A volume on its storage, with the NQNs that are let in."""

    volume: str
    hosts: tuple[str, ...] = ()
    exported: bool = True


class LeftoverFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Something of ours on a storage that belongs to nothing."""

    kind: str
    name: str
    reason: str
    volume: str = ""


class BackendFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A storage backend of csi-controller's configuration."""

    name: str
    kind: str
    problem: str = ""
    exports: tuple[ExportFacts, ...] = ()
    leftovers: tuple[LeftoverFacts, ...] = ()


class NorthboundFacts(msgspec.Struct, frozen=True, kw_only=True):
    """OVN's northbound database as cni-controller is configured for it."""

    remotes: str
    problem: str = ""
    ports: tuple[str, ...] = ()


class DialFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt to reach another node's daemon with the certificate of one here."""

    daemon: str
    node: str
    endpoint: str
    server_name: str
    problem: str = ""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. `clock`: Unix seconds there; `skew`: by how much it is ahead of the asking machine."""

    name: str
    version: str = ""
    clock: float = 0.0
    skew: float = 0.0
    daemons: tuple[DaemonFacts, ...] = ()
    certificates: tuple[CertificateFacts, ...] = ()
    switches: tuple[SwitchFacts, ...] = ()
    cards: tuple[CardFacts, ...] = ()
    dpus: tuple[DpuFacts, ...] = ()
    backends: tuple[BackendFacts, ...] = ()
    northbounds: tuple[NorthboundFacts, ...] = ()
    dials: tuple[DialFacts, ...] = ()

    def ports(self) -> Iterator[PortFacts]:
        """All ports of its switches."""
        for switch in self.switches:
            yield from switch.ports
