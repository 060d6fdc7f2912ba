"""What belongs to nothing on one machine, and its removal: ports on the bridge, disks on a DPU, names on a storage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import grpc.aio
import msgspec

from cni.node.config import CniNodeConfig
from cni.node.errors import CniNodeError
from cni.node.modes import MODES
from cni.node.switch import Switch
from csi.controller.config import CsiControllerConfig
from csi.errors import CsiError
from csi.framework.registry import BadSection, Registry
from csi.node_dpu.config import CsiNodeDpuConfig
from dpu_offload_stubs.attacher.v1 import attacher_pb2, attacher_pb2_grpc
from dpuctl.inspection.daemons import Installed
from foundation.daemon.serving import dial
from foundation.ovsdb import OvsdbError
from volume_attacher.config import VolumeAttacherConfig

Kind = Literal["port", "disk", "subsystem", "host", "snapshot", "unfinished"]
SECONDS: Final = 30.0


class Leftover(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """`place`: node, or name of the backend. `name`: attachment, volume, or the storage's own name."""

    kind: Kind
    place: str
    name: str
    why: str
    volume: str = ""


class Removed(msgspec.Struct, frozen=True):
    """`problem`: why it is still there."""

    leftover: Leftover
    problem: str = ""


async def remove(daemons: Sequence[Installed], wanted: Iterable[Leftover]) -> list[Removed]:
    """Removes those that are of this machine; each is looked at anew by whoever owns it. Others are left out."""
    done: list[Removed] = []
    for one in wanted:
        for daemon in daemons:
            if _concerns(daemon, one):
                done.append(await _remove(daemon, one))
                break
    return done


def _concerns(daemon: Installed, one: Leftover) -> bool:
    config = daemon.config
    if isinstance(config, CniNodeConfig):
        return one.kind == "port" and MODES[config.mode].has_switch and config.node_name == one.place
    if isinstance(config, CsiNodeDpuConfig):
        return one.kind == "disk" and config.node_name == one.place
    if isinstance(config, VolumeAttacherConfig):
        return one.kind == "disk" and one.place == ""
    if isinstance(config, CsiControllerConfig):
        return one.kind not in ("port", "disk") and one.place in config.backends
    return False


async def _remove(daemon: Installed, one: Leftover) -> Removed:
    config = daemon.config
    try:
        if isinstance(config, CniNodeConfig):
            await _port(config, one)
        elif isinstance(config, CsiNodeDpuConfig):
            await _disk(config.attacher, one)
        elif isinstance(config, VolumeAttacherConfig):
            await _disk(f"unix:{config.socket}", one)
        elif isinstance(config, CsiControllerConfig):
            await _stored(config, one)
    except (CniNodeError, OvsdbError, CsiError, BadSection) as error:
        return Removed(one, str(error))
    except grpc.aio.AioRpcError as error:
        return Removed(one, error.details() or error.code().name)
    return Removed(one)


async def _port(config: CniNodeConfig, one: Leftover) -> None:
    switch = Switch(config.ovsdb, bridge=config.integration_bridge)
    await switch.start(deadline=SECONDS)
    try:
        await switch.unplug(one.name)
    finally:
        await switch.stop()


async def _disk(address: str, one: Leftover) -> None:
    channel = dial(address, name="volume-attacher")
    try:
        stub = attacher_pb2_grpc.VolumeAttacherStub(channel)
        await stub.Detach(attacher_pb2.DetachRequest(volume_id=one.name), timeout=SECONDS)
    finally:
        await channel.close()


async def _stored(config: CsiControllerConfig, one: Leftover) -> None:
    backend = Registry.open(config.backends).backends[one.place]
    try:
        if one.kind == "host":
            await backend.revoke(one.volume, one.name)
            return
        for found in await backend.garbage():
            if (found.kind, found.name) == (one.kind, one.name):
                await backend.remove(found)
    finally:
        await backend.close()
