"""How much of a port's traffic the card carries, asked on the machine that has the port's switch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from cni.node.config import CniNodeConfig
from cni.node.errors import CniNodeError
from cni.node.offload import OffloadReport, Settings, report
from cni.node.vswitchd import Vswitchd
from dpuctl.inspection.facts import PortFacts
from foundation.ovsdb import OvsdbError, OvsdbSession
from foundation.pci import Sysfs

SECONDS: Final = 3.0


class Counts(msgspec.Struct, frozen=True):
    """Flows with what went through them."""

    flows: int = 0
    packets: int = 0
    bytes: int = 0


class FlowFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A flow of the datapath; `reason`: why it is not in hardware, "" when it is."""

    match: str
    packets: int
    bytes: int
    reason: str = ""


class OffloadFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict on one port."""

    node: str
    port: str
    interface: str = ""
    hardware: Counts = Counts()
    software: Counts = Counts()
    flows: tuple[FlowFacts, ...] = ()
    problem: str = ""


async def inspect(config: CniNodeConfig, port: PortFacts) -> OffloadFacts:
    """What OVS' datapath knows of the port's flows."""
    sysfs = Sysfs(Path(config.sysfs_root))
    blank = OffloadFacts(node=config.node_name, port=port.port, interface=port.interface)
    try:
        found = report(
            port.interface,
            await Vswitchd(Path(config.ovs_run_dir)).flows(),
            settings=await _settings(config),
            switch_of=lambda name: sysfs.switch_port(name)[0],
        )
    except (CniNodeError, OvsdbError) as error:
        return msgspec.structs.replace(blank, problem=str(error))
    return msgspec.structs.replace(
        blank,
        hardware=_counts(found, hardware=True),
        software=_counts(found, hardware=False),
        flows=tuple(
            FlowFacts(match=one.flow.match, packets=one.flow.packets, bytes=one.flow.bytes, reason=one.reason)
            for one in found.flows
        ),
    )


def _counts(found: OffloadReport, *, hardware: bool) -> Counts:
    chosen = found.hardware if hardware else found.software
    return Counts(chosen.flows, chosen.packets, chosen.bytes)


async def _settings(config: CniNodeConfig) -> Settings:
    session = OvsdbSession(config.ovsdb, "Open_vSwitch", connect_deadline=SECONDS)
    session.monitor({"Open_vSwitch": ["other_config"]})
    await session.start(deadline=SECONDS)
    try:
        root = next(iter(session.rows("Open_vSwitch").values()), None)
    finally:
        await session.stop()
    given = root["other_config"] if root is not None else {}
    return Settings(
        enabled=str(given.get("hw-offload", "")).lower() == "true", policy=str(given.get("tc-policy", "none"))
    )
