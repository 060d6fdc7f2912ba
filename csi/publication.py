"""What ControllerPublishVolume tells the host's node plugin: the publish context, written here, read there."""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from csi.errors import InvalidArgument

_Count = Annotated[int, msgspec.Meta(ge=0)]
_WHERE_NEEDED = ("portals", "hostNqn", "passthrough", "access")


class PublishContext(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Where the host finds the disk, or how its kernel connects to it. All values travel as text.

    `vuid` and `pci_address` may be empty: then the host works the function out from `port`, `pf` and `vf` (1-based,
    0 is the physical function itself). `size_bytes` is the least size the disk must show. `host_nqn` is the name by
    which the target lets in the DPU, or the host itself: csi-controller cuts that off also when their Nodes are gone.
    `portals` (a JSON list of {transport, address, port}) are there only where the host's own kernel connects. With
    `passthrough` the function itself is wanted on vfio-pci, not a disk of the host. `access` tells csi-controller,
    after a restart, what this publication may do: `single` or `shared` writing, or `reader`.
    """

    dpu_node: str = ""
    vuid: str = ""
    port: _Count = 0
    pf: _Count = 0
    vf: _Count = 0
    pci_address: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])?$")] = ""
    namespace_uuid: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
    nsid: int = 1
    subsystem_nqn: str
    size_bytes: _Count = 0
    portals: str = ""
    host_nqn: str = ""
    passthrough: bool = False
    access: str = ""

    def as_text(self) -> dict[str, str]:
        given: dict[str, object] = msgspec.to_builtins(self)
        words = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in given.items()}
        return {key: words[key] for key, value in given.items() if key not in _WHERE_NEEDED or value}

    @classmethod
    def parse(cls, given: Mapping[str, str]) -> "PublishContext":
        """Raises InvalidArgument, e.g. for a context which the CO lost on the way."""
        try:
            return msgspec.convert(dict(given), cls, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidArgument(f"publish_context: {error}; was the volume published by this driver?") from error
