"""Ports of attachments on the integration bridge, in OVS' own database.

Every port of ours carries `dpu-offload/attachment` with the attachment's id; nothing without it is ever touched.
ovn-controller binds a logical port to the Interface whose `iface-id` has its name and sets `ovn-installed` there once
the port's flows are in place (ovn-controller(8)).
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from cni.node.errors import SwitchFailed, TryLater
from cni.node.finishing import to_the_end
from cni.node.limits import SHAPER, Limits
from foundation.ovsdb import Change, OvsdbError, OvsdbSession, Row, Uuid, WaitTimedOut, fresh_name
from foundation.ovsdb import operations as op
from foundation.ovsdb.values import NamedUuid

OWNER = "dpu-offload/attachment"
INTERNAL = "dpu-offload/internal"
_INSTALLED = "ovn-installed"
_TABLES = {
    "Interface": ["name", "external_ids", "mac", "ofport", "error", "ingress_policing_rate", "ingress_policing_burst"],
    "Port": ["name", "interfaces", "external_ids", "qos"],
    "Bridge": ["name", "ports", "datapath_type"],
    "QoS": ["type", "queues", "other_config", "external_ids"],
    "Queue": ["other_config", "external_ids"],
    "Open_vSwitch": ["other_config", "external_ids", "ovs_version"],
}
_SHAPING = ("QoS", "Queue")
_TRANSACTION_SECONDS = 5.0


class SwitchPort(msgspec.Struct, frozen=True, kw_only=True):
    """What a port must be: `link` is the node's netdev, `port` the logical switch port's name."""

    attachment: str
    link: str
    port: str
    pod_uid: str
    mac: str
    sandbox: str = ""
    network: str = "default"
    limits: Limits = Limits()

    def external_ids(self) -> dict[str, str]:
        found = {"iface-id": self.port, "attached-mac": self.mac, OWNER: self.attachment}
        optional = {
            "iface-id-ver": self.pod_uid,
            "dpu-offload/sandbox": self.sandbox,
            "dpu-offload/network": self.network,
        }
        return found | {key: value for key, value in optional.items() if value}


class Switch:
    """OVS on this machine. `bridge` is the integration bridge, which ovn-controller makes."""

    def __init__(self, remote: str, *, bridge: str = "br-int") -> None:
        self.bridge = bridge
        self.session = OvsdbSession(remote, "Open_vSwitch", probe_interval=5.0, backoff_maximum=0.5)
        self.session.monitor(_TABLES)
        self._by_name = self.session.index("Interface", lambda row: row["name"])
        self._by_owner = self.session.index("Interface", lambda row: row["external_ids"].get(OWNER))
        self._by_port = self.session.index("Interface", lambda row: row["external_ids"].get("iface-id"))
        self._shapers = {
            table: self.session.index(table, lambda row: row["external_ids"].get(OWNER)) for table in _SHAPING
        }
        self._port_of = self.session.index("Port", lambda row: next(iter(row["interfaces"]), None))

    async def start(self, *, deadline: float) -> None:
        await self.session.start(deadline=deadline)

    async def stop(self) -> None:
        await self.session.stop()

    def problem(self) -> str:
        """Why no port can be plugged now; "" when one can."""
        if not self.session.connected.is_set():
            return f"OVS does not answer: {self.session.last_error}"
        if self._bridge() is None:
            return f"OVS has no bridge {self.bridge}; is ovn-controller running?"
        return ""

    @property
    def userspace(self) -> bool:
        """Whether the bridge's datapath is OVS' own, which leaves checksums to the sender."""
        bridge = self._bridge()
        return bridge is not None and bridge["datapath_type"] == "netdev"

    def setting(self, key: str) -> str:
        """A value of Open_vSwitch other_config, "" when unset."""
        return next((str(row["other_config"].get(key, "")) for row in self.session.rows("Open_vSwitch").values()), "")

    def mark(self, key: str) -> str:
        """A value of Open_vSwitch external_ids, "" when unset."""
        return next((str(row["external_ids"].get(key, "")) for row in self.session.rows("Open_vSwitch").values()), "")

    async def change_settings(self, settings: Mapping[str, str], marks: Mapping[str, str]) -> None:
        """Sets keys of Open_vSwitch other_config and external_ids. Raises SwitchFailed, TryLater when OVS is away."""
        if not self.session.connected.is_set():
            raise TryLater(f"OVS does not answer: {self.session.last_error}")
        for uuid in self.session.rows("Open_vSwitch"):
            await self._transact(
                *(
                    op.mutate("Open_vSwitch", uuid, [(column, "delete", set(values)), (column, "insert", dict(values))])
                    for column, values in (("other_config", settings), ("external_ids", marks))
                    if values
                )
            )

    def on_settings(self, callback: Callable[[], None]) -> None:
        """Calls back when a setting may have changed, and when OVS is connected again."""
        self.session.on_connect(callback)
        self.session.subscribe("Open_vSwitch", lambda _: callback())

    def owned(self) -> dict[str, list[str]]:
        """{attachment id: names of its interfaces} for all that is ours; none where only a port's shaping was left."""
        found: dict[str, list[str]] = {owner: [] for index in self._shapers.values() for owner in map(str, index)}
        for row in self.session.rows("Interface").values():
            owner = row["external_ids"].get(OWNER)
            if owner:
                found.setdefault(owner, []).append(row["name"])
        return found

    def mismatch(self, port: SwitchPort, *, flows: bool = True) -> str:
        """The first thing that is not as `port` says, as a sentence; "" when all is."""
        row = self._by_name.one(port.link)
        if row is None:
            return f"OVS has no interface {port.link}"
        for key, value in port.external_ids().items():
            if row["external_ids"].get(key) != value:
                return f"OVS interface {port.link} has {key}={row['external_ids'].get(key)!r} instead of {value!r}"
        if self._on_bridge(row) is None:
            return f"OVS interface {port.link} is not on bridge {self.bridge}"
        if row["error"]:
            return f"OVS cannot use {port.link}: {row['error']}"
        if (row["ofport"] or -1) <= 0:
            return f"OVS interface {port.link} has no OpenFlow port number"
        if any(row[column] != value for column, value in port.limits.policing().items()):
            return f"OVS interface {port.link} does not bound what the pod sends to {port.limits.sent_rate} bit/s"
        if not self._shaped(port):
            return (
                f"OVS interface {port.link} does not bound what the pod receives to {port.limits.received_rate} bit/s"
            )
        if flows and row["external_ids"].get(_INSTALLED) != "true":
            return f"OVN has not installed the flows of port {port.port}"
        return ""

    async def plug(self, port: SwitchPort) -> None:
        """Puts the link on the bridge, or corrects what is there; what else claims the logical port is replaced.

        Raises SwitchFailed when the link is another's; TryLater when OVS is away.
        """
        if problem := self.problem():
            raise TryLater(f"{problem}; try again when it is back")
        bridge = self._bridge()
        assert bridge is not None
        present = self._by_name.one(port.link)
        if present is not None and present["external_ids"].get(OWNER) not in (None, port.attachment):
            # A killed predecessor's port on a link that is ours now.
            await self._remove([present], self._unshaping_of([present]))
            present = None
        if present is not None and OWNER not in present["external_ids"]:
            raise SwitchFailed(
                f"{port.link} is already on a bridge of OVS and was not put there by cni-node; remove it from OVS first"
            )
        others = [
            row for row in self._by_port.all(port.port) if row["name"] != port.link and OWNER in row["external_ids"]
        ]
        stale = [row for row in self._by_owner.all(port.attachment) if row["name"] != port.link]
        if others or stale:
            await self._remove([*others, *stale], self._unshaping_of(others))
        shaper, shaping = self._shaping(port)
        holding = self._on_bridge(present) if present is not None else None
        if present is not None and holding is not None:
            if not self.mismatch(port, flows=False):
                return
            ids = {**present["external_ids"], **port.external_ids()}
            await self._transact(
                op.update("Interface", present.uuid, {"external_ids": ids, **port.limits.policing()}),
                *(() if self._shaped(port) else (*shaping, op.update("Port", holding.uuid, {"qos": shaper}))),
            )
            return
        interface, holder = fresh_name(), fresh_name()
        row = {"name": port.link, "external_ids": port.external_ids(), **port.limits.policing()}
        columns = {"name": port.link, "interfaces": interface, "external_ids": {OWNER: port.attachment}, "qos": shaper}
        await self._transact(
            *shaping,
            op.insert("Interface", row, uuid_name=interface),
            op.insert("Port", columns, uuid_name=holder),
            op.mutate("Bridge", bridge.uuid, [("ports", "insert", holder)]),
        )

    async def installed(self, port: SwitchPort, *, deadline: float) -> None:
        """Returns when OVN has installed the port's flows. Raises SwitchFailed with what is known of the reason."""

        def settled(row: Row) -> bool:
            return row["name"] == port.link and (row["external_ids"].get(_INSTALLED) == "true" or bool(row["error"]))

        try:
            row = await self.session.until("Interface", settled, deadline=deadline)
        except WaitTimedOut:
            reason = self.mismatch(port, flows=False)
            raise SwitchFailed(
                f"OVN did not install the flows of logical port {port.port} on {port.link} within {deadline:.1f} s",
                details=reason or f"see ovn-controller's log; does logical switch port {port.port} exist?",
            ) from None
        if row["error"]:
            raise SwitchFailed(f"OVS cannot use {port.link}", details=str(row["error"]))

    async def plug_internal(self, name: str, *, port: str, mac: str) -> None:
        """Makes an internal port of the bridge for logical port `port`, or corrects it.

        Raises SwitchFailed when the name is another's; TryLater when OVS is away.
        """
        if problem := self.problem():
            raise TryLater(f"{problem}; try again when it is back")
        bridge = self._bridge()
        assert bridge is not None
        present = self._by_name.one(name)
        columns = {"type": "internal", "mac": mac or None}
        ids = {"iface-id": port, INTERNAL: "true"}
        if present is not None:
            if INTERNAL not in present["external_ids"]:
                raise SwitchFailed(
                    f"OVS has an interface {name} that is not cni-node's; remove it, or set another name"
                )
            if any(present["external_ids"].get(key) != value for key, value in ids.items()) or present["mac"] != mac:
                ids = {**present["external_ids"], **ids}
                await self._transact(op.update("Interface", present.uuid, {"external_ids": ids, **columns}))
            return
        interface, holder = fresh_name(), fresh_name()
        await self._transact(
            op.insert("Interface", {"name": name, "external_ids": ids, **columns}, uuid_name=interface),
            op.insert(
                "Port", {"name": name, "interfaces": interface, "external_ids": {INTERNAL: "true"}}, uuid_name=holder
            ),
            op.mutate("Bridge", bridge.uuid, [("ports", "insert", holder)]),
        )

    async def remove_internal(self, name: str) -> None:
        """Succeeds when there is none of ours. Raises TryLater when OVS is away."""
        if not self.session.connected.is_set():
            raise TryLater(f"OVS does not answer: {self.session.last_error}")
        present = self._by_name.one(name)
        if present is not None and INTERNAL in present["external_ids"]:
            await self._remove([present])

    async def unplug(self, attachment: str) -> bool:
        """Takes an attachment's ports off; False when there were none. Raises TryLater when OVS is away."""
        if not self.session.connected.is_set():
            raise TryLater(f"OVS does not answer: {self.session.last_error}; the port is removed when it is back")
        rows = list(self._by_owner.all(attachment))
        shaping = self._unshaping(attachment)
        if rows or shaping:
            await self._remove(rows, shaping)
        return bool(rows or shaping)

    def subscribe(self, changed: Callable[[str], None], *, replaced: Callable[[], None]) -> None:
        """`changed` gets the attachment id of each interface that vanished or lost its identity; `replaced` is called
        when OVS is connected again, maybe with another database."""

        def look(change: Change) -> None:
            owner = change.old["external_ids"].get(OWNER) if change.old is not None else None
            if owner and (change.new is None or change.new["external_ids"].get(OWNER) != owner):
                changed(owner)

        self.session.subscribe("Interface", look)
        self.session.on_connect(replaced)

    def on_state(self, callback: Callable[[], None]) -> None:
        """Calls back when `problem` may have another answer."""
        self.session.on_connect(callback)
        self.session.subscribe("Bridge", lambda _: callback())

    def _bridge(self) -> Row | None:
        return next((row for row in self.session.rows("Bridge").values() if row["name"] == self.bridge), None)

    def _on_bridge(self, interface: Row) -> Row | None:
        port, bridge = self._port_of.one(interface.uuid), self._bridge()
        return port if port is not None and bridge is not None and port.uuid in bridge["ports"] else None

    def _shaped(self, port: SwitchPort) -> bool:
        """Whether the port's queue is as wanted, or absent where none is."""
        row = self._by_name.one(port.link)
        holder = self._port_of.one(row.uuid) if row is not None else None
        shaper = self.session.rows("QoS").get(holder["qos"]) if holder is not None and holder["qos"] else None
        wanted = port.limits.shaping()
        if shaper is None or not wanted:
            return shaper is None and not wanted
        queue = self.session.rows("Queue").get(shaper["queues"].get(0, ""))
        return shaper["type"] == SHAPER and queue is not None and queue["other_config"] == wanted

    def _shaping(self, port: SwitchPort) -> tuple[NamedUuid | None, list[op.Operation]]:
        """The port's `qos`, and what makes it, in place of all that its attachment had before."""
        operations, wanted = self._unshaping(port.attachment), port.limits.shaping()
        if not wanted:
            return None, operations
        shaper, queue = fresh_name(), fresh_name()
        owner = {OWNER: port.attachment}
        # Queue 0 takes what nobody assigned to another one; without it nothing would be bound.
        row = {
            "type": SHAPER,
            "other_config": {"max-rate": wanted["max-rate"]},
            "queues": {0: queue},
            "external_ids": owner,
        }
        operations.append(op.insert("Queue", {"other_config": wanted, "external_ids": owner}, uuid_name=queue))
        operations.append(op.insert("QoS", row, uuid_name=shaper))
        return shaper, operations

    def _unshaping(self, attachment: str) -> list[op.Operation]:
        """Both tables keep rows that nobody refers to."""
        return [op.delete(table, row.uuid) for table in _SHAPING for row in self._shapers[table].all(attachment)]

    def _unshaping_of(self, interfaces: list[Row]) -> list[op.Operation]:
        owners = {row["external_ids"][OWNER] for row in interfaces}
        return [operation for owner in sorted(owners) for operation in self._unshaping(owner)]

    async def _remove(self, interfaces: list[Row], more: Sequence[op.Operation] = ()) -> None:
        ports = [port for row in interfaces if (port := self._port_of.one(row.uuid)) is not None]
        holders: dict[Uuid, set[Uuid]] = {}
        for bridge in self.session.rows("Bridge").values():
            mine = {port.uuid for port in ports if port.uuid in bridge["ports"]}
            if mine:
                holders[bridge.uuid] = mine
        # Ports and interfaces are no root rows: OVSDB removes them when the last reference goes, after it has refused
        # to lose a shaper that they still refer to.
        bare = [op.update("Port", port.uuid, {"qos": None}) for port in ports if more and port["qos"]]
        await self._transact(
            *bare, *(op.mutate("Bridge", uuid, [("ports", "delete", mine)]) for uuid, mine in holders.items()), *more
        )

    async def _transact(self, *operations: op.Operation) -> None:
        if not operations:
            return
        try:
            # Half-way, nobody would know whether there is something to undo.
            await to_the_end(self.session.transact(*operations, deadline=_TRANSACTION_SECONDS))
        except OvsdbError as error:
            raise SwitchFailed("OVS refused to change the bridge", details=str(error)) from error
