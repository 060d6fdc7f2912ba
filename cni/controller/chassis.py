"""Which chassis binds the ports of a node's pods: its own, or its DPU's; no I/O."""

from __future__ import annotations

from collections.abc import Mapping

from cni.controller.model.node import Node


class Chassis:
    """`nodes`: all that are known."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = nodes
        self._dpus_of_host: dict[str, set[str]] = {}

    def put_node(self, name: str, old: Node | None, node: Node | None) -> None:
        """A node has come, changed, or gone (None)."""
        if old is not None and old.host_node:
            self._dpus_of_host.get(old.host_node, set()).discard(name)
        if node is not None and node.host_node:
            self._dpus_of_host.setdefault(node.host_node, set()).add(name)

    def of(self, name: str) -> str:
        """ "" where it is not known, see `doubt`."""
        dpus = self._dpus_of_host.get(name)
        if dpus:
            return next(iter(dpus)) if len(dpus) == 1 else ""
        node = self._nodes.get(name)
        return name if node is not None and node.has_switch else ""

    def doubt(self, name: str) -> str:
        """Why a node's chassis is not known; "" when it is."""
        dpus = self._dpus_of_host.get(name, ())
        if len(dpus) > 1:
            return (
                f"host {name} has several DPUs, {', '.join(sorted(dpus))}: which one binds a port is known only there"
            )
        if self.of(name):
            return ""
        return f"host {name} has no DPU" if name in self._nodes else f"there is no node {name}"
