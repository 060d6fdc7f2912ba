"""TCP ports that a server of the lab can have, and have again after a restart."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Final

_FIRST: Final = 10_000
_LAST: Final = 32_000
_given: set[int] = set()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at `host`, and that nobody in this process was given before.

    It lies below Linux' range for outgoing connections (`net.ipv4.ip_local_port_range`, 32768 and up): there, while
    its server is down, somebody else's connection could take it, and a client that dials it again and again ends up
    connected to itself.
    """
    while True:
        port = random.randint(_FIRST, _LAST)
        if port in _given:
            continue
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            _given.add(port)
            return port
