"""All that one machine shows, collected side by side."""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

from cni.controller.config import ControllerConfig
from cni.controller.rows.ids import KEY, OWNER
from cni.node.config import CniNodeConfig
from cni.node.modes import MODES
from csi.controller.config import CsiControllerConfig
from csi.node_dpu.config import CsiNodeDpuConfig
from dpuctl.inspection import card, certificates, kept, storage, switch
from dpuctl.inspection.daemons import Installed
from dpuctl.inspection.dialling import Dial, attempt
from dpuctl.inspection.facts import (
    CardFacts,
    CertificateFacts,
    DaemonFacts,
    Machine,
    NorthboundFacts,
    SwitchFacts,
)
from dpuctl.inspection.offload import OffloadFacts
from dpuctl.inspection.offload import inspect as offload_of
from foundation.daemon.configuration import DaemonConfig, version
from foundation.ovsdb import OvsdbError, OvsdbSession, OvsdbTls
from opi_bridge.config import OpiBridgeConfig
from volume_attacher.config import VolumeAttacherConfig

SECONDS: Final = 3.0
C = TypeVar("C", bound=DaemonConfig)


async def inspect(daemons: Sequence[Installed], dials: Sequence[Dial] = ()) -> Machine:
    """What is wrong is part of the answer. `dials` that concern no daemon of this machine are left to others."""
    async with asyncio.TaskGroup() as group:
        networks = [group.create_task(_network(one)) for one in _configured(daemons, CniNodeConfig)]
        backends = [group.create_task(storage.backends(one)) for one in _configured(daemons, CsiControllerConfig)]
        northbounds = [group.create_task(_northbound(one)) for one in _configured(daemons, ControllerConfig)]
        dialled = [group.create_task(attempt(one, by)) for one in dials for by in daemons if one.concerns(by)]
        dpus = [
            group.create_task(storage.dpu(node=node, attacher=attacher, bridge=bridge))
            for node, attacher, bridge in _dpus(daemons)
        ]
        trusted = group.create_task(asyncio.to_thread(_certificates, daemons))
    return Machine(
        name=platform.node(),
        version=version(),
        clock=time.time(),
        daemons=tuple(_daemon(one) for one in daemons),
        certificates=trusted.result(),
        switches=tuple(found for one in networks if (found := one.result()[0]) is not None),
        cards=tuple(one.result()[1] for one in networks),
        dpus=tuple(one.result() for one in dpus),
        backends=tuple(backend for one in backends for backend in one.result()),
        northbounds=tuple(one.result() for one in northbounds),
        dials=tuple(one.result() for one in dialled),
    )


def _configured(daemons: Sequence[Installed], kind: type[C]) -> Iterator[C]:
    for daemon in daemons:
        if isinstance(daemon.config, kind):
            yield daemon.config


def _daemon(one: Installed) -> DaemonFacts:
    controller = one.config if isinstance(one.config, ControllerConfig) else None
    return DaemonFacts(
        name=one.name,
        node=getattr(one.config, "node_name", ""),
        mode=getattr(one.config, "mode", ""),
        pid=one.pid,
        problem=one.problem,
        elects=controller is None or controller.leader_election.enabled,
        pod_mtu=controller.cluster.mtu if controller is not None else 0,
    )


def _certificates(daemons: Sequence[Installed]) -> tuple[CertificateFacts, ...]:
    return tuple(one for daemon in daemons for one in certificates.inspect(daemon))


async def _network(config: CniNodeConfig) -> tuple[SwitchFacts | None, CardFacts]:
    known = await asyncio.to_thread(kept.read, Path(config.state_dir) / "attachments")
    shown = await asyncio.to_thread(card.inspect, config, known)
    # A host with a DPU has no switch of its own.
    return (await switch.inspect(config, known) if MODES[config.mode].has_switch else None), shown


def _dpus(daemons: Sequence[Installed]) -> Iterator[tuple[str, str, OpiBridgeConfig | None]]:
    """(node, volume-attacher's address, opi-bridge's settings) of what belongs together.

    The three daemons know one another by their sockets; in a container of its own each is alone.
    """
    bridges = list(_configured(daemons, OpiBridgeConfig))
    attachers = list(_configured(daemons, VolumeAttacherConfig))
    nodes = list(_configured(daemons, CsiNodeDpuConfig))
    for attacher in attachers:
        address = f"unix:{attacher.socket}"
        node = next((one.node_name for one in nodes if one.attacher == address), "")
        bridge = next((one for one in bridges if attacher.bridge in (f"unix:{one.socket}", one.listen)), None)
        if bridge is not None:
            bridges.remove(bridge)
        yield node, address, bridge
    served = {f"unix:{one.socket}" for one in attachers}
    yield from ((one.node_name, one.attacher, None) for one in nodes if one.attacher not in served)
    yield from (("", "", one) for one in bridges)


async def _northbound(config: ControllerConfig) -> NorthboundFacts:
    given = config.northbound
    tls = OvsdbTls(ca=given.ca, certificate=given.certificate, key=given.key) if given.ca or given.key else None
    try:
        session = OvsdbSession(given.remotes, "OVN_Northbound", tls=tls, connect_deadline=SECONDS)
        session.monitor({"Logical_Switch_Port": ["name", "external_ids"]})
        await session.start(deadline=SECONDS)
    except OvsdbError as error:
        return NorthboundFacts(remotes=given.remotes, problem=str(error))
    try:
        pods = [
            str(row["external_ids"].get(KEY, ""))
            for row in session.rows("Logical_Switch_Port").values()
            if row["external_ids"].get(OWNER) == "pod"
        ]
        return NorthboundFacts(remotes=given.remotes, ports=tuple(sorted(pods)))
    finally:
        await session.stop()


async def offload(config: CniNodeConfig, ports: Collection[str]) -> list[OffloadFacts]:
    """The verdict on each of these logical ports that the node's switch has."""
    facts = await switch.inspect(config, await asyncio.to_thread(kept.read, Path(config.state_dir) / "attachments"))
    return [await offload_of(config, port) for port in facts.ports if port.port in ports]
