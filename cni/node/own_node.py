"""What Kubernetes says on this machine's own Node object, annotation by annotation."""

from __future__ import annotations

from collections.abc import Callable

from foundation.kube.client import KubeClient
from foundation.kube.models.core import Node
from foundation.kube.reflector import Change, Reflector
from foundation.kube.resources import NODES


class OwnNode:
    def __init__(self, client: KubeClient, name: str) -> None:
        self._reflector = Reflector(client, NODES, field_selector=f"metadata.name={name}")

    def follow(self, annotation: str, changed: Callable[[str], None]) -> None:
        """`changed` gets an annotation's text first and whenever it is another, "" for none."""

        def look(change: Change[Node]) -> None:
            before, after = (_text(node, annotation) for node in (change.old, change.new))
            if before != after or change.old is None:
                changed(after)

        self._reflector.subscribe(look)

    async def run(self) -> None:
        """For ever."""
        await self._reflector.run()


def _text(node: Node | None, annotation: str) -> str:
    return node.metadata.annotations.get(annotation, "") if node is not None else ""
