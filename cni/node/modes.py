"""The modes of cni-node: who does which side of an attachment.

Nothing else asks for the mode's name. An attachment has a container side (the interface in the pod) and an OVS side
(the port on the integration bridge with its flows).
"""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

ModeName = Literal["default", "host", "dpu"]


class Side(Enum):
    LOCAL = "this cni-node does it"
    REMOTE = "the paired cni-node does it"
    ABSENT = "nobody does it: there are no such attachments"


@dataclass(frozen=True)
class Sides:
    container: Side
    ovs: Side


@dataclass(frozen=True)
class Mode:
    """`own`: pods that the runtime on this machine starts; `host`: pods on the host that this DPU serves."""

    own: Sides
    host: Sides

    @property
    def has_switch(self) -> bool:
        return Side.LOCAL in (self.own.ovs, self.host.ovs)

    @property
    def serves_host(self) -> bool:
        return self.host.ovs is Side.LOCAL

    @property
    def needs_dpu(self) -> bool:
        return self.own.ovs is Side.REMOTE


_NOBODY = Sides(container=Side.ABSENT, ovs=Side.ABSENT)
_BOTH = Sides(container=Side.LOCAL, ovs=Side.LOCAL)

MODES: dict[ModeName, Mode] = {
    "default": Mode(own=_BOTH, host=_NOBODY),
    "host": Mode(own=Sides(container=Side.LOCAL, ovs=Side.REMOTE), host=_NOBODY),
    "dpu": Mode(own=_BOTH, host=Sides(container=Side.REMOTE, ovs=Side.LOCAL)),
}
