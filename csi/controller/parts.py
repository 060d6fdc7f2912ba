"""What the handlers of csi-controller share."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from csi import identity
from csi.calls import Calls
from csi.controller.classes import Classes
from csi.controller.directory import Directory
from csi.controller.dpus import Dpus
from csi.controller.fences import Fences
from csi.controller.first_lists import FirstLists
from csi.controller.uses import Uses
from csi.errors import InvalidArgument, NotFound
from csi.framework.backend import Backend
from csi.framework.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Parts:
    """`named(volume, node)`: the host NQNs by which Kubernetes says that a node got a volume."""

    registry: Registry
    directory: Directory
    dpus: Dpus
    calls: Calls
    uses: Uses
    fences: Fences
    lists: FirstLists
    named: Callable[[identity.VolumeId, str], Collection[str]]
    classes: Classes

    def volume(self, volume_id: str, *, field: str = "volume_id") -> tuple[Backend[Any], identity.VolumeId]:
        """The backend that serves the id. Raises InvalidArgument when it is missing, NotFound when it is not ours."""
        if not volume_id:
            raise InvalidArgument(f"{field} is missing")
        try:
            parsed = identity.parse_volume_id(volume_id)
        except identity.MalformedId as error:
            raise NotFound(str(error)) from error
        backend = self.registry.backends.get(parsed.backend)
        if backend is None:
            raise NotFound(f"{field} {volume_id!r}: no storage backend {parsed.backend!r} is configured")
        return backend, parsed
