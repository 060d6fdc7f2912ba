"""Asking OVN which way a packet goes: `ovn-trace` against the southbound database that a node here follows."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import Any, Final

from cni.controller.config import ControllerConfig
from cni.controller.rows.ids import KEY, OWNER, PART
from cni.node.config import CniNodeConfig
from cni.node.modes import MODES
from dpuctl import programs
from dpuctl.inspection.daemons import Installed
from dpuctl.path_trace import Question, Verdict, addresses, microflow, read
from foundation.ovsdb import OvsdbError, OvsdbSession, OvsdbTls, Row

SECONDS: Final = 10.0
# Each passage of connection tracking takes one; the first packet of a connection is new everywhere.
_NEW: Final = ("--ct=new",) * 16
_KINDS: Final = {
    "networkpolicy": "NetworkPolicy",
    "multinetworkpolicy": "MultiNetworkPolicy",
    "adminnetworkpolicy": "AdminNetworkPolicy",
    "baselineadminnetworkpolicy": "BaselineAdminNetworkPolicy",
    "namespace": "the isolation of namespace",
    "node": "node",
}


class Untraceable(Exception):
    """OVN cannot be asked from here; the message says why."""


async def trace(daemons: Iterable[Installed], question: Question) -> Verdict:
    """Raises Untraceable."""
    known = list(daemons)
    remote, tls = await _southbound(known)
    session = OvsdbSession(remote, "OVN_Southbound", tls=tls, connect_deadline=SECONDS)
    session.monitor({"Port_Binding": ["logical_port", "datapath", "mac", "options"]})
    try:
        await session.start(deadline=SECONDS)
    except OvsdbError as error:
        raise Untraceable(f"OVN's southbound database does not answer at {remote}: {error}") from error
    try:
        ports = {str(row["logical_port"]): row for row in session.rows("Port_Binding").values()}
    finally:
        await session.stop()
    try:
        source, _ = addresses(question)
    except ValueError as error:
        raise Untraceable(str(error)) from error
    family = 6 if ":" in source else 4
    for end in (question.source, question.destination):
        if end.port not in ports:
            problem = f"OVN has no port {end.port}: cni-controller has not made it, or northd does not run"
            return Verdict(question=question, delivered=False, family=family, problem=problem)
    here, there = ports[question.source.port], ports[question.destination.port]
    packet = microflow(question, gateway_mac=_gateway(ports, here), same_switch=here["datapath"] == there["datapath"])
    found = read(await _ovn_trace(remote, tls, str(here["datapath"]), packet), destination=question.destination.port)
    rule = "" if found.delivered or "acl" not in found.stage else await _rule(known, remote, tls, found.flow)
    return Verdict(
        question=question,
        delivered=found.delivered,
        family=family,
        hops=found.hops,
        stage=found.stage,
        match=found.match,
        flow=found.flow,
        rule=rule,
    )


def _gateway(ports: dict[str, Row], source: Row) -> str:
    """MAC of the router at the source's switch, by the switch's patch port."""
    for row in ports.values():
        peer = ports.get(row["options"].get("peer", "")) if row["datapath"] == source["datapath"] else None
        if peer is not None and peer["mac"]:
            return str(next(iter(peer["mac"]))).partition(" ")[0]
    return "ff:ff:ff:ff:ff:ff"


async def _southbound(daemons: Iterable[Installed]) -> tuple[str, OvsdbTls | None]:
    reason = "no cni-node with a switch runs here"
    for daemon in daemons:
        config = daemon.config
        if not isinstance(config, CniNodeConfig) or not MODES[config.mode].has_switch:
            continue
        session = OvsdbSession(config.ovsdb, "Open_vSwitch", connect_deadline=SECONDS)
        session.monitor({"Open_vSwitch": ["external_ids"], "SSL": ["private_key", "certificate", "ca_cert"]})
        try:
            await session.start(deadline=SECONDS)
        except OvsdbError as error:
            reason = str(error)
            continue
        try:
            root = next(iter(session.rows("Open_vSwitch").values()), None)
            files = next(iter(session.rows("SSL").values()), None)
        finally:
            await session.stop()
        if root is not None and (remote := root["external_ids"].get("ovn-remote", "")):
            tls = OvsdbTls(files["ca_cert"], files["certificate"], files["private_key"]) if files else None
            return str(remote), tls
    raise Untraceable(f"the southbound database is not known here: {reason}")


async def _ovn_trace(remote: str, tls: OvsdbTls | None, datapath: str, packet: str) -> str:
    program = shutil.which("ovn-trace")
    if program is None:
        raise Untraceable("ovn-trace is not installed here (Debian: package ovn-common)")
    files = [f"--private-key={tls.key}", f"--certificate={tls.certificate}", f"--ca-cert={tls.ca}"] if tls else []
    words = (program, f"--db={remote}", *files, *_NEW, "--detailed", datapath, packet)
    try:
        done = await programs.run(*words, seconds=SECONDS)
    except TimeoutError:
        raise Untraceable(f"ovn-trace had no answer from {remote} within {SECONDS:g} s") from None
    if done.code:
        raise Untraceable(f"ovn-trace: {done.errors}")
    return done.out.decode("utf-8", "replace")


async def _rule(daemons: Iterable[Installed], remote: str, tls: OvsdbTls | None, flow: str) -> str:
    """Whose ACL a logical flow was made from, where the northbound database is known here too."""
    hint = await _hint(remote, tls, flow)
    for daemon in daemons:
        if hint and isinstance(daemon.config, ControllerConfig):
            return await _owner(daemon.config, hint) or f"ACL {hint}"
    return f"ACL {hint}" if hint else ""


async def _hint(remote: str, tls: OvsdbTls | None, flow: str) -> str:
    """First eight digits of the ACL's uuid (ovn-sb(5), Logical_Flow external_ids:stage-hint)."""
    for uuid, row in (await _rows(remote, tls, "OVN_Southbound", "Logical_Flow", ["external_ids"])).items():
        if uuid.startswith(flow):
            return str(row["external_ids"].get("stage-hint", ""))
    return ""


async def _owner(config: ControllerConfig, hint: str) -> str:
    given = config.northbound
    tls = OvsdbTls(given.ca, given.certificate, given.key) if given.ca or given.key else None
    for uuid, row in (await _rows(given.remotes, tls, "OVN_Northbound", "ACL", ["external_ids"])).items():
        if uuid.startswith(hint):
            ids = row["external_ids"]
            kind = _KINDS.get(ids.get(OWNER, ""), ids.get(OWNER, "an ACL that is not the suite's"))
            return f"{kind} {ids.get(KEY, '')}, rule {ids.get(PART, hint)}".replace("  ", " ")
    return ""


async def owner_of(daemons: Iterable[Installed], hint: str) -> str:
    """Whose ACL begins with these digits, asked where cni-controller runs; "" when that is not here."""
    for daemon in daemons:
        if isinstance(daemon.config, ControllerConfig):
            return await _owner(daemon.config, hint)
    return ""


async def _rows(
    remote: str, tls: OvsdbTls | None, database: str, table: str, columns: list[str]
) -> dict[str, dict[str, Any]]:
    session = OvsdbSession(remote, database, tls=tls, connect_deadline=SECONDS)
    session.monitor({table: columns})
    try:
        await session.start(deadline=SECONDS)
        return {str(uuid): {name: row[name] for name in columns} for uuid, row in session.rows(table).items()}
    except OvsdbError:
        return {}
    finally:
        await session.stop()
