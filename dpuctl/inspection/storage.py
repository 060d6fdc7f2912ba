"""The storage side: volumes on the backends with who is let in, disks on a DPU, the card's process."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc
import grpc.aio

from csi.controller.config import CsiControllerConfig
from csi.errors import CsiError
from csi.framework.backend import Backend
from csi.framework.registry import BadSection, Registry
from csi.identity import VolumeId
from dpu_offload_stubs.attacher.v1 import attacher_pb2, attacher_pb2_grpc
from dpuctl.inspection.facts import BackendFacts, DiskFacts, DpuFacts, ExportFacts, LeftoverFacts
from foundation.daemon.serving import dial
from foundation.spdk.client import SpdkClient
from foundation.spdk.errors import SpdkClientError
from foundation.spdk.methods.app import spdk_get_version
from opi_bridge.config import OpiBridgeConfig

SECONDS: Final = 5.0
_STATE: Final = "ATTACHMENT_STATE_"


async def backends(config: CsiControllerConfig) -> list[BackendFacts]:
    """Each configured backend, asked for its volumes and for what belongs to nothing."""
    try:
        registry = Registry.open(config.backends, default=config.default_backend)
    except BadSection as error:
        return [BackendFacts(name="backends", kind="", problem=str(error))]
    kinds = {name: kind.name for name, kind in registry.kinds.items()}
    return list(await asyncio.gather(*(_backend(one, kinds[name]) for name, one in registry.backends.items())))


async def _backend(backend: Backend[Any], kind: str) -> BackendFacts:
    try:
        async with asyncio.timeout(SECONDS):
            volumes, leftovers = await asyncio.gather(backend.volumes(), backend.garbage())
    except (CsiError, TimeoutError, OSError) as error:
        return BackendFacts(name=backend.name, kind=kind, problem=str(error) or f"no answer in {SECONDS:g} s")
    finally:
        await backend.close()
    return BackendFacts(
        name=backend.name,
        kind=kind,
        exports=tuple(
            ExportFacts(volume=str(VolumeId(backend.name, one.key)), hosts=one.hosts, exported=one.exported)
            for one in volumes
        ),
        leftovers=tuple(
            LeftoverFacts(kind=one.kind, name=one.name, reason=one.reason, volume=one.volume_key) for one in leftovers
        ),
    )


async def dpu(*, node: str, attacher: str, bridge: OpiBridgeConfig | None) -> DpuFacts:
    """`attacher`: address of volume-attacher's socket, "" for none here; `bridge`: the settings of opi-bridge."""
    facts, (card, card_problem) = await asyncio.gather(_attacher(node, attacher), _card(bridge))
    return DpuFacts(
        node=node,
        attacher=attacher,
        attacher_problem=facts.attacher_problem,
        card=facts.card or card,
        card_problem=card_problem,
        disks=facts.disks,
        functions_total=facts.functions_total,
        functions_free=facts.functions_free,
    )


async def _attacher(node: str, address: str) -> DpuFacts:
    if not address:
        return DpuFacts(node=node)
    channel = dial(address, name="volume-attacher")
    stub = attacher_pb2_grpc.VolumeAttacherStub(channel)
    try:
        listed = await stub.List(attacher_pb2.ListRequest(), timeout=SECONDS)
        inventory = await stub.Inventory(attacher_pb2.InventoryRequest(), timeout=SECONDS)
    except grpc.aio.AioRpcError as error:
        return DpuFacts(node=node, attacher=address, attacher_problem=error.details() or error.code().name)
    finally:
        await channel.close()
    return DpuFacts(
        node=node,
        attacher=address,
        card=inventory.card,
        disks=tuple(_disk(one) for one in listed.attachments),
        functions_total=inventory.functions_total,
        functions_free=inventory.functions_free,
    )


def _disk(one: attacher_pb2.Attachment) -> DiskFacts:
    function = one.function
    return DiskFacts(
        volume=one.volume_id,
        state=attacher_pb2.AttachmentState.Name(one.state).removeprefix(_STATE).lower(),
        reason=one.reason,
        function=function.vuid or f"pf{function.physical_function}vf{function.virtual_function}",
        paths=tuple(
            f"{state.path.address}:{state.path.port}{'' if state.connected else ' (down)'}" for state in one.paths
        ),
    )


async def _card(bridge: OpiBridgeConfig | None) -> tuple[str, str]:
    """(kind of card, why its process does not answer)."""
    if bridge is None:
        return "", ""
    try:
        async with SpdkClient(bridge.spdk, password_file=bridge.spdk_password_file) as client:
            await spdk_get_version(client)
    except (SpdkClientError, ValueError, OSError) as error:
        return bridge.card.kind, str(error)
    return bridge.card.kind, ""
