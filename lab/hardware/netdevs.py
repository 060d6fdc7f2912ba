"""Keeps ``net/`` of the host's VFs true: a VF's netdev is listed while it is in the host's network namespace.

A VF is one end of a veth pair whose other end, the representor, is in the DPU's namespace, so a netdev of the host
whose link is representor N's ifindex is VF N, whatever its name.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from foundation import netns as network_namespaces
from lab.hardware import plan
from lab.hardware.sysfs import SysfsTree

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LinkChange:
    """A netdev of a namespace: there (with its peer's ifindex and its MAC), or gone."""

    ifindex: int
    name: str
    peer: int | None
    address: str
    gone: bool


def _enter(netns: Path) -> None:
    descriptor = os.open(netns, os.O_RDONLY)
    try:
        network_namespaces.enter(descriptor, path=str(netns))
    finally:
        os.close(descriptor)


def _parse(message: Any) -> LinkChange | None:
    if message["event"] not in ("RTM_NEWLINK", "RTM_DELLINK"):
        return None
    return LinkChange(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME") or "",
        peer=message.get_attr("IFLA_LINK"),
        address=message.get_attr("IFLA_ADDRESS") or "",
        gone=message["event"] == "RTM_DELLINK",
    )


def interface_indexes(netns: Path) -> dict[str, int]:
    """Names and ifindexes in a namespace, read in a throw-away thread."""
    found: dict[str, int] = {}

    def read() -> None:
        _enter(netns)
        with IPRoute() as netlink:
            for message in netlink.get_links():
                found[message.get_attr("IFLA_IFNAME")] = message["index"]

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    return found


def follow(netns: Path, deliver: Callable[[LinkChange], None]) -> None:
    """Start a thread that lives in ``netns`` and calls ``deliver`` for each netdev there, now and later."""

    def run() -> None:
        _enter(netns)
        with IPRoute() as netlink:
            netlink.bind()
            for message in netlink.get_links():
                _hand_on(message)
            while True:
                for message in netlink.get():
                    _hand_on(message)

    def _hand_on(message: Any) -> None:
        change = _parse(message)
        if change is not None:
            deliver(change)

    threading.Thread(target=run, name=f"links-{netns.name}", daemon=True).start()


class NetdevKeeper:
    """Writes the host's tree as its VFs come and go."""

    def __init__(self, tree: SysfsTree, *, host_netns: Path, dpu_netns: Path) -> None:
        self._tree = tree
        self._host_netns = host_netns
        representors = interface_indexes(dpu_netns)
        self._functions = {
            representors[function.representor]: function
            for function in plan.network_functions()
            if function.representor in representors
        }
        self._names: dict[int, tuple[plan.VirtualFunction, str]] = {}
        self._changes: asyncio.Queue[LinkChange] = asyncio.Queue()

    async def run(self) -> None:
        """Follow the host's namespace until cancelled."""
        loop = asyncio.get_running_loop()

        def deliver(change: LinkChange) -> None:
            loop.call_soon_threadsafe(self._changes.put_nowait, change)

        follow(self._host_netns, deliver)
        while True:
            self._apply(await self._changes.get())

    def _apply(self, change: LinkChange) -> None:
        known = self._names.get(change.ifindex)
        if change.gone:
            if known is not None:
                function, name = self._names.pop(change.ifindex)
                self._tree.remove_netdev(name, pci=function.pci)
                log.info("VF %s (%s) left the host's network namespace", function.pci, name)
            return
        owner = self._functions.get(change.peer) if change.peer is not None else None
        if owner is None:
            return
        if known is not None and known[1] != change.name:
            self._tree.remove_netdev(known[1], pci=owner.pci)
        self._names[change.ifindex] = (owner, change.name)
        self._tree.add_netdev(change.name, pci=owner.pci, address=change.address)
