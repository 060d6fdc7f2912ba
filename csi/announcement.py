"""What csi-node-dpu tells the cluster about its DPU: the annotation on the DPU's Node."""

from typing import Annotated

import msgspec

from foundation.kube.models.core import Node

STORAGE_ANNOTATION = "dpu-offload.io/storage"
HOST_NODE_LABEL = "dpu-offload.io/host-node"


# Beyond it CSI's max_volumes_per_node, say, has no number.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class Functions(msgspec.Struct, frozen=True):
    """Emulated functions of a DPU."""

    total: _Count = 0
    free: _Count = 0


class Announcement(msgspec.Struct, frozen=True, rename="camel"):
    """How to call the DPU, by which NQN targets know it, and what it has left."""

    endpoint: str
    server_name: str
    host_nqn: str
    host_id: str = ""
    functions: Functions = Functions()
    transports: tuple[str, ...] = ("tcp",)


def announced(node: Node) -> Announcement | None:
    """None when the annotation is absent, or not to be understood (another release's)."""
    text = node.metadata.annotations.get(STORAGE_ANNOTATION, "")
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=Announcement)
    except (msgspec.DecodeError, RecursionError):
        return None


def host_of(node: Node) -> str:
    """The host that the DPU sits in; empty for a node which is no DPU."""
    return node.metadata.labels.get(HOST_NODE_LABEL, "")
