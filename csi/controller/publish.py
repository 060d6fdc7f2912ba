"""ControllerPublishVolume, with its reverse: the target's access list first, the DPU second, the host never.

Unpublish fences: once the target has cut the DPU off, nothing on that host can write any more, whether the host or
the DPU lives or not. So a DPU that does not answer cannot hold unpublish up; it lets go when it sees that the
VolumeAttachment is gone, and must have let go before it is let in again.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from csi import capabilities, identity
from csi.controller import secrets, volume_context
from csi.controller.directory import Dpu
from csi.controller.parts import Parts
from csi.controller.uses import conflict, use_of
from csi.errors import (
    AlreadyExists,
    CsiError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from csi.framework.backend import Backend, HostKeys, Portal, Volume
from csi.publication import PublishContext
from dpu_offload_stubs.attacher.v1 import attacher_pb2
from dpu_offload_stubs.csi import csi_pb2
from foundation.daemon import metrics

_log = logging.getLogger(__name__)
_STEPS = metrics.steps("csi_publish_seconds", "Time of each step of publish and unpublish.")

_POLICIES: Final[Mapping[str, attacher_pb2.FunctionPolicy.ValueType]] = {
    "default": attacher_pb2.FUNCTION_POLICY_UNSPECIFIED,
    "hotplug": attacher_pb2.FUNCTION_POLICY_HOTPLUG,
    "static": attacher_pb2.FUNCTION_POLICY_STATIC,
    "shared": attacher_pb2.FUNCTION_POLICY_SHARED_CONTROLLER,
}
_TRANSPORTS: Final[Mapping[str, attacher_pb2.Transport.ValueType]] = {
    "tcp": attacher_pb2.TRANSPORT_TCP,
    "rdma": attacher_pb2.TRANSPORT_RDMA,
}


async def publish(
    parts: Parts, request: csi_pb2.ControllerPublishVolumeRequest
) -> csi_pb2.ControllerPublishVolumeResponse:
    secrets.hide(request.secrets)
    # Missing words first, then what they name: the order that the specification's own tests expect.
    for field in ("volume_id", "node_id"):
        if not getattr(request, field):
            raise InvalidArgument(f"{field} is missing")
    capability = capabilities.check_one(request)
    backend, volume_id = parts.volume(request.volume_id)
    context = volume_context.parse(request.volume_context)
    reason = volume_context.refusal(capability, context)
    if request.readonly and context.passthrough:
        reason = "a machine that has the PCI function itself cannot be kept from writing: publish it for writing"
    if reason:
        raise InvalidArgument(f"volume {volume_id}: {reason}")
    keys = secrets.host_keys(
        request.secrets,
        authentication=context.authentication,
        encryption_in_transit=context.encryption_in_transit,
    )
    encryption = secrets.encryption_keys(request.secrets) if context.encryption else None
    await parts.lists.wait()
    if context.transport == "kernel":
        return await _publish_to_kernel(parts, backend, volume_id, request)
    dpu = await _dpu(parts, backend, volume_id.key, request.node_id)
    host_nqn = dpu.announcement.host_nqn
    await _emptied(parts, backend, volume_id, dpu, shared=capabilities.shared(capability))
    volume = await _grant(parts, backend, volume_id, host_nqn, request, keys)
    attach = attacher_pb2.AttachRequest(
        volume_id=str(volume_id),
        remote=attacher_pb2.RemoteVolume(
            subsystem_nqn=identity.subsystem_nqn(volume_id),
            paths=_paths(volume.secure_portals if keys.tls_psk else volume.portals, dpu),
            namespace_uuid=identity.namespace_uuid(volume_id),
            size_bytes=volume.size,
        ),
        function_policy=_POLICIES.get(context.function_policy, attacher_pb2.FUNCTION_POLICY_UNSPECIFIED),
        read_only=request.readonly or capabilities.read_only(capability),
    )
    if keys:
        attach.credentials.CopyFrom(_credentials(keys))
    if encryption is not None:
        attach.encryption.CopyFrom(attacher_pb2.Encryption(key=encryption.key, tweak_key=encryption.tweak_key))
    try:
        with metrics.step_timer(_STEPS, step="attach"):
            attachment = await parts.dpus.attach(dpu, attach)
    except (InvalidArgument, FailedPrecondition, NotFound, ResourceExhausted):
        # Nothing is attached there, so nothing may keep the volume from another node.
        if host_nqn not in volume.hosts:
            await _revoke(parts, backend, volume_id, host_nqn)
        raise
    except AlreadyExists as error:
        raise AlreadyExists(
            f"volume {volume_id} is published to node {request.node_id} in another way: {error}"
        ) from error
    return csi_pb2.ControllerPublishVolumeResponse(
        publish_context=_context(
            dpu,
            volume_id,
            volume.size,
            attachment,
            passthrough=context.passthrough,
            access=use_of(capability, readonly=request.readonly),
        ).as_text()
    )


async def _publish_to_kernel(
    parts: Parts,
    backend: Backend[Any],
    volume_id: identity.VolumeId,
    request: csi_pb2.ControllerPublishVolumeRequest,
) -> csi_pb2.ControllerPublishVolumeResponse:
    """A plain host connects by itself; the target's access list is all there is to do here."""
    node = request.node_id
    if not parts.directory.knows(node):
        raise NotFound(f"node {node!r} does not exist")
    if parts.directory.of_host(node):
        raise FailedPrecondition(
            f"volume {volume_id} is for hosts without a DPU (StorageClass parameter transport=kernel), {node} has one"
        )
    host_nqn = identity.host_nqn(node)
    volume = await _grant(parts, backend, volume_id, host_nqn, request, HostKeys())
    context = PublishContext(
        namespace_uuid=identity.namespace_uuid(volume_id),
        subsystem_nqn=identity.subsystem_nqn(volume_id),
        size_bytes=volume.size,
        portals=msgspec.json.encode(volume.portals).decode(),
        host_nqn=host_nqn,
        access=use_of(request.volume_capability, readonly=request.readonly),
    )
    return csi_pb2.ControllerPublishVolumeResponse(publish_context=context.as_text())


async def _emptied(
    parts: Parts, backend: Backend[Any], volume_id: identity.VolumeId, dpu: Dpu, *, shared: bool
) -> None:
    """Has the DPU let go of what it may have kept since it was cut off, unless it is in already. Raises Unavailable."""
    host_nqn = dpu.announcement.host_nqn
    if not parts.fences.suspect(volume_id, host_nqn):
        return
    with metrics.step_timer(_STEPS, step="empty"):
        hosts = (await backend.get(volume_id.key)).hosts
        if host_nqn in hosts or (hosts and not shared):
            return
        try:
            await parts.dpus.detach(dpu, str(volume_id))
        except CsiError as error:
            raise Unavailable(
                f"volume {volume_id}: DPU {dpu.node} has to let go of what it may have kept of an earlier time, before "
                f"its target lets it in: {error}"
            ) from error


async def _grant(
    parts: Parts,
    backend: Backend[Any],
    volume_id: identity.VolumeId,
    host_nqn: str,
    request: csi_pb2.ControllerPublishVolumeRequest,
    keys: HostKeys,
) -> Volume:
    """Lets the host in, unless another has the volume in a way that this one would break, or be broken by."""
    use = use_of(request.volume_capability, readonly=request.readonly)
    shared = capabilities.shared(request.volume_capability)
    with metrics.step_timer(_STEPS, step="grant"):
        if shared:
            others = set((await backend.get(volume_id.key)).hosts) - {host_nqn}
            if reason := conflict(use, others, parts.uses.of(volume_id)):
                raise FailedPrecondition(f"volume {volume_id}: {reason}; unpublish it there first")
        parts.fences.lift(volume_id, host_nqn)
        volume: Volume = await backend.grant(volume_id.key, host_nqn, keys=keys, shared=shared)
    if host_nqn in volume.hosts and (before := parts.uses.of(volume_id).get(host_nqn, use)) != use:
        raise AlreadyExists(f"volume {volume_id} is published to node {request.node_id} as {before}, not as {use}")
    parts.uses.note(volume_id, host_nqn, use)
    return volume


async def _revoke(parts: Parts, backend: Backend[Any], volume_id: identity.VolumeId, host_nqn: str) -> None:
    parts.fences.cut(volume_id, host_nqn)
    await backend.revoke(volume_id.key, host_nqn)
    parts.uses.forget(volume_id, host_nqn)


async def unpublish(
    parts: Parts, request: csi_pb2.ControllerUnpublishVolumeRequest
) -> csi_pb2.ControllerUnpublishVolumeResponse:
    """An empty node_id means all nodes. Succeeds for a volume or node that is not known any more."""
    if not request.volume_id:
        raise InvalidArgument("volume_id is missing")
    try:
        backend, volume_id = parts.volume(request.volume_id)
    except NotFound:
        return csi_pb2.ControllerUnpublishVolumeResponse()
    await parts.lists.wait()
    all_dpus = list(parts.directory.dpus())
    dpus = [dpu for dpu in all_dpus if not request.node_id or dpu.host == request.node_id]
    cut_off = {dpu.announcement.host_nqn for dpu in dpus}
    # Its Node may be gone, or its DPU another one by now; unless that DPU sits in another host.
    others = {dpu.announcement.host_nqn for dpu in all_dpus} - cut_off
    cut_off |= set(parts.named(volume_id, request.node_id)) - others
    if request.node_id and not dpus and identity.is_node_name(request.node_id):
        cut_off |= {identity.host_nqn(request.node_id)} - others
    if not request.node_id or not dpus:
        cut_off |= await _orphans(parts, backend, volume_id.key, all_dpus, everything=not request.node_id)
    with metrics.step_timer(_STEPS, step="fence"):
        await asyncio.gather(*(_revoke(parts, backend, volume_id, nqn) for nqn in sorted(cut_off)))
    with metrics.step_timer(_STEPS, step="detach"):
        await asyncio.gather(*(_let_go(parts, dpu, volume_id) for dpu in dpus))
    return csi_pb2.ControllerUnpublishVolumeResponse()


async def _dpu(parts: Parts, backend: Backend[Any], key: str, host: str) -> Dpu:
    """Of several DPUs of a host, the one that has the volume already."""
    if len(parts.directory.of_host(host)) < 2:
        return parts.directory.choose(host)
    return parts.directory.choose(host, holding=frozenset((await backend.get(key)).hosts))


async def _let_go(parts: Parts, dpu: Dpu, volume_id: identity.VolumeId) -> None:
    try:
        await parts.dpus.detach(dpu, str(volume_id))
    except CsiError as error:
        _log.warning("%s; it is cut off at the target and will let go when it is back", error)
    else:
        parts.fences.let_go(volume_id, dpu.announcement.host_nqn)


async def _orphans(parts: Parts, backend: Backend[Any], key: str, dpus: Sequence[Dpu], *, everything: bool) -> set[str]:
    """Hosts let in which no living DPU answers for: their Node is gone, so nobody will ask for them by name again."""
    try:
        hosts = set((await backend.get(key)).hosts)
    except NotFound:
        return set()
    if everything:
        return hosts
    known = {dpu.announcement.host_nqn for dpu in dpus}
    lost = set()
    for host in hosts - known:
        node = identity.node_of_host_nqn(host)
        if node is not None and not parts.directory.knows(node):
            lost.add(host)
    return lost


def _paths(portals: Sequence[Portal], dpu: Dpu) -> list[attacher_pb2.Path]:
    usable = [portal for portal in portals if portal.transport in dpu.announcement.transports]
    if not usable:
        raise FailedPrecondition(
            f"DPU {dpu.node} speaks {', '.join(dpu.announcement.transports)}, the volume's target only "
            f"{', '.join(sorted({portal.transport for portal in portals}))}"
        )
    return [
        attacher_pb2.Path(transport=_TRANSPORTS[portal.transport], address=portal.address, port=portal.port)
        for portal in usable
    ]


def _credentials(keys: HostKeys) -> attacher_pb2.Credentials:
    return attacher_pb2.Credentials(
        dhchap_key=keys.dhchap_key, dhchap_ctrlr_key=keys.dhchap_ctrlr_key, tls_psk=keys.tls_psk
    )


def _context(
    dpu: Dpu,
    volume_id: identity.VolumeId,
    size: int,
    attachment: attacher_pb2.Attachment,
    *,
    passthrough: bool,
    access: str,
) -> PublishContext:
    function = attachment.function
    return PublishContext(
        dpu_node=dpu.node,
        vuid=function.vuid,
        port=function.port,
        pf=function.physical_function,
        vf=function.virtual_function,
        pci_address=function.pci_address,
        namespace_uuid=attachment.namespace_uuid or identity.namespace_uuid(volume_id),
        nsid=attachment.nsid or identity.REMOTE_NSID,
        subsystem_nqn=attachment.subsystem_nqn,
        host_nqn=dpu.announcement.host_nqn,
        size_bytes=attachment.size_bytes or size,
        passthrough=passthrough,
        access=access,
    )
