"""OVN and OVS in the guest: one chassis on the kernel's datapath with hardware offload switched on."""

from __future__ import annotations

from pathlib import Path

from foundation.ovsdb import OvsdbSession, Row, fresh_name
from foundation.ovsdb import operations as op
from lab import processes
from lab.network.central import Central
from lab.network.commands import run

_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
_SECONDS = 60.0
SWITCH = "lan"


class KernelChassis:
    """Everything lies in one directory; the guest's end is its end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.central = Central(directory / "central")
        self.ovs = f"unix:{directory}/db.sock"

    async def start(self) -> None:
        """Returns when ovn-controller has made br-int."""
        self.directory.mkdir(parents=True, exist_ok=True)
        await self.central.start(lambda _: None)
        await run("ovsdb-tool", "create", self.directory / "conf.db", _SCHEMA)
        self._start("ovsdb-server", self.directory / "conf.db", f"--remote=punix:{self.directory}/db.sock")
        session = OvsdbSession(self.ovs, "Open_vSwitch")
        session.monitor({"Interface": ["name", "ofport"]})
        await session.start(deadline=_SECONDS)
        try:
            await session.transact(op.insert("Open_vSwitch", self._configuration()))
            self._start("ovs-vswitchd", self.ovs, f"--unixctl={self.directory}/vswitchd.ctl")
            self._start("ovn-controller", self.ovs)
            await session.until("Interface", _is_br_int, deadline=_SECONDS)
        finally:
            await session.stop()

    async def add_ports(self, *ports: tuple[str, str]) -> None:
        """One logical switch with a port for each (name, addresses)."""
        session = OvsdbSession(self.central.nb, "OVN_Northbound")
        await session.start(deadline=_SECONDS)
        names = [fresh_name() for _ in ports]
        rows = [
            op.insert("Logical_Switch_Port", {"name": name, "addresses": addresses}, uuid_name=uuid)
            for uuid, (name, addresses) in zip(names, ports, strict=True)
        ]
        try:
            await session.transact(*rows, op.insert("Logical_Switch", {"name": SWITCH, "ports": names}))
        finally:
            await session.stop()

    def _start(self, program: str, *words: str | Path) -> None:
        log = f"--log-file={self.directory}/{program}.log"
        places = ("OVN_RUNDIR", "OVN_LOGDIR", "OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR")
        processes.start(
            program,
            [program, *words, log, "-vconsole:off"],
            logs=self.directory,
            environment=dict.fromkeys(places, str(self.directory)),
        )

    def _configuration(self) -> dict[str, object]:
        return {
            "external_ids": {
                "system-id": "guest",
                "hostname": "guest",
                "ovn-remote": self.central.sb,
                "ovn-encap-type": "geneve",
                "ovn-encap-ip": "127.0.0.1",
            },
            # Longer than a test lasts: a flow is to be looked at after its packets.
            "other_config": {"max-idle": "300000"},
        }


def _is_br_int(row: Row) -> bool:
    return bool(row["name"] == "br-int" and (row["ofport"] or 0) > 0)
