"""One SPDK process: its parts, wired together."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
import uuid as uuids
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lab.spdk.bdevs import Bdevs
from lab.spdk.controllers import Controllers
from lab.spdk.crypto import Crypto
from lab.spdk.keyring import Keyring
from lab.spdk.lvstores import Lvstores
from lab.spdk.subsystems import Subsystems
from lab.spdk.vhost import Vhost

if TYPE_CHECKING:
    from lab.spdk.fabric import TcpPortal
    from lab.spdk.guests import GuestPortal

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """``mode``: ``dpu`` can do everything; ``target`` (interrupt mode) can be no initiator. Times in seconds.

    ``second``: how long a second of the reconnect times lasts, so that tests need not wait.
    """

    mode: str = "dpu"
    beat: float = 0.004
    attach: float = 0.08
    dhchap: float = 0.6
    stall: float = 10.0
    second: float = 1.0
    vhost_directory: str = "."
    core_mask: int = 1


@dataclass(eq=False)
class Instance:
    settings: Settings = field(default_factory=Settings)
    started: bool = True
    on_exit: list[Callable[[], None]] = field(default_factory=list)
    copies: dict[int, dict[str, Any]] = field(default_factory=dict)
    stop: Callable[[int], None] = lambda signal: None

    def __post_init__(self) -> None:
        self.beat = self.settings.beat
        self.initialized = asyncio.Event()
        # Listening places: TCP by address and port, vfio-user by directory.
        self.portals: dict[tuple[str, str], TcpPortal] = {}
        self.directories: dict[str, GuestPortal] = {}
        self.background: set[asyncio.Task[Any]] = set()
        self.malloc_counter = itertools.count()
        self.copy_counter = itertools.count(1)
        self.host_uuid = str(uuids.uuid4())
        self.host_nqn = f"nqn.2014-08.org.nvmexpress:uuid:{uuids.uuid4()}"
        self.bdevs = Bdevs()
        self.keyring = Keyring()
        self.lvstores = Lvstores(self)
        self.subsystems = Subsystems(self)
        self.controllers = Controllers(self)
        self.crypto = Crypto(self)
        self.vhost = Vhost(self)

    def crash(self, why: str) -> None:
        """Dies where SPDK 26.05 dies, as suddenly."""
        _log.critical("the real SPDK crashes here: %s", why)
        sys.stderr.flush()
        os._exit(139)
