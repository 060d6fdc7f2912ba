"""Which netdev stands for which function on an embedded switch, kept current by link events.

The key is {switch id, controller, PF, VF}; names play no part, so renamed and re-created ports are followed. A
representor that is not there yet is waited for.
"""

import asyncio
import logging
from collections.abc import Callable

from cni.node.attachments import FunctionRef
from cni.node.errors import SwitchFailed
from cni.node.link_events import LinkEvent
from foundation.pci import PortName, Sysfs, parse_port_name

_log = logging.getLogger(__name__)

# Some drivers publish a port's name a moment after the link event.
_LOOK_AGAIN_SECONDS = (0.02, 0.05, 0.1, 0.25, 0.5)


class Representors:
    """`host_controller` is the controller index by which this DPU's drivers name the host's functions."""

    def __init__(self, sysfs: Sysfs, *, host_controller: int = 1) -> None:
        self._sysfs = sysfs
        self._host_controller = host_controller
        self._ports: dict[str, tuple[str, PortName]] = {}
        self._names: dict[int, str] = {}
        self._changed = asyncio.Event()
        self._subscribers: list[Callable[[], None]] = []

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Calls back whenever a port came, went or changed."""
        self._subscribers.append(callback)

    def scan(self) -> None:
        """Reads all ports from sysfs: at the start, and after lost events."""
        found = {netdev: (switch_id, port) for switch_id, port, netdev in self._sysfs.switch_ports()}
        if found != self._ports:
            self._ports = found
            self._tell()

    def __len__(self) -> int:
        return len(self._ports)

    def note(self, event: LinkEvent) -> None:
        """One link event. What a link is on its switch never changes, so only new and renamed ones are looked at."""
        before = self._names.pop(event.index, event.name)
        if before == event.name and not event.gone and event.name in self._ports:
            self._names[event.index] = event.name
            return
        if not event.gone:
            self._names[event.index] = event.name
        port = None if event.gone else self._port_of(event)
        changed = before != event.name and self._ports.pop(before, None) is not None
        if port is None:
            changed = self._ports.pop(event.name, None) is not None or changed
        elif self._ports.get(event.name) != port:
            self._ports[event.name] = port
            changed = True
        if changed:
            self._tell()

    def find(self, function: FunctionRef, *, of_host: bool) -> str:
        """The netdev that stands for a function, "" when there is none now.

        Drivers name the host's functions with their controller, older ones without: `c1pf0vf3`, `pf0vf3`.
        """
        wanted = function.controller or (self._host_controller if of_host else 0)
        kind = "sf" if function.scalable else "vf"
        second = ""
        for netdev, (switch_id, port) in self._ports.items():
            if (port.kind, port.pf, port.index) != (kind, function.pf, function.vf):
                continue
            if function.switch_id and switch_id != function.switch_id:
                continue
            if port.controller == wanted:
                return netdev
            if of_host and not port.explicit:
                second = netdev
        return second

    async def wait(self, function: FunctionRef, *, of_host: bool, deadline: float) -> str:
        """The netdev, now or within `deadline` seconds. Raises SwitchFailed that names what was looked for."""
        beat = iter(_LOOK_AGAIN_SECONDS)
        try:
            async with asyncio.timeout(deadline):
                while True:
                    if netdev := self.find(function, of_host=of_host):
                        return netdev
                    self._changed.clear()
                    try:
                        await asyncio.wait_for(self._changed.wait(), next(beat, 1.0))
                    except TimeoutError:
                        self.scan()
        except TimeoutError:
            raise SwitchFailed(self._missing(function, of_host=of_host, deadline=deadline)) from None

    def _missing(self, function: FunctionRef, *, of_host: bool, deadline: float) -> str:
        controller = function.controller or (self._host_controller if of_host else 0)
        kind = "sf" if function.scalable else "vf"
        name = f"{f'c{controller}' if controller else ''}pf{function.pf}{kind}{function.vf}"
        switch = f" on switch {function.switch_id}" if function.switch_id else ""
        present = ", ".join(sorted(self._ports)[:8]) or "none"
        return (
            f"no representor {name}{switch} for function {function.address or '(unknown address)'} within "
            f"{deadline:.1f} s; is the eswitch in switchdev mode and the VF there? Ports seen: {present}"
        )

    def _port_of(self, event: LinkEvent) -> tuple[str, PortName] | None:
        switch_id, text = event.switch_id, event.port_name
        if not (switch_id and text):
            switch_id, text = self._sysfs.switch_port(event.name)
        port = parse_port_name(text)
        return (switch_id, port) if switch_id and port is not None else None

    def _tell(self) -> None:
        self._changed.set()
        for callback in self._subscribers:
            callback()
