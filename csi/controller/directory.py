"""Which DPU serves which host, as the Node objects say it. Pure: it reads a mapping that a reflector keeps current."""

from collections.abc import Iterator, Mapping

import msgspec

from csi.announcement import HOST_NODE_LABEL, STORAGE_ANNOTATION, Announcement, announced, host_of
from csi.errors import NotFound, Unavailable
from foundation.kube.models.core import Node


class Dpu(msgspec.Struct, frozen=True, kw_only=True):
    """One DPU that can be called."""

    node: str
    host: str
    announcement: Announcement


class Directory:
    """`nodes` by name, live."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = nodes

    def knows(self, node: str) -> bool:
        return node in self._nodes

    def dpus(self) -> Iterator[Dpu]:
        """All DPUs that have announced themselves."""
        for name, node in sorted(self._nodes.items()):
            host = host_of(node)
            announcement = announced(node)
            if host and announcement is not None:
                yield Dpu(node=name, host=host, announcement=announcement)

    def plain_hosts(self) -> set[str]:
        """Nodes that are no DPU and have none."""
        with_dpu = {host_of(node) for node in self._nodes.values()}
        return {name for name, node in self._nodes.items() if not host_of(node) and name not in with_dpu}

    def of_host(self, host: str) -> list[Dpu]:
        return [dpu for dpu in self.dpus() if dpu.host == host]

    def by_host_nqn(self, nqn: str) -> Dpu | None:
        return next((dpu for dpu in self.dpus() if dpu.announcement.host_nqn == nqn), None)

    def choose(self, host: str, *, holding: frozenset[str] = frozenset()) -> Dpu:
        """The DPU of a host that gets a volume: one whose host NQN is in `holding` (it has the volume already), else
        the one with most free functions. Raises NotFound for an unknown host, Unavailable while none has announced
        itself."""
        if not self.knows(host):
            raise NotFound(f"node {host!r} does not exist")
        dpus = self.of_host(host)
        if not dpus:
            raise Unavailable(
                f"node {host} has no DPU that has announced itself: no Node with label {HOST_NODE_LABEL}={host} "
                f"carries the annotation {STORAGE_ANNOTATION}; is csi-node-dpu running there?"
            )
        return max(
            dpus, key=lambda dpu: (dpu.announcement.host_nqn in holding, dpu.announcement.functions.free, dpu.node)
        )
