"""Kernel uevents, sent the way the kernel lets a privileged process send them (lib/kobject_uevent.c, uevent_net_rcv).

A netlink message to the kernel's own end of NETLINK_KOBJECT_UEVENT is broadcast to the listeners of this network
namespace, so that a listener cannot tell it from a device's own.
"""

from __future__ import annotations

import socket
import struct

NETLINK_KOBJECT_UEVENT = 15
_MESSAGE_TYPE = 0x10  # any type from NLMSG_MIN_TYPE on
_REQUEST = 0x1
_HEADER = struct.Struct("=IHHII")


class UeventSender:
    """Sends uevents into the network namespace of the calling process. Needs CAP_SYS_ADMIN there."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT)
        self._socket.bind((0, 0))

    def send(self, action: str, device_path: str, subsystem: str, **properties: str) -> None:
        """``device_path`` is the path below sysfs's root, with a leading slash."""
        fields = {"ACTION": action, "DEVPATH": device_path, "SUBSYSTEM": subsystem, **properties}
        body = f"{action}@{device_path}".encode() + b"\0"
        body += b"".join(f"{key}={value}".encode() + b"\0" for key, value in fields.items())
        self._socket.sendto(_HEADER.pack(_HEADER.size + len(body), _MESSAGE_TYPE, _REQUEST, 1, 0) + body, (0, 0))

    def close(self) -> None:
        self._socket.close()
