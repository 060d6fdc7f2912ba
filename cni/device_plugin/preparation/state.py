"""What a physical function's preparation looks at, as plain data, with the steps it may take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["legacy", "switchdev"]


@dataclass(frozen=True)
class VfState:
    """A virtual function. `mac` is the one that the PF assigns, "" when it cannot be read."""

    address: str
    index: int
    driver: str = ""
    mac: str = ""
    user: str = ""
    """Who uses it, "" for nobody."""


@dataclass(frozen=True)
class PfState:
    """A physical function as found. `eswitch` is None on a card without one, `netdev` "" without a network device."""

    address: str
    driver: str
    total_vfs: int
    netdev: str = ""
    mtu: int = 0
    eswitch: Mode | None = None
    autoprobe: bool = True
    vfs: tuple[VfState, ...] = field(default=())


@dataclass(frozen=True)
class SetAutoprobe:
    on: bool


@dataclass(frozen=True)
class SetVfs:
    count: int


@dataclass(frozen=True)
class SetEswitch:
    mode: Mode


@dataclass(frozen=True)
class SetMtu:
    mtu: int


@dataclass(frozen=True)
class Unbind:
    vf: int


@dataclass(frozen=True)
class SetMac:
    vf: int
    mac: str


@dataclass(frozen=True)
class Bind:
    """`driver` "": the one that the kernel chooses."""

    vf: int
    driver: str


Step = SetAutoprobe | SetVfs | SetEswitch | SetMtu | Unbind | SetMac | Bind
