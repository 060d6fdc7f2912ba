"""Snapshots, single and in groups."""

import asyncio
from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from csi import identity
from csi.controller.create_volume import MAX_NAME_BYTES
from csi.controller.paging import page
from csi.controller.parts import Parts
from csi.errors import FailedPrecondition, InvalidArgument, NotFound
from csi.framework.backend import Backend, Snapshot
from dpu_offload_stubs.csi import csi_pb2


async def create(parts: Parts, request: csi_pb2.CreateSnapshotRequest) -> csi_pb2.CreateSnapshotResponse:
    check_name(request.name)
    _refuse_parameters(request.parameters)
    backend, volume_id = parts.volume(request.source_volume_id, field="source_volume_id")
    if not backend.capabilities.snapshots:
        raise InvalidArgument(f"backend {backend.name} takes no snapshots")
    snapshot = await backend.snapshot(identity.hashed(request.name), volume_id.key)
    return csi_pb2.CreateSnapshotResponse(snapshot=as_message(backend, snapshot))


async def delete(parts: Parts, request: csi_pb2.DeleteSnapshotRequest) -> csi_pb2.DeleteSnapshotResponse:
    try:
        backend, snapshot_id = parts.volume(request.snapshot_id, field="snapshot_id")
    except NotFound:
        return csi_pb2.DeleteSnapshotResponse()
    await backend.delete_snapshot(snapshot_id.key)
    return csi_pb2.DeleteSnapshotResponse()


async def get(parts: Parts, request: csi_pb2.GetSnapshotRequest) -> csi_pb2.GetSnapshotResponse:
    backend, snapshot_id = parts.volume(request.snapshot_id, field="snapshot_id")
    for snapshot in await backend.snapshots():
        if snapshot.key == snapshot_id.key:
            return csi_pb2.GetSnapshotResponse(snapshot=as_message(backend, snapshot))
    raise NotFound(f"snapshot {snapshot_id} does not exist")


async def list_snapshots(parts: Parts, request: csi_pb2.ListSnapshotsRequest) -> csi_pb2.ListSnapshotsResponse:
    """An unknown snapshot or source gives an empty list."""
    page([], str, token=request.starting_token, limit=request.max_entries)
    messages = [
        message
        for message in await _all(parts, of=request.snapshot_id or request.source_volume_id)
        if request.snapshot_id in ("", message.snapshot_id)
        and request.source_volume_id in ("", message.source_volume_id)
    ]
    shown, token = page(
        messages, lambda message: message.snapshot_id, token=request.starting_token, limit=request.max_entries
    )
    answer = csi_pb2.ListSnapshotsResponse(next_token=token)
    for message in shown:
        answer.entries.add(snapshot=message)
    return answer


async def create_group(
    parts: Parts, request: csi_pb2.CreateVolumeGroupSnapshotRequest
) -> csi_pb2.CreateVolumeGroupSnapshotResponse:
    """All snapshots at one instant, or none."""
    check_name(request.name)
    _refuse_parameters(request.parameters)
    if not request.source_volume_ids:
        raise InvalidArgument("source_volume_ids is missing")
    sources = [parts.volume(volume_id, field="source_volume_ids") for volume_id in request.source_volume_ids]
    backend = sources[0][0]
    if any(other.name != backend.name for other, _ in sources):
        raise InvalidArgument("source_volume_ids are of several backends: a group is taken within one")
    if not backend.capabilities.group_snapshots:
        raise InvalidArgument(
            f"backend {backend.name} cannot snapshot several volumes at one instant, so it takes no group snapshots"
        )
    token = identity.hashed(request.name)
    snapshots = await backend.snapshot_group(token, sorted({volume_id.key for _, volume_id in sources}))
    return csi_pb2.CreateVolumeGroupSnapshotResponse(group_snapshot=_group(backend, f"g{token}", snapshots))


async def delete_group(
    parts: Parts, request: csi_pb2.DeleteVolumeGroupSnapshotRequest
) -> csi_pb2.DeleteVolumeGroupSnapshotResponse:
    try:
        backend, group_id = parts.volume(request.group_snapshot_id, field="group_snapshot_id")
    except NotFound:
        return csi_pb2.DeleteVolumeGroupSnapshotResponse()
    members = await _members(backend, group_id.key)
    _check_members(backend, members, request.snapshot_ids, group=request.group_snapshot_id)
    await backend.delete_group(group_id.key)
    return csi_pb2.DeleteVolumeGroupSnapshotResponse()


async def get_group(
    parts: Parts, request: csi_pb2.GetVolumeGroupSnapshotRequest
) -> csi_pb2.GetVolumeGroupSnapshotResponse:
    backend, group_id = parts.volume(request.group_snapshot_id, field="group_snapshot_id")
    members = await _members(backend, group_id.key)
    if not members:
        raise NotFound(f"group snapshot {group_id} does not exist")
    _check_members(backend, members, request.snapshot_ids, group=request.group_snapshot_id)
    return csi_pb2.GetVolumeGroupSnapshotResponse(group_snapshot=_group(backend, group_id.key, members))


def as_message(backend: Backend[Any], snapshot: Snapshot) -> csi_pb2.Snapshot:
    return csi_pb2.Snapshot(
        snapshot_id=str(identity.VolumeId(backend.name, snapshot.key)),
        source_volume_id=str(identity.VolumeId(backend.name, snapshot.source_key)),
        size_bytes=snapshot.size,
        creation_time=Timestamp(seconds=snapshot.created),
        ready_to_use=snapshot.ready,
        group_snapshot_id=str(identity.VolumeId(backend.name, snapshot.group)) if snapshot.group else "",
    )


def check_name(name: str) -> None:
    if not name:
        raise InvalidArgument("name is missing")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidArgument(f"name is longer than {MAX_NAME_BYTES} bytes")


def _refuse_parameters(given: Any) -> None:
    unknown = sorted(key for key in given if not key.startswith("csi.storage.k8s.io/"))
    if unknown:
        raise InvalidArgument(f"VolumeSnapshotClass parameter {unknown[0][:80]!r} is unknown; there are none")


async def _all(parts: Parts, *, of: str) -> list[csi_pb2.Snapshot]:
    """Of every backend; with the id of a snapshot or volume only of its own, whatever the others do."""
    backends = [
        backend
        for backend in parts.registry.backends.values()
        if backend.capabilities.snapshots and (not of or of.startswith(f"{backend.name}:"))
    ]
    lists = await asyncio.gather(*(backend.snapshots() for backend in backends))
    return [as_message(backend, each) for backend, found in zip(backends, lists, strict=True) for each in found]


async def _members(backend: Backend[Any], group: str) -> list[Snapshot]:
    return [snapshot for snapshot in await backend.snapshots() if snapshot.group == group]


def _check_members(backend: Backend[Any], members: Sequence[Snapshot], given: Sequence[str], *, group: str) -> None:
    """A list that the caller gives must be ours: the specification's way to notice that both sides drifted apart."""
    known = {str(identity.VolumeId(backend.name, snapshot.key)) for snapshot in members}
    if not members or not given:
        return
    if strangers := sorted(set(given) - known):
        raise FailedPrecondition(f"snapshot {strangers[0]} is not in group snapshot {group}")
    if unnamed := sorted(known - set(given)):
        raise FailedPrecondition(f"group snapshot {group} has {unnamed[0]} as well, which snapshot_ids does not name")


def _group(backend: Backend[Any], key: str, snapshots: Sequence[Snapshot]) -> csi_pb2.VolumeGroupSnapshot:
    return csi_pb2.VolumeGroupSnapshot(
        group_snapshot_id=str(identity.VolumeId(backend.name, key)),
        snapshots=[as_message(backend, snapshot) for snapshot in snapshots],
        creation_time=Timestamp(seconds=max(snapshot.created for snapshot in snapshots)),
        ready_to_use=all(snapshot.ready for snapshot in snapshots),
    )
