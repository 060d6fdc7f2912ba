"""The networks that a pod selects beside the default one, and by which keys and port names each attachment is known.

Pure. Keys are those of annotation pod-networks: `namespace/name` of the network, and of several attachments to one
network the later ones' with `/1`, `/2`.
"""

from __future__ import annotations

import re

import msgspec

NETWORKS = "k8s.v1.cni.cncf.io/networks"
"""The annotation by which a pod selects them (k8s.cni.cncf.io, Multi-Network Specification, section 4)."""

_NAME = re.compile(r"(?:(?P<namespace>[a-z0-9.-]+)/)?(?P<name>[a-z0-9.-]+)(?:@(?P<interface>[^@/]+))?")


class Selected(msgspec.Struct, frozen=True):
    """One attachment: the how-manieth (`index`) to `network`, by which interface of the pod.

    `ips`, `mac` and `claim` (the name of an IPAMClaim in the pod's namespace) are what it asks for there.
    """

    network: str
    index: int
    interface: str
    ips: tuple[str, ...] = ()
    mac: str = ""
    claim: str = ""

    @property
    def key(self) -> str:
        return attachment_key(self.network, self.index)


class _Entry(msgspec.Struct, frozen=True):
    name: str
    namespace: str = ""
    interface: str = ""
    ips: tuple[str, ...] = ()
    mac: str = ""
    claim: str = msgspec.field(name="ipam-claim-reference", default="")


_ENTRIES = msgspec.json.Decoder(tuple[_Entry, ...])


def selected(text: str, namespace: str) -> tuple[Selected, ...]:
    """What the annotation of a pod in `namespace` selects, in either of its two forms. Raises ValueError.

    Entries without a name for their interface get `net1`, `net2`, .. by their place in it, as Multus counts.
    """
    counts: dict[str, int] = {}
    found = []
    for place, entry in enumerate(_entries(text), start=1):
        network = f"{entry.namespace or namespace}/{entry.name}"
        index = counts.get(network, 0)
        counts[network] = index + 1
        interface = entry.interface or f"net{place}"
        found.append(Selected(network, index, interface, entry.ips, entry.mac, entry.claim))
    return tuple(found)


def attachment_key(network: str, index: int) -> str:
    return network if index == 0 else f"{network}/{index}"


def secondary_port_name(namespace: str, pod: str, key: str) -> str:
    """The name of a pod's port on a secondary network: what OVS' `iface-id` must be."""
    home, network, *index = key.split("/")
    return "_".join((f"{home}.{network}_{namespace}_{pod}", *index))


def _entries(text: str) -> tuple[_Entry, ...]:
    if not text.lstrip().startswith("["):
        return tuple(_short(each.strip()) for each in text.split(",") if each.strip())
    try:
        return _ENTRIES.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _short(text: str) -> _Entry:
    match = _NAME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not of the form namespace/name@interface")
    return _Entry(match["name"], match["namespace"] or "", match["interface"] or "")
