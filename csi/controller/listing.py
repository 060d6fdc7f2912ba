"""ListVolumes, ControllerGetVolume: what the backends have, and which nodes really have it."""

import asyncio
import logging

from csi import identity
from csi.controller.create_volume import as_message
from csi.controller.directory import Dpu
from csi.controller.paging import page
from csi.controller.parts import Parts
from csi.errors import CsiError
from csi.framework.backend import Condition, Volume
from dpu_offload_stubs.attacher.v1 import attacher_pb2
from dpu_offload_stubs.csi import csi_pb2

_log = logging.getLogger(__name__)
Published = dict[str, list[tuple[str, attacher_pb2.Attachment]]]
_ABNORMAL = (attacher_pb2.ATTACHMENT_STATE_DEGRADED, attacher_pb2.ATTACHMENT_STATE_FAILED)


async def list_volumes(parts: Parts, request: csi_pb2.ListVolumesRequest) -> csi_pb2.ListVolumesResponse:
    page([], str, token=request.starting_token, limit=request.max_entries)
    await parts.lists.wait()
    backends = list(parts.registry.backends.values())
    (published, unknown), lists = await asyncio.gather(
        published_nodes(parts), asyncio.gather(*(backend.volumes() for backend in backends))
    )
    entries = [
        (backend, volume, str(identity.VolumeId(backend.name, volume.key)))
        for backend, volumes in zip(backends, lists, strict=True)
        for volume in volumes
    ]
    shown, token = page(entries, lambda entry: entry[2], token=request.starting_token, limit=request.max_entries)
    answer = csi_pb2.ListVolumesResponse(next_token=token)
    for backend, volume, volume_id in shown:
        condition = _condition(volume, published.get(volume_id, []))
        nodes = _nodes(parts, volume, volume_id, published, unknown)
        answer.entries.add(
            volume=as_message(backend, volume),
            status=csi_pb2.ListVolumesResponse.VolumeStatus(
                published_node_ids=nodes,
                volume_condition=csi_pb2.VolumeCondition(abnormal=condition.abnormal, message=condition.message),
            ),
        )
    return answer


async def get_volume(parts: Parts, request: csi_pb2.ControllerGetVolumeRequest) -> csi_pb2.ControllerGetVolumeResponse:
    backend, volume_id = parts.volume(request.volume_id)
    await parts.lists.wait()
    volume = await backend.get(volume_id.key)
    (published, unknown), condition = await asyncio.gather(published_nodes(parts), backend.health(volume_id.key))
    if not condition.abnormal:
        of_dpus = _condition(volume, published.get(str(volume_id), []))
        condition = of_dpus if of_dpus.abnormal else condition
    return csi_pb2.ControllerGetVolumeResponse(
        volume=as_message(backend, volume),
        status=csi_pb2.ControllerGetVolumeResponse.VolumeStatus(
            published_node_ids=_nodes(parts, volume, str(volume_id), published, unknown),
            volume_condition=csi_pb2.VolumeCondition(abnormal=condition.abnormal, message=condition.message),
        ),
    )


async def published_nodes(parts: Parts) -> tuple[Published, list[Dpu]]:
    """Hosts with their attachments by volume id as the DPUs themselves say it, and the DPUs that do not answer."""
    dpus = list(parts.directory.dpus())
    answers = await asyncio.gather(*(parts.dpus.attachments(dpu) for dpu in dpus), return_exceptions=True)
    published: Published = {}
    unknown: list[Dpu] = []
    for dpu, answer in zip(dpus, answers, strict=True):
        if isinstance(answer, CsiError):
            _log.warning("%s; its volumes are taken from the targets' access lists", answer)
            unknown.append(dpu)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            for attachment in answer:
                published.setdefault(attachment.volume_id, []).append((dpu.host, attachment))
    return published, unknown


def _condition(volume: Volume, attached: list[tuple[str, attacher_pb2.Attachment]]) -> Condition:
    if not volume.exported:
        return Condition(abnormal=True, message="the storage does not offer the volume at present")
    for host, attachment in attached:
        if attachment.state in _ABNORMAL:
            return Condition(abnormal=True, message=f"on node {host}: {attachment.reason or 'degraded'}")
    return Condition(abnormal=False, message="")


def _nodes(parts: Parts, volume: Volume, volume_id: str, published: Published, unknown: list[Dpu]) -> list[str]:
    """A DPU that is silent, like a host that connects by itself, is taken to have what the target lets it have: the
    side-car would detach it otherwise."""
    silent = {dpu.host for dpu in unknown if dpu.announcement.host_nqn in volume.hosts}
    plain = {node for node in map(identity.node_of_host_nqn, volume.hosts) if node in parts.directory.plain_hosts()}
    return sorted({host for host, _ in published.get(volume_id, [])} | silent | plain)
