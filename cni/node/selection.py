"""Which of a pod's attachments to one network an interface is. Pure."""

from __future__ import annotations

import msgspec

from cni.node.request import DEFAULT_NETWORK

NETWORKS = "k8s.v1.cni.cncf.io/networks"
"""Which networks a pod has beside the default one (k8s.cni.cncf.io, Multi-Network Specification, section 4)."""


class _Entry(msgspec.Struct, frozen=True):
    name: str
    namespace: str = ""
    interface: str = ""


_ENTRIES = msgspec.json.Decoder(tuple[_Entry, ...])


def attachment_key(text: str, *, namespace: str, network: str, ifname: str) -> str:
    """The key of annotation pod-networks: `network`, and of several attachments to it the later ones' with `/1`, `/2`.

    `text` is the pod's selection of networks. Entries without a name for their interface get `net1`, `net2`, .. by
    their place in it, as Multus counts. An interface that is not in it, or a text that cannot be read, means the first.
    """
    if network == DEFAULT_NETWORK:
        return network
    same = 0
    for place, entry in enumerate(_entries(text), start=1):
        if f"{entry.namespace or namespace}/{entry.name}" == network:
            if ifname == (entry.interface or f"net{place}"):
                return network if same == 0 else f"{network}/{same}"
            same += 1
    return network


def _entries(text: str) -> tuple[_Entry, ...]:
    if text.lstrip().startswith("["):
        try:
            return _ENTRIES.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return ()
    return tuple(_short(each.strip()) for each in text.split(",") if each.strip())


def _short(text: str) -> _Entry:
    """`namespace/name@interface`, of which the name alone must be there."""
    where, _, interface = text.partition("@")
    namespace, _, name = where.rpartition("/")
    return _Entry(name, namespace, interface)
