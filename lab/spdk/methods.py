"""All methods of the stand-in: importing the modules that hold them fills the table."""

from __future__ import annotations

from lab.spdk import (
    bdev_methods,
    crypto,
    disk_methods,
    keyring,
    lvol_methods,
    nvme_methods,
    nvmf_member_methods,
    nvmf_methods,
    process_methods,
    vhost,
)
from lab.spdk.dispatch import METHODS

SOURCES = (
    bdev_methods,
    crypto,
    disk_methods,
    keyring,
    lvol_methods,
    nvme_methods,
    nvmf_member_methods,
    nvmf_methods,
    process_methods,
    vhost,
)

__all__ = ["METHODS", "SOURCES"]
