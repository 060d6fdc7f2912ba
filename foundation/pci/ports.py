"""Names that drivers give to the ports of an embedded switch (`phys_port_name`)."""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["uplink", "pf", "vf", "sf"]

_UPLINK = re.compile(r"p(\d+)(?:s\d+)?")
_FUNCTION = re.compile(r"(?:c(\d+))?pf(\d+)(?:(vf|sf)(\d+))?")


@dataclass(frozen=True)
class PortName:
    """What a `phys_port_name` says. `controller` 0 is the switch's own machine; a DPU's host is 1 or more.

    `explicit` is False when the driver left the controller out, which older DPU drivers also do for their host's
    functions.
    """

    kind: Kind
    pf: int
    index: int = -1
    controller: int = 0
    explicit: bool = True


class FunctionPort(NamedTuple):
    """A virtual function as seen from the switch that carries its representor."""

    switch_id: str
    controller: int
    pf: int
    vf: int


def parse_port_name(text: str) -> PortName | None:
    """`p0`, `pf0`, `pf0vf3`, `c1pf0vf3`, `pf0sf1`; None for anything else (netdevsim's `1`, a plain NIC)."""
    if match := _UPLINK.fullmatch(text):
        return PortName("uplink", int(match[1]))
    if match := _FUNCTION.fullmatch(text):
        kind: Kind = "pf" if match[3] is None else "vf" if match[3] == "vf" else "sf"
        index = -1 if match[4] is None else int(match[4])
        return PortName(kind, int(match[2]), index, int(match[1] or 0), match[1] is not None)
    return None
