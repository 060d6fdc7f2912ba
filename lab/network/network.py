"""The lab's whole network, from a description to a running one and back to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from foundation.ovsdb import OvsdbSession, Row
from lab import processes
from lab.network import namespaces
from lab.network.central import START_SECONDS, Central
from lab.network.chassis import UPLINK, Chassis
from lab.network.commands import ip

UNDERLAY = "192.0.2"  # TEST-NET-1, only inside the lab's namespaces
OUTSIDE = f"{UNDERLAY}.254"
STATE = "network.json"


class NodeSpec(msgspec.Struct, frozen=True):
    """A node: `chassis` runs OVS and ovn-controller, `plain` (a host with a DPU) has neither."""

    name: str
    kind: Literal["chassis", "plain"] = "chassis"


class NetworkSpec(msgspec.Struct, frozen=True):
    """What to build. `directory` is the run directory, short for unix sockets; `prefix` begins namespaces' names."""

    directory: Path
    prefix: str
    nodes: tuple[NodeSpec, ...]

    def namespace(self, node: str) -> str:
        """The network namespace of a node: prefix and the node's name without `node-`."""
        return f"{self.prefix}-{node.removeprefix('node-')}"

    @property
    def underlay(self) -> str:
        """The namespace that plays the wire, and the world outside at 192.0.2.254."""
        return f"{self.prefix}-und"


class VirtualFunction(msgspec.Struct, frozen=True):
    """A VF with its representor: the two ends of a veth pair, one in the host's namespace, one in the DPU's."""

    host: str
    netdev: str
    dpu: str
    representor: str
    mac: str = ""
    mtu: int = 1500


class _Process(msgspec.Struct, frozen=True):
    name: str
    pid: int
    started: int


class _State(msgspec.Struct):
    spec: NetworkSpec
    processes: list[_Process] = []


def _path(kind: type, text: str) -> Path:
    if kind is not Path:
        raise NotImplementedError(f"the state holds no {kind.__name__}")
    return Path(text)


class Network:
    """A running network. `up` builds one, `attach` finds one built by an earlier process, `down` removes it."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        self.central = Central(spec.directory / "c")
        self.chassis: dict[str, Chassis] = {}
        for index, node in enumerate(spec.nodes, start=1):
            if node.kind == "chassis":
                self.chassis[node.name] = Chassis(
                    node.name,
                    directory=spec.directory / f"n{index}",
                    namespace=spec.namespace(node.name),
                    tunnel=f"{UNDERLAY}.{index}",
                    prefix_length=24,
                )
        self._state = _State(spec=spec)

    def namespace(self, node: str) -> str:
        """The name of a node's network namespace."""
        return self.spec.namespace(node)

    def namespace_path(self, node: str) -> Path:
        """The path of a node's network namespace."""
        return namespaces.path(self.spec.namespace(node))

    @classmethod
    async def up(cls, spec: NetworkSpec) -> Network:
        """Builds everything and returns when every chassis is in the southbound database.

        What an earlier, killed run left in `spec.directory` is removed first. On failure nothing is left.
        """
        await cls.remove(spec.directory)
        network = cls(spec)
        spec.directory.mkdir(parents=True, exist_ok=True)
        network._save()  # before the first act, so that a killed run can be cleaned up
        try:
            await network._build()
        except BaseException:
            await network.down()
            raise
        return network

    @classmethod
    def attach(cls, directory: Path) -> Network | None:
        """The network that an earlier process built in `directory`, if there is one."""
        try:
            state = msgspec.json.decode((directory / STATE).read_bytes(), type=_State, dec_hook=_path)
        except FileNotFoundError:
            return None
        network = cls(state.spec)
        network._state = state
        return network

    @classmethod
    async def remove(cls, directory: Path) -> None:
        """Takes down the network of `directory`, if there is one."""
        network = cls.attach(directory)
        if network is not None:
            await network.down()

    async def _build(self) -> None:
        spec = self.spec
        await namespaces.create(spec.underlay, *(spec.namespace(node.name) for node in spec.nodes))
        await ip(
            "link add br0 type bridge",
            "link set br0 up",
            f"addr add {OUTSIDE}/24 dev br0",
            namespace=spec.underlay,
        )
        await asyncio.gather(self.central.start(self._record), *(self._wire(node) for node in self.chassis.values()))
        await asyncio.gather(*(node.start(self._record, southbound=self.central.sb) for node in self.chassis.values()))
        southbound = OvsdbSession(self.central.sb, "OVN_Southbound")
        southbound.monitor({"Chassis": ["name"]})
        async with southbound:
            for name in self.chassis:
                await southbound.until("Chassis", _named(name), deadline=START_SECONDS)

    async def _wire(self, node: Chassis) -> None:
        port = node.tunnel.rsplit(".", 1)[1]
        await namespaces.veth((node.namespace, UPLINK), (self.spec.underlay, f"port{port}"))
        await ip(f"link set {UPLINK} up", namespace=node.namespace)
        await ip(f"link set port{port} master br0 up", namespace=self.spec.underlay)

    async def add_virtual_functions(self, *functions: VirtualFunction) -> None:
        """Makes VFs with their representors, all down, as a card's driver leaves them."""
        await asyncio.gather(
            *(
                namespaces.veth(
                    (self.namespace(function.host), function.netdev),
                    (self.namespace(function.dpu), function.representor),
                    mtu=function.mtu,
                    mac=function.mac,
                )
                for function in functions
            )
        )

    def _record(self, process: processes.ProcessRecord) -> None:
        self._state.processes.append(_Process(name=process.name, pid=process.pid, started=process.started))
        self._save()

    def _save(self) -> None:
        temporary = self.spec.directory / f"{STATE}.new"
        temporary.write_bytes(msgspec.json.encode(self._state, enc_hook=str))
        temporary.replace(self.spec.directory / STATE)

    def records(self) -> list[processes.ProcessRecord]:
        """Every process started, with its pid; some may have ended."""
        return [processes.ProcessRecord(name=p.name, pid=p.pid, started=p.started) for p in self._state.processes]

    def process(self, name: str) -> processes.ProcessRecord:
        """The latest process of a name, such as `vswitchd-node-dpu`. Raises KeyError."""
        for record in reversed(self.records()):
            if record.name == name:
                return record
        raise KeyError(name)

    async def restart_switch(self, node: str) -> None:
        """Kills a node's ovs-vswitchd and starts it again, as after a crash."""
        await processes.kill(self.process(f"vswitchd-{node}"))
        self.chassis[node].start_switch(self._record)

    async def down(self) -> None:
        """Ends the processes it started, removes its namespaces (with their links) and its directory; repeatable."""
        records = self.records()
        # ovn-controller says good-bye to the southbound database, so that goes last.
        for begins in ("ovnc-", "vswitchd-", ""):
            await processes.stop([record for record in records if record.name.startswith(begins)], seconds=3.0)
        for name in (*(self.spec.namespace(node.name) for node in self.spec.nodes), self.spec.underlay):
            await namespaces.remove(name)
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(shutil.rmtree, self.spec.directory)


def _named(name: str) -> Callable[[Row], bool]:
    return lambda row: bool(row["name"] == name)
