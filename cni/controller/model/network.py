"""A secondary network: a NetworkAttachmentDefinition of this suite's type; the attachments a pod asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from cni.controller.errors import InvalidAnnotation, InvalidNetwork
from cni.controller.model.addressing import AddressRequest, IPNetwork, networks
from cni.selection import NETWORKS, attachment_key, selected
from foundation.kube.models import cncf

TYPE = "dpu-offload"
TOPOLOGIES = ("layer2", "layer3", "localnet")
_SUBNET = re.compile(r"(?P<whole>[0-9a-fA-F.:]+/\d+)(?:/(?P<length>\d{1,3}))?")


class _Config(msgspec.Struct, frozen=True, rename="camel"):
    type: str = ""
    name: str = ""
    topology: str = ""
    subnets: str = ""
    exclude_subnets: str = ""
    mtu: int = 0
    vlan_id: int = msgspec.field(name="vlanID", default=0)
    physical_network_name: str = ""
    advertise: bool = msgspec.field(name="enableIPv6RA", default=False)
    plugins: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """An IPAMClaim: for which network (the name in its config), with the addresses it has got."""

    network: str
    ips: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Network:
    """`subnets` empty: no addresses are given. layer3: `subnets` are split into one of `host_prefixes` length a node.

    `excluded`: parts of the subnets that nobody gets. `vlan` 0: untagged.
    """

    key: str
    topology: str
    subnets: tuple[IPNetwork, ...] = ()
    host_prefixes: tuple[int, ...] = ()
    excluded: tuple[IPNetwork, ...] = ()
    mtu: int = 0
    vlan: int = 0
    physical: str = ""
    title: str = ""
    """The name in its config."""
    advertise: bool = False
    """Whether routers are advertised (RFC 4861), so that guests ask for their IPv6 address by DHCP."""

    @property
    def addressing(self) -> tuple[object, ...]:
        """All that addresses given out depend on."""
        return (self.topology, self.subnets, self.host_prefixes, self.excluded, self.advertise, self.title)


@dataclass(frozen=True, slots=True)
class Wish:
    """One attachment of a pod: to which network, the how-manieth to the same one, with which addresses."""

    network: str
    index: int
    request: AddressRequest
    claim: str = ""
    """namespace/name of the IPAMClaim that keeps the addresses, if any."""

    @property
    def key(self) -> str:
        """Its key in annotation pod-networks."""
        return attachment_key(self.network, self.index)


_CONFIG = msgspec.json.Decoder(_Config)


def parse_claim(claim: cncf.IPAMClaim) -> Claim:
    """From the API's object."""
    return Claim(claim.spec.network, tuple(claim.status.ips or ()) if claim.status is not None else ())


def _split(texts: str) -> list[str]:
    return [each.strip() for each in texts.split(",") if each.strip()]


def parse(definition: cncf.NetworkAttachmentDefinition) -> Network | None:
    """From the API's object; None for a network of another plugin, and for the default network by other devices: one
    that says neither topology nor subnets. Raises InvalidNetwork."""
    key = definition.metadata.key
    try:
        config = _CONFIG.decode(definition.spec.config or "{}")
        ours = [each for each in config.plugins if each.get("type") == TYPE]
        if config.type != TYPE and not ours:
            return None
        if ours:
            config = msgspec.convert({"name": config.name, **ours[0]}, _Config)
    except (msgspec.DecodeError, RecursionError) as error:
        if f'"{TYPE}"' not in definition.spec.config:
            return None  # another plugin's business
        raise InvalidNetwork(f"network {key}: its config cannot be read: {error}") from None
    if not config.topology and not config.subnets:
        return None
    topology = config.topology or "layer2"
    if topology not in TOPOLOGIES:
        raise InvalidNetwork(f"network {key}: topology {topology!r} is none of {', '.join(TOPOLOGIES)}")
    try:
        subnets, lengths = _subnets(config)
        excluded = networks(_split(config.exclude_subnets))
    except ValueError as error:
        raise InvalidNetwork(f"network {key}: {error}") from None
    if topology == "layer3" and not subnets:
        raise InvalidNetwork(f'network {key}: topology layer3 needs subnets, such as "10.128.0.0/16/24"')
    if topology == "localnet" and not 0 <= config.vlan_id <= 4094:
        raise InvalidNetwork(f"network {key}: VLAN {config.vlan_id} is impossible: use 1 to 4094, or 0 for none")
    if config.mtu and not 576 <= config.mtu <= 9216:
        raise InvalidNetwork(f"network {key}: MTU {config.mtu} is impossible: use 576 to 9216")
    if config.advertise and (config.topology == "layer3" or all(each.version == 4 for each in subnets)):
        raise InvalidNetwork(f"network {key}: enableIPv6RA needs topology layer2 or localnet with an IPv6 subnet")
    for each in excluded:
        if not any(each.version == whole.version and each.overlaps(whole) for whole in subnets):
            raise InvalidNetwork(f"network {key}: excluded subnet {each} is outside of its subnets")
    return Network(
        key=key,
        topology=topology,
        subnets=subnets,
        host_prefixes=lengths,
        excluded=excluded,
        mtu=config.mtu,
        vlan=config.vlan_id,
        physical=config.physical_network_name or definition.metadata.name,
        title=config.name or definition.metadata.name,
        advertise=config.advertise,
    )


def _subnets(config: _Config) -> tuple[tuple[IPNetwork, ...], tuple[int, ...]]:
    wholes: list[str] = []
    lengths: list[int] = []
    for text in _split(config.subnets):
        match = _SUBNET.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not of the form 10.128.0.0/16 or, split for nodes, 10.128.0.0/16/24")
        wholes.append(match["whole"])
        lengths.append(int(match["length"] or (64 if ":" in text else 24)))
    subnets = networks(wholes)
    for whole, length in zip(subnets, lengths, strict=True):
        if config.topology == "layer3" and not whole.prefixlen <= length <= whole.max_prefixlen - 3:
            raise ValueError(f"{whole} cannot be split into parts of /{length} for nodes")
    if len({each.version for each in subnets}) != len(subnets):
        raise ValueError(f"two subnets of one family: {config.subnets}")
    return subnets, tuple(lengths)


def wishes(text: str | None, namespace: str) -> tuple[Wish, ...]:
    """The attachments that a pod's annotation selects. Raises InvalidAnnotation."""
    try:
        chosen = selected(text or "", namespace)
    except ValueError as error:
        raise InvalidAnnotation(f"annotation {NETWORKS} cannot be read: {error}") from None
    return tuple(
        Wish(
            each.network,
            each.index,
            AddressRequest(each.ips, each.mac),
            f"{namespace}/{each.claim}" if each.claim else "",
        )
        for each in chosen
    )
