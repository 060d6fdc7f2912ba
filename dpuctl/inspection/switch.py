"""OVS with ovn-controller of one node: settings, ports of ours, the chassis in the southbound database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cni.node.config import CniNodeConfig
from cni.node.errors import InputFailed, UnknownContainer
from cni.node.netns import node_namespace
from cni.node.ovn_controller import OvnController
from cni.node.switch import OWNER
from dpuctl.inspection.facts import PortFacts, SwitchFacts
from dpuctl.inspection.kept import Kept
from foundation.ovsdb import OvsdbError, OvsdbSession, OvsdbTls, Row

SECONDS: Final = 3.0
_TABLES: Final = {
    "Open_vSwitch": ["external_ids", "other_config", "ssl"],
    "SSL": ["private_key", "certificate", "ca_cert"],
    "Bridge": ["name", "datapath_type"],
    "Interface": ["name", "external_ids", "ofport", "error", "mtu"],
}


async def inspect(config: CniNodeConfig, kept: Kept) -> SwitchFacts:
    """What the node's OVS says. Never raises for what is wrong there: that is the answer."""
    session = OvsdbSession(config.ovsdb, "Open_vSwitch", connect_deadline=SECONDS)
    session.monitor(_TABLES)
    try:
        await session.start(deadline=SECONDS)
    except OvsdbError as error:
        return SwitchFacts(node=config.node_name, problem=str(error))
    try:
        return await _facts(config, session, kept)
    finally:
        await session.stop()


async def _facts(config: CniNodeConfig, session: OvsdbSession, kept: Kept) -> SwitchFacts:
    root = next(iter(session.rows("Open_vSwitch").values()), None)
    ids: Mapping[str, str] = root["external_ids"] if root is not None else {}
    settings: Mapping[str, str] = root["other_config"] if root is not None else {}
    bridge = next((row for row in session.rows("Bridge").values() if row["name"] == config.integration_bridge), None)
    chassis, remote = ids.get("system-id", ""), ids.get("ovn-remote", "")
    encap_ip = ids.get("ovn-encap-ip", "").partition(",")[0]
    (known, problem), controller, mtu = await asyncio.gather(
        _chassis_known(remote, chassis, _tls(session)),
        OvnController(Path(config.ovn_run_dir)).problem(),
        _device_mtu(config.node_netns, encap_ip),
    )
    return SwitchFacts(
        node=config.node_name,
        chassis=chassis,
        bridge=bridge is not None,
        userspace=bridge is not None and bridge["datapath_type"] == "netdev",
        hw_offload=settings.get("hw-offload", "").lower() == "true",
        encap_ip=encap_ip,
        encap_mtu=mtu,
        southbound=remote,
        southbound_problem=problem,
        chassis_known=known,
        controller_problem=controller,
        ports=tuple(
            _port(row, kept)
            for row in sorted(session.rows("Interface").values(), key=lambda row: str(row["name"]))
            if OWNER in row["external_ids"]
        ),
    )


def _port(row: Row, kept: Kept) -> PortFacts:
    ids: Mapping[str, str] = row["external_ids"]
    attachment = kept.attachments.get(ids[OWNER])
    problem = str(row["error"] or "")
    if not problem and (row["ofport"] or 0) < 0:
        problem = "it has no OpenFlow port number"
    function = attachment.function if attachment is not None else None
    return PortFacts(
        interface=row["name"],
        port=ids.get("iface-id", ""),
        attachment=ids[OWNER],
        pod=attachment.pod if attachment is not None else "",
        pod_uid=ids.get("iface-id-ver", ""),
        network=ids.get("dpu-offload/network", "default"),
        function=f"pf{function.pf}{'sf' if function.scalable else 'vf'}{function.vf}" if function is not None else "",
        mtu=int(row["mtu"] or 0),
        installed=ids.get("ovn-installed") == "true",
        problem=problem,
    )


def _tls(session: OvsdbSession) -> OvsdbTls | None:
    """The certificate by which OVS' own daemons go to the southbound database."""
    row = next(iter(session.rows("SSL").values()), None)
    if row is None:
        return None
    return OvsdbTls(ca=row["ca_cert"], certificate=row["certificate"], key=row["private_key"])


async def _chassis_known(remote: str, chassis: str, tls: OvsdbTls | None) -> tuple[bool | None, str]:
    if not remote:
        return None, "Open_vSwitch external_ids:ovn-remote is not set"
    try:
        session = OvsdbSession(remote, "OVN_Southbound", tls=tls, connect_deadline=SECONDS)
        session.monitor({"Chassis": ["name"]})
        await session.start(deadline=SECONDS)
    except OvsdbError as error:
        return None, str(error)
    try:
        return any(row["name"] == chassis for row in session.rows("Chassis").values()), ""
    finally:
        await session.stop()


async def _device_mtu(namespace: str, address: str) -> int:
    """MTU of the device that has the tunnels' address, 0 when none has it."""
    if not address:
        return 0

    def look(netlink: Any) -> int:
        for found in netlink.get_addr():
            attributes = dict(found["attrs"])
            if address in (attributes.get("IFA_ADDRESS"), attributes.get("IFA_LOCAL")):
                (link,) = netlink.get_links(found["index"])
                return int(dict(link["attrs"])["IFLA_MTU"])
        return 0

    try:
        node = node_namespace(namespace)
    except InputFailed:
        return 0
    with contextlib.closing(node):
        try:
            return await node.run(look)
        except UnknownContainer:
            return 0
