"""Which functions a pool's selectors mean."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cni.device_plugin.candidates import Candidate
from cni.device_plugin.config import Selector
from cni.device_plugin.errors import BadSelector
from foundation.pci.address import normalised
from foundation.pci.errors import BadAddress

_ADDRESS = re.compile(r"([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")
# What the kernel takes as a network device's name.
_NETDEV = re.compile(r"(?!\.\.?$)[^\s/:]{1,15}")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class PfChoice:
    """A physical function by netdev name or address; `ranges` of VF indexes, inclusive, empty for all."""

    pf: str
    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> PfChoice:
        """`ens1f0`, `ens1f0#0-7,12`, `0000:03:00.0#3`. Raises BadSelector."""
        pf, marked, tail = text.partition("#")
        if not pf or (marked and not tail):
            raise BadSelector(f"{text!r} names no physical function; expected a form like ens1f0 or ens1f0#0-7,12")
        ranges = []
        for part in tail.split(",") if tail else ():
            match = _RANGE.fullmatch(part)
            first = int(match[1]) if match else 0
            last = int(match[2] or first) if match else -1
            if last < first:
                raise BadSelector(f"{text!r}: {part!r} is no range of VF indexes; expected a form like 0-7 or 12")
            ranges.append((first, last))
        if _ADDRESS.fullmatch(pf):
            return cls(normalised(pf), tuple(ranges))
        if not _NETDEV.fullmatch(pf):
            raise BadSelector(f"{text!r}: {pf!r} is neither a PCI address nor the name of a network device")
        return cls(pf, tuple(ranges))

    def matches(self, candidate: Candidate) -> bool:
        if self.pf not in (candidate.physical.address, candidate.physical.netdev):
            return False
        if not self.ranges:
            return True
        return any(first <= candidate.function.vf_index <= last for first, last in self.ranges)


class Matcher:
    """One selector, made ready for many functions. Raises BadSelector."""

    def __init__(self, selector: Selector) -> None:
        self._selector = selector
        self._vendors = _numbers(selector.vendors)
        self._devices = _numbers(selector.devices)
        self._classes = tuple(prefix.lower().removeprefix("0x") for prefix in selector.classes)
        self._pfs = tuple(PfChoice.parse(text) for text in selector.pfs)
        try:
            self._addresses = frozenset(normalised(text) for text in selector.addresses)
        except BadAddress as error:
            raise BadSelector(str(error)) from None

    def matches(self, candidate: Candidate) -> bool:
        """Whatever the driver is."""
        function, selector = candidate.function, self._selector
        if not self._right_kind(candidate):
            return False
        checks: tuple[bool, ...] = (
            not self._vendors or function.vendor in self._vendors,
            not self._devices or function.device in self._devices,
            not self._classes or f"{function.class_code:06x}".startswith(self._classes),
            not self._addresses or function.address in self._addresses,
            not selector.numa_nodes or function.numa_node in selector.numa_nodes,
            not selector.link_types or candidate.physical.link_type in selector.link_types,
            not self._pfs or any(choice.matches(candidate) for choice in self._pfs),
        )
        return all(checks)

    def takes_driver(self, driver: str) -> bool:
        return not self._selector.drivers or driver in self._selector.drivers

    def _right_kind(self, candidate: Candidate) -> bool:
        if candidate.function.is_vf:
            return self._selector.functions != "pf"
        # A PF with VFs serves them, one in switchdev mode is the node's switch, one with the default route its way out,
        # be it by a bond, a bridge or a VLAN.
        busy = candidate.function.vf_count or candidate.physical.switch_id
        on_the_way = candidate.carries_default_route or candidate.carries
        return self._selector.functions != "vf" and not (busy or on_the_way)


def _numbers(texts: Iterable[str]) -> frozenset[int]:
    return frozenset(int(text, 16) for text in texts)
