"""The configuration section and the StorageClass parameters of backend kind `nvmet`."""

from typing import Literal

import msgspec

from csi.framework.backend import Portal


class NvmetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Either `directory` holds the volumes, one file each, on XFS or btrfs (reflinks) with snapshots and clones; or
    `volume_group` does, as thin logical volumes of its LVM pool `thin_pool`.

    csi-controller must run on the storage machine itself. `first_port`: number in configfs of the first portal.
    """

    directory: str = ""
    volume_group: str = ""
    thin_pool: str = ""
    portals: tuple[Portal, ...]
    configfs: str = "/sys/kernel/config/nvmet"
    first_port: int = 1
    default_size: int = 1 << 30


class NvmetParameters(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """thick: the file's blocks are reserved when it is made; logical volumes are always thin."""

    provisioning: Literal["thin", "thick"] = "thin"
