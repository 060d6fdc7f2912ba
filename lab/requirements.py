"""What the lab needs of the machine, checked before anything is made, each lack told in one sentence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lab.layout import Layout

_PROGRAMS = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "losetup": "mount",
    "ping": "iputils-ping",
    "ethtool": "ethtool",
    "mkfs.ext4": "e2fsprogs",
    "ovsdb-server": "openvswitch-switch",
    "ovs-vswitchd": "openvswitch-switch",
    "ovs-vsctl": "openvswitch-switch",
    "ovn-northd": "ovn-central",
    "ovn-nbctl": "ovn-central",
    "ovn-controller": "ovn-host",
}

CNI_BINARY = Path(__file__).parent.parent / "cni" / "bin" / "dpu-offload"


class Missing(RuntimeError):
    """The machine lacks something; the message is one sentence with the cure."""


def check(layout: Layout) -> None:
    """Raise Missing for the first kind of thing that is not there."""
    if os.geteuid() != 0:
        raise Missing(
            "dpu-lab needs root, to make network namespaces, mounts and loop devices: run it with sudo, or as root"
        )
    packages = sorted({package for program, package in _PROGRAMS.items() if shutil.which(program) is None})
    if packages:
        raise Missing(f"Debian packages are missing: apt-get install {' '.join(packages)} (`make demo` does it)")
    if not CNI_BINARY.exists():
        raise Missing(f"the compiled cni-bin is missing at {CNI_BINARY}: run `make proto`, which builds it (needs gcc)")
    if not Path("/dev/loop-control").exists():
        raise Missing(
            "this kernel has no loop devices (/dev/loop-control is missing): load the module with `modprobe loop`"
        )
