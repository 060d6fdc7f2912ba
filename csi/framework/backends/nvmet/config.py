"""The configuration section and the StorageClass parameters of backend kind `nvmet`."""

from typing import Literal

import msgspec

from csi.framework.backend import Portal


class NvmetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`directory` holds the volumes, one file each; on XFS or btrfs (reflinks) there are snapshots and clones.

    csi-controller must run on the storage machine itself. `first_port`: number in configfs of the first portal.
    """

    directory: str
    portals: tuple[Portal, ...]
    configfs: str = "/sys/kernel/config/nvmet"
    first_port: int = 1
    default_size: int = 1 << 30


class NvmetParameters(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """thick: the file's blocks are reserved when it is made."""

    provisioning: Literal["thin", "thick"] = "thin"
