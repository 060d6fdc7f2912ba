"""A node that runs OVS with ovn-controller: its databases, daemons, tunnel address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from foundation.ovsdb import OvsdbSession, Row, fresh_name
from foundation.ovsdb import operations as op
from lab import processes
from lab.network.central import START_SECONDS, Record
from lab.network.commands import ip, run

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
PHYSICAL_BRIDGE = "br-phys"
PHYSICAL_NETWORK = "physnet1"
UPLINK = "eth0"


class Chassis:
    """OVS and ovn-controller of one node, in the node's network namespace.

    The datapath is OVS' own in userspace (`netdev`), which ends Geneve tunnels only at an address that sits on an OVS
    bridge: hence `br-phys` with the uplink as its port. The same bridge maps physical network `physnet1`.
    """

    def __init__(self, name: str, *, directory: Path, namespace: str, tunnel: str, prefix_length: int) -> None:
        self.name = name
        self.directory = directory
        self.namespace = namespace
        self.tunnel = tunnel
        self._prefix_length = prefix_length
        self.ovs = f"unix:{directory}/db.sock"

    def environment(self) -> dict[str, str]:
        """What makes OVS' command line tools and daemons keep to this node."""
        text = str(self.directory)
        return dict.fromkeys(("OVN_RUNDIR", "OVN_LOGDIR", "OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"), text)

    def _start(self, short: str, record: Record, *command: str | Path) -> None:
        record(
            processes.start(
                f"{short}-{self.name}",
                [
                    "nsenter",
                    f"--net=/run/netns/{self.namespace}",
                    *command,
                    f"--log-file={self.directory}/{short}.log",
                    "-vconsole:off",
                ],
                logs=self.directory,
                environment=self.environment(),
            )
        )

    async def start(self, record: Record, *, southbound: str) -> None:
        """Returns when vswitchd serves, the tunnel address is up, and ovn-controller has made br-int."""
        self.directory.mkdir(parents=True, exist_ok=True)
        await run("ovsdb-tool", "create", self.directory / "conf.db", SCHEMA)
        self._start(
            "ovsdb",
            record,
            "ovsdb-server",
            self.directory / "conf.db",
            f"--remote=punix:{self.directory}/db.sock",
            f"--unixctl={self.directory}/ovsdb.ctl",
        )
        session = OvsdbSession(self.ovs, "Open_vSwitch")
        session.monitor({"Open_vSwitch": ["cur_cfg"], "Interface": ["name", "ofport"]})
        await session.start(deadline=START_SECONDS)
        try:
            await session.transact(*self._configuration(southbound))
            self.start_switch(record)
            self.start_controller(record)
            for port in (PHYSICAL_BRIDGE, UPLINK, "br-int"):
                await session.until("Interface", _works(port), deadline=START_SECONDS)
        finally:
            await session.stop()
        await ip(
            f"addr add {self.tunnel}/{self._prefix_length} dev {PHYSICAL_BRIDGE}",
            f"link set {PHYSICAL_BRIDGE} up",
            namespace=self.namespace,
        )

    def start_switch(self, record: Record) -> None:
        """Starts ovs-vswitchd."""
        self._start(
            "vswitchd", record, "ovs-vswitchd", self.ovs, "--disable-system", f"--unixctl={self.directory}/vswitchd.ctl"
        )

    def start_controller(self, record: Record) -> None:
        """Starts ovn-controller."""
        self._start("ovnc", record, "ovn-controller", self.ovs)

    def _configuration(self, southbound: str) -> list[op.Operation]:
        last = int(self.tunnel.rsplit(".", 1)[1])
        names = {port: (fresh_name(), fresh_name()) for port in (PHYSICAL_BRIDGE, UPLINK)}
        bridge = fresh_name()
        operations = []
        for port, (port_name, interface_name) in names.items():
            kind = "internal" if port == PHYSICAL_BRIDGE else ""
            operations += [
                op.insert("Interface", {"name": port, "type": kind}, uuid_name=interface_name),
                op.insert("Port", {"name": port, "interfaces": interface_name}, uuid_name=port_name),
            ]
        return [
            *operations,
            op.insert(
                "Bridge",
                {
                    "name": PHYSICAL_BRIDGE,
                    "datapath_type": "netdev",
                    "fail_mode": "standalone",
                    "ports": [port_name for port_name, _ in names.values()],
                    "other_config": {"hwaddr": f"02:00:00:00:01:{last:02x}"},
                },
                uuid_name=bridge,
            ),
            op.insert(
                "Open_vSwitch",
                {
                    "bridges": bridge,
                    "external_ids": {
                        "system-id": self.name,
                        "hostname": self.name,
                        "ovn-remote": southbound,
                        "ovn-encap-type": "geneve",
                        "ovn-encap-ip": self.tunnel,
                        "ovn-bridge-datapath-type": "netdev",
                        "ovn-bridge-mappings": f"{PHYSICAL_NETWORK}:{PHYSICAL_BRIDGE}",
                    },
                },
            ),
        ]


def _works(name: str) -> Callable[[Row], bool]:
    return lambda row: bool(row["name"] == name and (row["ofport"] or 0) > 0)
